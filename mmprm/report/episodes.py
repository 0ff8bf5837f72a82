"""Describe the turns of episodes for display: what the policy saw, the environment's truth, and the score of a PRM."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mmprm.config import build
from mmprm.environments.interface import Observation
from mmprm.environments.load import EnvironmentConfig, make_environment
from mmprm.errors import EpisodeError
from mmprm.report.images import inlined
from mmprm.sampling.seeds import environment_seed
from mmprm.trees.store import Store
from mmprm.types import Problem, Scorer, Solution, Steps


@dataclass(frozen=True, slots=True)
class ShownTurn:
    """Describes the state after a turn, or the first state: what the policy sees, and what is known about it.

    `truth` is the environment's own statement about the state, for example that it cannot be solved, or None. `score`
    is P(no error so far) according to a process reward model, or None.
    """

    observation: Observation
    truth: str | None
    score: float | None = None


class EpisodeReplay:
    """Replays the episodes of a run, one problem at a time, in the environment of the run.

    An environment may have a method `truth()`, which returns a text about its current state. With a scorer, the turns
    are scored.
    """

    def __init__(self, store: Store, scorer: Scorer | None = None) -> None:
        self._environment = make_environment(build(EnvironmentConfig, store.config["environment"], str(store.path)))
        self._seed, self._scorer = store.config["seed"], scorer

    def turns(self, problem: Problem, paths: Iterable[Steps]) -> dict[Steps, ShownTurn]:
        """Return the state after every prefix of the paths, including the empty prefix.

        A path whose replay fails is left out, because the environment may have changed since the run.
        """
        found: dict[Steps, ShownTurn] = {}
        solutions: list[Solution] = []
        for path in sorted(paths, key=len, reverse=True):
            if path in found:
                continue
            try:
                shown = self._replayed(problem, path)
            except EpisodeError:
                continue
            found |= {path[:length]: turn for length, turn in enumerate(shown)}
            if path:
                solutions.append(Solution(problem, path, tuple(turn.observation.parts for turn in shown)))
        return found | self._scored(solutions, found)

    def close(self) -> None:
        """Close the environment."""
        self._environment.close()

    def _replayed(self, problem: Problem, path: Steps) -> list[ShownTurn]:
        environment, shown = self._environment, []
        try:
            observation = environment.reset(problem, environment_seed(self._seed, problem.id))
            shown.append(ShownTurn(observation, self._truth()))
            for number, text in enumerate(path, start=1):
                transition = environment.step(text)
                shown.append(ShownTurn(transition.observation, self._truth()))
                if transition.ended and number < len(path):
                    raise EpisodeError(f"problem {problem.id}: the episode ended before turn {number + 1}")
        except EpisodeError:
            raise
        except Exception as error:  # an environment is foreign code and may raise anything
            raise EpisodeError(f"problem {problem.id}: the environment failed: {error}") from error
        return shown

    def _truth(self) -> str | None:
        truth = getattr(self._environment, "truth", None)
        return None if truth is None else str(truth())

    def _scored(self, solutions: list[Solution], found: dict[Steps, ShownTurn]) -> dict[Steps, ShownTurn]:
        if self._scorer is None or not solutions:
            return {}
        scored: dict[Steps, ShownTurn] = {}
        for solution, scores in zip(solutions, self._scorer.score(solutions), strict=True):
            for turn, score in enumerate(scores.scores, start=1):
                seen = found[solution.steps[:turn]]
                scored[solution.steps[:turn]] = ShownTurn(seen.observation, seen.truth, score)
        return scored


def turn_data(turn: ShownTurn) -> dict[str, Any]:
    """Return a turn as data for the page: the observation's text and images, truth and score."""
    images = [dict(zip(("url", "small"), inlined(image), strict=True)) for image in turn.observation.images]
    return {"text": turn.observation.text.strip(), "images": images, "truth": turn.truth, "score": turn.score}
