"""Define benchmark questions, first as read from a row, and then as asked and graded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmprm.data.cells import is_empty
from mmprm.evaluation.rules import AnswerRule
from mmprm.types import Problem

YES_NO = "Answer yes or no."
"""Instruction to append to yes-or-no questions, because the published prompt gives it outside the question."""


_HIDDEN = ("?", "hidden")
"""Values that stand for unpublished gold answers in test splits."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Holds one benchmark row; `images`, `videos` and `audios` are in the row's original format.

    `groups` maps a grouping of the benchmark, such as subject or version, to the entry's value or values. `rule`
    decides where symbolic grading differs from the published rule, and `also` holds further gold answers.

    Entries with the same `family` are versions or parts of one problem, and `part` says which. By default, each entry
    is a separate family.
    """

    id: str
    question: str
    answer: str
    images: Sequence[Any] = ()
    choices: Sequence[str] = ()
    groups: Mapping[str, Any] = field(default_factory=dict)
    rule: AnswerRule | None = None
    also: Sequence[str] = ()
    family: str | None = None
    part: str = ""
    videos: Sequence[Any] = ()
    audios: Sequence[Any] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """Holds a benchmark question as a problem, with the groups, rule, family and part of its `Entry`."""

    problem: Problem
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    family: str = ""
    part: str = ""
    rule: AnswerRule | None = None
    also: tuple[str, ...] = ()


def published_answer(value: Any) -> str:
    """Return a gold answer as text, or "" if it is missing or hidden."""
    return "" if is_empty(value) or str(value).strip() in _HIDDEN else str(value)


def group_values(groups: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Convert each group of an `Entry` to a tuple of texts, dropping empty values and empty groups."""
    listed = {name: value if isinstance(value, list | tuple) else [value] for name, value in groups.items()}
    texts = {name: tuple(str(item) for item in items if item not in (None, "")) for name, items in listed.items()}
    return {name: items for name, items in texts.items() if items}
