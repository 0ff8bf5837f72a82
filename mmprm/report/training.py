"""The page of an RL run: its curves, from metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprm.errors import DataError
from mmprm.files import logged_rows
from mmprm.metrics import Interval
from mmprm.report.page import document, escaped, interval_cell, table, write_page
from mmprm.report.plots import Curve, lines_plot, progress_plot, smoothing, stacked_plot

METRICS_FILE, REPORT_FILE = "metrics.jsonl", "report.html"
MOST_ROWS = 12


@dataclass(frozen=True, slots=True)
class Panel:
    """A plot of the metrics that a run has among `names` (metric → label); one that ends in * stands for all that begin
    so, labelled by the rest."""

    title: str
    note: str
    names: Mapping[str, str]


LEARNING = (
    Panel(
        "Reward by source",
        "means over responses, before weights",
        {"reward": "total", "reward_*": "", "prm_score": "process"},
    ),
    Panel("Response length", "tokens", {"response_tokens": "tokens"}),
    Panel("Entropy", "nats a token", {"entropy": "entropy"}),
    Panel(
        "KL divergence",
        "nats a token, to the policy that sampled and to the reference",
        {"kl_old": "old", "kl_ref": "reference"},
    ),
    Panel("Clip fraction", "share of the tokens", {"clip_fraction": "clipped"}),
    Panel(
        "Ratio extremes",
        "log-ratio of a token, new policy to the one that sampled",
        {"log_ratio_min": "least", "log_ratio_max": "greatest"},
    ),
    Panel(
        "Engine and trainer",
        "difference of their log-probabilities, nats a token",
        {"mismatch_absolute": "absolute", "mismatch_signed": "signed"},
    ),
    Panel("Engine and trainer at worst", "largest such difference of a token, nats", {"mismatch_max": "largest"}),
    Panel("Loss", "of an update", {"loss": "loss", "value_loss": "value"}),
    Panel("Gradient norm", "before clipping", {"gradient_norm": "norm"}),
)

SIGNS = (
    Panel(
        "Agreement of PRM and outcome",
        "AUC of the lowest step score for right answers; 0.5 is none",
        {"prm_auc": "AUC"},
    ),
    Panel("Score by step", "mean P(step is right)", {"prm_step_*": ""}),
    Panel("Steps", "a response", {"steps": "steps"}),
    Panel("Tokens a step", "mean, and of a response's longest", {"step_tokens": "mean", "longest_step": "longest"}),
    Panel("Repeated steps", "share of the steps", {"repeated_steps": "repeated"}),
    Panel("Without process reward", "share of the responses", {"unsplit": "no steps", "refused": "refused"}),
)

BATCHES = (
    Panel("Left out", "responses and groups of a step, by reason", {"dropped_*": ""}),
    Panel("Cut off and alike", "share of the responses, and of the groups", {"truncated": "cut off", "alike": "alike"}),
    Panel("Staleness", "steps between the weights that sampled and those trained", {"staleness": "steps"}),
    Panel("Generation", "tokens a second", {"tokens_per_second": "tokens/s"}),
    Panel("Overhead", "share of a step in which no model computed", {"overhead": "overhead"}),
)

PHASES = Panel("", "", {"seconds_*": ""})


def write_training_report(folder: Path) -> Path:
    """report.html of a run folder, made from its metrics.jsonl. Raises DataError where that cannot be read."""
    path = folder / REPORT_FILE
    write_page(path, training_page(read_metrics(folder / METRICS_FILE), folder.name))
    return path


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl without those that are damaged, which are named on stderr, and without a last one
    that is still being written."""
    try:
        return list(logged_rows(path, ("kind",)))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); a run writes it after its first step") from error


def training_page(records: Sequence[Mapping[str, Any]], title: str) -> str:
    training = [record for record in records if record["kind"] == "train"]
    held_out = _held_out(records)
    steps = f"{len(training):,} steps" if len(training) != 1 else "1 step"
    window = smoothing(len(training))
    smooth = f" Thick lines are means over {window} steps." if window > 1 else ""
    sections = [
        f"<header><h1>{escaped(title)}</h1>"
        f'<p class="subtitle">{steps} of reinforcement learning.{smooth}</p>{_lead(held_out)}</header>',
        _progress(training, held_out),
        _section("Learning", "", LEARNING, training),
        _section("Steps and their scores", "How a policy that games its rewards would show.", SIGNS, training),
        _phases(training),
        _section("Batches", "", BATCHES, training),
    ]
    return document(title, sections)


def _held_out(records: Sequence[Mapping[str, Any]]) -> list[tuple[int, Interval]]:
    names = ("pass_at_1", "pass_at_1_low", "pass_at_1_high")
    return [
        (record["step"], Interval(*(record[name] for name in names)))
        for record in records
        if record["kind"] == "eval" and all(record.get(name) is not None for name in names)
    ]


def _lead(held_out: Sequence[tuple[int, Interval]]) -> str:
    if len(held_out) < 2:
        return ""
    (first, before), (last, after) = held_out[0], held_out[-1]
    return (
        f'<p class="lead">On held-out problems the policy is right on <b>{_percent(after)}</b> of its responses after '
        f"step {last}, and was on {_percent(before)} after step {first}.</p>"
    )


def _percent(interval: Interval) -> str:
    return f"{100 * interval.value:.1f}\u202f%"


def _progress(training: Sequence[Mapping[str, Any]], held_out: Sequence[tuple[int, Interval]]) -> str:
    rollouts = _curve(training, "accuracy")
    if not rollouts and not held_out:
        return ""
    number = min(MOST_ROWS, len(held_out))
    # Evenly spread, the first and the last among them.
    places = sorted({round(place * (len(held_out) - 1) / max(1, number - 1)) for place in range(number)})
    rows = [[str(held_out[place][0]), interval_cell(held_out[place][1])] for place in places]
    listed = table(["after step", "held-out pass@1"], rows) if rows else ""
    return f"""<section><h2>Accuracy</h2>
<p class="note">Share of right answers among those with a known verdict. Held-out bars and ranges are 95 % intervals
over problems; rollouts in training are those that a filter left.</p>
<figure>{progress_plot(rollouts, held_out, "progress")}</figure>{listed}</section>"""


def _section(title: str, note: str, panels: Sequence[Panel], training: Sequence[Mapping[str, Any]]) -> str:
    drawn = []
    for panel in panels:
        curves = _curves(panel, training)
        if curves:
            name = "".join(character if character.isalnum() else "-" for character in panel.title.lower())
            drawn.append(
                f'<div><h3>{escaped(panel.title)}</h3><p class="note">{escaped(panel.note)}</p>'
                f"<figure>{lines_plot(curves, name)}</figure></div>"
            )
    words = f'<p class="note">{escaped(note)}</p>' if note else ""
    return (
        f'<section><h2>{escaped(title)}</h2>{words}<div class="curves">{"".join(drawn)}</div></section>'
        if drawn
        else ""
    )


def _phases(training: Sequence[Mapping[str, Any]]) -> str:
    curves = _curves(PHASES, training)
    if not curves:
        return ""
    steps = sorted({step for curve in curves.values() for step, _ in curve})
    filled = {label: [(step, dict(curve).get(step, 0.0)) for step in steps] for label, curve in curves.items()}
    total = sum(value for curve in curves.values() for _, value in curve)
    rows = [
        [escaped(label), f"{sum(value for _, value in curve):,.0f}", f"{sum(v for _, v in curve) / total:.1%}"]
        for label, curve in curves.items()
    ]
    return f"""<section><h2>Time</h2><p class="note">Seconds of a step by phase.</p>
<figure>{stacked_plot(filled, "phases")}</figure>
{table(["phase", "seconds in all", "share"], rows)}</section>"""


def _curves(panel: Panel, training: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """By label; a metric that was 0 or missing throughout is left out where it is one of a family."""
    present = dict.fromkeys(name for record in training for name in record)
    curves: dict[str, Curve] = {}
    for pattern, label in panel.names.items():
        family = pattern.endswith("*")
        stem = pattern.removesuffix("*")
        for name in [name for name in present if name.startswith(stem)] if family else [stem]:
            curve = _curve(training, name)
            if curve and not (family and all(value == 0 for _, value in curve)):
                curves[name.removeprefix(stem).replace("_", " ") if family else label] = curve
    return curves


def _curve(training: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(record["step"], record[name]) for record in training if record.get(name) is not None]
