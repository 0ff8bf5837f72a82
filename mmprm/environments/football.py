"""Adapt the football scenarios of envpool (Google Research Football on CPU): draw the minimap, and read actions from
text.

The official frames of Google Research Football need its renderer, which envpool does not include.
"""

from __future__ import annotations

import io
from typing import Any, Literal

import numpy as np

from mmprm.environments.actions import ACTION, ActionReader
from mmprm.environments.football_reward import NOBODY, OURS, DenseReward, FootballState, Points
from mmprm.environments.interface import Observation, Transition
from mmprm.errors import ConfigError, DataError, SetupError
from mmprm.types import ImageRef, Problem

SCENARIOS = (
    *("academy_empty_goal_close", "academy_empty_goal", "academy_run_to_score", "academy_run_to_score_with_keeper"),
    *("academy_pass_and_shoot_with_keeper", "academy_run_pass_and_shoot_with_keeper", "academy_3_vs_1_with_keeper"),
    *("academy_corner", "academy_counterattack_easy", "academy_counterattack_hard"),
    *("academy_single_goal_versus_lazy", "1_vs_1_easy", "5_vs_5", "11_vs_11_easy_stochastic", "11_vs_11_stochastic"),
    *("11_vs_11_hard_stochastic", "11_vs_11_competition", "11_vs_11_kaggle"),
)

ACTIONS = (
    *("idle", "left", "top_left", "top", "top_right", "right", "bottom_right", "bottom", "bottom_left"),
    *("long_pass", "high_pass", "short_pass", "shot", "sprint", "release_direction", "release_sprint", "sliding"),
    *("dribble", "release_dribble"),
)
"""Names of the actions, in the order of their indices."""

_WIDTH, _HEIGHT = 96, 72
_CELL = 7
"""Pixels per minimap cell: 96 × 72 cells become 672 × 504 pixels, multiples of Qwen-VL's 28 pixels per token."""
_GRASS, _LINE, _OURS, _THEIRS, _BALL = "#3c8c3c", "#e0f0e0", "#ffd800", "#2040c0", "#ffffff"


class FootballEnvironment:
    """Plays a football scenario with one controlled player; see `Environment`. An episode succeeds if our team scores.

    Requires the extra `football`. `problem.extra["scenario"]` overrides `scenario`. Each turn applies the action that
    the text names for `steps_per_turn` steps; a text without a valid action does nothing for as many steps. With
    `reward="score"`, a goal is 1 and a goal of the opponents −1; `reward="dense"` is MageBench's reward, with which an
    episode also ends when the opponents get the ball.
    """

    def __init__(
        self,
        scenario: str = "academy_3_vs_1_with_keeper",
        reward: Literal["score", "dense"] = "score",
        steps_per_turn: int = 1,
        pattern: str = ACTION,
    ) -> None:
        if reward not in ("score", "dense"):
            raise ConfigError(f"environment.arguments.reward={reward!r} must be score or dense; set one of these")
        if steps_per_turn < 1:
            raise ConfigError(f"environment.arguments.steps_per_turn={steps_per_turn} must be at least 1; try 5")
        if scenario not in SCENARIOS:
            raise ConfigError(f"environment.arguments.scenario={scenario!r} {_UNKNOWN_SCENARIO}")
        self._scenario, self._is_dense, self._steps = scenario, reward == "dense", steps_per_turn
        self._reader = ActionReader(ACTIONS, pattern)
        _import_envpool()

    def reset(self, problem: Problem, seed: int) -> Observation:
        scenario = problem.extra.get("scenario") or self._scenario
        if scenario not in SCENARIOS:
            raise DataError(f"problem {problem.id}: scenario {scenario!r} {_UNKNOWN_SCENARIO}")
        # A second reset of the same environment would have another seed.
        self._game = _make_game(scenario, seed % 2**31)
        minimap, info = self._game.reset()
        self._dense = DenseReward()
        state = read_state(minimap, info)
        names = ", ".join(ACTIONS)
        question = f"{problem.question}\nActions: {names}.\n"
        return Observation((question, _described(state), draw_minimap(state)))

    def step(self, text: str) -> Transition:
        action = self._reader.index(text)
        total, state = 0.0, None
        for _ in range(self._steps):
            minimap, reward, terminated, truncated, info = self._game.step(np.array([action or 0]))
            state = read_state(minimap, info)
            total += self._dense.step(state, action or 0) if self._is_dense else float(reward[0])
            ended = bool(terminated[0]) or (self._is_dense and self._dense.is_lost)
            if ended or truncated[0]:
                break
        assert state is not None, "a turn has at least one step"
        hint = "" if action is not None else f"No valid action. Actions: {', '.join(ACTIONS)}.\n"
        shown = Observation((hint + _described(state), draw_minimap(state)))
        info = {"action": None if action is None else ACTIONS[action], "success": state.score[0] > 0}
        return Transition(shown, total, ended, bool(truncated[0]) and not ended, info)

    def close(self) -> None:
        self._game = None


_UNKNOWN_SCENARIO = f"must be one of {', '.join(SCENARIOS)}; correct it"


def _import_envpool() -> Any:
    try:
        import envpool
    except ImportError as error:
        raise SetupError("environment.path=football needs envpool; install mmprm[football]") from error
    return envpool


def _make_game(scenario: str, seed: int) -> Any:
    name = f"gfootball/{scenario}-v1"
    return _import_envpool().make(name, "gymnasium", num_envs=1, num_threads=1, seed=seed)


def read_state(minimap: np.ndarray, info: dict[str, Any]) -> FootballState:
    """Read positions from the minimap's planes (our players, theirs, the ball, the controlled player), and the rest
    from `info`; both are batches of one environment."""
    ours, theirs, ball, active = (_positions(minimap[0, :, :, plane]) for plane in range(4))
    left, right = info["score"][0]
    return FootballState(
        ball[0] if len(ball) else np.zeros(2),
        ours,
        theirs,
        active,
        int(info["ball_owned_team"][0]),
        int(info["ball_owned_player"][0]),
        (int(left), int(right)),
        int(info["steps_left"][0]),
    )


def _positions(plane: np.ndarray) -> Points:
    """Return the centers of the marked cells as (x, y), with x in [−1, 1] and y in [−1/2.25, 1/2.25]."""
    rows, columns = np.nonzero(plane)
    x, y = (2 * columns + 1) / _WIDTH - 1, ((2 * rows + 1) / _HEIGHT - 1) / 2.25
    return np.stack([x, y], axis=1).astype(float)


def _described(state: FootballState) -> str:
    owner = "nobody" if state.owner_team == NOBODY else "our team" if state.owner_team == OURS else "the opponents"
    left, right = state.score
    return f"Score {left}:{right}. The ball belongs to {owner}. {state.steps_left} steps left.\n"


def draw_minimap(state: FootballState) -> ImageRef:
    """Draw the pitch from above: our players yellow, the controlled one with a red ring, the opponents blue, the ball
    white. We attack the goal on the right."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (_WIDTH * _CELL, _HEIGHT * _CELL), _GRASS)
    draw = ImageDraw.Draw(image)
    for corners in (((-1, -0.42), (1, 0.42)), ((-1, -0.24), (-0.7, 0.24)), ((0.7, -0.24), (1, 0.24))):
        draw.rectangle([*_pixel(corners[0]), *_pixel(corners[1])], outline=_LINE, width=2)
    draw.line([*_pixel((0, -0.42)), *_pixel((0, 0.42))], fill=_LINE, width=2)
    for x in (-1, 1):
        draw.line([*_pixel((x, -0.044)), *_pixel((x, 0.044))], fill="#ffffff", width=2 * _CELL)
    for points, color in ((state.ours, _OURS), (state.theirs, _THEIRS)):
        for point in points:
            _dot(draw, point, 1.2 * _CELL, color, "#000000")
    for point in state.active:
        _dot(draw, point, 1.5 * _CELL, None, "#e00000", 3)
    _dot(draw, state.ball, 0.7 * _CELL, _BALL, "#000000")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return ImageRef(data=buffer.getvalue())


def _pixel(point: Any) -> tuple[float, float]:
    x, y = point
    return ((x + 1) / 2 * (_WIDTH * _CELL - 1), (2.25 * y + 1) / 2 * (_HEIGHT * _CELL - 1))


def _dot(draw: Any, point: Any, radius: float, fill: str | None, outline: str, width: int = 1) -> None:
    x, y = _pixel(point)
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill, outline=outline, width=width)
