"""Compute learning curves of RL runs, and compare them: speed-up in tokens, and length at equal accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

Results = dict[str, Any]

T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}
"""Quantiles of Student's t distribution for two-sided 95% intervals, by degrees of freedom."""
MATCHED = 5
"""Number of accuracies at which two runs are compared."""


@dataclass(frozen=True, slots=True)
class Point:
    """Describes a run at an evaluation: what it has spent so far, and its accuracy.

    `seconds` excludes the evaluations. `response_tokens` and `steps` are means over the training responses since the
    previous evaluation, and before the first step, over those up to the next one.
    """

    step: int
    tokens: float
    seconds: float
    accuracy: float
    response_tokens: float
    steps: float


def curve(rows: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Compute the learning curve of a run from its metrics."""
    train = [row for row in rows if row["kind"] == "train"]
    evaluations = [row for row in rows if row["kind"] == "eval"]
    steps = [row["step"] for row in evaluations]
    points = []
    for index, evaluation in enumerate(evaluations):
        before = [row for row in train if row["step"] <= steps[index]]
        begin, end = steps[max(0, index - 1)], steps[max(1, index)] if len(steps) > 1 else 0
        window = [row for row in train if begin < row["step"] <= end]
        points.append(
            Point(
                steps[index],
                sum(row["generated_tokens"] for row in before),
                sum(row["seconds"] for row in before),
                evaluation["pass_at_1"],
                _mean(window, "response_tokens"),
                _mean(window, "steps"),
            )
        )
    return points


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    """Return the mean over the steps in which the metric is defined, or NaN if there are none.

    It is undefined (null) if, for example, no response of a step could be split.
    """
    values = [row[key] for row in rows if row.get(key) is not None]
    return fmean(values) if values else math.nan


def position_of(accuracy: float, points: Sequence[Point]) -> float | None:
    """Return where a curve first reaches an accuracy, as a fractional index, or None if it never does.

    Between two evaluations, the curve is a straight line.
    """
    if points[0].accuracy >= accuracy:
        return 0.0
    for index, (before, after) in enumerate(pairwise(points)):
        if after.accuracy >= accuracy:
            return index + (accuracy - before.accuracy) / (after.accuracy - before.accuracy)
    return None


def value_at(position: float, values: Sequence[float]) -> float:
    """Interpolate values at a fractional index."""
    index = min(int(position), len(values) - 2)
    return values[index] + (position - index) * (values[index + 1] - values[index])


def speedup(outcome: Sequence[Point], other: Sequence[Point], further_tokens: float = 0.0) -> float | None:
    """Return how many times as many tokens outcome rewards alone need to reach their final accuracy.

    `further_tokens` are added to those of the other run. Returns 0 if the other run never reaches this accuracy, and
    None if outcome rewards do not improve on the initial policy, as it is evaluated in either run.
    """
    goal = outcome[-1].accuracy
    if goal <= max(outcome[0].accuracy, other[0].accuracy):
        return None
    reached = position_of(goal, other)
    if reached is None:
        return 0.0
    own = value_at(position_of(goal, outcome), [point.tokens for point in outcome])
    return own / (value_at(reached, [point.tokens for point in other]) + further_tokens)


def matched_ratio(outcome: Sequence[Point], other: Sequence[Point], value: Callable[[Point], float]) -> float | None:
    """Return the ratio of a value between two runs, averaged over accuracies that both reach.

    These are MATCHED accuracies, evenly spaced from above the higher initial accuracy to the lower of the highest
    accuracies. Returns None if there are none, or if the value is undefined at one of them.
    """
    low = max(points[0].accuracy for points in (outcome, other))
    high = min(max(point.accuracy for point in points) for points in (outcome, other))
    if high <= low:
        return None
    ratios = []
    for number in range(1, MATCHED + 1):
        accuracy = low + (high - low) * number / MATCHED
        mine, theirs = (
            value_at(position_of(accuracy, points), [value(point) for point in points]) for points in (other, outcome)
        )
        ratios.append(mine / theirs)
    ratio = fmean(ratios)
    return None if math.isnan(ratio) else ratio


def ratio_interval(ratios: Sequence[float]) -> Results:
    """Return the geometric mean of ratios, with its 95% interval by Student's t distribution on their logarithms.

    With a single ratio, the interval is unbounded: `low` is 0 and `high` is None, because JSON has no infinity.
    """
    logs = mean_interval([math.log(ratio) for ratio in ratios])
    found = {key: None if value is None else math.exp(value) for key, value in logs.items()}
    return found if found["low"] is not None else found | {"low": 0.0}


def mean_interval(values: Sequence[float]) -> Results:
    """Return the mean, with its 95% interval by Student's t distribution; with a single value, its bounds are None."""
    center = fmean(values)
    if len(values) == 1:
        return {"value": center, "low": None, "high": None}
    margin = T_95[len(values) - 1] * stdev(values) / math.sqrt(len(values))
    return {"value": center, "low": center - margin, "high": center + margin}


def rounded(points: Sequence[Point]) -> list[Results]:
    """Convert a curve to JSON, in which undefined values are null."""
    return [
        {key: None if math.isnan(value) else float(f"{value:.5g}") for key, value in asdict(point).items()}
        for point in points
    ]


def draw(curves: Mapping[str, Sequence[Sequence[Point]]], path: Path) -> None:
    """Plot the curves of each mode, averaged over seeds: accuracy, response length, and steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    panels: tuple[tuple[str, str, float, str, str], ...] = (
        ("tokens", "accuracy", 1e6, "million generated tokens", "pass@1"),
        ("seconds", "accuracy", 60, "minutes", "pass@1"),
        ("tokens", "response_tokens", 1e6, "million generated tokens", "tokens per response"),
        ("tokens", "steps", 1e6, "million generated tokens", "steps per response"),
    )
    for axes, (across, up, unit, xlabel, ylabel) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for number, (mode, seeds) in enumerate(curves.items()):
            x, y = _means(seeds, across), _means(seeds, up)
            axes.plot([each / unit for each in x], y, color=f"C{number}", linewidth=1.3, label=mode)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.grid(alpha=0.3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    handles = {line.get_label(): line for line in figure.axes[0].lines}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=5, frameon=False)
    figure.savefig(path, dpi=110)


def _means(seeds: Sequence[Sequence[Point]], key: str) -> list[float]:
    """Return the mean over seeds at each evaluation that all of them have."""
    return [fmean(getattr(each, key) for each in points) for points in zip(*seeds, strict=False)]
