"""Adapt gymnasium environments with discrete actions: parse actions from text, and render observations as images."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from mmprm.environments.actions import ActionReader
from mmprm.environments.interface import Observation, Transition
from mmprm.errors import ConfigError, SetupError
from mmprm.types import ImageRef, Problem

_IMPORTING = threading.Lock()
_MAX_MADE = 8
"""Maximum number of gymnasium environments that one adapter keeps open."""


class GymnasiumEnvironment:
    """Adapts a gymnasium environment, created by gymnasium.make(name, **arguments); see `Environment`.

    Requires the optional dependencies of the extra `agents`. The first observation begins with the problem's question.
    Every observation holds the environment's observation as text and its rendered frame, unless the argument
    `render_mode` is None. `problem.extra["arguments"]` overrides the arguments, so that each problem can have its own
    level. A turn without a valid action leaves the environment unchanged and has reward 0. An episode succeeds if its
    return reaches `success_return`.
    """

    def __init__(
        self,
        name: str,
        arguments: Mapping[str, Any],
        actions: Sequence[str] | None,
        pattern: str,
        success_return: float,
    ) -> None:
        try:
            import gymnasium
        except ImportError as error:
            raise SetupError(
                f"environment.path=gymnasium:{name} needs gymnasium; install mmprm[agents], or mmprm[toy-text] for the "
                "toy-text environments"
            ) from error
        self._gymnasium, self._name = gymnasium, name
        self._arguments = {"render_mode": "rgb_array"} | dict(arguments)
        if self._arguments["render_mode"] not in ("rgb_array", None):
            raise ConfigError(
                f"environment.arguments.render_mode={self._arguments['render_mode']} must be rgb_array, or null for an "
                "environment without images; leave it out to show images"
            )
        self._shows_frames = self._arguments["render_mode"] is not None
        if self._shows_frames:
            # Environments import pygame when they first render. Without this, threads could see it half imported.
            with _IMPORTING, suppress(ImportError):
                import pygame.surfarray  # noqa: F401
        if not self._shows_frames:  # such an environment may not accept the argument
            del self._arguments["render_mode"]
        self._success_return = success_return
        self._made: dict[str, Any] = {}
        self._environment = self._make({})
        space = self._environment.action_space
        if not isinstance(space, gymnasium.spaces.Discrete):
            raise ConfigError(
                f"environment.path=gymnasium:{name} must have discrete actions, got {space}; choose another, "
                "or wrap it in a factory (package.module:factory)"
            )
        names = list(actions or map(str, range(int(space.n))))
        if len(names) != space.n:
            raise ConfigError(
                f"environment.actions={names} must name the {space.n} actions of {name}, in order; add those that its "
                "documentation lists"
            )
        self._first_action = int(space.start)
        self._reader = ActionReader(names, pattern)
        self._return = 0.0

    def reset(self, problem: Problem, seed: int) -> Observation:
        self._environment = self._make(problem.extra.get("arguments") or {})
        self._return = 0.0
        observed, _ = self._environment.reset(seed=seed)
        names = ", ".join(self._reader.names)
        seen = self._observation(observed)
        return Observation((f"{problem.question}\nActions: {names}.\n", *seen.parts))

    def step(self, text: str) -> Transition:
        action = self._reader.index(text)
        if action is None:
            observation = Observation(("No valid action. Actions: " + ", ".join(self._reader.names) + ".\n",))
            return Transition(observation, 0.0, False, info={"action": None})
        observed, reward, terminated, truncated, _ = self._environment.step(self._first_action + action)
        self._return += float(reward)
        success = bool(terminated) and self._return >= self._success_return
        info = {"action": self._reader.names[action], "success": success}
        return Transition(self._observation(observed), float(reward), bool(terminated), bool(truncated), info)

    def close(self) -> None:
        for environment in self._made.values():
            environment.close()

    def _make(self, arguments: Mapping[str, Any]) -> Any:
        """Create the gymnasium environment for these arguments, or return it if it is one of the last few created."""
        key = json.dumps(arguments, sort_keys=True, default=str)
        if key in self._made:
            return self._made[key]
        try:
            made = self._gymnasium.make(self._name, **(self._arguments | dict(arguments)))
            if self._shows_frames and made.render_mode != "rgb_array":
                raise ValueError(f"its render_mode is {made.render_mode}")
        except (self._gymnasium.error.Error, TypeError, ValueError, ImportError) as error:
            raise ConfigError(
                f"environment.path=gymnasium:{self._name} cannot be made: {error}; correct the id or "
                "environment.arguments, and set environment.arguments.render_mode=null if it has no images"
            ) from error
        if len(self._made) >= _MAX_MADE:  # each problem may have arguments of its own
            self._made.pop(next(iter(self._made))).close()
        self._made[key] = made
        return made

    def _observation(self, observed: Any) -> Observation:
        frame = self._environment.render() if self._shows_frames else None
        shown = f"Observation: {observed}\n"
        return Observation((shown,) if frame is None else (shown, frame_image(frame)))


def frame_image(frame: Any) -> ImageRef:
    """Return an image of uint8 pixels (height, width, channels) as a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG")
    return ImageRef(data=buffer.getvalue())
