"""Print a search tree in the terminal with rich, using the terminal's colors and width."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree as Lines

from mmprm.report.text import printable
from mmprm.report.trees import Branch
from mmprm.steps import StepFormat, plain
from mmprm.types import Counts, Problem, Rollout, Steps, Verdict

GOOD, MIDDLE, BAD = (86, 180, 233), (140, 143, 148), (240, 138, 60)
"""Colors for the values 1, 1/2 and 0, distinguishable on light and dark backgrounds and by color-blind readers."""

_MARKS = {Verdict.CORRECT: ("✓", GOOD), Verdict.INCORRECT: ("✗", BAD), Verdict.UNKNOWN: ("?", MIDDLE)}


def tree_lines(problem: Problem, ended: str, root: Branch, step_format: StepFormat, rollouts: bool) -> RenderableType:
    """Render a search tree: the question, gold answer and outcome, followed by one line per labeled prefix.

    A line shows the position in search order, the value, the counts, and the steps that the prefix adds to its parent.
    The position is · for a prefix that was never sampled from. With `rollouts`, the rollouts sampled from each state
    are shown too.
    """
    gold = f"gold answer {problem.answer} · " if problem.answer else ""  # an environment's problems have none
    head = Text.assemble((printable(problem.question.strip()), "bold"), printable(f"\n{gold}{ended}\n"))
    lines = Lines(_label(root, step_format), guide_style="dim")
    _grow(lines, root, step_format, rollouts)
    return Group(head, lines)


def _grow(lines: Lines, branch: Branch, step_format: StepFormat, rollouts: bool) -> None:
    if rollouts:
        for rollout in branch.rollouts:
            lines.add(_rollout(rollout, step_format))
    for child in branch.children:
        _grow(lines.add(_label(child, step_format)), child, step_format, rollouts)


def _label(branch: Branch, step_format: StepFormat) -> Text:
    number = "·" if branch.number is None else str(branch.number)
    color = _color(branch.counts.value)
    text = Text.assemble((f"{number:>3} ", "dim"), (f"{_value(branch.counts)} ", color), f"{_counts(branch.counts)}  ")
    *passed, own = branch.steps[branch.above :] or ("(the question)",)
    for step in passed:
        text.append(f"{_shown(step, step_format)} ↵ ", "dim")
    return text.append(_shown(own, step_format), color if branch.steps else "dim")


def _rollout(rollout: Rollout, step_format: StepFormat) -> Text:
    mark, color = _MARKS[rollout.verdict]
    steps: Steps = rollout.steps or (rollout.text,)
    why = f" ({rollout.unsplit})" if rollout.unsplit else ""
    text = Text.assemble((f"{mark} ", _hex(color)), (f"{rollout.token_count} tokens{why}  ", "dim"))
    return text.append(" ↵ ".join(_shown(step, step_format) for step in steps), "italic")


def _shown(step: str, step_format: StepFormat) -> str:
    return printable(plain(step, step_format))


def _value(counts: Counts) -> str:
    return "  – " if counts.value is None else f"{counts.value:.2f}"


def _counts(counts: Counts) -> str:
    return f"{counts.correct}✓ {counts.incorrect}✗" + (f" {counts.unknown}?" if counts.unknown else "")


def _color(value: float | None) -> str:
    if value is None:
        return "dim"
    end, share = (GOOD, 2 * value - 1) if value >= 0.5 else (BAD, 1 - 2 * value)
    return _hex(tuple(round(middle + share * (far - middle)) for middle, far in zip(MIDDLE, end, strict=True)))


def _hex(color: tuple[int, ...]) -> str:
    return "#" + "".join(f"{part:02x}" for part in color)
