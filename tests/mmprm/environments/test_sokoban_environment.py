"""Test Sokoban as an environment: rewards, invalid turns, restoring a state by replay, and the determinism check."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmprm.config import build
from mmprm.environments.interface import Observation, Transition
from mmprm.environments.load import EnvironmentConfig, make_environment
from mmprm.environments.replay import check_deterministic, replay
from mmprm.errors import ConfigError, EpisodeError
from mmprm.problems import image_size
from mmprm.tiny.sokoban import level_text
from mmprm.types import Problem

ROOM = "######\n#    #\n# $. #\n#@   #\n######"
PROBLEM = Problem("p", "Solve the level.", "", extra={"level": ROOM})
UP, RIGHT, LEFT = (f"<action>{name}</action>" for name in ("up", "right", "left"))


def sokoban():
    return make_environment(EnvironmentConfig(path="sokoban"))


def test_an_episode_pays_for_moves_boxes_and_the_solution() -> None:
    environment = sokoban()
    start = environment.reset(PROBLEM, 0)
    assert start.text == "Solve the level."
    assert image_size(start.images[0]) == (6 * 28, 5 * 28)
    first, second = environment.step(UP), environment.step(f"The box is next to the goal. {RIGHT}")
    assert (first.reward, first.ended, first.success) == (-0.1, False, False)
    assert (second.reward, second.terminated, second.success) == (pytest.approx(10.9), True, True)


def test_a_box_moved_off_its_goal_costs_a_point() -> None:
    environment = sokoban()
    environment.reset(replace(PROBLEM, extra={"level": "########\n#@*  $.#\n########"}), 0)
    assert environment.step(RIGHT).reward == pytest.approx(-1.1)


@pytest.mark.parametrize("text", ["", "up", "<action>jump</action>", LEFT])
def test_an_invalid_or_blocked_move_costs_a_move(text: str) -> None:
    environment = sokoban()
    environment.reset(PROBLEM, 0)
    transition = environment.step(text)
    assert (transition.reward, transition.info["moved"]) == (-0.1, False)


def test_the_last_action_of_a_turn_counts() -> None:
    environment = sokoban()
    environment.reset(PROBLEM, 0)
    assert environment.step(f"Not {LEFT} but {UP}").info["action"] == "up"


def test_another_pattern_finds_the_action() -> None:
    environment = make_environment(EnvironmentConfig(path="sokoban", pattern=r"# (\w+)"))
    environment.reset(PROBLEM, 0)
    assert environment.step("# up").info["action"] == "up"
    assert environment.step(UP).info["action"] is None


def test_a_state_is_restored_by_replay() -> None:
    environment = sokoban()
    episode = replay(environment, PROBLEM, 0, [UP, RIGHT])
    assert (episode.ended, episode.episode_return) == (True, pytest.approx(10.8))
    again = replay(environment, PROBLEM, 0, [UP])
    assert again.observation == episode.transitions[0].observation
    assert level_text(environment.state) == "######\n#    #\n#@$. #\n#    #\n######"


def test_replay_past_the_end_is_an_error() -> None:
    with pytest.raises(EpisodeError, match="the episode ended before turn 3"):
        replay(sokoban(), PROBLEM, 0, [UP, RIGHT, UP])


def test_a_failure_names_its_turn() -> None:
    class Broken:
        def reset(self, problem: Problem, seed: int) -> Observation:
            return Observation(("",))

        def step(self, text: str) -> Transition:
            raise ZeroDivisionError("no")

        def close(self) -> None: ...

    with pytest.raises(EpisodeError, match="problem p: the environment failed at turn 1: ZeroDivisionError: no"):
        replay(Broken(), PROBLEM, 0, ["x"])


@pytest.mark.parametrize(("part", "name"), [("reward", "reward"), ("observation", "observation")])
def test_a_nondeterministic_environment_is_detected(part: str, name: str) -> None:
    class Counting:
        count = 0

        def reset(self, problem: Problem, seed: int) -> Observation:
            return Observation(("start",))

        def step(self, text: str) -> Transition:
            self.count += 1
            changed = (
                {"reward": float(self.count)} if part == "reward" else {"observation": Observation((str(self.count),))}
            )
            return replace(Transition(Observation(("same",)), 0.0, False), **changed)

        def close(self) -> None: ...

    with pytest.raises(EpisodeError, match=f"the {name} of turn 1 differs"):
        check_deterministic(Counting(), PROBLEM, 0, ["a"])
    assert check_deterministic(sokoban(), PROBLEM, 0, [UP, RIGHT]) is None, "Sokoban passes"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"path": "chess"}, "must be one of football, openenv, sokoban, gymnasium:ID, or package.module:factory"),
        ({"path": "no.such.module:make"}, "cannot be imported"),
        ({"path": "sokoban", "arguments": {"size": 3}}, "do not fit sokoban"),
        ({"path": "builtins:dict"}, "dict has no reset, step, close"),
        ({"path": "sokoban", "arguments": {"pattern": "("}}, "is not a regular expression"),
        ({"path": "sokoban", "arguments": {"pattern": "move"}}, "must have a group"),
    ],
)
def test_an_invalid_configuration_proposes_a_change(keys: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_environment(EnvironmentConfig(**keys))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"path": "football", "actions": ["left"]}, r"actions=\['left'\] has no effect with path=football"),
        ({"path": "my.module:make", "pattern": "(x)"}, "has no effect with path=my.module:make, which reads"),
    ],
)
def test_a_key_that_the_environment_does_not_read_is_refused(keys: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(EnvironmentConfig, keys)
