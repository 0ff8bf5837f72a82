"""Parse the structure of an answer: lists, tuples, intervals, ratios, relations and matrices of single values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from mmprm.grading.numbers import number, worded_number
from mmprm.grading.quantities import is_compound, split_possible_unit, split_unit
from mmprm.grading.text import clean, is_prose
from mmprm.grading.units import NO_UNIT, Unit

CompoundKind = Literal[
    "blanks", "list", "set", "brackets", "union", "ratio", "relation", "matrix", "cases", "piece", "builder"
]


@dataclass(frozen=True, slots=True)
class Leaf:
    """Represents a single value in an answer.

    `text` is in the normalized spelling, without its unit. `maybe` is an alternative value and unit, if the last
    letters may be a unit or factors (3m).
    """

    text: str
    unit: Unit = NO_UNIT
    prose: bool = False
    maybe: tuple[str, Unit] | None = None


@dataclass(frozen=True, slots=True)
class Compound:
    """Represents an answer with several parts; `kind` says how the parts are related.

    blanks: several answers in order. list, set: items in any order; `marks` is ("or",) or ("and",) for a list joined by
    that word. brackets: a tuple or interval; `marks` holds its two brackets, `name` the text before them. union:
    intervals. ratio: a:b:c. relation: `marks` holds the operators between the sides. matrix: rows, which are lists.
    cases: pieces, each an expression and its condition. builder: the condition of {x | condition}.
    """

    kind: CompoundKind
    items: tuple[Reading, ...]
    marks: tuple[str, ...] = ()
    name: str = ""


Reading = Leaf | Compound

_MAX_DEPTH = 30

_SERIAL = re.compile(r"\d{1,2}(?:\.\s*\d{1,2}){2,}|\(?\d{1,2}\)(?:[\s,]*\(?\d{1,2}\))+")
_SHORT_SERIAL = re.compile(r"([1-9])\.([1-9])\.")
_NUMBERS = re.compile(r"-?\d[\d.]*(?: -?\d[\d.]*)+")
_PART_MARK = re.compile(r"(?:(?:^|(?<=[\s;,\n}\d)a-z]))\(|(?:^|(?<=[\s;,]))(?=\d\)))([1-9])\)\s*:?\s*(?=\S)")
_THOUSANDS = re.compile(r"[^,]*?[-+¤ ]?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,]).*")
_OR = (
    r"\\text\{\s*(?:or|and)\s*(?:about|approximately)?\s*\}"
    r"|(?<![\\\w])(?:or|and|AND|OR)\b(?: (?:about|approximately|roughly|equivalently)\b)?"
    r"|\\(?:lor|land|vee|wedge)(?![a-zA-Z])(?=.*[<>=])"
    r"|[和或及与且]|&(?!\w+;)"
)
_LIST_SEPARATOR = re.compile(rf"(?:\s*,\s*)?(?:{_OR})\s*|\s*,\s*")
_JOINTS = {"or": "or", "或": "or", "vee": "or", "and": "and", "且": "and", "wedge": "and"}
_JOINT = re.compile("|".join(_JOINTS))
_SEMICOLON = re.compile(r"\s*;\s*")
_UNION = re.compile(r"\s*(?:\\cup(?![a-zA-Z])|(?<=[)\]])\s*U(?=\s*[(\[]))\s*")
_BOTH_SIGNS = re.compile(r"\\(?:pm|mp)(?![a-zA-Z])")
_RATIO = re.compile(r"\s*:\s*")
_SIGNS = r"\\(?:leq|geq|neq|approx|in|perp|parallel|sim|cong|to|subset|subseteq|equiv)(?![a-zA-Z])|=|<|>"
_RELATION = re.compile(rf"\s*({_SIGNS})\s*")
_BRACKETS = re.compile(
    r"(?P<name>[A-Z](?:_\{?\w+\}?)?'*)?\s*(?P<open>\\?\{|\(|\[)(?P<inside>.*?)(?P<close>\\?\}|\)|\])", re.DOTALL
)
_TRANSPOSED = re.compile(r"(?<=[)\]])\s*\^\s*\{?\s*(?:T|\\top|\\text\{T\})\s*\}?$")
"""Matches a transpose sign after a row of numbers; the sign is ignored, because it does not change the vector."""
_BUILDER = re.compile(
    r"\\?\{\s*(?P<name>[a-zA-Z]\w?)\s*(?:\\in\s*(?:\\mathbb\{R\}|R)\s*)?[|:]\s*(?P<condition>.+?)\s*\\?\}"
)
_MATRIX = re.compile(
    r"(?P<factor>.*?)\\begin\{(?:[pbB]?matrix|smallmatrix|array)\}(?:\{[clr|]*\})?(?P<rows>.*)\\end\{(?:[pbB]?matrix|smallmatrix|array)\}(?P<after>\^?T?)",
    re.DOTALL,
)
_CASES = re.compile(
    r"\\begin\{(?:cases|aligned|array)\}(?:\{[clr|]*\})?(?P<rows>.*)\\end\{(?:cases|aligned|array)\}", re.DOTALL
)
_NAMED = re.compile(r"(?P<name>[a-zA-Z]\w*(?:\(\w\))?)\s*=\s*(?P<rest>\\begin.*)", re.DOTALL)
"""Matches a LaTeX environment assigned to a name, such as a matrix A or a function f(x)."""
_ROW = re.compile(r"\s*\\\\\s*")
_CONDITION = re.compile(
    r"\s*(?:[,;&]\s*)+(?:\\text\{[^{}]*\}|if|when|for)?\s*(?=.*(?:[<>=]|\\[lg]eq|\\neq|\\in|otherwise))"
)


@lru_cache(maxsize=20_000)
def read_answer(text: str) -> Reading:
    """Parse an answer of one or more lines."""
    lines = [clean(line) for line in text.strip().splitlines()]
    lines = [line for line in lines if line]
    if r"\begin" in text:
        lines = [" ".join(lines)]
    if parts := _numbered("\n".join(lines)):
        return Compound("blanks", tuple(_read_line(part) for part in parts))
    if len(lines) > 1:
        return Compound("blanks", tuple(_read_line(line) for line in lines))
    return _read_line(lines[0]) if lines else Leaf("")


def serial_reading(text: str) -> Reading | None:
    """Parse the numbers of two selected statements, such as `1.3.`, as the list 1, 3; return None for other texts."""
    match = _SHORT_SERIAL.fullmatch(text.strip().strip("$"))
    return Compound("list", (Leaf(match[1]), Leaf(match[2]))) if match and match[1] < match[2] else None


def run_together(gold: str, answer: str) -> bool:
    """Return whether the answer is the gold answer's list of numbers without separators, such as 134 for `1.3.4.`."""
    digits = clean(answer)
    return (
        digits.isdigit()
        and re.fullmatch(r"(?:[1-9]\.){3,}", gold.strip(" $")) is not None
        and gold.replace(".", "").strip(" $") == digits
    )


def spaced_reading(text: str) -> Reading | None:
    """Parse a number with spaces, such as `12 345`, as several separate answers, or return None for any other text."""
    text = clean(text.strip())
    if _NUMBERS.fullmatch(text) and number(text) is not None:
        return Compound("blanks", tuple(Leaf(item) for item in text.split()))
    return None


def has_prose(answer: Reading) -> bool:
    """Return whether any value in an answer is prose."""
    return answer.prose if isinstance(answer, Leaf) else any(has_prose(item) for item in answer.items)


def flattened(answer: Reading) -> list[Reading]:
    """Flatten a multi-part answer and its lists into one list, without splitting conditions such as x<1 or x>3."""
    if isinstance(answer, Compound) and answer.kind in ("blanks", "list") and not _is_condition(answer):
        return [leaf for item in answer.items for leaf in flattened(item)]
    return [answer]


def _is_condition(answer: Compound) -> bool:
    orders = all(isinstance(item, Compound) and set(item.marks) & {"<", ">", r"\leq", r"\geq"} for item in answer.items)
    return orders and bool(answer.marks)


def _numbered(text: str) -> list[str]:
    """Split `(1) … (2) …` into its numbered parts, or return [] for any other text."""
    marks = list(_PART_MARK.finditer(text))
    if len(marks) < 2 or marks[0].start() != 0 or [mark[1] for mark in marks] != list("123456789"[: len(marks)]):
        return []
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    parts = [text[mark.end() : end].strip(" ;,.\n") for mark, end in zip(marks, ends, strict=True)]
    return [part.replace("\n", "; ") for part in parts] if all(parts) else []


def _read_line(text: str, depth: int = 0) -> Reading:
    if depth > _MAX_DEPTH:
        return Leaf(text, prose=True)
    text = _unbraced(text)
    if worded_number(text) is not None or is_compound(text):
        return read_leaf(text)
    if _SERIAL.fullmatch(text):
        return Compound("list", tuple(Leaf(item) for item in re.findall(r"\d+", text)))
    if _NUMBERS.fullmatch(text) and number(text) is None:
        return Compound("blanks", tuple(Leaf(item) for item in text.split()))
    if environment := _read_environment(text, depth):
        return environment
    for kind, separator in (("blanks", _SEMICOLON), ("list", _LIST_SEPARATOR)):
        parts, marks = split_outside_brackets(text, separator)
        joint = tuple(sorted({_JOINTS[word] for mark in marks for word in _JOINT.findall(mark.lower())}))
        parts = [part for part in parts if part]
        if len(parts) > 1 and not (kind == "list" and _THOUSANDS.fullmatch(text) and not joint):
            read_part = _read_line if kind == "blanks" else _read_item
            items = tuple(read_part(part, depth + 1) for part in parts)
            # A sentence with commas is one piece of prose; a list that contains a word is a list.
            sentence = any(has_prose(item) and len(part.split()) > 2 for item, part in zip(items, parts, strict=True))
            return (
                Leaf(text, prose=True)
                if sentence
                else Compound(kind, _opened(items) if kind == "list" else items, joint)
            )
    return _read_item(text, depth)


def _opened(items: tuple[Reading, ...]) -> tuple[Reading, ...]:
    """Replace nested lists, such as the two values of 1 ± 2, with their items."""
    inner = [item.items if isinstance(item, Compound) and item.kind == "list" else (item,) for item in items]
    return tuple(leaf for group in inner for leaf in group)


def _unbraced(text: str) -> str:
    while text.startswith("{") and text.endswith("}") and _is_balanced(text[1:-1]) and not _BUILDER.fullmatch(text):
        text = text[1:-1].strip()
    return text


def _read_item(text: str, depth: int = 0) -> Reading:
    text = _unbraced(text.strip())
    if depth > _MAX_DEPTH:
        return Leaf(text, prose=True)
    if len(split_outside_brackets(text, _BOTH_SIGNS)[0]) == 2 and not is_prose(text):
        return Compound("list", tuple(_read_item(_BOTH_SIGNS.sub(sign, text), depth + 1) for sign in ("+", "-")))
    if match := _BUILDER.fullmatch(text):
        return Compound("builder", (_read_line(match["condition"], depth + 1),), name=match["name"])
    if environment := _read_environment(text, depth):
        return environment
    for kind, separator in (("relation", _RELATION), ("union", _UNION), ("ratio", _RATIO)):
        parts, marks = split_outside_brackets(text, separator)
        if len(parts) < 2 or not all(parts[1:]):
            continue
        if is_prose(_without_units(text)) and not _is_named_value(parts, marks):
            continue
        if parts[0] or kind == "relation":
            return Compound(
                kind, tuple(_read_line(part.strip(), depth + 1) for part in parts), tuple(map(str.strip, marks))
            )
    if bracketed := _read_brackets(text, depth):
        return bracketed
    return read_leaf(text)


def read_leaf(text: str) -> Leaf:
    """Parse a single value with its unit."""
    worded = worded_number(text)
    if worded is not None:
        return Leaf(str(worded))
    counted = re.fullmatch(r"(?P<count>[a-z -]+) (?P<unit>[a-zA-Z]+)", text)
    if counted is not None and (count := worded_number(counted["count"])) is not None:
        text = f"{count} {counted['unit']}"
    body, unit, certain = split_possible_unit(text)
    if not certain:
        return Leaf(text, maybe=(body, unit))
    return Leaf(_unbraced(body), unit, prose=is_prose(body))


def _is_named_value(parts: list[str], marks: list[str]) -> bool:
    """Return whether a relation states the value of a quantity named in words, such as Area = 24."""
    last = parts[-1]
    return (
        bool(re.fullmatch(r"(?:\\text\{)?[A-Za-z][A-Za-z ]*\}?", parts[0]))
        and marks[0].strip() == "="
        and not is_prose(_without_units(last))
    )


def _without_units(text: str) -> str:
    return split_unit(text)[0]


def _read_environment(text: str, depth: int) -> Reading | None:
    """Parse a matrix, a system or a function defined by cases, or return None for any other text. A matrix may have a
    factor before it."""
    if "\\begin" not in text:
        return None
    if named := _NAMED.fullmatch(text):
        environment = _read_environment(named["rest"], depth)
        return environment and Compound("relation", (read_leaf(named["name"]), environment), ("=",))
    if re.match(r"\\\{\s*\\begin\{array\}", text) and not text.endswith(r"\}"):  # a system after a single brace
        text = text[2:].strip().replace("{array}", "{cases}")
    if text[0] in "([" and text[-1] in ")]" and r"\begin{array}" in text:
        text = text[1:-1].strip()
    if match := _MATRIX.fullmatch(text):
        factor, rows = match["factor"].strip(), [row for row in _ROW.split(match["rows"].strip()) if row]
        if r"\begin" in factor or "=" in factor:
            return None
        cells = [[cell.strip() for cell in row.split("&")] for row in rows]
        if match["after"]:
            cells = [list(row) for row in zip(*cells, strict=False)]
        return Compound(
            "matrix", tuple(Compound("list", tuple(_scaled(factor, cell, depth) for cell in row)) for row in cells)
        )
    if match := _CASES.fullmatch(text):
        rows = [row.strip(" ,;") for row in _ROW.split(match["rows"].strip()) if row.strip()]
        pieces = [_CONDITION.split(row, maxsplit=1) for row in rows]
        if all(len(piece) == 2 for piece in pieces):
            return Compound(
                "cases", tuple(Compound("piece", tuple(_read_item(p, depth + 1) for p in piece)) for piece in pieces)
            )
        return Compound("list", tuple(_read_item(row.replace("&", ""), depth + 1) for row in rows))
    return None


def _scaled(factor: str, cell: str, depth: int) -> Reading:
    if not factor:
        return _read_item(cell, depth + 1)
    return Leaf(f"-({cell})" if factor == "-" else f"({factor})({cell})")


def _read_brackets(text: str, depth: int) -> Compound | None:
    match = _BRACKETS.fullmatch(_TRANSPOSED.sub("", text))
    if not match or not _is_balanced(match["inside"]):
        return None
    parts = split_outside_brackets(match["inside"], _LIST_SEPARATOR)[0]
    is_set = match["open"][-1] == "{"
    if (
        not all(parts)
        or (len(parts) < 2 and match["open"] != r"\{")
        or (len(parts) == 2 and _THOUSANDS.fullmatch(match["inside"]) and match["open"] != r"\{")
    ):
        return None
    items = tuple(_read_item(part, depth + 1) for part in parts)
    if is_set:
        return Compound("set", _opened(items)) if match["close"][-1] == "}" else None
    return Compound("brackets", items, (match["open"] + match["close"],), match["name"] or "")


def split_outside_brackets(text: str, separator: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """Split `text` at separators outside all brackets and braces; return the pieces and the separators."""
    if not separator.search(text):
        return [text], []
    pieces, marks, start, depth, position = [], [], 0, 0, 0
    while position < len(text):
        if depth == 0 and (match := separator.match(text, position)) and match.end() > position:
            pieces.append(text[start:position])
            marks.append(match[0])
            start = position = match.end()
            continue
        if text[position] == "\\" and not text.startswith((r"\{", r"\}"), position):
            position += 1  # skip only the backslash; the letters of the command are examined next
            continue
        step = 2 if text[position] == "\\" else 1
        bracket = text[position + step - 1]
        depth += 1 if bracket in "([{" else -1 if bracket in ")]}" else 0
        position += step
    return [*pieces, text[start:]], marks


def _is_balanced(text: str) -> bool:
    """Return whether the brackets in `text` are balanced; if so, brackets placed around it match each other."""
    depth = 0
    for character in text.replace(r"\{", "(").replace(r"\}", ")"):
        depth += 1 if character in "([{" else -1 if character in ")]}" else 0
        if depth < 0:
            return False
    return depth == 0
