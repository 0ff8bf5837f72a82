"""Define the interface of environments: reset and step as in gymnasium, with text and images as observations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from mmprm.errors import ConfigError, EpisodeError
from mmprm.types import ImageRef, Problem


@dataclass(frozen=True, slots=True)
class Observation:
    """Holds the text and images that the policy sees after a reset or a turn, in order."""

    parts: tuple[str | ImageRef, ...]

    def __post_init__(self) -> None:
        if isinstance(self.parts, str):
            raise ConfigError(f"environment: Observation({self.parts!r}) must hold a tuple; write Observation((text,))")
        for part in self.parts:
            if not isinstance(part, str | ImageRef):
                raise ConfigError(
                    f"environment: a part of an Observation is {type(part).__name__}, but must be a text or an image; "
                    "write an image as mmprm.types.ImageRef(data=...), with the bytes of a PNG or JPEG file"
                )

    @property
    def text(self) -> str:
        """Return the text parts as one string."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """Return the images in order."""
        return tuple(part for part in self.parts if isinstance(part, ImageRef))


@dataclass(frozen=True, slots=True)
class Transition:
    """Holds the result of a turn: observation, reward, and flags as in gymnasium.

    `terminated` means that the episode ended by itself, and `truncated` that a limit stopped it.
    `info["success"]` is whether the goal was reached, and `info["action"]` is the action that was read from the text.
    Raises ConfigError for values of other types, and EpisodeError for a reward that is infinite or not a number.
    """

    observation: Observation
    reward: float
    terminated: bool
    truncated: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_observation(self.observation, "the observation of a Transition")
        reward = _number(self.reward)
        if reward is None or not isinstance(self.info, Mapping):
            raise ConfigError(
                f"environment: a Transition has reward={self.reward!r} and info={self.info!r}, which must be a number "
                "and a dict; leave info out if there is none"
            )
        if not math.isfinite(reward):
            raise EpisodeError(f"environment failed: its reward is {reward}, not a finite number")
        object.__setattr__(self, "reward", reward)
        for name in ("terminated", "truncated"):
            object.__setattr__(self, name, _flag(name, getattr(self, name)))
        if "success" in self.info:
            _flag('info["success"]', self.info["success"])

    @property
    def ended(self) -> bool:
        return self.terminated or self.truncated

    @property
    def success(self) -> bool:
        return bool(self.info.get("success", False))


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _flag(name: str, value: Any) -> bool:
    """Return a flag as a bool. Raises ConfigError for other values: a text such as "no" would count as true."""
    if not isinstance(value, bool | np.bool_ | int) or value not in (0, 1):
        raise ConfigError(
            f"environment: a Transition has {name}={value!r}, which must be true or false; convert it with bool(), or "
            "leave it out if it is not known"
        )
    return bool(value)


def check_observation(found: Any, what: str) -> Observation:
    """Return `found` if it is an Observation; otherwise, raise ConfigError, for example for a tuple as returned by
    gymnasium."""
    if not isinstance(found, Observation):
        raise ConfigError(
            f"environment: {what} is {type(found).__name__}, but must be an Observation of "
            "mmprm.environments.interface; return one, such as Observation((text, image))"
        )
    return found


def check_transition(found: Any) -> Transition:
    """Return `found` if it is a Transition; otherwise, raise ConfigError, for example for a tuple as returned by
    gymnasium."""
    if not isinstance(found, Transition):
        raise ConfigError(
            f"environment: step() returned {type(found).__name__}, but must return a Transition of "
            "mmprm.environments.interface; return one, such as Transition(Observation((text,)), reward, terminated)"
        )
    return found


class Environment(Protocol):
    """Protocol for environments in which a policy plays episodes. An environment is used by one episode at a time and
    may keep state between its methods.

    It must be deterministic: the same problem, seed and texts lead to the same observations and rewards. A state is
    restored by replaying its texts; see mmprm.environments.replay. A text that holds no valid action is a turn like any
    other, and the environment decides what it does.
    """

    def reset(self, problem: Problem, seed: int) -> Observation:
        """Start an episode of `problem` and return the first observation; `problem.extra` may describe the level."""
        ...

    def step(self, text: str) -> Transition:
        """Apply the action that the policy's text names, and return the transition."""
        ...

    def close(self) -> None:
        """Release the resources of the environment, such as a window or a connection."""
        ...
