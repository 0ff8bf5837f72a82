"""The structure of an answer: values, lists, tuples, intervals, ratios, relations, down to single values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from mmprm.grading.numbers import number, split_unit
from mmprm.grading.text import clean, is_prose

Kind = Literal["blanks", "list", "set", "brackets", "union", "ratio", "relation"]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A single value. `text` is in the common spelling, without its unit."""

    text: str
    unit: str = ""
    prose: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """blanks: several answers in order; list, set: in any order; brackets: a tuple or interval, `mark` its two brackets
    and `name` what stood before them; union: intervals; ratio: a:b:c; relation: `marks` are the operators between."""

    kind: Kind
    items: tuple[Answer, ...]
    marks: tuple[str, ...] = ()
    name: str = ""


Answer = Leaf | Group

_SERIAL = re.compile(r"\d{1,2}(?:\.\s*\d{1,2}){2,}|\(?\d{1,2}\)(?:[\s,]*\(?\d{1,2}\))+")
_SHORT_SERIAL = re.compile(r"([1-9])\.([1-9])\.")
_NUMBERS = re.compile(r"-?\d[\d.]*(?: -?\d[\d.]*)+")
_BASE = re.compile(r"[0-9A-F]+_\{?\d+\}?")
_THOUSANDS = re.compile(r"[^,]*?[-+¤ ]?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,]).*")
_LIST_SEPARATOR = re.compile(r"(?:\s*,\s*)?(?:\\text\{\s*(?:or|and)\s*\}|\b(?:or|and)\b)\s*|\s*,\s*")
_SEMICOLON = re.compile(r"\s*;\s*")
_UNION = re.compile(r"\s*\\cup(?![a-zA-Z])\s*")
_RATIO = re.compile(r"\s*:\s*")
_RELATION = re.compile(r"\s*(\\(?:leq|geq|neq|approx|in|perp|parallel|sim|cong)(?![a-zA-Z])|<=|>=|=|<|>)\s*")
_BRACKETS = re.compile(
    r"(?P<name>[A-Z](?:_\{?\w+\}?)?'*)?\s*(?P<open>\\?\{|\(|\[)(?P<inside>.*?)(?P<close>\\?\}|\)|\])"
)
_SPELLING = {"<=": r"\leq", ">=": r"\geq"}


def read(text: str) -> Answer:
    """Read an answer of one or more lines."""
    lines = [line for line in text.strip().splitlines() if clean(line)]
    if len(lines) > 1:
        return Group("blanks", tuple(_read_line(clean(line)) for line in lines))
    return _read_line(clean(lines[0])) if lines else Leaf("")


def serial_reading(text: str) -> Answer | None:
    """`1.3.` can mean 1.3 or the conclusions 1 and 3: the second reading, where there is one."""
    match = _SHORT_SERIAL.fullmatch(text.strip().strip("$"))
    return Group("list", (Leaf(match[1]), Leaf(match[2]))) if match and match[1] < match[2] else None


def has_prose(answer: Answer) -> bool:
    return answer.prose if isinstance(answer, Leaf) else any(has_prose(item) for item in answer.items)


def _read_line(text: str) -> Answer:
    if _SERIAL.fullmatch(text):
        return Group("list", tuple(Leaf(item) for item in re.findall(r"\d+", text)))
    if _NUMBERS.fullmatch(text) and number(text) is None:
        return Group("blanks", tuple(Leaf(item) for item in text.split()))
    for kind, separator in (("blanks", _SEMICOLON), ("list", _LIST_SEPARATOR)):
        parts = [part for part in _split(text, separator)[0] if part]
        if len(parts) > 1 and not (kind == "list" and _THOUSANDS.fullmatch(text)):
            items = tuple(_read_item(part) for part in parts)
            # A sentence with commas is one piece of prose, a list with a word in it is a list.
            sentence = any(has_prose(item) and len(part.split()) > 2 for item, part in zip(items, parts, strict=True))
            return Leaf(text, prose=True) if sentence else Group(kind, items)
    return _read_item(text)


def _read_item(text: str) -> Answer:
    text = text.strip()
    if text.count(r"\pm") == 1 and not is_prose(text):
        return Group("list", tuple(_read_item(text.replace(r"\pm", sign)) for sign in ("+", "-")))
    for kind, separator in (("relation", _RELATION), ("union", _UNION), ("ratio", _RATIO)):
        parts, marks = _split(text, separator)
        if len(parts) > 1 and all(parts) and not is_prose(_without_units(text)):
            marks = tuple(_SPELLING.get(mark.strip(), mark.strip()) for mark in marks) if kind == "relation" else ()
            return Group(kind, tuple(_read_line(part.strip()) for part in parts), marks)
    if bracketed := _read_brackets(text):
        return bracketed
    body, unit = split_unit(text)
    return Leaf(body, unit, prose=is_prose(body))


def _without_units(text: str) -> str:
    return split_unit(text)[0]


def _read_brackets(text: str) -> Group | None:
    match = _BRACKETS.fullmatch(text)
    if not match or not _is_balanced(match["inside"]):
        return None
    parts = _split(match["inside"], _LIST_SEPARATOR)[0]
    is_set = match["open"][-1] == "{"
    if (
        not all(parts)
        or (len(parts) < 2 and match["open"] != r"\{")
        or (len(parts) == 2 and _THOUSANDS.fullmatch(match["inside"]))
    ):
        return None
    items = tuple(_read_item(part) for part in parts)
    if is_set:
        return Group("set", items) if match["close"][-1] == "}" else None
    return Group("brackets", items, (match["open"] + match["close"],), match["name"] or "")


def _split(text: str, separator: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """Pieces of `text` between the separators that stand outside all brackets and braces, and those separators."""
    pieces, marks, start, depth, position = [], [], 0, 0, 0
    while position < len(text):
        if depth == 0 and (match := separator.match(text, position)) and match.end() > position:
            pieces.append(text[start:position])
            marks.append(match[0])
            start = position = match.end()
            continue
        if text[position] == "\\" and not text.startswith((r"\{", r"\}"), position):
            position += 1  # the letters of a command are looked at, its backslash has been
            continue
        step = 2 if text[position] == "\\" else 1
        bracket = text[position + step - 1]
        depth += 1 if bracket in "([{" else -1 if bracket in ")]}" else 0
        position += step
    return [*pieces, text[start:]], marks


def _is_balanced(text: str) -> bool:
    """Whether no bracket closes that was not opened inside, so that the outer pair belongs together."""
    depth = 0
    for character in text.replace(r"\{", "(").replace(r"\}", ")"):
        depth += 1 if character in "([{" else -1 if character in ")]}" else 0
        if depth < 0:
            return False
    return depth == 0


def is_based(text: str) -> bool:
    """A number with its base, such as 52_8."""
    return bool(_BASE.fullmatch(text))
