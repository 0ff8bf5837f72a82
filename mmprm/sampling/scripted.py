"""A deterministic sampler without a model, for tests and for trying a search at scale."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from mmprm.types import Completion, Problem, SampleRequest

Write = Callable[[Problem, str, random.Random], str]
"""(problem, prefix, random numbers) → the text that continues the prefix."""


class ScriptedSampler:
    """Draw i of a request is `write(problem, prefix, Random(seed + i))`: equal requests give equal completions.

    `delay` seconds pass before an answer, so that many requests can be in flight; `requests` keeps what was asked.
    """

    def __init__(self, write: Write, delay: float = 0.0) -> None:
        self._write = write
        self._delay = delay
        self.requests: list[SampleRequest] = []
        self.in_flight = 0
        self.in_flight_max = 0

    async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
        self.requests.append(request)
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        try:
            await asyncio.sleep(self._delay)
        finally:
            self.in_flight -= 1
        draws = (random.Random(request.seed + i) for i in range(request.n))
        texts = [_stopped(self._write(request.problem, request.prefix, draw), request.stop) for draw in draws]
        return tuple(Completion(text, len(text.split()), "stop") for text in texts)


def _stopped(text: str, stop: tuple[str, ...]) -> str:
    return text[: min((text.find(end) + len(end) for end in stop if end in text), default=len(text))]
