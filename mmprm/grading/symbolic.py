"""Grade answers by text, structure and evaluation, in this process or in workers that are killed if they hang."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import lru_cache

from pydantic import Field

from mmprm.config import Config
from mmprm.errors import GradingError
from mmprm.grading import choice
from mmprm.grading.comparison import compare
from mmprm.grading.evaluation import TooLongError, context_of, time_limit
from mmprm.grading.extract import extract, open_gold
from mmprm.grading.judge import AnswerJudgeConfig
from mmprm.grading.outcome import DIFFERENT, SAME, UNDECIDED, Outcome
from mmprm.grading.text import key
from mmprm.grading.worker_pool import DiedError, LateError, WorkerPool
from mmprm.types import Grading, Problem, Verdict

MAX_INLINE_SECONDS = 0.05
"""CPU time limit in seconds for the calling thread, which may run an event loop. Longer evaluations go to a worker."""

_VERDICTS = {SAME: Verdict.CORRECT, DIFFERENT: Verdict.INCORRECT, UNDECIDED: Verdict.UNKNOWN}

Decision = tuple[Verdict, str]
"""A (verdict, reason) pair."""


class GraderConfig(Config):
    """Configures the grader: workers, limits, closed label sets and the judge."""

    workers: int = Field(1, ge=1)
    """Number of worker processes for symbolic comparison; most answers are decided without one."""
    timeout_seconds: float = Field(5.0, gt=0)
    """CPU time limit of one symbolic comparison in seconds. The wall-clock limit is ten times as long. Beyond it, the
    worker is killed and the verdict is unknown.
    """
    memory_gib: float = Field(4.0, gt=0)
    """Maximum address space of one worker, in GiB."""
    max_length: int = Field(2000, ge=1)
    """Maximum length in characters of answers that are compared by value. Longer ones are compared as text only."""
    cache_size: int = Field(200_000, ge=0)
    """Maximum number of cached verdicts, keyed by (gold, choices, answer)."""
    labels: tuple[str, ...] = ()
    """Closed set of answers, such as class names. If the gold is in it, other answers are incorrect, never unknown."""
    judge: AnswerJudgeConfig | None = None
    """Language model for answers that symbolic comparison cannot decide; without one, these remain unknown."""


class _SymbolsNeededError(Exception):
    pass


def _ask_later(gold: str, given: str) -> Outcome:
    raise _SymbolsNeededError


def _never_ask(gold: str, given: str) -> Outcome:
    return UNDECIDED


def _compare_inline(gold: str, given: str) -> Outcome:
    """Compare an option with an answer in this process, or return UNDECIDED if the comparison requires a worker."""
    try:
        return compare(gold, given, _never_ask)
    except TooLongError:
        return UNDECIDED


class SymbolicGrader:
    """Grades final answers with three-valued verdicts; implements Grader. Close it, or use it in a `with` block."""

    def __init__(self, config: GraderConfig | None = None) -> None:
        self.config = config or GraderConfig()
        self._labels = (self.config.labels,) if self.config.labels else ()
        self._cache: dict[tuple[str, tuple[str, ...], str], Future[Decision]] = {}
        self._pool: WorkerPool | None = None
        self._lock = threading.Lock()
        context_of(60)  # loads mpmath, which is too slow to load within an event loop

    async def grade(self, problem: Problem, response: str) -> Grading:
        """Grade the final answer of a finished response, without blocking the event loop."""
        extracted = extract(response)
        if extracted is None:
            return _no_answer()
        decision = self._decide(problem, extracted)
        if decision.done():  # the usual case, which never yields to the event loop
            verdict, reason = decision.result()
        else:  # a cancelled caller must not cancel the comparison for others that wait for it
            verdict, reason = await asyncio.shield(asyncio.wrap_future(decision))
        return Grading(verdict, extracted, reason)

    def grade_many(self, pairs: Sequence[tuple[Problem, str]]) -> list[Grading]:
        """Grade (problem, response) pairs, in order."""
        answers = [extract(response) for _, response in pairs]
        decisions = [
            self._decide(problem, answer) if answer is not None else None
            for (problem, _), answer in zip(pairs, answers, strict=True)
        ]
        return [
            Grading(decision.result()[0], answer, decision.result()[1]) if decision else _no_answer()
            for decision, answer in zip(decisions, answers, strict=True)
        ]

    def close(self) -> None:
        """Stop the workers. Comparisons in flight are graded as unknown."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def __enter__(self) -> SymbolicGrader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decide(self, problem: Problem, answer: str) -> Future[Decision]:
        choices = options(problem)
        entry = (problem.answer, choices, _shared_percent(problem, answer))
        with self._lock:
            if entry in self._cache:
                return self._cache[entry]
            decision: Future[Decision] = Future()
            self._cache[entry] = decision
            if len(self._cache) > self.config.cache_size:
                del self._cache[next(iter(self._cache))]
        try:
            with time_limit(MAX_INLINE_SECONDS):
                self._start(*entry, decision)
        except Exception as error:  # such as RecursionError: an unusual answer must not stop the others
            decision.set_result((Verdict.UNKNOWN, f"comparison failed: {type(error).__name__}"))
        return decision

    def _start(self, gold: str, choices: tuple[str, ...], answer: str, decision: Future[Decision]) -> None:
        if key(gold) == key(answer):
            return decision.set_result((Verdict.CORRECT, "exact match"))
        gold = opened(gold)
        if max(len(gold), len(answer)) > self.config.max_length:
            same = key(gold) == key(answer)
            reason = "exact match" if same else f"longer than {self.config.max_length} characters"
            return decision.set_result((Verdict.CORRECT if same else Verdict.UNKNOWN, reason))
        chosen = choice.decide(gold, answer, choices, _compare_inline)
        if chosen is not None:
            outcome, reason = chosen
            return decision.set_result((_VERDICTS[outcome], reason))
        try:
            outcome = compare(gold, answer, _ask_later, self._labels)
            return decision.set_result((_VERDICTS[outcome], outcome.value))
        except (_SymbolsNeededError, TooLongError):
            task = self._workers().compare(gold, answer, self._labels)
            task.add_done_callback(lambda done: self._finish(done, decision))

    def _finish(self, done: Future[Outcome], decision: Future[Decision]) -> None:
        """Set the verdict of a finished comparison; any failure affects only this answer."""
        try:
            outcome = done.result()
            decision.set_result((_VERDICTS[outcome], outcome.value))
        except LateError:
            decision.set_result((Verdict.UNKNOWN, f"no decision within {self.config.timeout_seconds:g} s"))
        except GradingError as error:  # no worker can start: the machine is at fault, not the answer
            decision.set_exception(error)
        except DiedError as error:
            decision.set_result((Verdict.UNKNOWN, str(error)))
        except BaseException as error:
            decision.set_result((Verdict.UNKNOWN, f"comparison failed: {type(error).__name__}"))

    def _workers(self) -> WorkerPool:
        with self._lock:
            if self._pool is None:
                config = self.config
                self._pool = WorkerPool(config.workers, config.timeout_seconds, int(config.memory_gib * 2**30))
            return self._pool


@lru_cache(maxsize=20_000)
def opened(gold: str) -> str:
    """Return a gold answer without its wrapper, cached; see extract.open_gold."""
    return open_gold(gold)


def options(problem: Problem) -> tuple[str, ...]:
    """Return a problem's choices or, if it has none and the gold answer is a letter, those listed in its question."""
    if problem.choices or not problem.question or not choice.is_letter(opened(problem.answer)):
        return problem.choices
    return choice.inline_choices(problem.question)


def _shared_percent(problem: Problem, answer: str) -> str:
    """Strip the percent sign from an answer if the question asks for percent and the gold answer omits the sign."""
    asked = re.search(r"percent|%|百分", problem.question)
    bare = asked and re.fullmatch(r"\s*\$*\s*[\d.,]+\s*\$*\s*", problem.answer)
    return re.sub(r"\s*(?:\\?%|percent\b)", "", answer) if bare else answer


def _no_answer() -> Grading:
    return Grading(Verdict.INCORRECT, None, "no answer")
