"""Configure a thinking judge whose chains are scripted, by a sampler in this process or by a server on loopback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripted_server import ScriptedServer

from mmprm.config import build
from mmprm.scoring.judge_config import ThinkingJudgeConfig
from mmprm.types import Completion, Problem, SampleRequest, Solution

Reply = str | Completion
"""A chain: its text, or a completion. A text counts as ten tokens and ends by itself."""


class ChainSampler:
    """Returns `reply(request, i)` as chain i of a request, or raises it if it is an exception; records all requests."""

    def __init__(self, reply: Callable[[SampleRequest, int], Reply | Exception]) -> None:
        self._reply = reply
        self.requests: list[SampleRequest] = []

    async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
        self.requests.append(request)
        replies = [self._reply(request, number) for number in range(request.n)]
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return tuple(Completion(reply, 10, "stop") if isinstance(reply, str) else reply for reply in replies)


def judge_config(folder: Path, server: ScriptedServer | None = None, **more: Any) -> ThinkingJudgeConfig:
    """Configure a judge that caches its chains in a folder, on a server or with a model that does not exist."""
    engine: dict[str, Any] = {"model": "judge"}
    if server is not None:
        engine["servers"] = {"urls": [server.url], "attempts": 2, "backoff_seconds": 0.01}
    return build(ThinkingJudgeConfig, {"engine": engine, "cache": str(folder / "judge.sqlite")} | more)


def solution(*steps: str, name: str = "p", **problem: Any) -> Solution:
    return Solution(Problem(name, problem.pop("question", "What is 1 + 2?"), "", **problem), steps or ("1", "2", "3"))


def lines(*verdicts: int) -> str:
    """Write verdicts in the plain layout."""
    words = ("incorrect", "correct")
    return "\n".join(f"Step {number}: {words[verdict]}" for number, verdict in enumerate(verdicts, start=1))
