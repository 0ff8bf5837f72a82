"""Plot the quality of scorers against the tokens that they generate."""

from __future__ import annotations

import itertools
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
    """Plot F1 with its interval against tokens per solution, on a logarithmic axis that includes 0."""
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
                axes.annotate(point.name, (point.tokens, point.f1.value), (6, 5), textcoords="offset points")
        axes.set_xscale("symlog", linthresh=10)
        axes.set_xlim(left=-1)
        axes.set_xlabel("generated tokens per solution")
        axes.set_ylabel(label)
    return output[0]
