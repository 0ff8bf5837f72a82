"""Build the HTML page of an RL run, with curves of the metrics in metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprm.errors import DataError
from mmprm.files import logged_rows
from mmprm.metrics import Interval
from mmprm.report.page import document, escaped, interval_cell, table, write_page
from mmprm.report.plots import Curve, lines_plot, progress_plot, stacked_plot
from mmprm.report.rollouts import ROLLOUTS_FILE
from mmprm.report.smoothing import smoothing

METRICS_FILE, REPORT_FILE = "metrics.jsonl", "report.html"
MAX_ROWS = 12


@dataclass(frozen=True, slots=True)
class Panel:
    """Describes one plot of a training page. `names` maps metrics to labels, and missing metrics are left out.

    A name that ends in * matches all metrics with that prefix; each is labeled with the rest of its name.
    """

    title: str
    note: str
    names: Mapping[str, str]


LEARNING = (
    Panel(
        "Reward by source",
        "mean over responses, before weighting",
        {"reward": "total", "reward_*": "", "prm_score": "process"},
    ),
    Panel("Response length", "tokens", {"response_tokens": "tokens"}),
    Panel(
        "Reflection",
        "phrases per response; monitor.reflection_phrases, monitor.relook_phrases",
        {"reflection_phrases": "reflection", "relook_phrases": "second look at the image"},
    ),
    Panel("Entropy", "nats per token", {"entropy": "entropy"}),
    Panel(
        "KL divergence",
        "nats per token, to the sampling policy and to the reference model",
        {"kl_old": "old", "kl_ref": "reference"},
    ),
    Panel("Clip fraction", "share of tokens", {"clip_fraction": "clipped"}),
    Panel(
        "Ratio extremes",
        "log-ratio of a token between the new and the sampling policy",
        {"log_ratio_min": "minimum", "log_ratio_max": "maximum"},
    ),
    Panel(
        "Engine–trainer mismatch",
        "difference of their log-probabilities, nats per token",
        {"mismatch_absolute": "absolute", "mismatch_signed": "signed"},
    ),
    Panel("Maximum engine–trainer mismatch", "largest difference of a token, nats", {"mismatch_max": "largest"}),
    Panel("Loss", "per update", {"loss": "loss", "value_loss": "value"}),
    Panel("Gradient norm", "before clipping", {"gradient_norm": "norm"}),
)

_HACKING_PANELS = (
    Panel(
        "Agreement of PRM and outcome",
        "AUC of the lowest step score for correct answers; 0.5 means no agreement",
        {"prm_auc": "AUC"},
    ),
    Panel(
        "PRM on fresh labels",
        "AUC on held-out labels of the run's own trees; the PRM is retrained when it is too low",
        {"prm_tree_auc": "AUC"},
    ),
    Panel("New PRMs", "number so far", {"prm_refreshes": "new PRMs"}),
    Panel("Score by step", "mean P(no error so far)", {"prm_step_*": ""}),
    Panel("Steps", "per response", {"steps": "steps"}),
    Panel("Tokens per step", "mean, and longest step per response", {"step_tokens": "mean", "longest_step": "longest"}),
    Panel("Repeated steps", "share of steps", {"repeated_steps": "repeated"}),
    Panel("Without process reward", "share of responses", {"unsplit": "no steps", "refused": "refused"}),
)

BATCHES = (
    Panel("Dropped", "responses and groups per step, by reason", {"dropped_*": ""}),
    Panel(
        "Truncated and equal rewards",
        "share of responses, and of groups",
        {"truncated": "truncated", "alike": "equal rewards"},
    ),
    Panel("Staleness", "steps between the sampling weights and the trained weights", {"staleness": "steps"}),
    Panel("Generation", "tokens per second", {"tokens_per_second": "tokens/s"}),
    Panel("Overhead", "share of the step time without model computation", {"overhead": "overhead"}),
)

PHASES = Panel("", "", {"seconds_*": ""})


def write_training_report(folder: Path) -> Path:
    """Write a run folder's report.html from its metrics.jsonl; raise DataError if metrics.jsonl cannot be read."""
    path = folder / REPORT_FILE
    rollouts = ROLLOUTS_FILE if (folder / ROLLOUTS_FILE).is_file() else None
    write_page(path, training_page(read_metrics(folder / METRICS_FILE), folder.name, rollouts))
    return path


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the records of a metrics.jsonl file.

    Damaged lines are skipped with a warning on stderr. A last line that is still being written is skipped silently.
    """
    try:
        return list(logged_rows(path, ("kind",)))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); wait for the first step of the run, which writes it"
        ) from error


def training_page(records: Sequence[Mapping[str, Any]], title: str, rollouts: str | None = None) -> str:
    """Build the HTML page of an RL run from its logged metrics. `rollouts` is the file name of its page of rollouts."""
    training = [record for record in records if record["kind"] == "train"]
    held_out = _held_out(records)
    steps = f"{len(training):,} steps" if len(training) != 1 else "1 step"
    window = smoothing(len(training))
    smooth = f" Thick lines are moving means over {window} steps." if window > 1 else ""
    link = f' <a href="{escaped(rollouts)}">Browse the rollouts</a>' if rollouts else ""
    sections = [
        f"<header><h1>{escaped(title)}</h1>"
        f'<p class="subtitle">{steps} of reinforcement learning.{smooth}{link}</p>{_lead(held_out)}</header>',
        _progress(training, held_out),
        _section("Learning", "", LEARNING, training),
        _section("Steps and their scores", "Metrics that would reveal reward hacking.", _HACKING_PANELS, training),
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
        f'<p class="lead">On held-out problems, <b>{_percent(after)}</b> of the policy\'s responses are correct after '
        f"step {last}, compared to {_percent(before)} after step {first}.</p>"
    )


def _percent(interval: Interval) -> str:
    return f"{100 * interval.value:.1f}\u202f%"


def _progress(training: Sequence[Mapping[str, Any]], held_out: Sequence[tuple[int, Interval]]) -> str:
    rollouts = _curve(training, "accuracy")
    if not rollouts and not held_out:
        return ""
    number = min(MAX_ROWS, len(held_out))
    # evenly spaced, including the first and the last
    positions = sorted({round(position * (len(held_out) - 1) / max(1, number - 1)) for position in range(number)})
    rows = [[str(held_out[position][0]), interval_cell(held_out[position][1])] for position in positions]
    listed = table(["after step", "held-out pass@1"], rows) if rows else ""
    return f"""<section><h2>Accuracy</h2>
<p class="note">Share of correct answers among those with a known verdict. Held-out bars and ranges are
95\u202f% intervals over problems; rollouts in training are those kept by the filters.</p>
<figure>{progress_plot(rollouts, held_out, "progress")}</figure>{listed}</section>"""


def _section(title: str, note: str, panels: Sequence[Panel], training: Sequence[Mapping[str, Any]]) -> str:
    """Return a section with the plots of the panels. Panels that are always 0 are only named."""
    drawn, zero = [], []
    for panel in panels:
        curves = _curves(panel, training)
        if curves and not any(value for curve in curves.values() for _, value in curve):
            zero.append(panel.title)
        elif curves:
            name = "".join(character if character.isalnum() else "-" for character in panel.title.lower())
            drawn.append(
                f'<div><h3>{escaped(panel.title)}</h3><p class="note">{escaped(panel.note)}</p>'
                f"<figure>{lines_plot(curves, name)}</figure></div>"
            )
    if not drawn and not zero:
        return ""
    words = f'<p class="note">{escaped(note)}</p>' if note else ""
    rest = f'<p class="note">Always 0: {escaped(", ".join(zero))}</p>' if zero else ""
    return f'<section><h2>{escaped(title)}</h2>{words}<div class="curves">{"".join(drawn)}</div>{rest}</section>'


def _phases(training: Sequence[Mapping[str, Any]]) -> str:
    curves = _curves(PHASES, training)
    if not curves:
        return ""
    steps = sorted({step for curve in curves.values() for step, _ in curve})
    by_step = {label: dict(curve) for label, curve in curves.items()}
    # Stacked bands need a value at every step; a phase that is missing at a step took no time.
    filled = {label: [(step, values.get(step, 0.0)) for step in steps] for label, values in by_step.items()}
    seconds = {label: sum(values.values()) for label, values in by_step.items()}
    total = sum(seconds.values())
    rows = [[escaped(label), f"{spent:,.0f}", f"{spent / total:.1%}"] for label, spent in seconds.items()]
    return f"""<section><h2>Time</h2><p class="note">Seconds per step by phase.</p>
<figure>{stacked_plot(filled, "phases")}</figure>
{table(["phase", "total seconds", "share"], rows)}</section>"""


def _curves(panel: Panel, training: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """Return the panel's curves by label. Metrics matched by a name with * are omitted if they are always 0 or
    missing."""
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
