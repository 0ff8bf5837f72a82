"""Compute MageBench's dense reward for football from the positions on the minimap.

Source: microsoft/MageBench, env/football_env.py. There, positions are exact; here, they are cells of a 96 × 72 minimap.
Coordinates: x from −1 (own goal) to 1 (their goal), y from −0.44 to 0.44.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

REWARD_SCALE = 20.0
GOAL_REWARD = 2.0
GOAL_YS = (-0.044, -0.02, 0.0, 0.022, 0.044)
OURS, THEIRS, NOBODY = 0, 1, -1
PASSES = (9, 10, 11)
SHOT = 12

Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class FootballState:
    """Holds what the environment shows: positions as (x, y) rows, the owner of the ball, the score and the remaining
    steps.

    `owner_team` is OURS, THEIRS or NOBODY, and `owner` the index of the player in the team, or -1.
    """

    ball: Points
    ours: Points
    theirs: Points
    active: Points
    owner_team: int
    owner: int
    score: tuple[int, int]
    steps_left: int


class DenseReward:
    """Computes the reward of each step of an episode. `is_lost` becomes true when the opponents get the ball, which
    ends the benchmark's episodes.

    reward = 20 · (0.8 · progress + passed + 2 · goal + lost + 20 · 0.75^k · pass clearness + shot), where
    progress is the growth of the ball's largest x so far, and passed the change in the fraction (of 11) of opponents
    behind the ball, both while we own the ball; lost is the fraction of the steps that were played before the loss;
    k counts earlier passes; shot = min(100 · shot clearness · nearness of the goal, 2/3), once per possession.
    The first step has reward 0, because it sets the starting point.
    """

    def __init__(self) -> None:
        self.is_lost = False
        self._best_x: float | None = None
        self._steps = 0
        self._passed, self._scored, self._last_owner = 0, 0, -1
        self._pass_scale, self._is_passing, self._has_shot = 1.0, False, False

    def step(self, state: FootballState, action: int) -> float:
        """Return the reward of a step: `state` is the state after the action with this index."""
        if self._best_x is None:
            self._best_x, self._passed, self._scored = float(state.ball[0]), opponents_behind(state), state.score[0]
            self._steps = state.steps_left
            return 0.0
        reward = self._advance(state) if state.owner_team == OURS else 0.0
        reward += GOAL_REWARD * (state.score[0] > self._scored)
        self._scored = state.score[0]
        if state.owner_team == THEIRS and not self._has_shot:
            self.is_lost = True
            reward += 1 - state.steps_left / self._steps
        reward += self._completed_pass(state)
        if state.owner != -1:
            self._last_owner = state.owner
        self._is_passing |= action in PASSES
        if action == SHOT and state.owner_team == OURS and not self._has_shot:
            reward += min(100 * shot_clearness(state) * nearness(state), GOAL_REWARD / 3)
            self._has_shot = True
        if state.owner != self._last_owner:  # the ball has left the player
            self._has_shot = False
        return REWARD_SCALE * reward

    def _advance(self, state: FootballState) -> float:
        assert self._best_x is not None, "the first step has set it"
        x, passed = float(state.ball[0]), opponents_behind(state)
        reward = 0.8 * max(0.0, x - self._best_x) + (passed - self._passed) / 11
        self._best_x, self._passed = max(x, self._best_x), passed
        return reward

    def _completed_pass(self, state: FootballState) -> float:
        received = state.owner not in (-1, self._last_owner) and self._last_owner != -1
        if not (self._is_passing and received) or self.is_lost:
            return 0.0
        reward = 20 * self._pass_scale * pass_clearness(state)
        self._pass_scale, self._is_passing = 0.75 * self._pass_scale, False
        return reward


def opponents_behind(state: FootballState) -> int:
    """Return the number of opponents with a smaller x than the ball."""
    return int((state.theirs[:, 0] < state.ball[0]).sum())


def nearness(state: FootballState) -> float:
    """Return 1 if the ball is within 0.3 of the goal line, and otherwise 1 minus its distance, at least 0."""
    distance = 1 - float(state.ball[0])
    return 1.0 if distance < 0.3 else max(1 - distance, 0.0)


def pass_clearness(state: FootballState) -> float:
    """Return min over opponents of d / (10 · max(cos φ, 0) + 1), where d is the distance from the ball and φ the angle
    to the goal's direction; 0 without opponents."""
    to_goal, away = np.array([1.0, 0.0]) - state.ball, state.theirs - state.ball
    distance = np.linalg.norm(away, axis=1)
    cosine = away @ to_goal / np.maximum(distance * np.linalg.norm(to_goal), 1e-9)
    return float((distance / (10 * np.maximum(cosine, 0) + 1)).min(initial=np.inf)) if len(distance) else 0.0


def shot_clearness(state: FootballState) -> float:
    """Return, for the clearest of five points in the goal, the smallest distance of an opponent from the line to it;
    1 without opponents."""
    if not len(state.theirs):
        return 1.0
    along = (np.arange(100) + 1) / 100
    clearest = 0.0
    for y in GOAL_YS:
        line = state.ball + along[:, None] * (np.array([1.0, y]) - state.ball)
        distances = np.linalg.norm(line[:, None] - state.theirs[None], axis=2)
        clearest = max(clearest, float(distances.min()))
    return clearest
