"""Generate word problems with known intermediate values, and short solutions to them.

A story is a chain of events that change a number, and an ending. Everything is determined by the seed. Numbers and
events decide the split, so that two splits never share a problem, not even in other words. The wordings of the SFT
problems, those of annotate and rl, and those of dev and test are different.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from benchmarks.real.expressions import (
    Expression,
    Operation,
    apply,
    legitimate_operations,
    legitimate_values,
    number,
)
from benchmarks.real.scenes import DISTRACTORS, GOODS, NAMES, SCENES, STEPS, Wordings
from benchmarks.real.search_wordings import SEARCH_WORDINGS
from mmprm.problems import content_id

SplitName = Literal["sft", "annotate", "rl", "dev", "test"]
SPLITS: tuple[SplitName, ...] = ("sft", "annotate", "rl", "dev", "test")
WordingsName = Literal["training", "search", "held_out"]
WORDINGS_OF: dict[SplitName, WordingsName] = {
    "sft": "training",
    "annotate": "search",
    "rl": "search",
    "dev": "held_out",
    "test": "held_out",
}
"""Maps each split to its usual set of wordings."""
LARGEST = 40
"""Largest intermediate value before the ending."""
FORMS = ("tags", "numbered")
"""Step formats of the solutions, named as in mmprm.steps."""
FIXED = {"dozen": 12, "double": 2}
"""Numbers that a kind of event implies without stating them."""


@dataclass(frozen=True)
class Step:
    """Describes one operation of the shortest solution: `left operation right = result`, all integers."""

    left: int
    operation: str
    right: int
    result: int
    unit: str


@dataclass(frozen=True)
class Event:
    """Describes an event by its kind and numbers: n, and k if there are k groups of n."""

    kind: str
    n: int = 0
    k: int = 0

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(each for each in (self.n, self.k, FIXED.get(self.kind, 0)) if each)


@dataclass(frozen=True)
class Story:
    """Describes the events and numbers of a problem, without its wording."""

    scene: str
    start: int
    events: tuple[Event, ...]
    ending: Event
    distractor: int | None

    def content(self) -> str:
        return repr((self.scene, self.start, self.events, self.ending))


@dataclass(frozen=True)
class RealProblem:
    """Contains a problem's question, the steps of one solution, and the values and operations of all correct ones."""

    question: str
    steps: tuple[Step, ...]
    givens: tuple[int, ...]
    distractors: tuple[int, ...]
    values: tuple[Fraction, ...]
    operations: tuple[Operation, ...]
    name: str

    @property
    def answer(self) -> str:
        return str(self.steps[-1].result)

    def row(self) -> dict[str, Any]:
        """Return the problem as a row that mmprm reads. The other columns stay in Problem.extra."""
        return {
            "id": content_id(self.question, self.answer, ()),
            "question": self.question,
            "answer": self.answer,
            "operations": len(self.steps),
            "givens": " ".join(map(str, self.givens)),
            "distractors": " ".join(map(str, self.distractors)),
            "legitimate_values": " ".join(map(str, self.values)),
            "legitimate_operations": " ".join(f"{sign}:{left}:{right}" for sign, left, right in self.operations),
        }


def make_problems(
    split: SplitName, count: int, seed: int = 0, wordings: WordingsName | None = None
) -> list[RealProblem]:
    """Generate `count` different problems of a split, in its usual wordings or in others.

    The first problems are the same for every count.
    """
    found: dict[str, RealProblem] = {}
    for attempt in itertools.count():
        rng = random.Random(f"{seed}/{split}/{attempt}")
        story = _story(rng)
        if story is None or _split_of(story) != split or story.content() in found:
            continue
        problem = _worded(story, rng, wordings or WORDINGS_OF[split])
        if problem is not None:
            found[story.content()] = problem
        if len(found) == count:
            return list(found.values())
    raise AssertionError("unreachable")


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def solution(problem: RealProblem, form: str, rng: random.Random) -> str:
    """Write the problem's solution in one of the two step formats, with randomly chosen step sentences."""
    steps = [rng.choice(STEPS[step.operation]).format(**_fields(step)) for step in problem.steps]
    if form == "tags":
        return "\n".join([*(f"<step>{step}</step>" for step in steps), f"<answer>{problem.answer}</answer>"])
    return "\n".join([*(f"{index}. {step}" for index, step in enumerate(steps, 1)), f"Answer: {problem.answer}"])


def _fields(step: Step) -> dict[str, Any]:
    return {"a": step.left, "b": step.right, "c": step.result, "unit": step.unit}


def _split_of(story: Story) -> SplitName:
    digest = hashlib.sha256(story.content().encode()).digest()
    return SPLITS[digest[0] % len(SPLITS)]


def _story(rng: random.Random) -> Story | None:
    """Sample a story, or return None if its numbers are outside the allowed range."""
    scene = rng.choice(tuple(SCENES))
    start = rng.randint(3, 20)
    running, events = start, []
    kinds = [kind for kind in SCENES[scene].events if kind != "start"]
    for kind in rng.sample(kinds, rng.choice((1, 1, 1, 1, 2, 2, 3))):
        event = _event(kind, rng)
        running = _after(running, event)
        if not 2 <= running <= LARGEST:
            return None
        events.append(event)
    ending = _ending(rng.choice(tuple(SCENES[scene].endings)), running, rng)
    if ending is None:
        return None
    distractor = rng.randint(21, 60) if rng.random() < 0.4 else None
    return Story(scene, start, tuple(events), ending, distractor)


def _event(kind: str, rng: random.Random) -> Event:
    if kind in ("add_groups", "take_groups"):
        return Event(kind, rng.randint(2, 6), rng.randint(2, 4))
    if kind in FIXED:
        return Event(kind, 0, 2 if kind == "dozen" else 0)
    return Event(kind, rng.randint(2, 9))


def _after(running: int, event: Event) -> int:
    change = event.n * (event.k or 1)
    if event.kind == "dozen":
        change = event.k * FIXED[event.kind]
    if event.kind == "double":
        return running * 2
    return running - change if event.kind.startswith("take") else running + change


def _ending(kind: str, running: int, rng: random.Random) -> Event | None:
    if kind == "share":
        divisors = [each for each in range(2, 6) if running % each == 0 and running // each > 1]
        return Event(kind, rng.choice(divisors)) if divisors else None
    if kind == "price":
        return Event(kind, rng.randint(2, 5)) if running <= 20 else None
    return Event(kind)


def _solved(story: Story, unit: str) -> tuple[list[Step], Expression]:
    """Return the operations of the shortest solution, and the whole expression."""
    steps: list[Step] = []
    expression: Expression = number(story.start)

    def compute(left: int, operation: str, right: int, unit: str) -> int:
        result = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[operation]
        steps.append(Step(left, operation, right, result, unit))
        return result

    running = story.start
    for event in story.events:
        if event.kind == "double":
            running = compute(running, "*", 2, unit)
            expression = apply(expression, "*", number(2))
            continue
        operation = "-" if event.kind.startswith("take") else "+"
        change, part = event.n, number(event.n)
        if event.k:
            each = event.n or FIXED[event.kind]
            change, part = compute(event.k, "*", each, unit), apply(number(event.k), "*", number(each))
        running = compute(running, operation, change, unit)
        expression = apply(expression, operation, part)
    if story.ending.n:
        operation = "/" if story.ending.kind == "share" else "*"
        running = compute(running, operation, story.ending.n, "dollars" if operation == "*" else unit)
        expression = apply(expression, operation, number(story.ending.n))
    assert expression.value == running, "the steps must compute the expression"
    return steps, expression


def _worded(story: Story, rng: random.Random, set_name: WordingsName) -> RealProblem | None:
    """Write the text of a story, or return None if an incorrect operation would yield a legitimate value."""
    scene = SCENES[story.scene]
    (unit, group), name = rng.choice(GOODS), rng.choice(NAMES)
    friend = rng.choice([other for other in NAMES if other != name])
    fields = {"name": name, "friend": friend, "unit": scene.unit or unit, "group": group, "goods": unit}

    def sentence(wordings: Wordings, event: Event) -> str:
        chosen = rng.choice(_choices(wordings, story.scene, event.kind, set_name))
        text = chosen.format(**fields, n=event.n, k=event.k)
        return text[0].upper() + text[1:]

    steps, expression = _solved(story, fields["unit"])
    if not 2 <= len(steps) <= 5:
        return None
    told = [sentence(scene.events["start"], Event("start", story.start))]
    told += [sentence(scene.events[event.kind], event) for event in story.events]
    distractors = () if story.distractor is None else (story.distractor,)
    if distractors:
        told.insert(rng.randint(1, len(told)), sentence(DISTRACTORS, Event("distractor", story.distractor)))
    told.append(sentence(scene.endings[story.ending.kind], story.ending))
    givens = (story.start, *(n for event in (*story.events, story.ending) for n in event.numbers))
    values = legitimate_values(expression)
    if any(_confusions(givens, distractors, values)):
        return None
    operations = tuple(sorted(legitimate_operations(expression)))
    return RealProblem(" ".join(told), tuple(steps), givens, distractors, tuple(sorted(values)), operations, name)


def _choices(wordings: Wordings, scene: str, kind: str, name: WordingsName) -> tuple[str, ...]:
    """Return the wordings of a kind of sentence in a set of wordings."""
    if name == "search":
        return SEARCH_WORDINGS["distractor" if kind == "distractor" else scene][kind]
    return wordings.held_out if name == "held_out" else wordings.training


def _confusions(givens: Sequence[int], distractors: Sequence[int], values: set[Fraction]) -> Iterator[bool]:
    """Yield whether a distractor could be taken for a legitimate value, alone or in one operation."""
    for distractor in distractors:
        yield distractor in values or distractor in givens
        for value in values:
            yield bool({value + distractor, abs(value - distractor), value * distractor} & values)
