"""Options of multiple-choice problems: read from a cell, found in a question, appended to it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmprm.data.cells import Row, cut, is_empty, parsed, plain
from mmprm.errors import DataError
from mmprm.types import Problem

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_LETTER_GOLD = re.compile(r"\W*[A-Z]\W*")
_OWN_LETTER = re.compile(r"\s*\(?([A-Z])\s*[.:)、．]\s*")


def read_choices(value: Any, place: str) -> tuple[str, ...]:
    """Return the texts of a cell's options: a list (also as text), {A: …, B: …} or {label: […], text: […]}.

    Raises DataError for another form, for options that are no texts, and for more than there are letters.
    """
    value = plain(value)
    value = parsed(value) if isinstance(value, str) else value
    items = _of_struct(value) if isinstance(value, Mapping) else value
    if not isinstance(items, list | tuple):
        raise DataError(f"{place}: choices must be a list, got {cut(value)!r}; make it one, or drop the column")
    items = [plain(item) for item in items]
    if bad := [item for item in items if not isinstance(item, str | int | float) or is_empty(item)]:
        raise DataError(
            f"{place}: choices must be texts, got {cut(bad[0])!r}; write each as a text, or drop the column"
        )
    if len(items) > len(LETTERS):
        raise DataError(f"{place}: {len(items)} choices, at most {len(LETTERS)} have letters; drop the column")
    return tuple(map(str, items))


def check_choices(choices: Sequence[str], answer: Any, place: str) -> None:
    """Raise DataError for a single option, and for an answer that is a number and none of the options."""
    if choices and isinstance(answer, int) and str(answer) not in choices:
        raise DataError(
            f"{place}: answer {answer} is none of the choices {cut(choices)}; where it is a position, write its letter"
        )
    if len(choices) == 1:
        raise DataError(
            f"{place}: choices must be at least two, got {cut(choices[0])!r}; list them, or drop the column"
        )


def _of_struct(value: Mapping[Any, Any]) -> list[Any] | None:
    """Options by their letters, in order; None for another struct."""
    named = {str(name).strip().upper(): item for name, item in value.items()}
    if named.keys() == {"LABEL", "TEXT"} and all(isinstance(item, list | tuple) for item in map(plain, named.values())):
        labels, texts = plain(named["LABEL"]), plain(named["TEXT"])
        return list(texts) if len(labels) == len(texts) else None
    named = {name: item for name, item in named.items() if not is_empty(item)}  # Arrow fills structs up with nulls
    letters = sorted(named)
    return [named[letter] for letter in letters] if letters == list(LETTERS[: len(letters)]) else None


def lettered_columns(row: Row) -> dict[str, Any]:
    """Return the options that stand in columns A, B, C, … (MMBench); {} for fewer than two."""
    found: dict[str, Any] = {}
    for letter in LETTERS:
        if is_empty(row.get(letter)):
            break
        found[letter] = row[letter]
    return found if len(found) > 1 else {}


def with_choices(question: str, choices: Sequence[str], answer: str = "") -> str:
    """Return the question followed by "Choices:" and a line for each, unless all stand in it already.

    Where the answer is a letter, or not known, they must stand there with their letters: the policy is to name one.
    """
    if not choices or _all_stand_in(question, choices, answer):
        return question
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, _without_letters(choices), strict=False)]
    return "\n".join([question, "Choices:", *lines])


def asked_question(problem: Problem) -> str:
    """Return the question of a problem with its options: what policies, process reward models and judges are shown."""
    return with_choices(problem.question, problem.choices, problem.answer)


def _without_letters(choices: Sequence[str]) -> list[str]:
    """Options whose own letters say the same as their order lose these."""
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
