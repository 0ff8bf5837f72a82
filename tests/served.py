"""Run a scoring service on loopback in a thread, with a scorer whose scores are the steps themselves."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from mmprm.errors import DataError
from mmprm.scoring.http.server import Server
from mmprm.scoring.http.service import PROBE, Service
from mmprm.scoring.http.wire import ModelOut, ServiceLimits
from mmprm.scoring.open import ClosableScorer
from mmprm.types import Solution, StepScores

server_of: dict[str, Server] = {}
"""Of the services that run, by URL."""


class StepScorer:
    """Scores a numeric step by its own value. `batches` records the solutions of each call except probes."""

    def __init__(self) -> None:
        self.batches: list[list[Solution]] = []
        self.go = threading.Event()
        self.go.set()
        self.dead = self.closed = False

    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        assert not self.closed
        if [solution.steps for solution in solutions] == [PROBE.steps] and not self.dead:
            return [StepScores((1.0,))]
        self.batches.append(list(solutions))
        assert self.go.wait(60)
        if self.dead or any("crash" in solution.steps for solution in solutions):
            raise ValueError("aspect ratio")
        for solution in solutions:
            if "refuse" in solution.steps:
                raise DataError(f"problem {solution.problem.id}: it is refused")
        return [StepScores(tuple(map(float, solution.steps))) for solution in solutions]

    def close(self) -> None:
        self.closed = True


def make_service(load: Callable[[], ClosableScorer], limits: ServiceLimits | None = None, **values: Any) -> Service:
    limits = limits or ServiceLimits()
    facts = ModelOut(
        model="tiny",
        format="mm-prm",
        backend="transformers",
        dtype="float32",
        aggregator="min",
        aggregator_evidence=None,
        threshold=0.25,
        limits=limits.model_dump(),
    )
    return Service(facts, load, limits=limits, **values)


@contextmanager
def running(service: Service, listener: socket.socket | None = None, wait: bool = True) -> Iterator[str]:
    """Run the service and yield its URL, by default once it is ready."""
    listener = listener or socket.create_server(("127.0.0.1", 0), backlog=256)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = server_of[url] = Server(service, shutdown_seconds=5)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        if wait:
            until(lambda: service.refusal() is None)
        yield url
    finally:
        server.should_exit = True
        thread.join(60)
        server.limit.cancel()
        assert not thread.is_alive()
        del server_of[url]


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.005)


def client(url: str, **values: Any) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=60, **values)


def ask(*steps: str, **values: Any) -> dict[str, Any]:
    return {"question": "q", "steps": list(steps)} | values
