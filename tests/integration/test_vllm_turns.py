"""Test Sokoban episodes with a real engine and a policy with random weights."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmprm.environments.episode import Episode, EpisodeStart, play
from mmprm.environments.load import EnvironmentConfig
from mmprm.environments.pool import EnvironmentPool
from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.sampling.vllm_turns import VllmTurnSampler
from mmprm.types import Problem, Verdict

pytestmark = pytest.mark.integration

LEVEL = "######\n#    #\n# $. #\n#@   #\n######"
PROBLEM = Problem("p", "Solve the level.", "", extra={"level": LEVEL})
SOKOBAN = EnvironmentConfig(path="sokoban", max_turns=4, max_turn_tokens=12)


@pytest.fixture(scope="module")
def player(random_policy_folder: Path) -> Iterator[VllmTurnSampler]:
    engine = EngineConfig(model=str(random_policy_folder), max_num_seqs=16, kv_cache_gib=0.1, max_model_len=512)
    sampler = VllmTurnSampler(engine, SamplingConfig(), PromptConfig(preset="plain"), SOKOBAN)
    yield sampler
    sampler.close()


async def episodes(player: VllmTurnSampler, count: int, start: EpisodeStart) -> list[Episode]:
    pool = EnvironmentPool(SOKOBAN)
    starts = [EpisodeStart(PROBLEM, 0, seed, start.actions) for seed in range(count)]
    found = await asyncio.gather(*(play(each, player, pool, SOKOBAN) for each in starts))
    pool.close()
    return found


async def test_episodes_are_played_with_their_own_tokens(player: VllmTurnSampler) -> None:
    before = player.stats()
    found = await episodes(player, 8, EpisodeStart(PROBLEM, 0, 0))
    assert {(len(each.turns), each.verdict, each.reason) for each in found} == {(4, Verdict.INCORRECT, "turn limit")}
    assert len({each.turns[0].action.text for each in found}) > 1, "each episode has its own seed"
    decode = player.template_owner.tokenizer.decode
    for turn in (turn for each in found for turn in each.turns):
        assert decode(list(turn.action.ids), skip_special_tokens=True) == turn.action.text
        assert turn.action.token_count == len(turn.action.ids) <= 12
    after = player.stats()
    cached = (after.cached_tokens - before.cached_tokens) / (after.prompt_tokens - before.prompt_tokens)
    assert cached > 0.5, "a prompt starts with the previous one"


async def test_a_restored_episode_continues_like_the_original(player: VllmTurnSampler) -> None:
    (whole,) = await episodes(player, 1, EpisodeStart(PROBLEM, 0, 0))
    actions = tuple(turn.action for turn in whole.turns[:2])
    (again,) = await episodes(player, 1, EpisodeStart(PROBLEM, 0, 0, actions))
    assert (again.turns, again.restored) == (whole.turns, 2)
