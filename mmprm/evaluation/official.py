"""Compute the aggregate scores that benchmarks publish in addition to accuracy.

An aggregate maps the questions and whether each was answered correctly to scores by name. Scores that the questions
cannot determine, such as a pair with only one question, are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from mmprm.evaluation.entries import Item
from mmprm.evaluation.four_way import four_way
from mmprm.evaluation.we_math import concept_area

AggregateScores = Callable[[Sequence[Item], Sequence[bool]], dict[str, float]]


def cv_bench(items: Sequence[Item], correct: Sequence[bool]) -> dict[str, float]:
    """Average the 2D sources, and then average 2D and 3D: (ADE20K / 2 + COCO / 2 + Omni3D) / 2.

    Source: the data set card of CV-Bench.
    """
    sources = _means(items, correct, "source")
    planar = [sources[name] for name in ("ADE20K", "COCO") if name in sources]
    found = {"2D": _mean(planar)} if len(planar) == 2 else {}
    found |= {"3D": sources["Omni3D"]} if "Omni3D" in sources else {}
    return found | ({"mean of 2D and 3D": _mean(found.values())} if len(found) == 2 else {})


def mean_by(group: str) -> AggregateScores:
    """Return a function that averages the accuracies of all values of `group`, each with the same weight.

    Sources: BLINK, eval/evaluate.py (sub-tasks); MMStar, ChartQA and MathVerse report the mean of their parts.
    """

    def aggregate(items: Sequence[Item], correct: Sequence[bool]) -> dict[str, float]:
        means = _means(items, correct, group)
        return {f"mean by {group}": _mean(means.values())} if means else {}

    return aggregate


def recalls(items: Sequence[Item], correct: Sequence[bool]) -> dict[str, float]:
    """Compute the weighted and the unweighted average recall of emotion benchmarks.

    WAR weights each label's recall by its number of clips, which is the accuracy; UAR is the mean of the recalls.
    R1-Omni and the data sets' own papers report both.
    """
    means = _means(items, correct, "emotion")
    return {"WAR": _mean(correct), "UAR": _mean(means.values())} if means else {}


def we_math(items: Sequence[Item], correct: Sequence[bool]) -> dict[str, float]:
    """Compute the four-way metrics, and the mean accuracy of each area's concepts, which all have the same weight.

    Source: We-Math, four_dimensional_metrics.py and accuracy.py.
    """
    areas: dict[str, list[float]] = {}
    for concept, accuracy in _means(items, correct, "concept").items():
        areas.setdefault(concept_area(concept), []).append(accuracy)
    return four_way(items, correct) | {f"concepts of {area}": _mean(found) for area, found in sorted(areas.items())}


MME_COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def mme(items: Sequence[Item], correct: Sequence[bool]) -> dict[str, float]:
    """Sum accuracy + accuracy+ over the categories, in percent; accuracy+ requires correct answers to both questions
    about an image.

    Source: MME's eval_tool/calculation.py, with at most 2,000 points for perception and 800 for cognition.
    """
    pairs: dict[str, dict[str, list[bool]]] = {}
    for item, solved in zip(items, correct, strict=True):
        pairs.setdefault(item.groups["category"][0], {}).setdefault(item.family, []).append(solved)
    scores = {"perception": 0.0, "cognition": 0.0}
    for category, images in pairs.items():
        whole = [solved for solved in images.values() if len(solved) == 2]
        if whole:
            score = 100 * _mean(map(_mean, whole)) + 100 * _mean(map(all, whole))
            scores["cognition" if category in MME_COGNITION else "perception"] += score
    return scores | {"total": sum(scores.values())}


def hallusionbench(items: Sequence[Item], correct: Sequence[bool]) -> dict[str, float]:
    """Compute qAcc and fAcc: the fractions of question pairs and of figures whose questions are all answered correctly.

    Visual-supplement questions without a figure do not count as a figure. Source: HallusionBench, utils.py,
    get_eval_pair_all and get_eval_fig.
    """
    questions: dict[tuple[str, str], list[bool]] = {}
    figures: dict[tuple[str, str], list[bool]] = {}
    for item, solved in zip(items, correct, strict=True):
        figure, number = item.part.split("/")
        questions.setdefault((item.family, number), []).append(solved)
        if not (item.groups["category"] == ("VS",) and figure == "0"):
            figures.setdefault((item.family, figure), []).append(solved)
    found = {"question pairs (qAcc)": questions, "figures (fAcc)": figures}
    return {name: _mean(map(all, groups.values())) for name, groups in found.items() if groups}


def dynamath(items: Sequence[Item], correct: Sequence[bool]) -> dict[str, float]:
    """Compute worst-case accuracy: the fraction of questions with all variants answered correctly.

    Source: DynaMath, section on evaluation.
    """
    variants: dict[str, list[bool]] = {}
    for item, solved in zip(items, correct, strict=True):
        variants.setdefault(item.family, []).append(solved)
    return {"worst case": _mean(map(all, variants.values()))} if variants else {}


def mean_scores(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average aggregate scores over samples; all samples must have the same score names."""
    return {name: _mean(each[name] for each in scores) for name in scores[0]} if scores else {}


def _means(items: Sequence[Item], correct: Sequence[bool], group: str) -> dict[str, float]:
    """Map each value of `group` to the accuracy of the questions that have this value."""
    solved: dict[str, list[bool]] = {}
    for item, one in zip(items, correct, strict=True):
        for value in item.groups.get(group, ()):
            solved.setdefault(value, []).append(one)
    return {value: _mean(each) for value, each in solved.items()}


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
