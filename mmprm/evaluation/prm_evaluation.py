"""Measure how well step scores agree with known step correctness: F1 per source and pooled, AUC, and calibration.

Shapes: K item, which is a solution (for first-error F1) or a step (for macro F1).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from mmprm.errors import DataError
from mmprm.evaluation.labeled import LabeledSolution, MetricName
from mmprm.evaluation.prmbench import CATEGORY_GROUPS, prm_score
from mmprm.metrics import (
    Interval,
    MacroF1,
    ReliabilityBin,
    bootstrap,
    choose_step_threshold,
    choose_threshold,
    expected_calibration_error,
    first_below,
    macro_f1,
    processbench_f1,
    reliability,
    roc_auc,
)
from mmprm.sampling.seeds import derive_seed
from mmprm.types import StepScores

Values = dict[str, float]
ScoredSolution = tuple[LabeledSolution, StepScores]


@dataclass(frozen=True, slots=True)
class SourceMetrics:
    """Holds the metrics of one source, or of all sources pooled.

    An interval is None if one of the two classes is missing.
    """

    f1: Interval | None
    parts: dict[str, Interval | None]
    solutions: int
    steps: int


@dataclass(frozen=True, slots=True)
class PrmEvaluation:
    """Holds the evaluation of a scored data set.

    `scored_by` is the PRM folder, or the label files used as scores; `aggregator` describes the PRM's aggregator.
    `average` is the mean of the sources' F1, and `pooled` treats all items as one source. Both exclude the development
    split unless it is a named source. `groups` holds the mean F1 of groups of sources. `curve` and `ece` compare
    P(correct) with the truth for every judged step.
    `name` distinguishes scorers that are compared on the same data set. `scored` counts all solutions given to the
    scorer, and `seconds` is the time that it took; 0 if the scores are labels. `unknown` counts the solutions that are
    left out because a thinking judge's verdicts on them are unknown, and `tokens` is the number of tokens that it
    generated for all solutions; None for a process reward model.
    """

    dataset: str
    metric: MetricName
    scored_by: str
    aggregator: str
    threshold: float
    threshold_from: str
    sources: dict[str, SourceMetrics]
    pooled: SourceMetrics
    average: Interval | None
    auc: float | None
    curve: list[ReliabilityBin]
    ece: float
    unknown: int = 0
    tokens: int | None = None
    name: str = ""
    scored: int = 0
    seconds: float = 0.0
    groups: dict[str, Interval | None] = field(default_factory=dict)

    @property
    def f1(self) -> Interval | None:
        """Return the F1 of the data set: pooled for PRMBench's score, otherwise the average of the sources."""
        return self.pooled.f1 if self.metric == "prm_score" else self.average

    @property
    def tokens_per_solution(self) -> float:
        """Return the number of tokens that the scorer generated per solution; 0 for a process reward model."""
        return (self.tokens or 0) / self.scored if self.scored else 0.0


@dataclass(frozen=True, slots=True)
class Items:
    """Holds the items (solutions or steps) from which a metric is computed. `measure` computes the metric on a subset
    of them."""

    measure: Callable[[NDArray[np.intp]], Values]
    problems: list[str]
    sources: NDArray[np.str_]


@dataclass(frozen=True, slots=True)
class Metric:
    """Describes a metric: its title, how to choose a threshold, and how to compute it. `choose` returns the threshold
    with the highest F1, and `parts` names the components of F1. `groups` maps names to groups of sources."""

    title: str
    choose: Callable[[Sequence[ScoredSolution]], float]
    items: Callable[[Sequence[ScoredSolution], float], Items]
    parts: dict[str, str]
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)


def _first_errors(judged: Sequence[ScoredSolution], threshold: float) -> Items:
    """Collect the predicted and the true first errors for ProcessBench's metric. The predicted first error is the first
    step scored below the threshold."""
    claimed_K = np.array([first_below(scores.scores, threshold) for _, scores in judged])
    truth_K = np.array([labeled.first_error for labeled, _ in judged])
    return Items(
        lambda indices: asdict(processbench_f1(claimed_K[indices], truth_K[indices])),
        [labeled.problem for labeled, _ in judged],
        np.array([labeled.source for labeled, _ in judged]),
    )


def _steps(judged: Sequence[ScoredSolution], threshold: float, measure: Callable[..., MacroF1] = macro_f1) -> Items:
    """Collect the predicted and the true step correctness for VisualProcessBench's metric, or that of `measure`. A step
    is predicted correct if its score reaches the threshold."""
    scores_K, correct_K = step_outcomes(judged)
    owners = [labeled for labeled, _ in judged for correct in labeled.correct if correct is not None]
    return Items(
        lambda indices: asdict(measure(scores_K[indices] >= threshold, correct_K[indices])),
        [labeled.problem for labeled in owners],
        np.array([labeled.source for labeled in owners]),
    )


_STEP_PARTS = {"on_correct": "of correct steps", "on_incorrect": "of incorrect steps"}
METRICS: dict[MetricName, Metric] = {
    "first_error_f1": Metric(
        "ProcessBench F1",
        lambda judged: choose_threshold([s.scores for _, s in judged], [x.first_error for x, _ in judged])[0],
        _first_errors,
        {"on_bad": "first error found", "on_good": "none claimed"},
    ),
    "macro_f1": Metric(
        "macro F1",
        lambda judged: choose_step_threshold(*step_outcomes(judged))[0],
        _steps,
        _STEP_PARTS,
    ),
    "prm_score": Metric(
        "PRM score",
        lambda judged: choose_step_threshold(*step_outcomes(judged))[0],
        functools.partial(_steps, measure=prm_score),
        _STEP_PARTS,
        CATEGORY_GROUPS,
    ),
}


def step_outcomes(judged: Sequence[ScoredSolution]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the scores of all judged steps, and whether each step is correct."""
    pairs = [
        (score, correct)
        for labeled, scores in judged
        for score, correct in zip(scores.scores, labeled.correct, strict=True)
        if correct is not None
    ]
    return np.array([score for score, _ in pairs]), np.array([correct for _, correct in pairs], dtype=bool)


def split_development(
    judged: Sequence[ScoredSolution], development: float | str, seed: int
) -> tuple[list[ScoredSolution], list[ScoredSolution], str]:
    """Split off a development set; return it, the solutions to measure, and a description of the split.

    If `development` is a number, it is the fraction of problems to split off. All solutions of a problem stay together,
    and problems are chosen by a hash of their content and the seed. If it is a text, it names a source, which is also
    measured: this is how ProcessBench chooses its threshold on gsm8k.
    """
    if isinstance(development, str):
        chosen = [item for item in judged if item[0].source == development]
        if not chosen:
            names = ", ".join(sorted({item[0].source for item in judged}))
            raise DataError(
                f"development={development!r}: must be a share below 1 or the name of a source; set one of {names}"
            )
        return chosen, list(judged), f"{development}, {len(chosen)} solutions"
    # Sorting by hash picks the same problems regardless of the order of the files and of the other files given.
    problems = sorted({item[0].problem for item in judged}, key=lambda problem: derive_seed(seed, problem, "", 0))
    inside = set(problems[: max(1, round(development * len(problems)))])
    chosen = [item for item in judged if item[0].problem in inside]
    rest = [item for item in judged if item[0].problem not in inside]
    if not rest:
        raise DataError(
            f"development={development}: leaves none of the {len(problems)} problems to measure; lower development or "
            "add problems"
        )
    return chosen, rest, f"{len(inside)} of {len(problems)} problems, {len(chosen)} solutions"


def judge(
    dataset: str,
    metric: MetricName,
    judged: Sequence[ScoredSolution],
    *,
    scored_by: str = "",
    aggregator: str = "",
    threshold: float | None = None,
    development: float | str = 0.2,
    seed: int = 0,
    bins: int = 10,
) -> PrmEvaluation:
    """Evaluate scores against known step correctness, at a given threshold or one chosen on a development split."""
    kind, origin, measured = METRICS[metric], "given", list(judged)
    if threshold is None:
        chosen, measured, origin = split_development(judged, development, seed)
        threshold = kind.choose(chosen)
    items = kind.items(measured, threshold)
    everything = np.arange(len(items.problems))
    names = sorted(set(items.sources.tolist()))

    def average(indices: NDArray[np.intp], inside: Sequence[str] = names) -> float:
        own = items.sources[indices]
        return float(np.mean([items.measure(indices[own == name])["f1"] for name in inside]))

    def metrics(source: str | None) -> SourceMetrics:
        inside = everything if source is None else everything[items.sources == source]
        own = [item for item in measured if source in (None, item[0].source)]
        values = {
            name: _interval(lambda indices, name=name: items.measure(inside[indices])[name], items, inside, seed)
            for name in ("f1", *kind.parts)
        }
        return SourceMetrics(values.pop("f1"), values, len(own), sum(_count(item[0]) for item in own))

    sources = {name: metrics(name) for name in names}
    several = len(names) > 1  # for a single source, pooled and average are the same
    pooled = metrics(None) if several else sources[names[0]]
    scores_K, correct_K = step_outcomes(measured)
    curve = reliability(scores_K, correct_K, bins)
    return PrmEvaluation(
        dataset=dataset,
        metric=metric,
        scored_by=scored_by,
        aggregator=aggregator,
        threshold=threshold,
        threshold_from=origin,
        sources=sources,
        pooled=pooled,
        average=_interval(average, items, everything, seed) if several else pooled.f1,
        auc=roc_auc(scores_K, correct_K) if correct_K.any() and not correct_K.all() else None,
        curve=curve,
        ece=expected_calibration_error(curve),
        groups={
            group: _interval(functools.partial(average, inside=inside), items, everything, seed)
            for group, inside in kind.groups.items()
            if set(inside) <= set(names)
        },
    )


def _interval(
    statistic: Callable[[NDArray[np.intp]], float], items: Items, inside: NDArray[np.intp], seed: int
) -> Interval | None:
    """Return the bootstrap interval of a statistic over problems, or None if the statistic is undefined."""
    # NaN on all items means that one of the two classes is missing, so there is no interval.
    if math.isnan(statistic(np.arange(len(inside)))):
        return None
    return bootstrap(statistic, [items.problems[index] for index in inside], seed)


def _count(labeled: LabeledSolution) -> int:
    return sum(correct is not None for correct in labeled.correct)
