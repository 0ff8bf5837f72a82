"""Provide a world for guided search in which every value is known: write three digits, each of which should be 1."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from mmprm.types import Completion, Grading, Problem, SampleRequest, Solution, StepScores, Verdict

PROBLEM = Problem("p", "q", "111")


class DigitSampler:
    """Samples solutions whose next digit is i % 3 for sample i and whose later digits are 0; the answer is the digits.

    Each step and the answer count as one token. `stop` is ignored if `stops` is False.
    """

    def __init__(self, stops: bool = True) -> None:
        self._stops = stops
        self.requests: list[SampleRequest] = []

    async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
        self.requests.append(request)
        return tuple(self._write(request, number % 3) for number in range(request.n))

    def _write(self, request: SampleRequest, digit: int) -> Completion:
        digits = re.findall(r"<step>(\d)", request.prefix)
        written = len(digits)
        digits += [str(digit), "0", "0"][: 3 - written]
        parts = [f"<step>{d}</step>" for d in digits[written:]] + [f"<answer>{''.join(digits)}</answer>"]
        if request.stop and self._stops:
            parts = parts[:1]
        return Completion("".join(parts), len(parts), "stop")


class OnesScorer:
    """Scores a step as correct if it is 1, or if the answer is 111."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        self.asked += [solution.steps for solution in solutions]
        correct = ("1", "<answer>111</answer>")
        return [StepScores(tuple(0.9 if step in correct else 0.1 for step in s.steps)) for s in solutions]


class TagGrader:
    async def grade(self, problem: Problem, response: str) -> Grading:
        found = re.search(r"<answer>(.*)</answer>", response)
        answer = found[1] if found else None
        return Grading(Verdict(answer == problem.answer), answer, "")


def world(problem: Problem, prefix: str, rng: random.Random) -> str:
    """Complete a solution of three random letters a to h, one per step, and answer with the letters."""
    letters = re.findall(r"<step>(\w)", prefix)
    written = len(letters)
    letters += rng.choices("abcdefgh", k=3 - written)
    return "".join(f"<step>{c}</step>" for c in letters[written:]) + f"<answer>{''.join(letters)}</answer>"


class LetterScorer:
    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        return [StepScores(tuple(0.5 if "<" in s else (ord(s) - 96) / 10 for s in x.steps)) for x in solutions]
