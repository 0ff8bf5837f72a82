"""Write kept critiques as conversations for `mmprm sft`, refused ones with reasons, and problems for `mmprm rl`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprm.bridge.rows import user_text
from mmprm.critiques.agreement import LabelsUntilError
from mmprm.critiques.config import CritiquesConfig
from mmprm.errors import DataError
from mmprm.files import whole_file
from mmprm.problems import image_size, write_image, write_problems
from mmprm.prompts import messages
from mmprm.scoring.judge_config import ThinkingJudgeConfig
from mmprm.scoring.judge_scorer import Chain, judge_request
from mmprm.types import Problem, Solution

LabeledSolutionSteps = tuple[Solution, LabelsUntilError]


@dataclass(frozen=True, slots=True)
class LabeledCritiques:
    """Holds the critiques of a labeled solution, each with the reason why it is refused, or None if it agrees."""

    solution: Solution
    labels: LabelsUntilError
    chains: list[Chain]
    reasons: list[str | None]

    @property
    def agreeing(self) -> list[Chain]:
        """Return the critiques whose verdicts agree with the labels."""
        return [chain for chain, reason in zip(self.chains, self.reasons, strict=True) if reason is None]


@dataclass(frozen=True, slots=True)
class CritiqueCounts:
    """Counts labeled solutions, and critiques of them.

    `kept_solutions` have a kept critique. `with_error` and `kept_with_error` count the solutions that have an incorrect
    label. `refused` counts critiques by reason, and `tokens` counts those of all critiques, including cached ones.
    """

    solutions: int
    with_error: int
    critiques: int
    kept: int
    kept_solutions: int
    kept_with_error: int
    tokens: int
    refused: dict[str, int]


def count_critiques(
    solutions: Sequence[LabeledSolutionSteps], judged: Sequence[LabeledCritiques], max_per_solution: int
) -> CritiqueCounts:
    """Count what `write_critiques` keeps and refuses."""
    kept = [each for each in judged if each.agreeing]
    reasons = Counter(reason for each in judged for reason in each.reasons if reason is not None)
    return CritiqueCounts(
        solutions=len(solutions),
        with_error=sum(False in labels for _, labels in solutions),
        critiques=sum(len(each.chains) for each in judged),
        kept=sum(len(each.agreeing[:max_per_solution]) for each in kept),
        kept_solutions=len(kept),
        kept_with_error=sum(False in each.labels for each in kept),
        tokens=sum(chain.token_count for each in judged for chain in each.chains),
        refused=dict(reasons.most_common()),
    )


def write_critiques(folder: Path, judged: Sequence[LabeledCritiques], config: CritiquesConfig) -> None:
    """Write kept.jsonl and refused.jsonl, and the images of kept critiques."""
    kept = (
        _conversation(each, chain, config.teacher, folder)
        for each in judged
        for chain in each.agreeing[: config.max_per_solution]
    )
    _write_lines(folder / "kept.jsonl", kept)
    _write_lines(folder / "refused.jsonl", (row for each in judged for row in _refused(each)))


def write_judging_problems(path: Path, solutions: Sequence[LabeledSolutionSteps], judge: ThinkingJudgeConfig) -> None:
    """Write a problem per solution: its question is the request to the judge, and the labels are in extra columns.

    The answer is the number of the first incorrect step, or "none". Solutions whose text contains a special token, or
    whose image cannot be read, are left out with a note.
    """
    requests: list[Problem] = []
    left_out: list[str] = []
    columns: dict[str, dict[str, Any]] = {}
    for solution, labels in solutions:
        try:
            request = judge_request(judge, solution)
            for image in request.images:
                image_size(image)
        except DataError as error:
            left_out.append(str(error))
            continue
        answer = str(labels.index(False) + 1) if False in labels else "none"
        requests.append(Problem(request.id, request.question, answer, request.images))
        columns[request.id] = {
            "step_labels": labels,
            "verdict_format": judge.verdict_format,
            "after_error": judge.after_error,
        }
    if left_out:
        print(f"note: {path} lacks {len(left_out):,} solutions, for example: {left_out[0]}", file=sys.stderr)
    write_problems(path, requests, columns)


def _conversation(found: LabeledCritiques, chain: Chain, teacher: ThinkingJudgeConfig, folder: Path) -> dict[str, Any]:
    """Return the ShareGPT form of a critique, with the labels and the teacher, which `mmprm sft` does not read."""
    request = judge_request(teacher, found.solution)
    turns = [("human", user_text(messages(request, teacher.prompt)[-1])), ("gpt", chain.text)]
    if teacher.system:
        turns.insert(0, ("system", teacher.system))
    return {
        "id": request.id,
        "conversations": [{"from": role, "value": text} for role, text in turns],
        "images": [write_image(image, folder) for image in request.images],
        "critique": {"teacher": teacher.engine.model, "step_labels": found.labels, "tokens": chain.token_count},
    }


def _refused(found: LabeledCritiques) -> Iterator[dict[str, Any]]:
    for chain, reason in zip(found.chains, found.reasons, strict=True):
        if reason is not None:
            verdicts = None if isinstance(chain.verdicts, str) else chain.verdicts
            labels = {"step_labels": found.labels, "verdicts": verdicts}
            yield {"id": found.solution.problem.id, "reason": reason, **labels, "text": chain.text}


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with whole_file(path) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
