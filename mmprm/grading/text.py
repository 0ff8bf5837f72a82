"""Normalize the spelling of answers (LaTeX variants, Unicode, whitespace), and distinguish prose from mathematics."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from mmprm.grading.spelling import REWRITES, UNICODE

_PLAIN_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_TRAILING = re.compile(r"(?:[\s.,;:?]|\\\\|\\$)+$")
_DIGIT_GAP = re.compile(r"(?<![0-9])\s+|\s+(?![0-9])")
_NO_WORDS = re.compile(
    r"_\{\w+\}|\\(?:begin|end)\{\w+\}|\\(?!text)[a-zA-Z]+|\b(?:or|and|not|arc(?:sin|cos|tan)|(?:sin|cos|tan)h?|cot|sec|csc|log|exp|lim|max|min|mod|gcd|lcm"
    r"|det)\b"
)
_WORDS = re.compile(
    r"(?!\b[A-Z]+\b)\b[^\W\d_]{4,}|\b[^\W\d_]+[a-z] [a-z]{2,}|\b(?:is|are|was|were)\b"
    r"|[\u2234\u2235\u3040-\u9fff\uac00-\ud7af]"
)


@lru_cache(maxsize=20_000)
def clean(line: str) -> str:
    r"""Normalize the spelling of one line: one LaTeX dialect, no math delimiters and no trailing punctuation.

    The `$` of a price becomes `¤`, degrees become `°`, and text commands `\text{…}`. Meaning is never dropped.
    """
    if _PLAIN_NUMBER.fullmatch(line):
        return line
    line = unicodedata.normalize("NFKC", line.translate(UNICODE)).translate(UNICODE)
    for pattern, replacement in REWRITES:
        line = pattern.sub(replacement, line)
    return _TRAILING.sub("", _whole_text(line.strip())).strip()


@lru_cache(maxsize=10_000)
def key(text: str) -> str:
    """Return a comparison key: answers with equal keys are equal. Case matters in mathematics, but not in prose."""
    lines = [clean(line) for line in text.strip().splitlines()]
    cleaned = "\n".join(line for line in lines if line)
    if is_prose(cleaned):
        return " ".join(re.sub(r"\\text\{([^{}]*)\}", r"\1", cleaned).casefold().split())
    return _DIGIT_GAP.sub("", cleaned.replace("\n", ";"))


def is_prose(text: str) -> bool:
    """Return whether a text is prose rather than mathematics. Callers remove units and "or" beforehand."""
    return bool(_WORDS.search(_NO_WORDS.sub(" ", text.replace(r"\text", " ")))) or _is_word(text)


def _is_word(text: str) -> bool:
    """Return whether a text is a single word (odd, Yes) and not a product of letters (abc)."""
    return bool(re.fullmatch(r"\\text\{[^{}]*[a-zA-Z]{2}[^{}]*\}|[A-Z][a-z]+|yes|no|true|odd|even", text.strip()))


def _whole_text(line: str) -> str:
    r"""Unwrap a line that consists only of `\text{…}`; return other lines unchanged."""
    match = re.fullmatch(r"\\text\{([^{}]*)\}[.\s]*", line)
    return match[1].strip() if match else line
