"""Build the HTML page of a PRM evaluation: agreement of step scores with known correctness, and best-of-N accuracy."""

from __future__ import annotations

from collections.abc import Sequence

from mmprm.evaluation.best_of_n import OWN, BestOfN
from mmprm.evaluation.prm_evaluation import METRICS, PrmEvaluation, SourceMetrics
from mmprm.metrics import Interval
from mmprm.report.cost_plot import CostPoint, cost_plot
from mmprm.report.data import ReportData
from mmprm.report.page import accuracy_section, document, escaped, interval_cell, table
from mmprm.report.plots import bars_plot, reliability_plot

NOTES = {
    "first_error_f1": "The claimed first error is the first step scored below the threshold. F1 is the harmonic mean "
    "of two accuracies: the exact first error on solutions with an incorrect step, and no claim on those without one.",
    "macro_f1": "A step scored at or above the threshold is claimed correct. Macro F1 is the mean of the F1 of correct "
    "and of incorrect steps; steps annotated as neither are excluded.",
    "prm_score": "A step scored at or above the threshold is claimed correct. The PRM score is the mean of the F1 of "
    "correct and of incorrect steps, and the F1 of correct steps in a category without incorrect ones. The published "
    "overall score is that of all categories together; the score of a group is the mean of its categories.",
    "labels": "Soft labels are evaluated as scores: a prefix whose label is at or above the threshold is claimed "
    "correct, and is correct if none of its steps is incorrect. Macro F1 is the mean of the F1 of correct and of "
    "incorrect prefixes. Labels of whole solutions are excluded: they are verdicts, not estimates.",
}

CHOOSERS = {"prm": "The candidate with the highest reward", "weighted": "The vote weighted by reward"}


def prm_evaluation_page(results: Sequence[PrmEvaluation], best_of_n: BestOfN | None) -> str:
    """Build the page: one section per data set, then best-of-N with every aggregator."""
    sections = ["<header><h1>PRM evaluation</h1></header>"]
    sections += [_evaluation(result) for result in results]
    by_dataset = {result.dataset: [each for each in results if each.dataset == result.dataset] for result in results}
    sections += [_comparison(dataset, found) for dataset, found in by_dataset.items() if len(found) > 1]
    if best_of_n is not None:
        sections += [_aggregators(best_of_n), accuracy_section(_report_data(best_of_n))]
    return document("PRM evaluation", sections)


def _evaluation(result: PrmEvaluation) -> str:
    parts = METRICS[result.metric].parts
    rows = [_row(name, metrics) for name, metrics in result.sources.items()]
    if len(result.sources) > 1:
        rows.append(["average", _cell(result.average), *[""] * len(parts), "", ""])
        rows.append(_row("all together", result.pooled))
        rows += [[f"group {group}", _cell(f1), *[""] * len(parts), "", ""] for group, f1 in result.groups.items()]
    measured = {name: metrics.f1 for name, metrics in result.sources.items() if metrics.f1 is not None}
    title = METRICS[result.metric].title
    bars = bars_plot(measured, title, f"sources-{_heading(result)}") if len(measured) > 1 else ""
    scores, step = ("Labels", "prefix") if result.dataset == "labels" else ("Scores", "step")
    auc = "" if result.auc is None else f" AUC of the steps is {result.auc:.3f}."
    aggregator = f" Its aggregator: {escaped(result.aggregator)}." if result.aggregator else ""
    judge = ""
    if result.tokens is not None:
        judge = (
            f" The judge generated {result.tokens:,} tokens; {result.unknown:,} solutions are left out because its "
            "verdicts on them are unknown."
        )
    return f"""<section><h2>{escaped(_heading(result))}</h2>
<p class="note">{scores} of <code>{escaped(result.scored_by)}</code>.{aggregator}{judge}</p>
<p class="note">{NOTES.get(result.dataset, NOTES[result.metric])} Threshold {result.threshold:.3f}
({escaped(result.threshold_from)}). Ranges are 95 % bootstrap intervals over problems.</p>
{f"<figure>{bars}</figure>" if bars else ""}
{table(["source", title, *map(escaped, parts.values()), "solutions", "judged steps"], rows)}
<h3>Calibration</h3>
<p class="note">{scores} as probabilities that a {step} is correct, in {len(result.curve)} non-empty bins of equal
width. The expected calibration error is {result.ece:.3f}.{auc}</p>
<figure>{reliability_plot(result.curve, f"reliability-{_heading(result)}")}</figure></section>"""


def _comparison(dataset: str, results: Sequence[PrmEvaluation]) -> str:
    """Build the section that compares scorers on a data set: F1 against generated tokens, and costs."""
    title = METRICS[results[0].metric].title
    points = [
        CostPoint(result.name or dataset, result.scored_by, result.tokens_per_solution, result.f1)
        for result in results
        if result.f1 is not None
    ]
    rows = [
        [
            escaped(_heading(result)),
            f"<code>{escaped(result.scored_by)}</code>",
            _cell(result.f1),
            f"{1000 * result.tokens_per_solution:,.0f}",
            f"{1000 * result.seconds / result.scored:,.0f}" if result.scored else "",
            f"{result.unknown:,}",
        ]
        for result in results
    ]
    head = ["scorer", "model", title, "tokens per 1,000 solutions", "seconds per 1,000 solutions", "unknown"]
    return f"""<section><h2>{escaped(dataset)}: cost and quality</h2>
<p class="note">Tokens that each scorer generated, and the time that it took on the machine that ran it. A process
reward model generates none; chains of thought from the cache count as tokens but take no time.</p>
{f"<figure>{cost_plot(points, title, f'cost-{dataset}')}</figure>" if points else ""}
{table(head, rows)}</section>"""


def _heading(result: PrmEvaluation) -> str:
    return f"{result.dataset} {result.name}" if result.name else result.dataset


def _row(name: str, metrics: SourceMetrics) -> list[str]:
    cells = [_cell(metrics.f1), *map(_cell, metrics.parts.values())]
    return [escaped(name), *cells, f"{metrics.solutions:,}", f"{metrics.steps:,}"]


def _aggregators(result: BestOfN) -> str:
    """Build a table of accuracy by aggregator and N for each selector that depends on the aggregator."""
    sizes = [f"N = {point.n}" for point in result.accuracy[result.best]]
    tables = [
        f"<h3>{CHOOSERS[selector]}</h3>"
        + table(
            ["aggregator", *sizes],
            (
                [f"<code>{escaped(name)}</code>", *(interval_cell(point.accuracy[selector]) for point in points)]
                for name, points in result.accuracy.items()
            ),
        )
        for selector in OWN
    ]
    return f"""<section><h2>Best of {result.samples} by aggregator</h2>
<p class="note">{result.problems} problems. The highest is <code>{escaped(result.best)}</code>, whose curves follow
below. If you choose an aggregator from this table, measure it on other problems.</p>
{"".join(tables)}</section>"""


def _report_data(result: BestOfN) -> ReportData:
    return ReportData("", accuracy=result.accuracy[result.best], problems=result.problems, aggregator=result.best)


def _cell(interval: Interval | None) -> str:
    return "not defined" if interval is None else interval_cell(interval)
