"""Run `mmprm eval policy`: sample the missing responses, and report the accuracy over all responses."""

from __future__ import annotations

import hashlib
import itertools
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from mmprm import actors
from mmprm.cli.shared.jsonl import write_rows
from mmprm.cli.shared.policy import check_config, policy_folder, with_engine_dtype
from mmprm.config import differing_keys, with_current_names
from mmprm.data.rows import read_file
from mmprm.errors import DataError
from mmprm.evaluation.benchmarks import BENCHMARKS, read_items, with_distinct_ids
from mmprm.evaluation.entries import Item
from mmprm.evaluation.extractor import AnswerExtractor
from mmprm.evaluation.policy import Answered, Graders, ask
from mmprm.evaluation.policy_config import PolicyEvalConfig
from mmprm.evaluation.policy_scores import PolicyScores, lines, scored
from mmprm.grading.calibration import check_judge
from mmprm.grading.golds import check_golds
from mmprm.grading.open import open_grader
from mmprm.preflight import check_output
from mmprm.problems import ProblemsConfig, content_id, load_problems
from mmprm.sampling.open import open_sampler
from mmprm.types import Completion, Problem

SAVE_SECONDS = 30
"""Interval between saves, in seconds; responses since the last save are lost if the machine fails."""


def evaluate_policy(kind: str, files: Sequence[Path], config: PolicyEvalConfig) -> PolicyScores:
    """Sample and grade the policy's responses to a benchmark, and return its scores."""
    config = with_engine_dtype(config)
    check_judge(config.grader.judge)
    read = [_read(file, config) for file in files]
    items = [item for part, _ in read for item in part]
    left_out = sum(count for _, count in read)
    if config.benchmark in BENCHMARKS and BENCHMARKS[config.benchmark].repeats:
        items = with_distinct_ids(items)
    twice = [name for name, count in Counter(item.problem.id for item in items).items() if count > 1]
    if twice:
        names = ", ".join(map(str, files))
        raise DataError(
            f"{names}: id {twice[0]!r} occurs in several of these files; evaluate each file separately, with its own "
            "output"
        )
    responses = Responses(
        Path(config.output) / f"responses-{config.benchmark}.jsonl", _asked_with(config), items, config.samples
    )
    check_output(config.output, "output")
    check_golds([item.problem for item in items], config.grader, ", ".join(map(str, files)))
    if responses.missing:
        check_config(config, [item.problem for item in items], config.samples, "samples")
    try:
        answered, failed = actors.run(_asked(items, responses, config))
    finally:
        responses.save()
    if len(failed) == len(items):
        problem_id, reason = next(iter(failed.items()))
        raise DataError(
            f"{', '.join(map(str, files))}: no question could be answered (first failure: {problem_id}: "
            f"{reason}); check the engine and the questions"
        )
    responses.save(lines(answered))
    return scored(answered, failed, left_out, config)


def _read(file: Path, config: PolicyEvalConfig) -> tuple[list[Item], int]:
    """Read the questions of a file, and count the rows that do not belong to the benchmark."""
    shared = config.model_dump(include={"subset", "image_root", "limit", "video_frames"})
    if config.benchmark == "problems":
        split = {"split": config.split} if config.split else {}
        problems = load_problems(ProblemsConfig(path=str(file), columns=config.columns, **split, **shared))
        return [Item(problem, family=problem.id) for problem in problems], 0
    # For a folder or hub data set, the split defaults to the one that the benchmark reports.
    split = config.split if config.split or file.is_file() else BENCHMARKS[config.benchmark].split
    return read_items(config.benchmark, ProblemsConfig(path=str(file), split=split, **shared))


async def _asked(
    items: Sequence[Item], responses: Responses, config: PolicyEvalConfig
) -> tuple[list[Answered], dict[str, str]]:
    folder = policy_folder(config.engine)
    engine = config.engine if folder is None else config.engine.model_copy(update={"model": folder})
    async with AsyncExitStack() as stack:
        alone = config.grader.model_copy(update={"judge": None})
        symbolic = await stack.enter_async_context(open_grader(alone))
        judged = await stack.enter_async_context(open_grader(config.grader)) if config.grader.judge else None
        extractor = await stack.enter_async_context(AnswerExtractor(config.extractor)) if config.extractor else None
        sampler = None
        if responses.missing:
            if engine.servers is None:
                actors.connect(config.ray_address)
            limit = config.start_timeout_seconds
            opened = open_sampler(engine, config.sampling, config.prompt, config.workers, limit)
            sampler = await stack.enter_async_context(opened)
        return await ask(items, sampler, Graders(symbolic, extractor, judged), config, responses)


class Responses:
    """Manages the response file for `items`, saving responses as they arrive.

    A stored response is reused if the same policy gave it to the same question.
    """

    def __init__(self, path: Path, asked_with: Mapping[str, Any], items: Sequence[Item], samples: int = 1) -> None:
        self._path, self._head, self._samples = path, {"asked_with": asked_with}, samples
        problems = [item.problem for item in items]
        self._contents = {p.id: content_id(p.question, p.answer, p.media, p.choices) for p in problems}
        self._rows: dict[str, list[dict[str, Any]]] = {}
        for row in _stored(path, asked_with):
            self._rows.setdefault(row["id"], []).append(row)
        wanted = len(items) * samples
        if there := wanted - self.missing:
            print(f"{path}: {there:,} of {wanted:,} responses are stored already", file=sys.stderr)
        self._saved, self._changed = time.monotonic(), False

    @property
    def missing(self) -> int:
        """Return the number of responses still to be sampled."""
        return sum(max(0, self._samples - len(self._usable(problem_id))) for problem_id in self._contents)

    def get(self, problem: Problem) -> tuple[Completion, ...]:
        """Return the stored responses to a problem, in sampling order."""
        rows = self._usable(problem.id)
        return tuple(Completion(row["response"], row["tokens"], row["finish_reason"]) for row in rows)

    def add(self, problem: Problem, completions: Sequence[Completion]) -> None:
        """Add new responses to a problem, and save the file periodically."""
        self._changed = True
        rows = self._usable(problem.id)
        content = self._contents[problem.id]
        for number, completion in enumerate(completions, start=len(rows)):
            stored = {"response": completion.text, "tokens": completion.token_count}
            stored["finish_reason"] = completion.finish_reason
            rows.append({"id": problem.id, "sample": number, "content": content, **stored})
        self._rows[problem.id] = rows
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()
            wanted = len(self._contents) * self._samples
            print(f"{wanted - self.missing:,} of {wanted:,} responses", file=sys.stderr)

    def save(self, graded: Iterable[Mapping[str, Any]] = ()) -> None:
        """Merge the verdicts in `graded` into the rows, and write all rows."""
        for row in graded:
            self._rows[row["id"]][row["sample"]] |= row
            self._changed = True
        if self._changed:
            first = [row for name in self._contents for row in self._rows.get(name, ())]
            others = [row for name, rows in self._rows.items() if name not in self._contents for row in rows]
            write_rows(self._path, [self._head, *first, *others])
        self._saved, self._changed = time.monotonic(), False

    def _usable(self, problem_id: str) -> list[dict[str, Any]]:
        """Return the stored rows for exactly this question, up to the first response that was aborted."""
        content = self._contents[problem_id]
        rows = self._rows.get(problem_id, [])

        def is_usable(row: dict[str, Any]) -> bool:
            return row["content"] == content and row["finish_reason"] != "abort"

        # A response's seed derives from its number, so responses after a gap cannot be reused.
        return list(itertools.takewhile(is_usable, rows))


def _stored(path: Path, asked_with: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """Read the stored rows, or return an empty list if the file is missing or was written with other settings."""
    if not path.exists():
        return []
    (_, head), *rows = [*read_file(path)] or [("", {})]
    differing = differing_keys(with_current_names(head.get("asked_with", {})), dict(asked_with))
    if differing:
        shown = ", ".join(f"{key} ({values})" for key, values in differing.items())
        print(f"{path}: was written with other settings and will be replaced: {shown}", file=sys.stderr)
        return []
    return [row for _, row in rows]


def _asked_with(config: PolicyEvalConfig) -> dict[str, Any]:
    """Return the settings that must match for a stored response to be reused."""
    engine = {"model": True, "dtype": True, "max_model_len": True, "max_pixels": True, "min_pixels": True}
    engine["servers"] = {"urls"}
    keys = {"engine": engine, **dict.fromkeys(("sampling", "prompt", "seed"), True)}
    files = sorted(Path(config.engine.model).glob("*.safetensors"))
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    weights = hashlib.sha256(repr(states).encode()).hexdigest()[:16] if files else None
    return config.model_dump(mode="json", include=keys) | {"weights": weights}
