"""Create an environment from its configuration."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mmprm.config import Config
from mmprm.environments.actions import ACTION
from mmprm.environments.gymnasium_adapter import GymnasiumEnvironment
from mmprm.environments.interface import Environment
from mmprm.errors import ConfigError
from mmprm.user_function import load_function

BUILT_IN = {
    "football": "mmprm.environments.football:FootballEnvironment",
    "openenv": "mmprm.environments.openenv:OpenEnvEnvironment",
    "sokoban": "mmprm.tiny.sokoban_environment:SokobanEnvironment",
}
"""Maps the names of the built-in environments to their import paths."""


class EnvironmentConfig(Config):
    path: str
    """Environment to use: sokoban, football or openenv (which need the extras of these names), gymnasium:ID such as
    gymnasium:FrozenLake-v1, or package.module:factory for your own. The factory is called with `arguments` and returns
    an object with reset, step and close."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for gymnasium.make or for the factory."""
    actions: tuple[str, ...] | None = None
    """Names of a gymnasium environment's actions, in the order of their indices; null uses the indices as names. Other
    environments name their own actions."""
    pattern: str = ACTION
    """Regular expression that finds the action in the policy's text, in all environments but your own. The last
    match counts, and its first group is the action's name."""
    success_return: float = 1e-9
    """Minimum return of a successful episode, for environments that do not report success themselves; by default, any
    positive return. The episode must also have ended by itself."""
    max_turns: int = Field(10, ge=1)
    """Maximum number of turns per episode, after which the episode is truncated."""
    max_turn_tokens: int = Field(256, ge=1)
    """Maximum number of tokens that the policy generates per turn."""
    images: Annotated[int, Field(ge=0)] | Literal["all"] = "all"
    """Number of most recent observations whose images are shown to the policy; "all" shows every image."""
    max_environments: int = Field(64, ge=1)
    """Maximum number of environments per engine, which is also the number of episodes that it plays at a time. Each
    runs in a thread of its own."""
    timeout_seconds: float = Field(60.0, gt=0)
    """Maximum time in seconds for one turn of the environment. An environment that takes longer is abandoned."""

    @model_validator(mode="after")
    def _keys_have_an_effect(self) -> EnvironmentConfig:
        is_gymnasium = self.path.startswith("gymnasium:")
        if self.actions is not None and not is_gymnasium:
            raise ValueError(
                f"actions={list(self.actions)} has no effect with path={self.path}, which names its own actions; "
                "remove it"
            )
        if self.pattern != ACTION and not is_gymnasium and self.path not in BUILT_IN:
            raise ValueError(
                f"pattern={self.pattern!r} has no effect with path={self.path}, which reads the policy's text itself; "
                "remove it, or pass it in arguments"
            )
        return self

    def resume_key(self) -> dict[str, Any]:
        """Return the settings that determine the episodes, which must not change when a run resumes."""
        return self.model_dump(mode="json", exclude={"max_environments", "timeout_seconds"})


def make_environment(config: EnvironmentConfig) -> Environment:
    """Create the configured environment.

    Raises ConfigError if it cannot be imported or lacks a method, and SetupError if its package is not installed.
    """
    kind, separator, name = config.path.partition(":")
    if kind == "gymnasium" and separator:
        return GymnasiumEnvironment(name, config.arguments, config.actions, config.pattern, config.success_return)
    path = BUILT_IN.get(config.path, config.path)
    if ":" not in path:
        raise ConfigError(
            f"environment.path={config.path!r} must be one of {', '.join(BUILT_IN)}, gymnasium:ID, or package.module:"
            "factory; correct it"
        )
    factory = load_function(path, "environment.path")
    own = {"pattern": config.pattern} if config.path in BUILT_IN else {}
    try:
        made = factory(**(own | config.arguments))
    except TypeError as error:
        raise ConfigError(
            f"environment.arguments={config.arguments} do not fit {config.path}: {error}; correct them"
        ) from error
    missing = [method for method in ("reset", "step", "close") if not callable(getattr(made, method, None))]
    if missing:
        raise ConfigError(
            f"environment.path={config.path!r}: {type(made).__name__} has no {', '.join(missing)}; add it"
        )
    return made
