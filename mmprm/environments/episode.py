"""Play episodes in which a policy and an environment take turns, from the start or from a restored state.

episode = await play(start, sampler, environments, config)

An episode is a conversation: observation, action, observation, action, … A state is a prefix of actions, which is
restored by replaying them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from mmprm.environments.interface import Environment, Observation, Transition, check_transition
from mmprm.environments.load import EnvironmentConfig
from mmprm.environments.pool import EnvironmentPool, EnvironmentThread
from mmprm.environments.replay import Replayed, check_same_episode, replay
from mmprm.errors import ContextLimitError, EngineStoppedError, EpisodeError, SamplingError
from mmprm.types import Problem, Verdict

CONTEXT_LIMIT = "context limit"
"""Reason of an episode whose next prompt exceeds the model's context."""


@dataclass(frozen=True, slots=True)
class Action:
    """Holds what the policy generated in one turn: its text and, if known, its token ids exactly as sampled.

    `finish_reason` is "stop", "length" or "abort".
    """

    text: str
    ids: tuple[int, ...] | None = None
    token_count: int = 0
    finish_reason: str = "stop"


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """Requests the policy's next action after `observations`, all but the last of which were answered by an action."""

    problem: Problem
    observations: tuple[Observation, ...]
    actions: tuple[Action, ...]
    seed: int

    def __post_init__(self) -> None:
        assert len(self.observations) == len(self.actions) + 1, "the policy answers the last observation"


class TurnSampler(Protocol):
    """Protocol for policies that play episodes."""

    async def act(self, request: TurnRequest) -> Action:
        """Sample the policy's next action, or raise SamplingError."""
        ...


@dataclass(frozen=True, slots=True)
class EpisodeStart:
    """Describes where an episode begins: after the given actions, which are replayed in the environment.

    `environment_seed` seeds the environment, and `seed` the policy's actions.
    """

    problem: Problem
    environment_seed: int
    seed: int
    actions: tuple[Action, ...] = ()


@dataclass(frozen=True, slots=True)
class EpisodeTurn:
    """Holds one turn: what the policy saw, what it wrote, and the environment's answer."""

    observation: Observation
    action: Action
    transition: Transition


@dataclass(frozen=True, slots=True)
class Episode:
    """Holds an episode and its outcome. The first `restored` turns are those of its start.

    `reason` is "success", "no success", "truncated", "turn limit", "context limit" or, for an episode of unknown
    outcome, the failure of the environment or engine that ended it.
    """

    turns: tuple[EpisodeTurn, ...]
    restored: int
    verdict: Verdict
    reason: str

    @property
    def episode_return(self) -> float:
        """Return the undiscounted sum of the rewards."""
        return sum(turn.transition.reward for turn in self.turns)

    @property
    def played(self) -> tuple[EpisodeTurn, ...]:
        """Return the turns after the restored ones."""
        return self.turns[self.restored :]

    def replayed(self) -> Replayed:
        """Return the first observation and all transitions of an episode with at least one turn."""
        return Replayed(self.turns[0].observation, tuple(turn.transition for turn in self.turns))


async def play(
    start: EpisodeStart, sampler: TurnSampler, environments: EnvironmentPool, config: EnvironmentConfig
) -> Episode:
    """Play an episode to its end or to the turn limit.

    An environment that fails or hangs, and an engine that fails after the first turn, give an episode with the turns so
    far and the verdict UNKNOWN. An episode whose next prompt exceeds the model's context is INCORRECT. Raises
    EngineStoppedError, errors of the first request, and errors that a user can resolve, such as a problem without a
    level.
    """
    turns: list[EpisodeTurn] = []
    try:
        async with environments.borrow() as environment:
            await _play(start, sampler, environment, config, turns)
    except EngineStoppedError:
        raise
    except EpisodeError as error:
        return _episode(start, turns, Verdict.UNKNOWN, _without_problem(error, start.problem))
    except ContextLimitError:
        if not turns:
            raise
        # The environment is fine, and leaving out the long episodes would raise the values.
        return _episode(start, turns, Verdict.INCORRECT, CONTEXT_LIMIT)
    except SamplingError as error:
        if not turns:
            raise
        # Reasons are counted by their text, and the lengths of prompts that are too long differ.
        reason = re.sub(r"\d+", "…", _without_problem(error, start.problem))
        return _episode(start, turns, Verdict.UNKNOWN, f"sampling failed: {reason}")
    return _episode(start, turns, *outcome([turn.transition for turn in turns], config.success_return))


async def check_deterministic_play(
    problem: Problem, environment_seed: int, episodes: Sequence[Episode], environments: EnvironmentPool
) -> None:
    """Replay the longest of a problem's episodes, and raise EpisodeError if it differs, because the environment is not
    deterministic."""
    longest = max(episodes, key=lambda episode: len(episode.turns))
    if not longest.turns:
        return
    texts = [turn.action.text for turn in longest.turns]
    try:
        async with environments.borrow() as environment:
            again = await environment.call(
                lambda each: replay(each, problem, environment_seed, texts), turns=len(texts) + 1
            )
    except EpisodeError as error:
        if error.__cause__ is None:  # the replayed episode ended earlier
            raise
        return  # an environment that breaks now and then may still be deterministic
    check_same_episode(problem, longest.replayed(), again)


async def _play(
    start: EpisodeStart,
    sampler: TurnSampler,
    environment: EnvironmentThread,
    config: EnvironmentConfig,
    turns: list[EpisodeTurn],
) -> None:
    """Restore the start, play on, and append every turn to `turns` as it is played, so that an exception loses none."""
    problem, texts = start.problem, [action.text for action in start.actions]
    restored = await environment.call(
        lambda each: replay(each, problem, start.environment_seed, texts), turns=len(texts) + 1
    )
    seen = [restored.start, *(transition.observation for transition in restored.transitions)]
    turns += map(EpisodeTurn, seen, start.actions, restored.transitions)
    observation, ended = restored.observation, restored.ended
    while not ended and len(turns) < config.max_turns:
        action = await sampler.act(_request(start, turns, observation))
        if action.finish_reason == "abort":
            raise EpisodeError("aborted by the engine")
        transition = await environment.call(partial(_step, text=action.text))
        turns.append(EpisodeTurn(observation, action, transition))
        observation, ended = transition.observation, transition.ended


def outcome(transitions: Sequence[Transition], success_return: float) -> tuple[Verdict, str]:
    """Return the verdict of an episode and the reason for it, from its transitions.

    An environment reports success in the last transition's `info`. Otherwise an episode succeeds if it ended by itself
    with at least `success_return`.
    """
    last = transitions[-1]
    enough = last.terminated and sum(each.reward for each in transitions) >= success_return
    if last.info.get("success", enough):
        return Verdict.CORRECT, "success"
    if last.terminated:
        return Verdict.INCORRECT, "no success"
    return Verdict.INCORRECT, "truncated" if last.truncated else "turn limit"


def _without_problem(error: Exception, problem: Problem) -> str:
    return str(error).removeprefix(f"problem {problem.id}: ")


def _step(environment: Environment, text: str) -> Transition:
    return check_transition(environment.step(text))


def _request(start: EpisodeStart, turns: Sequence[EpisodeTurn], observation: Observation) -> TurnRequest:
    observations = (*(turn.observation for turn in turns), observation)
    # Equal seeds in all turns would correlate the turns' samples.
    seed = random.Random(f"{start.seed}/{len(turns)}").getrandbits(62)
    return TurnRequest(start.problem, observations, tuple(turn.action for turn in turns), seed)


def _episode(start: EpisodeStart, turns: Sequence[EpisodeTurn], verdict: Verdict, reason: str) -> Episode:
    return Episode(tuple(turns), len(start.actions), verdict, reason)
