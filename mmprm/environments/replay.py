"""Restore the state of an environment by replaying an episode's actions, and check that replay is exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmprm.data.images import image_digest
from mmprm.environments.interface import Environment, Observation, Transition, check_observation, check_transition
from mmprm.errors import EpisodeError, MmprmError
from mmprm.types import Problem


@dataclass(frozen=True, slots=True)
class Replayed:
    """Holds an episode replayed up to some turn: the first observation, and one transition per turn."""

    start: Observation
    transitions: tuple[Transition, ...]

    @property
    def observation(self) -> Observation:
        """Return the latest observation of the episode."""
        return self.transitions[-1].observation if self.transitions else self.start

    @property
    def ended(self) -> bool:
        return bool(self.transitions) and self.transitions[-1].ended

    @property
    def episode_return(self) -> float:
        """Return the undiscounted sum of the rewards."""
        return sum(transition.reward for transition in self.transitions)


def replay(environment: Environment, problem: Problem, seed: int, texts: Sequence[str]) -> Replayed:
    """Reset the environment, apply the policy's texts in order, one per turn, and return the episode.

    Raises EpisodeError, with the turn, if the environment fails or the episode ends before the last text. Errors that a
    user can resolve, such as DataError for a problem without a level, are raised as they are.
    """
    turn = 0
    try:
        start, transitions = check_observation(environment.reset(problem, seed), "the result of reset()"), []
        for turn, text in enumerate(texts, start=1):
            if transitions and transitions[-1].ended:
                raise EpisodeError(
                    f"problem {problem.id}: the episode ended before turn {turn}; leave out the later turns"
                )
            transitions.append(check_transition(environment.step(text)))
    except MmprmError:
        raise
    except Exception as error:  # an environment is foreign code and may raise anything
        raise EpisodeError(
            f"problem {problem.id}: the environment failed at turn {turn}: {type(error).__name__}: {error}"
        ) from error
    return Replayed(start, tuple(transitions))


def check_deterministic(environment: Environment, problem: Problem, seed: int, texts: Sequence[str]) -> None:
    """Play an episode twice, and raise EpisodeError if the two runs differ, because a search restores states by
    replay."""
    first, second = (replay(environment, problem, seed, texts) for _ in range(2))
    check_same_episode(problem, first, second)


def check_same_episode(problem: Problem, first: Replayed, second: Replayed) -> None:
    """Raise EpisodeError, naming the turn, if two runs of the same actions differ in observation, reward, end or
    success."""
    if _content(first.start) != _content(second.start):
        raise _differs(problem, 0, "observation")
    for turn, (one, two) in enumerate(zip(first.transitions, second.transitions, strict=True), start=1):
        pairs = {
            "observation": (_content(one.observation), _content(two.observation)),
            "reward": (one.reward, two.reward),
            "end": ((one.terminated, one.truncated), (two.terminated, two.truncated)),
            "success": (one.info.get("success"), two.info.get("success")),
        }
        for name, (before, after) in pairs.items():
            if before != after:
                raise _differs(problem, turn, name)


def _content(observation: Observation) -> list[str]:
    return [part if isinstance(part, str) else image_digest(part) for part in observation.parts]


def _differs(problem: Problem, turn: int, name: str) -> EpisodeError:
    return EpisodeError(
        f"problem {problem.id}: the {name} of turn {turn} differs when the same actions are replayed; make the "
        "environment deterministic for a given seed"
    )
