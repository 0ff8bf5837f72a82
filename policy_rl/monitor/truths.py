"""Ask the environment of a run what it knows about the states of logged episodes, for example whether they are lost."""

from __future__ import annotations

from collections.abc import Sequence

from mmprm.environments.interface import Environment
from mmprm.environments.load import EnvironmentConfig
from mmprm.environments.pool import EnvironmentThread
from mmprm.errors import MmprmError
from mmprm.sampling.seeds import environment_seed
from mmprm.types import Problem
from policy_rl.types import Response


class TurnTruths:
    """Replays episodes to call the environment's method `truth()` after each turn, if it has one."""

    def __init__(self, environment: EnvironmentConfig | None, run_seed: int) -> None:
        self._config, self._run_seed = environment, run_seed

    async def of(self, problem: Problem, response: Response) -> tuple[str, ...]:
        """Return what is true after each turn of an episode, or () if this is unknown.

        A replay that fails is not an error, because the truths are only for people to read.
        """
        if self._config is None or response.played is None:
            return ()
        seed, texts = environment_seed(self._run_seed, problem.id), response.played.texts
        environment = EnvironmentThread(self._config)
        try:
            found = await environment.call(lambda each: _truths(each, problem, seed, texts), turns=len(texts) + 1)
        except MmprmError:
            return ()
        finally:
            environment.stop()
        if found is None:  # the environment has no truths, so it is not asked again
            self._config = None
        return found or ()


def _truths(environment: Environment, problem: Problem, seed: int, texts: Sequence[str]) -> tuple[str, ...] | None:
    truth = getattr(environment, "truth", None)
    if truth is None:
        return None
    environment.reset(problem, seed)
    found = []
    for text in texts:
        environment.step(text)
        found.append(str(truth()))
    return tuple(found)
