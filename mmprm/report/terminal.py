"""Print a tree in the terminal with rich, in the terminal's colors and width."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree as Lines

from mmprm.report.text import printable
from mmprm.report.trees import Branch
from mmprm.steps import Markup, plain
from mmprm.types import Counts, Problem, Rollout, Steps, Verdict

GOOD, MIDDLE, BAD = (86, 180, 233), (140, 143, 148), (240, 138, 60)
"""Colors of the values 1, 1/2 and 0, distinct on light and dark backgrounds and for color-blind readers."""

MARKS = {Verdict.CORRECT: ("✓", GOOD), Verdict.INCORRECT: ("✗", BAD), Verdict.UNKNOWN: ("?", MIDDLE)}


def tree_lines(problem: Problem, ended: str, root: Branch, markup: Markup, rollouts: bool) -> RenderableType:
    """Return question, gold answer and outcome, followed by one line per labelled prefix.

    A line shows the position in the search order (· for a prefix that was never sampled from), the value, the counts
    and the steps that the prefix adds to the one above. `rollouts` also shows the rollouts sampled from each state.
    """
    head = Text.assemble(
        (printable(problem.question.strip()), "bold"), printable(f"\ngold answer {problem.answer} · {ended}\n")
    )
    lines = Lines(_label(root, markup), guide_style="dim")
    _grow(lines, root, markup, rollouts)
    return Group(head, lines)


def _grow(lines: Lines, branch: Branch, markup: Markup, rollouts: bool) -> None:
    if rollouts:
        for rollout in branch.rollouts:
            lines.add(_rollout(rollout, markup))
    for child in branch.children:
        _grow(lines.add(_label(child, markup)), child, markup, rollouts)


def _label(branch: Branch, markup: Markup) -> Text:
    number = "·" if branch.number is None else str(branch.number)
    colour = _colour(branch.counts.value)
    text = Text.assemble((f"{number:>3} ", "dim"), (f"{_value(branch.counts)} ", colour), f"{_counts(branch.counts)}  ")
    *passed, own = branch.steps[branch.above :] or ("(the question)",)
    for step in passed:
        text.append(f"{_shown(step, markup)} ↵ ", "dim")
    return text.append(_shown(own, markup), colour if branch.steps else "dim")


def _rollout(rollout: Rollout, markup: Markup) -> Text:
    mark, colour = MARKS[rollout.verdict]
    steps: Steps = rollout.steps or (rollout.text,)
    why = f" ({rollout.unsplit})" if rollout.unsplit else ""
    text = Text.assemble((f"{mark} ", _hex(colour)), (f"{rollout.token_count} tokens{why}  ", "dim"))
    return text.append(" ↵ ".join(_shown(step, markup) for step in steps), "italic")


def _shown(step: str, markup: Markup) -> str:
    return printable(plain(step, markup))


def _value(counts: Counts) -> str:
    return "  – " if counts.value is None else f"{counts.value:.2f}"


def _counts(counts: Counts) -> str:
    return f"{counts.right}✓ {counts.wrong}✗" + (f" {counts.unknown}?" if counts.unknown else "")


def _colour(value: float | None) -> str:
    if value is None:
        return "dim"
    end, share = (GOOD, 2 * value - 1) if value >= 0.5 else (BAD, 1 - 2 * value)
    return _hex(tuple(round(middle + share * (far - middle)) for middle, far in zip(MIDDLE, end, strict=True)))


def _hex(colour: tuple[int, ...]) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour)
