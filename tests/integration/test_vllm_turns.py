"""Test Sokoban episodes with a real engine and a policy with random weights."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcts.campaign import run_campaign
from mcts.config import CampaignConfig
from mcts.search import SearchConfig, search
from mcts.turns import TurnRolls
from mmprm.config import build
from mmprm.environments.episode import Episode, EpisodeStart, play
from mmprm.environments.interface import Observation, Transition
from mmprm.environments.load import EnvironmentConfig
from mmprm.environments.pool import EnvironmentPool
from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.sampling.vllm_turns import VllmTurnSampler
from mmprm.types import Batch, Problem, Verdict

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


class EvenLength:
    """Takes three turns. The episode succeeds if the text of its first or last turn has an even length."""

    def reset(self, problem: Problem, seed: int) -> Observation:
        self._texts: list[str] = []
        return Observation(("Go.",))

    def step(self, text: str) -> Transition:
        self._texts.append(text)
        ended = len(self._texts) == 3
        success = ended and any(len(each) % 2 == 0 for each in (self._texts[0], text))
        return Transition(Observation((f"{len(self._texts)}.",)), 0.0, ended, info={"success": success})

    def close(self) -> None: ...


async def test_turns_are_searched_with_the_ids_of_the_policy(player: VllmTurnSampler) -> None:
    even = EnvironmentConfig(path=f"{__name__}:EvenLength", max_turn_tokens=12)
    log: list[Batch] = []
    rolls = TurnRolls(PROBLEM, player, EnvironmentPool(even), even, 7, [], log.append)
    result = await search(PROBLEM, rolls, SearchConfig(rollouts=6, max_rollouts=60, max_searches=4))
    root, *states = result.tree.nodes
    assert 0 < root.counts.value < 1
    assert states
    decode = player.template_owner.tokenizer.decode
    for rollout in (rollout for node in result.tree.nodes for rollout in node.rollouts if rollout.step_ids):
        assert tuple(decode(list(ids), skip_special_tokens=True) for ids in rollout.step_ids) == rollout.steps[:-1]


class Talkative:
    """Never ends, and shows 200 tokens per turn."""

    def reset(self, problem: Problem, seed: int) -> Observation:
        return Observation(("x" * 200,))

    def step(self, text: str) -> Transition:
        return Transition(Observation(("x" * 200,)), 0.0, False)

    def close(self) -> None: ...


async def test_an_episode_that_exceeds_the_context_failed(player: VllmTurnSampler) -> None:
    talkative = EnvironmentConfig(path=f"{__name__}:Talkative", max_turn_tokens=12)
    pool = EnvironmentPool(talkative)
    found = await play(EpisodeStart(PROBLEM, 0, 0), player, pool, talkative)
    pool.close()
    assert (len(found.turns), found.verdict, found.reason) == (2, Verdict.INCORRECT, "context limit")


def test_a_campaign_plays_episodes_on_its_own_engines(random_policy_folder: Path, tmp_path: Path) -> None:
    rows = [{"id": f"p{i}", "question": f"Level {i}.", "level": LEVEL} for i in range(2)]
    (tmp_path / "levels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "problems": {"path": str(tmp_path / "levels.jsonl")},
        "output": str(tmp_path / "run"),
        "engine": {"model": str(random_policy_folder), "kv_cache_gib": 0.1, "max_model_len": 512},
        "prompt": {"preset": "plain"},
        "environment": {"path": "sokoban", "max_turns": 3, "max_turn_tokens": 8},
        "search": {"rollouts": 4},
        "workers": 1,
    }
    summary = run_campaign(build(CampaignConfig, values))
    assert summary.problems == {"open": 0, "done": 2, "failed": 0}
    assert summary.ended == {"too hard": 2}
    assert summary.rollouts == summary.rollouts_incorrect == 8
    assert 8 <= summary.tokens <= 8 * 3 * 8
