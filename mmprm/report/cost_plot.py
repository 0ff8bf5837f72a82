"""Plot the quality of scorers against the tokens that they generate."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from mmprm.metrics import Interval
from mmprm.report.plots import SERIES, svg_figure


@dataclass(frozen=True, slots=True)
class CostPoint:
    """Holds the F1 of a scorer and the number of tokens that it generates per solution. Points of the same `model` are
    connected."""

    name: str
    model: str
    tokens: float
    f1: Interval


def cost_plot(points: Sequence[CostPoint], label: str, plot_name: str) -> str:
    """Plot F1 with its interval against tokens per solution, on an axis that is logarithmic from the power of 10 below
    the lowest cost on, and includes 0."""
    lowest = min((point.tokens for point in points if point.tokens >= 1), default=1)
    linear_until = 10 ** math.floor(math.log10(lowest))
    curves: dict[str, list[CostPoint]] = defaultdict(list)
    for point in points:
        curves[point.model].append(point)
    with svg_figure(plot_name, 7.4, 3.6) as (axes, output):
        for curve, (color, marker, line) in zip(curves.values(), itertools.cycle(SERIES.values()), strict=False):
            curve.sort(key=lambda point: point.tokens)
            axes.errorbar(
                [point.tokens for point in curve],
                [point.f1.value for point in curve],
                yerr=[
                    [point.f1.value - point.f1.low for point in curve],
                    [point.f1.high - point.f1.value for point in curve],
                ],
                color=color,
                marker=marker,
                linestyle=line,
                markersize=5,
                linewidth=1.6,
                elinewidth=1,
            )
            for point in curve:
                # Below the point, because more tokens usually raise the curve.
                axes.annotate(point.name, (point.tokens, point.f1.value), (6, -13), textcoords="offset points")
        axes.set_xscale("symlog", linthresh=linear_until, linscale=0.4)
        axes.set_xlim(left=-linear_until / 10)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("generated tokens per solution")
        axes.set_ylabel(label)
    return output[0]
