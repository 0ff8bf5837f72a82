"""Best-of-N measured again, from candidates that `mmprm rerank` left: every selector with every aggregator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mmprm.errors import DataError
from mmprm.scoring.aggregate import aggregator
from mmprm.selection.accuracy import AccuracyAtN, accuracy_at_n
from mmprm.selection.groups import Candidate, Group, common_size
from mmprm.types import Problem, StepScores, Verdict

OWN = ("prm", "weighted")
"""Selectors that depend on the aggregator."""


@dataclass(frozen=True, slots=True)
class BestOfN:
    """Accuracy against N by aggregator; `best` is the one of highest best-of-N accuracy at the largest N."""

    problems: int
    samples: int
    accuracy: dict[str, list[AccuracyAtN]]
    best: str


def read_groups(rows: Iterable[tuple[str, dict[str, Any]]]) -> list[Group]:
    """Groups from pairs (place for error messages, line of candidates.jsonl), in the order of the problems."""
    found: dict[str, list[Candidate]] = {}
    for place, row in rows:
        try:
            scores = row["scores"]
            candidate = Candidate(
                response=row["response"],
                steps=tuple(row["steps"]),
                answer=row["answer"],
                verdict=Verdict[row["verdict"].upper()],
                token_count=row.get("tokens", 0),
                unsplit=row["unsplit"],
                scores=None if scores is None else StepScores(tuple(scores)),
            )
            found.setdefault(row["problem_id"], []).append(candidate)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{place}: is no line of candidates.jsonl, as mmprm rerank writes it: {type(error).__name__}: {error}"
            ) from error
    if not found:
        raise DataError("the files hold no candidate")
    return [
        Group(Problem(problem_id, question="", answer=""), tuple(candidates))
        for problem_id, candidates in found.items()
    ]


def evaluate_best_of_n(groups: Sequence[Group], aggregators: Sequence[str], seed: int = 0) -> BestOfN:
    """All selectors, for N = 1, 2, 4, … and the number of samples; problems must have the same number."""
    most = common_size(groups)
    sizes = sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | {most})
    for name in aggregators:
        aggregator(name)
    accuracy = {name: accuracy_at_n(groups, name, sizes, seed) for name in aggregators}
    best = max(accuracy, key=lambda name: accuracy[name][-1].accuracy["prm"].value)
    return BestOfN(len(groups), most, accuracy, best)
