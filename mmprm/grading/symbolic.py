"""The grader: text, structure and arithmetic here; symbols in worker processes, which are killed when they hang."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError

from pebble import ProcessExpired, ProcessPool
from pydantic import Field

from mmprm.config import Config
from mmprm.errors import GradingError
from mmprm.grading import choice
from mmprm.grading.comparison import DIFFERENT, SAME, UNDECIDED, Outcome, compare
from mmprm.grading.extract import extract
from mmprm.grading.judge import JudgeConfig
from mmprm.grading.text import key
from mmprm.grading.worker import KILLED_BY_TIMER, compare_symbolically, prepare
from mmprm.types import Grading, Problem, Verdict

_VERDICTS = {SAME: Verdict.CORRECT, DIFFERENT: Verdict.INCORRECT, UNDECIDED: Verdict.UNKNOWN}


class GraderConfig(Config):
    workers: int = Field(1, ge=1)
    """Worker processes for symbolic comparison; most answers are decided without one."""
    seconds: float = Field(5.0, gt=0)
    """Processor time of one symbolic comparison (ten times as much by the clock); beyond it the worker dies and the
    verdict is unknown."""
    memory_gib: float = Field(4.0, gt=0)
    """Address space of one worker."""
    max_length: int = Field(2000, ge=1)
    """Longer answers are compared as text only."""
    cache_size: int = Field(200_000, ge=0)
    """Verdicts kept, by (gold, choices, answer)."""
    judge: JudgeConfig | None = None
    """A language model for what symbols cannot decide; without one that stays unknown."""


class _SymbolsNeededError(Exception):
    pass


def _ask_later(gold: str, given: str) -> Outcome:
    raise _SymbolsNeededError


class SymbolicGrader:
    """Grades final answers with three-valued verdicts; a Grader. Close it, or use it in a `with` block."""

    def __init__(self, config: GraderConfig | None = None) -> None:
        self.config = config or GraderConfig()
        self._cache: dict[tuple[str, tuple[str, ...], str], Future[tuple[Verdict, str]]] = {}
        self._pool: ProcessPool | None = None
        self._lock = threading.Lock()
        self._submitter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grading")

    async def grade(self, problem: Problem, response: str) -> Grading:
        """Judge the final answer of a finished response, without blocking the event loop."""
        extracted = extract(response)
        if extracted is None:
            return _no_answer()
        decision = self._decide(problem, extracted)
        if decision.done():  # nearly always, and then without a turn of the event loop
            verdict, reason = decision.result()
        else:  # a caller that gives up must not cancel the comparison for the others who wait on it
            verdict, reason = await asyncio.shield(asyncio.wrap_future(decision))
        return Grading(verdict, extracted, reason)

    def grade_many(self, pairs: Sequence[tuple[Problem, str]]) -> list[Grading]:
        """Judge (problem, response) pairs, in order."""
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
        """Stop the workers. Comparisons under way end as unknown."""
        self._submitter.shutdown()
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.stop()
            pool.join()

    def __enter__(self) -> SymbolicGrader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decide(self, problem: Problem, answer: str) -> Future[tuple[Verdict, str]]:
        entry = (problem.answer, problem.choices, answer)
        with self._lock:
            if entry in self._cache:
                return self._cache[entry]
            decision: Future[tuple[Verdict, str]] = Future()
            self._cache[entry] = decision
            if len(self._cache) > self.config.cache_size:
                del self._cache[next(iter(self._cache))]
        try:
            self._start(problem, answer, decision)
        except Exception as error:  # such as RecursionError: a strange answer must not stop the others
            decision.set_result((Verdict.UNKNOWN, f"comparison failed: {type(error).__name__}"))
        return decision

    def _start(self, problem: Problem, answer: str, decision: Future[tuple[Verdict, str]]) -> None:
        gold = problem.answer
        if key(gold) == key(answer):
            return decision.set_result((Verdict.CORRECT, "exact match"))
        if problem.choices or choice.is_letter(gold):
            decided = _decide_choice(problem, answer)
            if decided is not None:
                return decision.set_result(decided)
        if max(len(gold), len(answer)) > self.config.max_length:
            return decision.set_result((Verdict.UNKNOWN, f"longer than {self.config.max_length} characters"))
        try:
            outcome = compare(gold, answer, _ask_later)
            return decision.set_result((_VERDICTS[outcome], outcome.value))
        except _SymbolsNeededError:
            pass
        self._submitter.submit(self._schedule, gold, answer, decision)

    def _schedule(self, gold: str, answer: str, decision: Future[tuple[Verdict, str]]) -> None:
        """Runs in a thread of its own: starting the workers takes a moment that an event loop does not have."""
        arguments = (gold, answer, self.config.seconds)
        try:
            task = self._workers().schedule(compare_symbolically, args=arguments, timeout=10 * self.config.seconds)
        except Exception as error:
            return decision.set_exception(GradingError(f"the grading workers cannot run: {error}"))
        task.add_done_callback(lambda done: decision.set_result(self._judge(done)))

    def _judge(self, done: Future[Outcome]) -> tuple[Verdict, str]:
        """The verdict of a finished comparison; whatever went wrong in it is a fact about one answer."""
        late = Verdict.UNKNOWN, f"no decision within {self.config.seconds:g} s"
        try:
            outcome = done.result()
        except TimeoutError:
            return late
        except ProcessExpired as error:
            died = Verdict.UNKNOWN, f"worker died with exit code {error.exitcode}"
            return late if error.exitcode == KILLED_BY_TIMER else died
        except BaseException as error:
            return Verdict.UNKNOWN, f"comparison failed: {type(error).__name__}"
        return _VERDICTS[outcome], outcome.value

    def _workers(self) -> ProcessPool:
        """Started at the first need, never by forking this process: it may hold an engine and its threads."""
        if self._pool is None:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["mmprm.grading.symbols"])
            self._pool = ProcessPool(
                max_workers=self.config.workers,
                context=context,
                initializer=prepare,
                initargs=[int(self.config.memory_gib * 2**30)],
            )
        return self._pool


def _no_answer() -> Grading:
    return Grading(Verdict.INCORRECT, None, "no answer")


def _decide_choice(problem: Problem, answer: str) -> tuple[Verdict, str] | None:
    """By the option named; None when the answer must be compared as a value (with the gold's text, say)."""
    if problem.choices:
        gold, given = choice.option(problem.answer, problem.choices), choice.option(answer, problem.choices)
        if gold is None or given is None:
            return None
    else:
        gold, given = choice.letter(problem.answer), choice.letter(answer)
        if given is None:
            return Verdict.UNKNOWN, "names no option by letter, and the options are not known"
    return (
        Verdict.CORRECT if gold == given else Verdict.INCORRECT
    ), f"option {given if isinstance(given, str) else chr(65 + given)}"
