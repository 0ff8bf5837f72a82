"""Check an environment before the engines start, on the first problem of the campaign."""

from __future__ import annotations

import asyncio

from mmprm.environments.interface import Observation
from mmprm.environments.load import EnvironmentConfig
from mmprm.environments.pool import EnvironmentThread
from mmprm.environments.replay import replay
from mmprm.errors import ConfigError
from mmprm.types import Problem


def first_prompt(config: EnvironmentConfig, images_per_prompt: int, problem: Problem, seed: int) -> Problem:
    """Reset the environment for a problem with `seed`, and return the first observation in the form of a Problem.

    Raises ConfigError if a later prompt would show more images than the engine accepts, EpisodeError if the environment
    fails, and other errors if it cannot be created or cannot use the problem.
    """
    observation = asyncio.run(_reset(config, problem, seed))
    shown = config.max_turns if config.images == "all" else min(config.images, config.max_turns)
    needed = len(observation.images) * shown
    if needed > images_per_prompt:
        raise ConfigError(
            f"engine.images_per_prompt={images_per_prompt} must be at least {needed}, the number of images in the last "
            f"prompt of an episode ({shown} observations × {len(observation.images)}); raise it, or set "
            "environment.images to show fewer"
        )
    return Problem(problem.id, observation.text, "", observation.images)


async def _reset(config: EnvironmentConfig, problem: Problem, seed: int) -> Observation:
    environment = EnvironmentThread(config)
    try:
        return await environment.call(lambda each: replay(each, problem, seed, ()).start)
    finally:
        environment.stop()
