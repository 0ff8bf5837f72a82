"""Build a run's report: one self-contained HTML page, well-formed as XML, with no external resources."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmprm.files import whole_file
from mmprm.metrics import Interval
from mmprm.report import plots
from mmprm.report.data import Headline, JudgedSolution, JudgedStep, ReportData
from mmprm.report.images import inlined
from mmprm.report.style import CSS
from mmprm.report.text import printable
from mmprm.types import ImageRef, Verdict

VERDICTS = {Verdict.CORRECT: "correct", Verdict.INCORRECT: "incorrect", Verdict.UNKNOWN: "unknown"}


def write_report(path: str | Path, data: ReportData) -> None:
    """Write the report page for `data` atomically; raise DataError if it cannot be written."""
    write_page(Path(path), page(data))


def write_page(path: Path, text: str) -> None:
    """Write an HTML page atomically."""
    with whole_file(path, way_out="choose another output path for the page") as file:
        file.write(text)


def page(data: ReportData) -> str:
    """Build the HTML page for `data`."""
    sections = [
        _head(data),
        _headlines(data),
        accuracy_section(data),
        _labels(data),
        _training(data),
        _solutions(data),
        _policy(data),
        _facts(data),
    ]
    return document(data.title, sections)


def document(title: str, sections: Iterable[str]) -> str:
    """Wrap the sections in an HTML page, omitting empty sections."""
    body = "\n".join(section for section in sections if section)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escaped(title)}</title><style>{CSS}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _head(data: ReportData) -> str:
    subtitle = f'<p class="subtitle">{escaped(data.subtitle)}</p>' if data.subtitle else ""
    return f"<header><h1>{escaped(data.title)}</h1>{subtitle}{_lead(data)}</header>"


def _lead(data: ReportData) -> str:
    """Build the lead paragraph: the accuracy of each selector at the largest number of samples per problem."""
    if not data.accuracy:
        return ""
    last = data.accuracy[-1]
    share = {name: f"{interval.value:.1%}".replace("%", "\u202f%") for name, interval in last.accuracy.items()}
    return f"""<p class="lead">Choosing the best of {last.n} samples by their step scores solves
<b>{share["prm"]}</b> of {data.problems} problems. A random sample solves {share["random"]}, the majority vote
{share["majority"]}; at least one sample is correct for {share["oracle"]}.</p>"""


def _headlines(data: ReportData) -> str:
    if not data.headlines:
        return ""
    rows = map(_headline, data.headlines)
    return f"<section><h2>Metrics</h2>{table(['metric', 'measured', 'bar', ''], rows)}</section>"


def _headline(line: Headline) -> list[str]:
    mark = {True: '<span class="met">✓ met</span>', False: '<span class="missed">✗ missed</span>', None: ""}[line.met]
    note = f'<span class="note">{escaped(line.note)}</span>' if line.note else ""
    return [f"<code>{escaped(line.key)}</code>{note}", escaped(_number(line.value)), escaped(line.bar or ""), mark]


def accuracy_section(data: ReportData) -> str:
    """Build the section on accuracy by number of samples, or return "" if there is no data."""
    if not data.accuracy:
        return ""
    last = data.accuracy[-1]
    names = [name for name in plots.SERIES if name in last.accuracy]
    by_n = [[name, *(interval_cell(point.accuracy[name]) for point in data.accuracy)] for name in names]
    differences = [
        [
            name,
            interval_cell(last.minus_random[name], signed=True) if name != "random" else "",
            interval_cell(last.minus_majority[name], signed=True) if name != "majority" else "",
        ]
        for name in names
    ]
    aggregator = f" Step scores are aggregated by <code>{escaped(data.aggregator)}</code>." if data.aggregator else ""
    return f"""<section><h2>Accuracy by number of samples</h2>
<p class="note">{data.problems} problems. At each N a selector chooses among N of a problem's samples, averaged over
their subsets; ties are split evenly. Bars and ranges are 95 % bootstrap intervals over problems.{aggregator}</p>
<figure>{plots.accuracy_plot(data.accuracy)}</figure>
{table(["selector", *(f"N = {point.n}" for point in data.accuracy)], by_n)}
<h3>Difference at N = {last.n}, paired by problem</h3>
{table(["selector", "minus random", "minus majority"], differences)}
</section>"""


def _labels(data: ReportData) -> str:
    if not data.labels:
        return ""
    truth = " Colors show whether all steps up to the labeled one are correct." if data.labels_correct else ""
    return (
        f'<section><h2>Labels</h2><p class="note">{len(data.labels):,} distinct steps with a soft label.{truth}</p>'
        f"<figure>{plots.label_histogram(data.labels, data.labels_correct)}</figure></section>"
    )


def _training(data: ReportData) -> str:
    if not data.training:
        return ""
    return f"<section><h2>Training</h2><figure>{plots.training_plot(data.training)}</figure></section>"


def _solutions(data: ReportData) -> str:
    if not data.best and not data.worst:
        return ""
    truth = any(step.correct is not None for solution in (*data.best, *data.worst) for step in solution.steps)
    legend = " The mark at the end of a line is the truth: ✓ correct step, ✗ incorrect step." if truth else ""
    parts = [
        f"<h3>{title}</h3>{''.join(map(_solution, solutions))}"
        for title, solutions in (("Highest scores", data.best), ("Lowest scores", data.worst))
        if solutions
    ]
    return (
        '<section><h2>Best and worst solutions by score</h2><p class="note">Each step with its score P(no error '
        f"so far): blue is high, orange is low.{legend}</p>{''.join(parts)}</section>"
    )


def _solution(solution: JudgedSolution) -> str:
    images = "".join(map(_image, solution.images))
    aside = f'<div class="images">{images}</div>' if images else ""
    judgment = (
        f"gold answer {escaped(solution.answer)} · aggregate {_number(solution.reward)} · answer graded "
        f"{VERDICTS[solution.verdict]}"
    )
    return f"""<article class="solution{"" if images else " plain"}">{aside}<div>
<p class="question">{escaped(solution.question)}</p><p class="note">{judgment}</p>
<ol class="steps">{"".join(map(_step, solution.steps))}</ol></div></article>"""


def _step(step: JudgedStep) -> str:
    mark = {
        True: '<span class="correct" title="correct">✓</span>',
        False: '<span class="incorrect" title="incorrect">✗</span>',
        None: "",
    }
    end, share = ("good", 2 * step.score - 1) if step.score >= 0.5 else ("bad", 1 - 2 * step.score)
    return (
        f'<li style="--end: var(--{end}); --share: {share:.0%}"><span class="text">{escaped(step.text)}</span>'
        f'<span class="bar"><i style="width: {step.score:.1%}"></i></span><span class="score">{step.score:.2f}</span>'
        f"{mark[step.correct]}</li>"
    )


def _image(image: ImageRef) -> str:
    url, small = inlined(image)
    sharp = ' class="small"' if small else ""
    return f'<img{sharp} alt="image of the problem" src="{url}"/>'


def _policy(data: ReportData) -> str:
    if data.policy is None:
        return ""
    policy, last = data.policy, data.policy.rollouts[-1][0]
    rows = [
        ["before", interval_cell(policy.before)],
        ["after", interval_cell(policy.after)],
        ["gain, paired by problem", interval_cell(policy.gain, signed=True)],
    ]
    held_out = [(0, policy.before), (last, policy.after)]
    return f"""<section><h2>Reinforcement learning of the policy</h2>
<p class="note">{last} steps with outcome reward alone. Training accuracy is the share of correct answers
among the rollouts of each step; the {policy.problems} held-out problems are not among the training problems. Bars
and ranges are 95 % bootstrap intervals over problems.</p>
<figure>{plots.progress_plot(policy.rollouts, held_out, "policy")}</figure>
{table(["held-out accuracy of a sample", ""], rows)}</section>"""


def _facts(data: ReportData) -> str:
    if not data.facts:
        return ""
    rows = "".join(f"<tr><th>{escaped(key)}</th><td>{escaped(value)}</td></tr>" for key, value in data.facts.items())
    return f'<section><h2>The run</h2><table class="facts"><tbody>{rows}</tbody></table></section>'


def table(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Build an HTML table from rows of cells that are already HTML."""
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def interval_cell(interval: Interval, signed: bool = False) -> str:
    """Format an interval as a table cell: the value, followed by the bounds in small type."""
    style = "+.3f" if signed else ".3f"
    value, low, high = (format(x, style).replace("-", "−") for x in (interval.value, interval.low, interval.high))
    separator = " to " if signed else "–"
    return f"{value}\u00a0<small>{low}{separator}{high}</small>"


def _number(value: float | int | str | None) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, (bool, str)):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}"


def escaped(text: str) -> str:
    """Replace unprintable characters in a text, and escape it for HTML."""
    return html.escape(printable(text))
