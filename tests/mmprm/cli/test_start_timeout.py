"""Test that each command passes its time limit for finding machines on to the engines."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmprm.cli import eval_policy
from mmprm.cli.shared import policy
from mmprm.evaluation.policy_config import PolicyEvalConfig
from mmprm.sampling.policy import PolicyConfig


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seen: list[float] = []

    @asynccontextmanager
    async def opened(*arguments: Any) -> Any:
        seen.append(arguments[4])
        raise KeyError("opened")
        yield

    for module in (policy, eval_policy):
        monkeypatch.setattr(module, "open_sampler", opened)
        monkeypatch.setattr(module.actors, "connect", lambda *_: None)
    return seen


SETTINGS: dict[str, Any] = {"engine": {"model": "tiny", "dtype": "float32"}, "start_timeout_seconds": 7}


def test_the_limit_of_search_and_rerank(limits: list[float]) -> None:
    async def open_it() -> None:
        async with policy.opened_policy(PolicyConfig(problems={"path": "x.jsonl"}, **SETTINGS)):
            pass

    with pytest.raises(KeyError, match="opened"):
        asyncio.run(open_it())
    assert limits == [7]


def test_the_limit_of_eval_policy(limits: list[float], tmp_path: Path) -> None:
    config = PolicyEvalConfig(**SETTINGS, output=str(tmp_path))
    with pytest.raises(KeyError, match="opened"):
        asyncio.run(eval_policy._asked([], SimpleNamespace(missing=[1]), config))
    assert limits == [7]
