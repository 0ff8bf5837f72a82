"""`mmprm eval policy`: asks the policy what it has not been asked yet, and reports what all responses are worth."""

from __future__ import annotations

import hashlib
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from mmprm import actors
from mmprm.cli.jsonl import read_rows, write_rows
from mmprm.cli.policy import check_config, policy_folder
from mmprm.errors import DataError
from mmprm.evaluation.layouts import LAYOUTS, Item, read_items
from mmprm.evaluation.policy import Answered, PolicyEvalConfig, PolicyScores, ask, lines, scored
from mmprm.grading.calibration import check_judge
from mmprm.grading.open import open_grader
from mmprm.preflight import check_output
from mmprm.problems import ProblemsConfig, content_id
from mmprm.sampling.open import open_sampler
from mmprm.store import differing_keys
from mmprm.types import Completion, Problem

SAVE_SECONDS = 30
"""Responses of so long are lost when the machine fails."""


def evaluate_policy(kind: str, files: Sequence[Path], config: PolicyEvalConfig) -> PolicyScores:
    check_judge(config.grader.judge)
    shared = {"subset": config.subset, "images_root": config.images_root, "limit": config.limit}
    read = [
        read_items(config.layout, ProblemsConfig(path=str(file), split=_split(file, config), **shared))
        for file in files
    ]
    items, left_out = [item for part, _ in read for item in part], sum(count for _, count in read)
    twice = [name for name, count in Counter(item.problem.id for item in items).items() if count > 1]
    if twice:
        names = ", ".join(map(str, files))
        raise DataError(f"{names}: id {twice[0]!r} is in several of them; evaluate each by itself, with its own output")
    responses = Responses(Path(config.output) / f"responses-{config.layout}.jsonl", _asked_with(config), items)
    check_output(config.output, "output")
    if responses.missing:
        check_config(config, [item.problem for item in items], getattr(config, "samples", 1), "samples")
    try:
        answered, failed = actors.run(_asked(items, responses, config))
    finally:
        responses.save()
    if not answered:
        problem_id, reason = next(iter(failed.items()))
        raise DataError(f"{', '.join(map(str, files))}: no question could be asked; {problem_id}: {reason}")
    responses.save(lines(answered))
    return scored(answered, failed, left_out, config)


def _split(file: Path, config: PolicyEvalConfig) -> str | None:
    """The split that is asked for; of a folder or a hub data set, by default the one that is reported."""
    return config.split if config.split or file.is_file() else LAYOUTS[config.layout].split


async def _asked(
    items: Sequence[Item], responses: Responses, config: PolicyEvalConfig
) -> tuple[list[Answered], dict[str, str]]:
    folder = policy_folder(config.engine)
    engine = config.engine if folder is None else config.engine.model_copy(update={"model": folder})
    async with AsyncExitStack() as stack:
        alone = config.grader.model_copy(update={"judge": None})
        symbolic = await stack.enter_async_context(open_grader(alone))
        judged = await stack.enter_async_context(open_grader(config.grader)) if config.grader.judge else None
        sampler = None
        if responses.missing:
            if engine.servers is None:
                actors.connect(config.ray_address)
            opened = open_sampler(engine, config.sampling, config.prompt, config.workers)
            sampler = await stack.enter_async_context(opened)
        return await ask(items, sampler, symbolic, judged, config, responses)


class Responses:
    """A file of the responses to `items`, kept while they come in: those that are in it already, to the same question
    and by the same policy, are not drawn again."""

    def __init__(self, path: Path, asked_with: Mapping[str, Any], items: Sequence[Item]) -> None:
        self._path, self._head, self._rows = path, {"asked_with": asked_with}, {}
        problems = [item.problem for item in items]
        self._contents = {p.id: content_id(p.question, p.answer, p.pictures, p.choices) for p in problems}
        for row in _stored(path, asked_with):
            self._rows[row["id"]] = row
        there = len(items) - self.missing
        if there:
            print(f"{path}: {there:,} of {len(items):,} responses were drawn before", file=sys.stderr)
        self._saved, self._changed = time.monotonic(), False

    @property
    def missing(self) -> int:
        """Questions without a response."""
        return sum(self._row(problem_id) is None for problem_id in self._contents)

    def get(self, problem: Problem) -> Completion | None:
        row = self._row(problem.id)
        return None if row is None else Completion(row["response"], row["tokens"], row["finish_reason"])

    def add(self, problem: Problem, completion: Completion) -> None:
        self._changed = True
        self._rows[problem.id] = {
            "id": problem.id,
            "content": self._contents[problem.id],
            "response": completion.text,
            "tokens": completion.token_count,
            "finish_reason": completion.finish_reason,
        }
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()
            print(f"{len(self._contents) - self.missing:,} of {len(self._contents):,} responses", file=sys.stderr)

    def save(self, graded: Iterable[Mapping[str, Any]] = ()) -> None:
        """With what `graded` rows say of the responses."""
        for row in graded:
            self._rows[row["id"]] |= row
            self._changed = True
        if self._changed:
            first = [self._rows[name] for name in self._contents if name in self._rows]
            others = [row for name, row in self._rows.items() if name not in self._contents]
            write_rows(self._path, [self._head, *first, *others])
        self._saved, self._changed = time.monotonic(), False

    def _row(self, problem_id: str) -> dict[str, Any] | None:
        """Of a response to this very question, which was not broken off."""
        row = self._rows.get(problem_id)
        if row is None or row["content"] != self._contents[problem_id] or row["finish_reason"] == "abort":
            return None
        return row


def _stored(path: Path, asked_with: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """Rows of the file; none where there is no file, or one of another policy."""
    if not path.exists():
        return []
    (_, head), *rows = [*read_rows(path)] or [("", {})]
    differing = differing_keys(head.get("asked_with", {}), dict(asked_with))
    if differing:
        shown = ", ".join(f"{key} ({values})" for key, values in differing.items())
        print(f"{path}: is of other responses and will be replaced: {shown}", file=sys.stderr)
        return []
    return [row for _, row in rows]


def _asked_with(config: PolicyEvalConfig) -> dict[str, Any]:
    """What must be equal for the response to a question to be the same."""
    engine = {"model": True, "dtype": True, "max_model_len": True, "max_pixels": True, "min_pixels": True}
    engine["servers"] = {"urls"}
    keys = {"engine": engine, **dict.fromkeys(("sampling", "prompt", "seed"), True)}
    files = sorted(Path(config.engine.model).glob("*.safetensors"))
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    weights = hashlib.sha256(repr(states).encode()).hexdigest()[:16] if files else None
    return config.model_dump(mode="json", include=keys) | {"weights": weights}
