"""Test `mmprm bridge` with a running engine of the built-in policy as both models."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from mmprm.bridge.config import BridgeConfig, RoleConfig
from mmprm.bridge.prompts import solve_request
from mmprm.bridge.role import ModelRole, Said
from mmprm.bridge.wording import build_wording
from mmprm.cli import bridge as command
from mmprm.config import build
from mmprm.grading.reply_cache import ReplyCache
from mmprm.tiny.world import make_problems

ROLE = {"engine": {"model": "unused"}, "sampling": {"max_tokens": 96}}


def test_the_built_in_policy_as_both_models(
    sampler: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The policy was not trained for these requests and answers each of them like a problem, so nothing is kept."""

    @asynccontextmanager
    async def opened(*_: Any) -> AsyncIterator[Any]:
        yield sampler

    monkeypatch.setattr(command, "_opened", opened)
    values = {"problems": {"path": "unused"}, "output": str(tmp_path), "seer": ROLE, "reasoner": ROLE}
    config = build(BridgeConfig, values)
    problems = [tiny.problem for tiny in make_problems(6, 0, "train")]
    first, again = (asyncio.run(command._bridged(problems, build_wording(), config)) for _ in range(2))
    counts = re.findall(r"(\d+) requests, (\d+) replies from the cache", capsys.readouterr().err)
    assert int(counts[0][0]) >= 6
    assert counts == [(counts[0][0], "0"), ("0", counts[0][0])], "the second run asks nothing"
    assert first == again
    reasons = Counter(each.reason for each in first)
    assert "kept" not in reasons
    assert not [reason for reason in reasons if reason.startswith("request failed")]


def test_a_reasoner_on_an_engine_receives_no_image(sampler: Any, tmp_path: Path) -> None:
    (tiny,) = make_problems(1, 1, "train")
    request = solve_request(tiny.problem, "A blue 4 and a red 3.")
    cache = ReplyCache(tmp_path / "replies.sqlite")
    role = ModelRole(build(RoleConfig, ROLE), cache, lambda: nullcontext(sampler))

    async def ask() -> list[Said]:
        return [await role.ask(request, seed) for seed in (0, 0, 1)]

    said = asyncio.run(ask())
    cache.close()
    assert request.images == ()
    assert said[0].text
    assert said[0] == said[1]
    assert (role.asked, role.cached) == (2, 1)
