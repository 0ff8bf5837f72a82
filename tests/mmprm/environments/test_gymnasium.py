"""Test environments from gymnasium through the adapter."""

from __future__ import annotations

import pytest

from mmprm.environments.episode import outcome
from mmprm.environments.load import EnvironmentConfig, make_environment
from mmprm.environments.replay import check_deterministic, replay
from mmprm.errors import ConfigError
from mmprm.problems import image_size
from mmprm.types import Problem, Verdict

pytest.importorskip("gymnasium")
pytest.importorskip("pygame")

LAKE = {
    "path": "gymnasium:FrozenLake-v1",
    "actions": ("left", "down", "right", "up"),
    "arguments": {"is_slippery": False},
}
CLIFF = {"path": "gymnasium:CliffWalking-v1", "actions": ("up", "right", "down", "left")}
PROBLEM = Problem("p", "Reach the goal.", "")


def act(*names: str) -> list[str]:
    return [f"<action>{name}</action>" for name in names]


def test_frozen_lake_is_won() -> None:
    environment = make_environment(EnvironmentConfig(**LAKE))
    episode = replay(environment, PROBLEM, 0, act("down", "down", "right", "right", "down", "right"))
    assert episode.start.text == "Reach the goal.\nActions: left, down, right, up.\nObservation: 0\n"
    assert image_size(episode.start.images[0]) == (256, 256)
    last = episode.transitions[-1]
    assert (last.reward, last.terminated, last.success) == (1.0, True, True)


def test_a_hole_ends_the_episode_without_success() -> None:
    episode = replay(make_environment(EnvironmentConfig(**LAKE)), PROBLEM, 0, act("right", "down"))
    assert (episode.ended, episode.transitions[-1].success) == (True, False)


def test_a_time_limit_of_gymnasium_truncates() -> None:
    limited = LAKE | {"arguments": {"is_slippery": False, "max_episode_steps": 2}}
    episode = replay(make_environment(EnvironmentConfig(**limited)), PROBLEM, 0, act("left", "left"))
    assert [(each.terminated, each.truncated) for each in episode.transitions] == [(False, False), (False, True)]
    assert outcome(episode.transitions, 0.0) == (Verdict.INCORRECT, "truncated"), "its return of 0 would be enough"


def test_each_problem_can_have_its_own_level() -> None:
    environment = make_environment(EnvironmentConfig(**LAKE))
    small = Problem("s", "Go.", "", extra={"arguments": {"desc": ["SG", "FF"]}})
    assert replay(environment, small, 0, act("right")).transitions[-1].success
    assert not replay(environment, PROBLEM, 0, act("right")).ended


def test_cliff_walking_needs_its_own_success_threshold() -> None:
    environment = make_environment(EnvironmentConfig(**CLIFF, success_return=-13.0))
    episode = replay(environment, PROBLEM, 0, act("up", *["right"] * 11, "down"))
    assert (episode.episode_return, episode.transitions[-1].success) == (-13.0, True)


def test_a_slippery_lake_is_deterministic_under_its_seed() -> None:
    slippery = LAKE | {"arguments": {"is_slippery": True}}
    environment = make_environment(EnvironmentConfig(**slippery))
    episodes = [replay(environment, PROBLEM, seed, act("down", "down")) for seed in (0, 0, *range(1, 9))]
    assert episodes[0] == episodes[1]
    assert any(other != episodes[0] for other in episodes[2:]), "the lake is slippery"
    check_deterministic(environment, PROBLEM, 5, act("down", "down"))


def test_a_turn_without_an_action_changes_nothing() -> None:
    environment = make_environment(EnvironmentConfig(**LAKE))
    environment.reset(PROBLEM, 0)
    transition = environment.step("I do not know.")
    assert (transition.reward, transition.ended) == (0.0, False)
    assert transition.observation.text == "No valid action. Actions: left, down, right, up.\n"


def test_an_environment_without_images_shows_text() -> None:
    import gymnasium

    class Counter(gymnasium.Env):
        action_space = gymnasium.spaces.Discrete(2)
        observation_space = gymnasium.spaces.Discrete(9)

        def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
            return 3, {}

        def step(self, action: int) -> tuple:
            return 4, 1.0, True, False, {}

    gymnasium.register("Counter-v0", entry_point=Counter)
    with pytest.raises(ConfigError, match=r"set environment\.arguments\.render_mode=null if it has no images"):
        make_environment(EnvironmentConfig(path="gymnasium:Counter-v0"))
    environment = make_environment(EnvironmentConfig(path="gymnasium:Counter-v0", arguments={"render_mode": None}))
    episode = replay(environment, PROBLEM, 0, act("1"))
    assert episode.start.parts == ("Reach the goal.\nActions: 0, 1.\n", "Observation: 3\n")
    assert episode.transitions[0].observation.parts == ("Observation: 4\n",)
    gymnasium.registry.pop("Counter-v0")


def test_few_levels_are_kept_open() -> None:
    environment = make_environment(EnvironmentConfig(**LAKE | {"arguments": {"render_mode": None}}))
    sizes = []
    for number in range(20):
        level = Problem("s", "Go.", "", extra={"arguments": {"desc": ["S" + "F" * number + "G"], "is_slippery": False}})
        assert replay(environment, level, 0, act("right") * (number + 1)).transitions[-1].success
        sizes.append(len(environment._made))
    assert max(sizes) == sizes[-1] == 8


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (LAKE | {"path": "gymnasium:NoSuchLake-v1"}, "cannot be made"),
        (LAKE | {"actions": ("left",)}, "must name the 4 actions"),
        (LAKE | {"actions": ("a", "A", "b", "c")}, "must not name an action twice"),
        ({"path": "gymnasium:Pendulum-v1"}, "must have discrete actions"),
        (LAKE | {"arguments": {"no_such": 1}}, "cannot be made"),
        (LAKE | {"arguments": {"render_mode": "human"}}, "render_mode=human must be rgb_array, or null"),
    ],
)
def test_an_invalid_environment_proposes_a_change(keys: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_environment(EnvironmentConfig(**keys))
