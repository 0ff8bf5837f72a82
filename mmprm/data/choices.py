"""Read the options of multiple-choice problems from cells, find them in a question, or append them to it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmprm.data.cells import Row, as_builtin, cut, is_empty, parsed
from mmprm.errors import DataError
from mmprm.types import Problem

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_LETTER_GOLD = re.compile(r"\W*[A-Z]\W*")
_OWN_LETTER = re.compile(r"\s*\(?([A-Z])\s*[.:)、．]\s*")
_LETTER_IN_TEXT = re.compile(r"(?:\A|[\n;]|,\s)\s*([A-Z])\s*[.:)、．](?!\d)\s*|\(([A-Z])\)\s*")
_TEXT_KEYS = ("text", "value", "content", "option", "choice")
_LABEL_KEYS = ("label", "key", "letter", "id", "name")


def read_choices(value: Any, location: str) -> tuple[str, ...]:
    """Parse a cell of options and return their texts; see labeled_choices."""
    return labeled_choices(value, location)[1]


def labeled_choices(value: Any, location: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    r"""Parse a cell of options into (labels, texts). The labels are A, B, C, … unless the cell provides its own.

    A cell is a list (also as text), {A: …, B: …}, {label: […], text: […]}, [{label: A, text: …}, …], or a text with a
    letter before each option ("A. 3 cm\nB. 5 cm"). Raises DataError for another format, for options that are not text
    or numbers, and for more options than letters.
    """
    value = as_builtin(value)
    value = _parsed(value) if isinstance(value, str) else value
    labels, items = _of_struct(value) if isinstance(value, Mapping) else _of_list(value)
    if not isinstance(items, list | tuple):
        raise DataError(f"{location}: choices must be a list, got {cut(value)!r}; write a list, or remove the column")
    items = _without_empty_end([as_builtin(item) for item in items])
    if bad := [item for item in items if not isinstance(item, str | int | float) or is_empty(item)]:
        raise DataError(
            f"{location}: choices must be texts, got {cut(bad[0])!r}; write each as a text, or remove the column"
        )
    if len(items) > len(LETTERS):
        raise DataError(f"{location}: {len(items)} choices, but only {len(LETTERS)} letters; remove the column")
    return tuple(labels or LETTERS)[: len(items)], tuple(map(str, items))


def _parsed(text: str) -> Any:
    """Parse a text as a list or struct, or split it into options if a letter precedes each of them."""
    value = parsed(text)
    marks = list(_LETTER_IN_TEXT.finditer(text)) if value is text else []
    letters = "".join(match[1] or match[2] for match in marks)
    if len(letters) < 2 or letters != LETTERS[: len(letters)] or text[: marks[0].start()].strip():
        return value
    ends = [*(match.start() for match in marks[1:]), len(text)]
    return [text[match.end() : end].strip(" \t\r\n;,") for match, end in zip(marks, ends, strict=True)]


def _without_empty_end(items: list[Any]) -> list[Any]:
    """Remove trailing empty items, because tables pad short lists with nulls."""
    while items and is_empty(items[-1]):
        items.pop()
    return items


def letter_of_label(labels: Sequence[str], answer: str) -> str:
    """Convert an answer that is an option's own label (1, 2, …) to the letter shown to the policy.

    Other answers are returned unchanged.
    """
    if "".join(labels) == LETTERS[: len(labels)] or answer.strip() not in labels:
        return answer
    return LETTERS[labels.index(answer.strip())]


def check_choices(choices: Sequence[str], answer: Any, location: str) -> None:
    """Raise DataError if there is only one option, or if an integer answer is not among the options."""
    if choices and isinstance(answer, int) and str(answer) not in choices:
        raise DataError(
            f"{location}: answer {answer} is none of the choices {cut(choices)}; if it is an index, write the letter "
            "of the choice"
        )
    if len(choices) == 1:
        raise DataError(
            f"{location}: choices must be at least two, got {cut(choices[0])!r}; list all of them, or remove the column"
        )


def _of_struct(value: Mapping[Any, Any]) -> tuple[list[str], list[Any] | None]:
    """Return the labels and options of a struct, sorted by label. The options are None if it has another format."""
    named = {str(name).strip().upper(): as_builtin(item) for name, item in value.items()}
    if named.keys() == {"LABEL", "TEXT"} and all(isinstance(item, list | tuple) for item in named.values()):
        labels, texts = named["LABEL"], named["TEXT"]
        return list(map(str, labels)), list(texts) if len(labels) == len(texts) else None
    named = {name: item for name, item in named.items() if not is_empty(item)}  # Arrow pads structs with nulls
    labels = sorted(named, key=lambda name: (len(name), name))
    count = len(labels)
    from_zero = [str(number) for number in range(count)]
    from_one = [str(number) for number in range(1, count + 1)]
    # Any other keys belong to a struct that does not hold options, such as {"width": …, "height": …}.
    known = labels in (list(LETTERS[:count]), from_zero, from_one)
    return labels, [named[label] for label in labels] if labels and known else None


def _of_list(value: Any) -> tuple[list[str], Any]:
    """Return the labels and options of a list; there are no labels unless every item has its own. Such items have the
    form {label: A, …}, {A: …} or [A, …]."""
    items = [as_builtin(item) for item in value] if isinstance(value, list | tuple) else value
    pairs = [_pair(item) for item in items] if items is not value else []
    if not pairs or None in pairs:
        return [], items
    return [str(label).strip().upper() for label, _ in pairs], [text for _, text in pairs]


def _pair(item: Any) -> tuple[Any, Any] | None:
    """Return (label, text) if an option has its own label, or None if it does not."""
    if isinstance(item, list | tuple):
        is_pair = len(item) == 2 and isinstance(item[0], str) and _LETTER_GOLD.fullmatch(item[0].upper())
        return (item[0], item[1]) if is_pair else None
    if not isinstance(item, Mapping):
        return None
    filled = {str(name): inner for name, inner in item.items() if not is_empty(inner)}
    label = next((name for name in _LABEL_KEYS if name in filled), None)
    text = next((name for name in _TEXT_KEYS if name in filled), None)
    if label and text:
        return filled[label], filled[text]
    return next(iter(filled.items())) if len(filled) == 1 and _LETTER_GOLD.fullmatch(next(iter(filled))) else None


def unread_options(rest: Row, answer: str) -> str | None:
    """Return the name of a column that was not read but looks like a list of options, or None if there is none.

    Such a list contains the answer.
    """
    for name, value in rest.items():
        items = as_builtin(value)
        if not isinstance(items, list | tuple) or not 1 < len(items) <= len(LETTERS):
            continue
        texts = [str(item).strip() for item in items if isinstance(item, str | int | float)]
        if len(texts) == len(items) == len(set(texts)) and answer.strip() in texts:
            return name
    return None


def with_choices(question: str, choices: Sequence[str], answer: str = "") -> str:
    """Append "Choices:" and one line per option to a question, unless it already contains all of them.

    If the answer is a letter or unknown, the question must contain the options with their letters, because the policy
    must answer with a letter.
    """
    if not choices or _all_stand_in(question, choices, answer):
        return question
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, _without_letters(choices), strict=False)]
    return "\n".join([question, "Choices:", *lines])


def asked_question(problem: Problem) -> str:
    """Return a problem's question and options as shown to policies, process reward models and judges."""
    return with_choices(problem.question, problem.choices, problem.answer)


def _without_letters(choices: Sequence[str]) -> list[str]:
    """Strip the letters from options if the options are labeled A, B, C, … in order."""
    letters = [match[1] if (match := _OWN_LETTER.match(choice)) else "" for choice in choices]
    if "".join(letters) != LETTERS[: len(choices)]:
        return list(choices)
    return [choice[_OWN_LETTER.match(choice).end() :] for choice in choices]  # type: ignore[union-attr]


def _all_stand_in(question: str, choices: Sequence[str], answer: str) -> bool:
    text = " ".join(question.split())
    bare = [re.escape(" ".join(choice.split())) for choice in _without_letters(choices)]
    lettered = [
        rf"(?<![A-Za-z]){letter}\s*[.:)\]、．，：]*\s*{choice}" for letter, choice in zip(LETTERS, bare, strict=False)
    ]
    if all(re.search(pattern, text) for pattern in lettered):
        return True
    if not answer or _LETTER_GOLD.fullmatch(answer):
        return False
    return all(re.search(rf"(?<!\w){choice}(?!\w)", text) for choice in bare)
