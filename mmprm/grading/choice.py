"""Multiple choice: which option an answer names, by letter or by text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmprm.grading.text import clean, key

_GOLD = re.compile(r"\(([A-J])\)|([A-J])")
_LETTER = re.compile(
    r"(?:option|choice|answer)?\s*(?:\(([A-J])\)|([A-J])(?![\w'^]))\s*(?:[.:,)]\s*(?P<text>.*)|$)", re.DOTALL | re.I
)


def is_letter(gold: str) -> bool:
    """Whether a gold answer is a bare option letter: B, (B), B. or \\text{(B)}."""
    return _GOLD.fullmatch(clean(gold)) is not None


def letter(answer: str) -> str | None:
    """The option letter of `B`, `(B)`, `B.`, `b)`, `B. text`, `option B`; None where no letter stands first."""
    match = _LETTER.match(clean(answer))
    return (match[1] or match[2]).upper() if match else None


def option(answer: str, choices: Sequence[str]) -> int | None:
    """Index of the option that `answer` names by its text, or else by its letter; by its letter first where options
    are letters themselves ("D. I")."""
    ways = [_by_text, _by_letter]
    if any(is_letter(_text(choice)) for choice in choices):
        ways.reverse()
    found = (way(answer, choices) for way in ways)
    return next((index for index in found if index is not None), None)


def _by_text(answer: str, choices: Sequence[str]) -> int | None:
    texts = [key(_text(choice)) for choice in choices]
    named = (key(answer), key(_text(answer)))
    return next((texts.index(text) for text in named if texts.count(text) == 1), None)


def _by_letter(answer: str, choices: Sequence[str]) -> int | None:
    named = letter(answer)
    index = ord(named) - ord("A") if named else len(choices)
    return index if index < len(choices) else None


def _text(choice: str) -> str:
    """`3 cm` from `B. 3 cm`."""
    match = _LETTER.match(clean(choice))
    return match["text"] if match and match["text"] else choice
