"""Simulate a policy without a model, from recorded solution lengths and success rates.

This tests the bookkeeping of an annotation run at any scale, and checks search statistics against known values.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from mmprm.types import Completion, Problem, SampleRequest

BAD = "!"
"""Text that marks an incorrect step; a solution that contains it is never correct."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Describes the distribution of simulated solutions.

    Each problem gets one of `values`, the fraction of solutions from the root that are correct. Each solution gets one
    of `lengths`, the number of words in each step. A step has one of `variants` texts, or a new one each time if None.
    """

    values: tuple[float, ...]
    lengths: tuple[tuple[int, ...], ...]
    variants: int | None = None


class SimulatedSampler:
    """Samples solutions; sample i of a request depends only on the problem, the prefix and seed + i.

    Steps are tagged, and each has the same probability of being bad, chosen so that the root has the problem's value.
    """

    def __init__(self, profile: Profile) -> None:
        self._profile = profile

    async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
        """Return the completions of a request."""
        written = request.prefix.count("<step>")
        good = BAD not in request.prefix
        return tuple(self._write(request.problem, written, good, request.seed + i) for i in range(request.n))

    def true_value(self, problem: Problem, steps: Sequence[str], length: int) -> float:
        """Return the true value of a prefix of a solution that has `length` steps in total."""
        if any(BAD in step for step in steps):
            return 0.0
        return self._value(problem) ** (1 - len(steps) / length)

    def _value(self, problem: Problem) -> float:
        return random.Random(problem.id).choice(self._profile.values)

    def _write(self, problem: Problem, written: int, good: bool, seed: int) -> Completion:
        rng = random.Random(seed)
        words = rng.choice(self._profile.lengths)
        recoverable = self._value(problem) ** (1 / len(words))
        parts = []
        for number, count in enumerate(words[written:] or words[-1:], start=written):
            good = good and rng.random() < recoverable
            variants = self._profile.variants
            letters = rng if variants is None else random.Random(rng.randrange(variants))
            text = f"{letters.getrandbits(16 * count):x}"
            body = " ".join(text[i : i + 4] for i in range(0, len(text), 4))
            parts.append(f"<step>{number} {'' if good else BAD}{body}</step>")
        answer = problem.answer if good else f"not {problem.answer}"
        return Completion(f"{''.join(parts)}<answer>{answer}</answer>", sum(words[written:]), "stop")
