"""Compute We-Math's four-way metrics for composite problems."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmprm.evaluation.benchmarks import Item
from mmprm.types import Verdict


@dataclass(frozen=True, slots=True)
class FourWay:
    """Holds We-Math's metrics as fractions of the composite problems whose parts all have a known verdict.

    - insufficient knowledge: the composite problem and at least one part are incorrect;
    - inadequate generalization: all parts are correct, but the composite problem is not;
    - rote memorization: the composite problem is correct, but at least one part (strict) or every part (loose) is not;
    - mastery: the composite problem is correct in all other cases.

    The score is mastery + (inadequate generalization) / 2.
    """

    problems: int
    unknown: int
    insufficient: float
    inadequate: float
    mastery: dict[str, float]
    rote: dict[str, float]
    score: dict[str, float]


def four_way(items: Iterable[Item], verdicts: Sequence[Verdict]) -> FourWay:
    """Compute We-Math's metrics over families with a composite problem (part "multi") and at least one other part.

    Source: We-Math, section on four-dimensional metrics.
    """
    families: dict[str, dict[str, Verdict]] = {}
    for item, verdict in zip(items, verdicts, strict=True):
        families.setdefault(item.family, {})[item.part] = verdict
    composite = [parts for parts in families.values() if "multi" in parts and len(parts) > 1]
    known = [parts for parts in composite if Verdict.UNKNOWN not in parts.values()]

    def share(chosen: Iterable[bool]) -> float:
        return sum(chosen) / max(1, len(known))

    def correctness(parts: dict[str, Verdict]) -> tuple[bool, list[bool]]:
        steps = [verdict is Verdict.CORRECT for part, verdict in parts.items() if part != "multi"]
        return parts["multi"] is Verdict.CORRECT, steps

    pairs = [correctness(parts) for parts in known]
    inadequate = share(not correct and all(steps) for correct, steps in pairs)
    mastery, rote = {}, {}
    # When parts count as mastered: in the strict version if all of them are correct, in the loose one if any is.
    for name, mastered in {"strict": all, "loose": any}.items():
        mastery[name] = share(correct and mastered(steps) for correct, steps in pairs)
        rote[name] = share(correct and not mastered(steps) for correct, steps in pairs)
    return FourWay(
        problems=len(known),
        unknown=len(composite) - len(known),
        insufficient=share(not correct and not all(steps) for correct, steps in pairs),
        inadequate=inadequate,
        mastery=mastery,
        rote=rote,
        score={name: value + inadequate / 2 for name, value in mastery.items()},
    )
