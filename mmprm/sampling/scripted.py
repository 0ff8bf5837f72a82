"""Provide a deterministic sampler without a model, for testing a search or trying it at scale."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from mmprm.types import Completion, Problem, SampleRequest

Write = Callable[[Problem, str, random.Random], str]
"""Function from (problem, prefix, random generator) to the text that continues the prefix."""


class ScriptedSampler:
    """Returns `write(problem, prefix, Random(seed + i))` as sample i, so that equal requests give equal completions.

    Each response is delayed by `delay` seconds, so many requests can be in flight. `requests` records all requests.
    """

    def __init__(self, write: Write, delay: float = 0.0) -> None:
        self._write = write
        self._delay = delay
        self.requests: list[SampleRequest] = []
        self.in_flight = 0
        self.in_flight_max = 0

    async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
        """Return the completions of a request after a delay of `delay` seconds."""
        self.requests.append(request)
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        try:
            await asyncio.sleep(self._delay)
        finally:
            self.in_flight -= 1
        generators = (random.Random(request.seed + i) for i in range(request.n))
        texts = [_stopped(self._write(request.problem, request.prefix, rng), request.stop) for rng in generators]
        return tuple(Completion(text, len(text.split()), "stop") for text in texts)


def _stopped(text: str, stop: tuple[str, ...]) -> str:
    return text[: min((text.find(end) + len(end) for end in stop if end in text), default=len(text))]
