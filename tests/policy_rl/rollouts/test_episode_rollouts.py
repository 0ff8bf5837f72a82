"""Test how episodes become responses: tokens, masks, rows, seeds and failures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from corridor import CORRIDOR, CorridorPlayer, corridor_player

from mmprm.environments.episode import EpisodeStart, TurnRequest, play
from mmprm.environments.load import EnvironmentConfig
from mmprm.environments.pool import EnvironmentPool
from mmprm.errors import EpisodeError, SamplingError, TrainingError
from mmprm.types import ImageRef, Problem, Verdict
from policy_rl.graded import GradedGroup, GradedResponse, from_json, to_json
from policy_rl.rollouts.episodes import EpisodeConfig, EpisodePlayer, SampledAction, response_of
from policy_rl.types import Reward, TokenRow

PROBLEM = Problem("p", "Go right.", "")
LATEST = CORRIDOR.model_copy(update={"images": 1})


async def test_an_episode_is_one_row_of_actions_and_observations() -> None:
    """Right, right: prompt 9 100, action 1 8, observation 101, action 1 8."""
    (response,) = (await corridor_player(1.0).group(PROBLEM, 1, 0, 3)).responses
    assert response.token_ids.tolist() == [1, 8, 101, 1, 8]
    assert response.mask.tolist() == [True, True, False, True, True]
    assert response.logprobs.tolist() == [-0.5, -0.25, 0, -0.5, -0.25]
    assert (response.token_count, response.finish_reason, response.text) == (4, "stop", "rightright")
    assert response.observations == (("cell 0",), ("cell 1",), ("cell 2",))
    played = response.played
    assert played.turn_of_token.tolist() == [0, 0, -1, 1, 1]
    assert played.rows == (TokenRow([9, 100], 5),)
    assert [turn.reward for turn in played.turns] == pytest.approx([-0.1, 0.9])
    assert (played.grading.verdict, played.grading.reason) == (Verdict.CORRECT, "success")


async def test_without_old_images_each_turn_is_a_row() -> None:
    (response,) = (await corridor_player(1.0, LATEST).group(PROBLEM, 1, 0, 0)).responses
    assert response.token_ids.tolist() == [1, 8, 1, 8]
    assert response.mask.all()
    assert response.played.rows == (TokenRow([9, 100], 2), TokenRow([9, 100, 101], 4))


async def test_episodes_of_a_group_have_seeds_of_their_own() -> None:
    player = CorridorPlayer(0.5)
    group = await EpisodePlayer(player, EpisodeConfig(CORRIDOR, 0)).group(PROBLEM, 8, 7, 2)
    assert (group.version, group.prompt_tokens, len(group.responses)) == (2, 2, 8)
    assert len({response.text for response in group.responses}) > 2
    assert len(set(player.seeds)) == len(player.seeds), "turns have seeds of their own, too"
    again = await corridor_player(0.5).group(PROBLEM, 8, 7, 2)
    assert again == group


async def test_a_turn_limit_ends_an_episode_like_a_token_limit() -> None:
    (response,) = (await corridor_player(0.0).group(PROBLEM, 1, 0, 0)).responses
    assert (response.finish_reason, len(response.played.turns)) == ("length", 4)
    assert response.played.grading.verdict is Verdict.INCORRECT
    assert {turn.text: turn.is_valid for turn in response.played.turns}.items() <= {"left": True, "jump": False}.items()


async def test_a_broken_environment_gives_an_unknown_outcome() -> None:
    broken = Problem("p", "Go right.", "", extra={"breaks": True})
    (response,) = (await corridor_player(1.0).group(broken, 1, 0, 0)).responses
    assert (response.finish_reason, response.played.grading.verdict) == ("abort", Verdict.UNKNOWN)
    assert response.played.grading.reason == "environment failed: RuntimeError: the floor is missing"
    assert response.token_ids.tolist() == [1, 8], "the turns before the failure"


async def test_a_group_without_a_turn_is_refused() -> None:
    with pytest.raises(SamplingError, match="problem refused: too long"):
        await corridor_player(1.0).group(Problem("refused", "?", ""), 2, 0, 0)
    absent = CORRIDOR.model_copy(update={"path": "corridor:NoReset"})
    with pytest.raises(
        SamplingError,
        match="problem p: no episode has a turn: the environment failed at turn 0: RuntimeError: no first",
    ):
        await corridor_player(1.0, absent).group(PROBLEM, 2, 0, 0)


@pytest.mark.parametrize("environment", [CORRIDOR, LATEST], ids=["one row", "row per turn"])
async def test_episodes_continue_from_a_state_that_is_restored_by_replay(environment: EnvironmentConfig) -> None:
    player = corridor_player(0.4, environment)
    group = await player.group(PROBLEM, 8, 0, 0)
    first = next(response for response in group.responses if len(response.played.turns) == 4)
    turn_of_token = first.played.turn_of_token.tolist()
    tokens = len(turn_of_token) - turn_of_token[::-1].index(1)  # up to the end of the second turn
    continued = await player.group(PROBLEM, 8, 100, 0, first.prefix(tokens))
    assert continued.prompt_tokens == group.prompt_tokens
    assert len({response.text for response in continued.responses}) > 1
    for each in continued.responses:
        assert each.token_ids[:tokens].tolist() == first.token_ids[:tokens].tolist()
        assert each.logprobs[:tokens].tolist() == first.logprobs[:tokens].tolist()
        assert each.played.turns[:2] == first.played.turns[:2]
        assert 2 < len(each.played.turns) <= 4
        assert each.played.rows[0].prompt_ids.tolist() == first.played.rows[0].prompt_ids.tolist()


def drifting(steady: int) -> EpisodePlayer:
    path = {"path": "corridor:Drifting", "arguments": {"steady": steady}}
    return corridor_player(0.0, CORRIDOR.model_copy(update=path))


async def test_an_environment_that_is_not_deterministic_is_an_error() -> None:
    with pytest.raises(EpisodeError, match="problem p: the observation of turn 0 differs when the same actions"):
        await drifting(1).group(PROBLEM, 1, 0, 0)


async def test_a_branch_that_is_not_restored_exactly_is_an_error() -> None:
    """The first group and its check are the same, and the continuation begins elsewhere."""
    player = drifting(2)
    (response,) = (await player.group(PROBLEM, 1, 0, 0)).responses
    with pytest.raises(TrainingError, match="problem p: the observation before turn 1 differs when the same actions"):
        await player.group(PROBLEM, 1, 1, 0, response.prefix(2))


class Rewriter(CorridorPlayer):
    """Has an engine that changes the first token of later prompts."""

    async def act(self, request: TurnRequest) -> SampledAction:
        action = await super().act(request)
        return replace(action, prompt_ids=np.array([len(request.actions), *action.prompt_ids[1:]]))


async def test_prompts_that_do_not_continue_are_an_error() -> None:
    episode = await play(EpisodeStart(PROBLEM, 0, 0), Rewriter(1.0), EnvironmentPool(CORRIDOR), CORRIDOR)
    with pytest.raises(TrainingError, match="does not begin with turn 1"):
        response_of(PROBLEM, episode, "all")
    assert len(response_of(PROBLEM, episode, 1).played.rows) == 2


async def test_groups_of_episodes_survive_a_checkpoint() -> None:
    group = await corridor_player(0.5).group(PROBLEM, 2, 0, 0)
    image, row = ImageRef(data=b"pixels"), TokenRow([9, 7], 5, (ImageRef(path="a.png"), ImageRef(data=b"pixels")))
    response = group.responses[0]
    turn = replace(response.played.turns[0], observation=("cell", image))
    response = replace(response, played=replace(response.played, turns=(turn,), rows=(row,)))
    graded = GradedResponse(response, response.played.grading, Reward(1.0, {}))
    stored = to_json(GradedGroup(PROBLEM, 2, 0, (graded, graded)))
    assert len(stored["images"]) == 1, "an image is stored once"
    assert from_json(stored, {"p": PROBLEM}).responses == (graded, graded)
