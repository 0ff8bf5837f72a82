"""The only file that knows step markup: tags, blank lines, numbered steps; chosen by configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from mmprm.types import Steps

Markup = Literal["tags", "blank_lines", "numbered"]
"""tags: `<step>…</step>` (also `<step_3>…</step_3>`); blank_lines: paragraphs; numbered: `Step 1:`, `1.`, `1)` at the
start of a line, with numbers that go up by one."""

_TAG = re.compile(r"<(/?)step(?:_\d+)?>")
_LINE_BREAKS = re.compile(r"(?:\s*[\r\n])?")
_BLANK_LINES = re.compile(r"\n[^\S\n]*\n(?:\s*[\r\n])?")
_NUMBER = re.compile(
    r"^[^\S\n]*(?:#+[^\S\n]*)?(?P<bold>\*\*)?(?P<word>step[^\S\n]+)?(?P<number>\d+)[^\S\n]*[.:)](?P<closed>\*\*)?(?:[^\S\n]+|$)",
    re.IGNORECASE | re.MULTILINE,
)
_ANSWER_LINE = re.compile(r"^[^\S\n]*<answer>", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Split:
    """`"".join(steps)` is the text and `reason` is None, or `steps` is empty and `reason` says what was wrong."""

    steps: Steps
    reason: str | None = None


def split(text: str, markup: Markup) -> Split:
    """Cut a response, or a continuation that begins at a step boundary, into its steps without losing a character.

    With tags, text before a step's tag belongs to that step, and what follows the last step (the answer) is a step of
    its own. Line breaks after a step stay with it, and indentation begins the next step: byte-level vocabularies have
    tokens such as `>\\n` and ` -`, which a border elsewhere would cut. Reasons: "empty", "no step", "unclosed step",
    "nested step", "stray end of step", "unclosed answer".
    """
    if not text.strip():
        return Split((), "empty")
    return _SPLITTERS[markup](text)


def plain(step: str, markup: Markup) -> str:
    """The step as a reader wants it: without its markup and outer white space. Answer tags stay."""
    if markup == "tags":
        step = _TAG.sub("", step)
    elif markup == "numbered" and not _ANSWER_LINE.match(step):
        step = _NUMBER.sub(lambda match: "**" if match["bold"] and not match["closed"] else "", step, count=1)
    return step.strip()


def _split_tags(text: str) -> Split:
    boundaries, inside = [], False
    for tag in _TAG.finditer(text):
        closes = tag[1] == "/"
        if closes != inside:
            return Split((), "stray end of step" if closes else "nested step")
        inside = not closes
        if closes:
            boundaries.append(_LINE_BREAKS.match(text, tag.end()).end())
    if inside:
        return Split((), "unclosed step")
    tail = text[boundaries[-1] :] if boundaries else text
    if "<answer>" in tail and "</answer>" not in tail:
        return Split((), "unclosed answer")
    if not boundaries and "<answer>" not in text:
        return Split((), "no step")
    return Split(_cut(text, boundaries))


def _split_blank_lines(text: str) -> Split:
    return Split(_cut(text, (match.end() for match in _BLANK_LINES.finditer(text))))


def _split_numbered(text: str) -> Split:
    """A number that does not follow the one before, or lacks the word "Step" that others have, is a list in a step."""
    matches = list(_NUMBER.finditer(text))
    starts, last = [], None
    for match in [match for match in matches if match["word"]] or matches:
        number = int(match["number"])
        if last is None or number == last + 1:
            starts.append(match.start())
            last = number
    answers = [match.start() for match in _ANSWER_LINE.finditer(text)][-1:]
    if not starts and not answers:
        return Split((), "no step")
    # What stands before the first number introduces that step.
    return Split(_cut(text, sorted({*starts[1:], *answers})))


def _cut(text: str, boundaries: Iterable[int]) -> Steps:
    """Cut at ascending offsets; a piece of white space alone joins the step before it, or the first step."""
    pieces: list[str] = []
    start = 0
    for end in (*boundaries, len(text)):
        piece, start = text[start:end], end
        if pieces and (not piece.strip() or not pieces[-1].strip()):
            pieces[-1] += piece
        else:
            pieces.append(piece)
    return tuple(pieces)


_SPLITTERS = {"tags": _split_tags, "blank_lines": _split_blank_lines, "numbered": _split_numbered}
