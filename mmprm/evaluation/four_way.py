"""Compute We-Math's four-way metrics for composite problems."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mmprm.evaluation.entries import Item

MASTERED = {"strict": all, "loose": any}
"""Maps each scoring variant to its condition for mastery: all parts of a problem are correct, or any part is."""


def four_way(items: Iterable[Item], correct: Sequence[bool]) -> dict[str, float]:
    """Compute We-Math's metrics over families with a composite problem (part "multi") and at least one other part.

    - insufficient knowledge: the composite problem and at least one part are incorrect;
    - inadequate generalization: all parts are correct, but the composite problem is not;
    - complete mastery: the composite problem is correct, and every part (strict) or any part (loose) is;
    - rote memorization: the composite problem is correct in all other cases.

    All are fractions of the composite problems, except rote memorization, which is a fraction of those that are solved.
    The score is complete mastery + (inadequate generalization) / 2.

    Source: We-Math, four_dimensional_metrics.py.
    """
    families: dict[str, dict[str, bool]] = {}
    for item, solved in zip(items, correct, strict=True):
        families.setdefault(item.family, {})[item.part] = solved
    composite = [parts for parts in families.values() if "multi" in parts and len(parts) > 1]
    if not composite:
        return {}
    pairs = [(parts["multi"], [solved for part, solved in parts.items() if part != "multi"]) for parts in composite]
    solved = [steps for whole, steps in pairs if whole]
    unsolved = [steps for whole, steps in pairs if not whole]
    inadequate = sum(map(all, unsolved)) / len(pairs)
    found = {"insufficient knowledge": len(unsolved) / len(pairs) - inadequate, "inadequate generalization": inadequate}
    for name, mastered in MASTERED.items():
        mastery = sum(map(mastered, solved))
        found[f"complete mastery, {name}"] = mastery / len(pairs)
        found[f"rote memorization, {name}"] = (len(solved) - mastery) / len(solved) if solved else 0.0
        found[f"score, {name}"] = mastery / len(pairs) + inadequate / 2
    return found
