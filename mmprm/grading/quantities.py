r"""Split a value from its unit: `2\sqrt{3} \text{ cm}^2` is `2\sqrt{3}` in square centimeters."""

from __future__ import annotations

import itertools
import re

from mmprm.grading.numbers import number, sexagesimal
from mmprm.grading.units import DEGREE, NO_UNIT, Unit, read_unit

_CURRENCY = re.compile(r"([-+]?)\s*([¤¥€£₹])\s*(.+)")
_HEAD = re.compile(
    r"[-+]?\s*(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\s*\\frac\{\d+\}\{\d+\}|\\frac\{-?\d+\}\{-?\d+\}"
    r"|\d*\s*\\sqrt\{\d+\}|\d+(?: \d{3})+(?!\d)|\d+\s*/\s*\d+"
    r"|(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?(?:\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*(?:\{[^{}]*\}|\d))?|\{\d+\})"
)
_COMPOUND = re.compile(
    r"(?:\d+(?:\.\d+)?\s*(?:\\text\{\s*[a-zA-Z]+\s*\}|[a-zA-Z]+|[\u4e00-\u9fff]+)\s*(?:and\s+)?){2,}"
)
_COMPOUND_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(\\text\{\s*[a-zA-Z]+\s*\}|(?!and\b)[a-zA-Z]+|[\u4e00-\u9fff]+)")
_BRACKETED = re.compile(r"(?P<body>.*[\d}])\s*\(\s*(?P<unit>\\text\{[^{}]+\}[^()]*|[^()\d]+\d?)\)")
_TAIL = re.compile(
    r"(?P<body>.*?[\d})a-z])\s*(?<![a-zA-Z\\])"
    r"(?P<unit>(?:square |cubic |平方|立方)?[a-zA-ZμΩ\u4e00-\u9fff°]{2,}"
    r"(?:[/^{}\d\s.-]|\\cdot|[a-zA-Z\u4e00-\u9fff])*)"
)
_FUNCTION = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)")
_ANGLE = re.compile(r"[+=<>]|(?<=[\w°}])\s*-")
_MAYBE_FACTORS = {
    "m",
    "s",
    "g",
    "h",
    "t",
    "l",
    "mg",
    "ms",
    "mV",
    "mT",
    "mH",
    "kT",
    "kA",
    "kV",
    "T",
    "H",
    "K",
    "C",
    "F",
    "k",
    "d",
}
"""Units that could also be factors if they directly follow a number, as in 3mg."""


def split_unit(text: str) -> tuple[str, Unit]:
    """Split a text into a value and its unit. The unit is NO_UNIT if it is missing or ambiguous."""
    body, unit, certain = split_possible_unit(text)
    return (body, unit) if certain else (text, NO_UNIT)


def split_possible_unit(text: str) -> tuple[str, Unit, bool]:
    """Split a text into a value and its unit; also return whether the unit is unambiguous."""
    if number(text) is not None:
        return text, NO_UNIT, True
    if match := _CURRENCY.fullmatch(text):
        return match[1] + match[3].strip(), read_unit(match[2]) or NO_UNIT, True
    if (degrees := sexagesimal(text)) is not None:
        return rf"\frac{{{degrees.numerator}}}{{{degrees.denominator}}}", DEGREE, True
    for split in (_compound, _with_bracket, _degrees, _after_number, _in_text, _after_expression):
        if (found := split(text)) is not None:
            return found
    return text, NO_UNIT, True


_Split = tuple[str, Unit, bool] | None


def is_compound(text: str) -> bool:
    """Return whether a text is a quantity in several units, such as 2 hours and 30 minutes."""
    return _compound(text) is not None


def _compound(text: str) -> _Split:
    """Convert a quantity such as 2 hours 30 minutes to its first unit, or return None for any other text."""
    if not _COMPOUND.fullmatch(text):
        return None
    parts = [(number(value), read_unit(unit)) for value, unit in _COMPOUND_PART.findall(text)]
    units = [unit for _, unit in parts]
    if not all(unit and unit.known and unit.dimension == units[0].dimension for unit in units):
        return None
    if any(unit.size <= next_.size for unit, next_ in itertools.pairwise(units)):
        return None
    total = sum(value * unit.size for value, unit in parts) / units[0].size
    return rf"\frac{{{total.numerator}}}{{{total.denominator}}}", units[0], True


def _with_bracket(text: str) -> _Split:
    match = _BRACKETED.fullmatch(text)
    unit = read_unit(match["unit"]) if match else None
    if unit is None or not (unit.known or re.search(r"[a-zA-Z]{4,}", match["unit"])):
        return None
    return match["body"].strip(), unit, True


def _degrees(text: str) -> _Split:
    if not text.endswith("°") or _ANGLE.search(text, 1) or _FUNCTION.search(text) or "°" in text[:-1] or len(text) < 2:
        return None
    return text[:-1].strip(), DEGREE, True


def _in_text(text: str) -> _Split:
    start = text.find(r"\text{")
    if start <= 0 or text[start - 1] in "_^=({":
        return None
    body = re.sub(r"\\cdot\s*$", "", text[:start]).strip()
    unit = read_unit(text[start:])
    return (body, unit, True) if body and unit is not None and re.search(r"[\w}]$", body) else None


def _after_number(text: str) -> _Split:
    match = _HEAD.match(text)
    if match is None or match.end() == len(text):
        return None
    rest, spaced = text[match.end() :].strip(), text[match.end()].isspace()
    unit = read_unit(rest) if re.match(r"[a-zA-ZμΩ°\u4e00-\u9fff\\$¥€£¤₹]", rest) else None
    if unit is None:
        return None
    body = match[0].strip()
    if unit.known:
        return body, unit, spaced or rest not in _MAYBE_FACTORS
    words = re.fullmatch(r"[a-z]{3,}(?: [a-z]{2,}){0,2}|[\u4e00-\u9fff]{1,4}", rest)
    return (body, unit, True) if words and (spaced or not rest.isascii()) else None


def _after_expression(text: str) -> _Split:
    match = _TAIL.fullmatch(text)
    if match is None or not re.search(r"\d|\\pi|\\sqrt|[a-z]", match["body"]):
        return None
    if match["body"][-1].isalpha() and text[match.start("unit") - 1] != " " and match["unit"].isascii():
        return None
    unit = read_unit(match["unit"])
    return (match["body"].strip(), unit, True) if unit and unit.known and match["unit"] not in _MAYBE_FACTORS else None
