"""Test what an environment of one's own may return, and how actions are read from hostile text."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from mmprm.environments.actions import ActionReader
from mmprm.environments.interface import Observation, Transition
from mmprm.environments.replay import check_same_episode, replay
from mmprm.errors import ConfigError, EpisodeError
from mmprm.types import Problem

PROBLEM = Problem("p", "?", "")
SEEN = Observation(("Go.",))


class Returning:
    """Returns the given results of reset and step."""

    def __init__(self, first: Any, then: Any = None) -> None:
        self._first, self._then = first, then

    def reset(self, problem: Problem, seed: int) -> Any:
        return self._first

    def step(self, text: str) -> Any:
        return self._then

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (Returning("Go."), r"the result of reset\(\) is str, but must be an Observation"),
        (Returning((SEEN, {})), r"the result of reset\(\) is tuple, but must be an Observation"),
        (Returning(SEEN, (SEEN, 1.0, True, False, {})), r"step\(\) returned tuple, but must return a Transition"),
        (Returning(SEEN), r"step\(\) returned NoneType, but must return a Transition"),
    ],
)
def test_results_in_the_style_of_gymnasium_are_refused(environment: Returning, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replay(environment, PROBLEM, 0, ["go"])


def test_observations_and_transitions_hold_what_the_policy_can_see() -> None:
    with pytest.raises(ConfigError, match=r"Observation\('Go\.'\) must hold a tuple; write Observation\(\(text,\)\)"):
        Observation("Go.")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"is bytes, but must be a text or an image; .*ImageRef\(data=\.\.\.\)"):
        Observation((b"\x89PNG",))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="the observation of a Transition is str"):
        Transition("Go.", 1.0, True)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"reward=None and info=\{\}, which must be a number and a dict"):
        Transition(SEEN, None, True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"terminated": "no"}, "terminated='no', which must be true or false"),
        ({"truncated": None}, "truncated=None, which must be true or false"),
        ({"info": {"success": "no"}}, r"info\[\"success\"\]='no', which must be true or false"),
        ({"info": {"success": None}}, r"info\[\"success\"\]=None, .* leave it out if it is not known"),
        ({"reward": np.array([1.0, 2.0])}, r"reward=array\(\[1\., 2\.\]\) and info=\{\}, which must be a number"),
    ],
)
def test_values_that_would_be_misread_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Transition(**({"observation": SEEN, "reward": 1.0, "terminated": True} | values))


def test_values_of_numpy_become_plain_values() -> None:
    transition = Transition(SEEN, np.float32(0.5), np.bool_(True), truncated=0, info={"success": np.bool_(False)})
    found = (transition.reward, transition.terminated, transition.truncated)
    assert found == (0.5, True, False)
    assert list(map(type, found)) == [float, bool, bool]


def test_a_reported_success_that_differs_is_not_deterministic() -> None:
    won, lost = (
        replay(Returning(SEEN, Transition(SEEN, 1.0, True, info={"success": success})), PROBLEM, 0, ["go"])
        for success in (True, False)
    )
    check_same_episode(PROBLEM, won, won)
    with pytest.raises(EpisodeError, match="the success of turn 1 differs"):
        check_same_episode(PROBLEM, won, lost)


def test_the_last_action_counts_and_long_spaces_take_no_time() -> None:
    """The reader holds the interpreter's lock, so slow text would stop the whole engine, whatever the time limit."""
    reader = ActionReader(("left", "right"))
    assert reader.index("<action>left</action> or <ACTION>\n Right </ACTION>") == 1
    began = time.process_time()
    assert reader.index("<action>" + " " * 3000) is None
    assert time.process_time() - began < 5, "a cubic pattern takes half a minute"
