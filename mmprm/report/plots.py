"""Draw a report's plots as inline SVG that adapts to light and dark mode through CSS variables.

Matplotlib draws with placeholder colors (#0000xx); `_inline` turns each into the style sheet's `var(--xx)`.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from mmprm.metrics import Interval, ReliabilityBin
from mmprm.report.data import TrainingPoint
from mmprm.report.smoothing import moving_mean, smoothing
from mmprm.report.text import printable
from mmprm.selection.accuracy import AccuracyAtN

PLACEHOLDERS = {"ink": "#000001", "soft": "#000002", "rule": "#000003", "bad": "#000004", "good": "#000005"}
"""Maps each color variable of the style sheet to the placeholder color that plots are drawn with."""

SERIES = {
    "prm": ("#000011", "o", "-"),
    "weighted": ("#000012", "D", "-"),
    "majority": ("#000013", "s", "-"),
    "oracle": ("#000014", "^", "--"),
    "random": ("#000015", "v", "--"),
    "first": ("#000016", "x", ":"),
}
"""Maps each selector to its placeholder color, marker and line style; the markers distinguish lines without
color."""

_VARIABLES = {color: name for name, color in PLACEHOLDERS.items()}
_VARIABLES |= {color: f"series-{name}" for name, (color, _, _) in SERIES.items()}

_STYLE = {
    "svg.fonttype": "none",
    "font.size": 12,
    "text.color": PLACEHOLDERS["ink"],
    "axes.labelcolor": PLACEHOLDERS["soft"],
    "axes.edgecolor": PLACEHOLDERS["rule"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": PLACEHOLDERS["rule"],
    "grid.linewidth": 0.6,
    "xtick.color": PLACEHOLDERS["rule"],
    "ytick.color": PLACEHOLDERS["rule"],
    "xtick.labelcolor": PLACEHOLDERS["soft"],
    "ytick.labelcolor": PLACEHOLDERS["soft"],
    "ytick.left": False,
}


def accuracy_plot(points: Sequence[AccuracyAtN]) -> str:
    """Plot accuracy by number of samples, with one labeled line and its intervals per selector."""
    names = [name for name in SERIES if name in points[0].accuracy]
    with svg_figure("accuracy", 7.4, 4.2) as (axes, output):
        for index, name in enumerate(names):
            color, marker, line = SERIES[name]
            # Shift each line sideways a little, so that intervals of different selectors do not overlap.
            shift = 2 ** (0.055 * (index - (len(names) - 1) / 2))
            values = [point.accuracy[name] for point in points]
            axes.errorbar(
                [point.n * shift for point in points],
                [value.value for value in values],
                yerr=[[v.value - v.low for v in values], [v.high - v.value for v in values]],
                color=color,
                marker=marker,
                linestyle=line,
                markersize=5,
                linewidth=1.6,
                elinewidth=1,
                zorder=3 + (name == "prm"),
            )
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator([point.n for point in points]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks([point.n for point in points], [str(point.n) for point in points])
        axes.set_xlabel("samples N")
        axes.set_ylabel("accuracy")
        # Label the line ends directly, so that readers need not match colors with a legend.
        low, high = axes.get_ylim()
        ends = {name: points[-1].accuracy[name].value for name in names}
        for name, position in _apart(ends, gap=(high - low) * 0.062).items():
            axes.annotate(
                name,
                (points[-1].n * 2**0.26, position),
                color=SERIES[name][0],
                va="center",
                fontweight="bold" if name == "prm" else "normal",
                annotation_clip=False,
            )
        axes.set_xlim(points[0].n / 2**0.3, points[-1].n * 2**0.22)
        axes.set_ylim(low, high)
    return output[0]


def label_histogram(labels: Sequence[float], correct: Sequence[bool] | None) -> str:
    """Plot a histogram of soft labels in 17 bins centered at 0, 1/16, …, 1.

    If `correct` is given, each bar is split into steps with and without an error so far.
    """
    edges = [(index - 0.5) / 16 for index in range(18)]
    with svg_figure("labels", 7.4, 3.0) as (axes, output):
        if correct is None:
            axes.hist(labels, edges, color=PLACEHOLDERS["good"], rwidth=0.86)
        else:
            parts = [
                [label for label, mark in zip(labels, correct, strict=True) if mark is side] for side in (False, True)
            ]
            axes.hist(
                parts,
                edges,
                stacked=True,
                rwidth=0.86,
                color=[PLACEHOLDERS["bad"], PLACEHOLDERS["good"]],
                label=["an error so far", "no error so far"],
                hatch=["////", ""],
                edgecolor=PLACEHOLDERS["rule"],
                linewidth=0,
            )
            axes.legend(loc="upper center", frameon=False)
        axes.set_xlabel("soft label: correct rollouts / known rollouts")
        axes.set_ylabel("distinct steps")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    return output[0]


def training_plot(points: Sequence[TrainingPoint]) -> str:
    """Plot the losses on training data and on held-out trees against the optimizer step."""
    with svg_figure("training", 7.4, 3.0) as (axes, output):
        training = [(point.step, point.loss) for point in points if point.loss is not None]
        held_out = [(point.step, point.held_out_loss) for point in points if point.held_out_loss is not None]
        if training:
            axes.plot(*zip(*training, strict=True), color=PLACEHOLDERS["soft"], linewidth=1.1, label="training")
        if held_out:
            axes.plot(
                *zip(*held_out, strict=True),
                color=PLACEHOLDERS["good"],
                marker="o",
                linewidth=1.8,
                label="held-out trees",
            )
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("loss (nats)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="upper right", frameon=False)
    return output[0]


def reliability_plot(curve: Sequence[ReliabilityBin], name: str) -> str:
    """Plot the fraction of correct steps against the mean score in each bin.

    Marker area grows with the number of steps in the bin. On the dashed line, scores are calibrated probabilities.
    `name` makes the ids of several plots on one page distinct.
    """
    with svg_figure(name, 7.4, 4.2) as (axes, output):
        axes.plot([0, 1], [0, 1], color=PLACEHOLDERS["soft"], linestyle="--", linewidth=1)
        positions = [entry.predicted for entry in curve], [entry.observed for entry in curve]
        axes.plot(*positions, color=PLACEHOLDERS["good"], linewidth=1.6)
        most = max(entry.count for entry in curve)
        axes.scatter(
            *positions, s=[12 + 150 * entry.count / most for entry in curve], color=PLACEHOLDERS["good"], zorder=3
        )
        axes.set_xlabel("mean score of the steps")
        axes.set_ylabel("share of correct steps")
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
    return output[0]


def bars_plot(values: Mapping[str, Interval], label: str, name: str) -> str:
    """Plot each named value as a horizontal bar with its confidence interval, the first at the top."""
    with svg_figure(name, 7.4, 0.9 + 0.42 * len(values)) as (axes, output):
        positions = range(len(values))
        entries = list(values.values())
        axes.barh(
            positions,
            [entry.value for entry in entries],
            xerr=[
                [max(0.0, entry.value - entry.low) for entry in entries],
                [max(0.0, entry.high - entry.value) for entry in entries],
            ],
            height=0.6,
            color=PLACEHOLDERS["good"],
            ecolor=PLACEHOLDERS["ink"],
        )
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_yticks(positions, [printable(key) for key in values])
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_xlabel(label)
    return output[0]


Curve = Sequence[tuple[int, float]]
"""A sequence of (step, value) pairs in ascending order of steps."""

SMALL = (3.6, 2.5)
"""Width and height in inches of a plot that shares a row with another plot."""


def lines_plot(curves: Mapping[str, Curve], name: str) -> str:
    """Plot values by step, with one labeled line per name. Long curves also get a moving mean."""
    with svg_figure(name, *SMALL) as (axes, output):
        ends = {}
        for (label, curve), (color, _, line) in zip(curves.items(), itertools.cycle(SERIES.values()), strict=False):
            steps, values = zip(*curve, strict=True)
            window = smoothing(len(values))
            if window > 1:
                axes.plot(steps, values, color=color, linewidth=0.7, alpha=0.35)
            mean = moving_mean(values, window)
            marker = "o" if len(values) == 1 else None
            axes.plot(steps, mean, color=color, linestyle=line, linewidth=1.6, marker=marker, markersize=4)
            ends[label] = (mean[-1], color)
        if len(curves) > 1:
            _name_ends(axes, ends)
        _step_axis(axes)
    return output[0]


def stacked_plot(curves: Mapping[str, Curve], name: str) -> str:
    """Plot the moving means of several series as stacked bands, each labeled at its right end."""
    with svg_figure(name, 7.4, 3.0) as (axes, output):
        steps = [step for step, _ in next(iter(curves.values()))]
        values = [moving_mean([value for _, value in curve], smoothing(len(steps))) for curve in curves.values()]
        colors = [color for color, _, _ in itertools.islice(itertools.cycle(SERIES.values()), len(curves))]
        if len(steps) == 1:  # a band needs two points
            steps, values = [steps[0] - 0.5, steps[0] + 0.5], [value * 2 for value in values]
        axes.stackplot(steps, values, colors=colors, alpha=0.85, linewidth=0)
        tops = list(itertools.accumulate(value[-1] for value in values))
        middles = [top - value[-1] / 2 for top, value in zip(tops, values, strict=True)]
        axes.set_ylim(0, None)
        _name_ends(axes, dict(zip(curves, zip(middles, colors, strict=True), strict=True)))
        axes.set_ylabel("seconds")
        axes.set_xlabel("step")
        _step_axis(axes)
    return output[0]


def progress_plot(training: Curve, held_out: Sequence[tuple[int, Interval]], name: str) -> str:
    """Plot the accuracy of training rollouts by step, and the accuracy on held-out problems with intervals."""
    with svg_figure(name, 7.4, 3.6) as (axes, output):
        color, soft = PLACEHOLDERS["good"], PLACEHOLDERS["soft"]
        if training:
            steps, values = zip(*training, strict=True)
            window = smoothing(len(values))
            if window > 1:
                axes.plot(steps, values, color=soft, linewidth=0.7, alpha=0.5)
            axes.plot(steps, moving_mean(values, window), color=soft, linewidth=1.4, label="rollouts in training")
        if held_out:
            entries = [entry for _, entry in held_out]
            axes.errorbar(
                [step for step, _ in held_out],
                [entry.value for entry in entries],
                yerr=[[max(0.0, e.value - e.low) for e in entries], [max(0.0, e.high - e.value) for e in entries]],
                color=color,
                marker="o",
                markersize=5,
                linewidth=1.8,
                elinewidth=1,
                label="held-out problems",
                zorder=4,
            )
        axes.set_xlabel("step")
        axes.set_ylabel("accuracy")
        _step_axis(axes)
        if training or held_out:
            axes.legend(loc="lower right", frameon=False)
    return output[0]


def _name_ends(axes: Axes, ends: Mapping[str, tuple[float, str]]) -> None:
    """Write each line's name at the right edge of the plot, in the line's color and at the height of its last value."""
    low, high = axes.get_ylim()
    # Height of a line of text in axis units.
    gap = (high - low) * 0.19 / axes.figure.get_figheight()
    positions = _apart({label: position for label, (position, _) in ends.items()}, gap * 1.15)
    for label, position in positions.items():
        axes.annotate(
            printable(label),
            (1.02, position),
            xycoords=("axes fraction", "data"),
            color=ends[label][1],
            va="center",
            fontsize=11,
            annotation_clip=False,
        )
    axes.set_ylim(low, high)


def _step_axis(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))


@contextmanager
def svg_figure(name: str, width: float, height: float) -> Iterator[tuple[Axes, list[str]]]:
    """Create a figure of the given size in inches, and yield its axes and a list to which the finished SVG is
    appended."""
    output: list[str] = []
    # With a fixed salt, the SVG's ids, and thus the page, are the same in every run.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.subplots(), output
        stream = io.StringIO()
        figure.savefig(
            stream, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    output.append(_inline(stream.getvalue(), name))


def _inline(svg: str, name: str) -> str:
    """Extract the SVG element, make its ids unique on the page, and replace placeholder colors with CSS variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    # All SVGs by Matplotlib use the same ids, which would clash on one page.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#|url\(#', lambda match: f"{match[0]}{name}-", svg)
    svg = re.sub(r"#0000[01][0-9a-f]", lambda match: f"var(--{_VARIABLES[match[0]]})", svg)
    width, height = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', svg).groups()
    svg = svg.replace(f'width="{width}pt" height="{height}pt"', "", 1)  # the style sheet scales it to the page
    return svg.strip()


def _apart(positions: dict[str, float], gap: float) -> dict[str, float]:
    """Move sorted positions apart until neighbors are at least `gap` apart, and re-center them."""
    moved: dict[str, float] = {}
    previous = float("-inf")
    for name, position in sorted(positions.items(), key=lambda item: item[1]):
        previous = moved[name] = max(position, previous + gap)
    shift = sum(moved[name] - positions[name] for name in positions) / len(positions) / 2
    return {name: position - shift for name, position in moved.items()}
