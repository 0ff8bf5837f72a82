"""Search over the turns of episodes: a step is an action, and a rollout plays an episode to its end.

A state is a prefix of actions, restored by replaying it in the problem's environment. The verdict of a rollout is
whether the episode succeeded, so the first error is the first action after which the policy no longer succeeds.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from mcts.capacity import Load
from mcts.roll import ReplayedRolls, StepIds
from mcts.search import SearchConfig, SearchResult, search
from mcts.worker import BufferedWorker
from mmprm.environments.episode import (
    Action,
    Episode,
    EpisodeStart,
    TurnSampler,
    check_deterministic_play,
    play,
)
from mmprm.environments.load import EnvironmentConfig
from mmprm.environments.pool import EnvironmentPool
from mmprm.sampling.seeds import derive_seed, environment_seed
from mmprm.trees.evidence import count_labeled_prefixes
from mmprm.types import Batch, Problem, Rollout, Steps, Verdict


class TurnRolls(ReplayedRolls):
    """Plays the episodes of a problem; see ReplayedRolls.

    After the first batch, its longest episode is replayed, and EpisodeError is raised if the environment is not
    deterministic.
    """

    def __init__(
        self,
        problem: Problem,
        sampler: TurnSampler,
        environments: EnvironmentPool,
        config: EnvironmentConfig,
        run_seed: int,
        stored: Iterable[Batch],
        emit: Callable[[Batch], None],
    ) -> None:
        super().__init__(problem, stored, emit)
        self._sampler = sampler
        self._environments = environments
        self._config = config
        self._run_seed = run_seed
        self._environment_seed = environment_seed(run_seed, problem.id)

    async def _sample(self, steps: Steps, n: int, first_sample: int, ids: StepIds | None) -> Batch:
        # The texts are hashed as a list, because "up" + "left" and "u" + "pleft" are different turns.
        seed = derive_seed(self._run_seed, self._problem.id, json.dumps(steps), first_sample)
        known = ids or [None] * len(steps)
        actions = tuple(Action(text, own) for text, own in zip(steps, known, strict=True))
        starts = (EpisodeStart(self._problem, self._environment_seed, seed + i, actions) for i in range(n))
        playing = (play(start, self._sampler, self._environments, self._config) for start in starts)
        episodes = await _gather(playing)
        if not steps and not first_sample:
            await check_deterministic_play(self._problem, self._environment_seed, episodes, self._environments)
        return Batch(self._problem.id, steps, first_sample, tuple(map(_rollout, episodes)))


class TurnWorker(BufferedWorker):
    """Searches the episodes of problems in one environment, with one policy."""

    def __init__(
        self,
        sampler: TurnSampler,
        environment: EnvironmentConfig,
        run_seed: int,
        config: SearchConfig,
        load: Callable[[], Load | None] = lambda: None,
    ) -> None:
        super().__init__(config, self._load_with_waiting)
        self._engine_load = load
        self._sampler = sampler
        self._environment = environment
        self._environments = EnvironmentPool(environment)
        self._run_seed = run_seed

    async def close(self) -> None:
        await super().close()
        self._environments.close()

    def _load_with_waiting(self) -> Load | None:
        """Return the engine's load, with the episodes that wait for an environment: more trees would only add to
        them."""
        load = self._engine_load()
        return load and replace(load, waiting=load.waiting + self._environments.waiting)

    async def _result(self, problem: Problem, stored: Sequence[Batch]) -> tuple[SearchResult, int]:
        rolls = TurnRolls(
            problem, self._sampler, self._environments, self._environment, self._run_seed, stored, self._emit
        )
        result = await search(problem, rolls, self._config)
        return result, count_labeled_prefixes(result.tree, self._config)


async def _gather(playing: Iterable) -> list[Episode]:
    """Wait for all episodes and return them, or raise the first exception once all of them have ended."""
    found = await asyncio.gather(*playing, return_exceptions=True)
    for each in found:
        if isinstance(each, BaseException):
            raise each
    return list(found)


def _rollout(episode: Episode) -> Rollout:
    """Convert the played turns of an episode to a rollout, whose steps are the texts of the actions."""
    actions = [turn.action for turn in episode.played]
    steps = tuple(action.text for action in actions)
    # Only an incorrect rollout is searched for its first error, so only it needs token ids.
    searched = episode.verdict is Verdict.INCORRECT and all(action.ids is not None for action in actions)
    return Rollout(
        steps=steps,
        verdict=episode.verdict,
        token_count=sum(action.token_count for action in actions),
        text="".join(steps),
        unsplit=None if steps else episode.reason,
        reason=episode.reason,
        step_ids=tuple(action.ids or () for action in actions[:-1]) if searched else (),
    )
