"""Label the turns of episodes, whose observations are restored by replaying the actions in the environment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress

from mmprm.config import build
from mmprm.environments.episode import outcome
from mmprm.environments.interface import Observation
from mmprm.environments.load import EnvironmentConfig, make_environment
from mmprm.environments.replay import Replayed, replay
from mmprm.errors import EpisodeError
from mmprm.labels.soft_labels import label_tree
from mmprm.sampling.seeds import environment_seed
from mmprm.trees.stopping import StoppingRule
from mmprm.trees.store import Store
from mmprm.types import LabeledPath, Problem, Verdict

_ATTEMPTS = 3


def label_turns(
    store: Store, rule: StoppingRule, seed: int, min_shared_rollouts: int | None = None
) -> Iterator[tuple[Problem, LabeledPath, tuple[Observation, ...]]]:
    """Yield each labeled path of a run in an environment, with the observation before each of its turns, and the one
    after the last turn.

    The steps of a path are the policy's turns, word for word. Raises EpisodeError if an episode ends differently than
    in the run.
    """
    config = build(EnvironmentConfig, store.config["environment"], str(store.path))
    run_seed = store.config["seed"]
    with closing(_Environment(config)) as environment:
        for tree in store.trees():
            problem = store.problem(tree.problem_id)
            start_seed = environment_seed(run_seed, problem.id)
            for path in label_tree(tree, rule, None, seed, min_shared_rollouts):
                yield problem, path, _observations(environment, problem, start_seed, path, config)


def _observations(
    environment: _Environment, problem: Problem, seed: int, path: LabeledPath, config: EnvironmentConfig
) -> tuple[Observation, ...]:
    found = environment.replayed(problem, seed, path)
    verdict, _ = outcome(found.transitions, config.success_return)
    last = path.counts[-1]
    stored = Verdict.CORRECT if last is not None and last.correct else Verdict.INCORRECT
    if verdict != stored if path.complete else found.ended:
        raise EpisodeError(
            f"problem {problem.id}: an episode of {len(path.steps)} turns ends differently than in the run; use the "
            "environment with which the run was annotated"
        )
    return (found.start, *(transition.observation for transition in found.transitions))


class _Environment:
    """Holds an environment, which is closed and replaced if it breaks."""

    def __init__(self, config: EnvironmentConfig) -> None:
        self._config = config
        self._made = make_environment(config)

    def replayed(self, problem: Problem, seed: int, path: LabeledPath) -> Replayed:
        """Replay a path, again with new environments if the environment breaks.

        In the run, a break only leaves a rollout without a verdict, so it must not cost the labels either.
        """
        for _ in range(_ATTEMPTS - 1):
            try:
                return replay(self._made, problem, seed, path.steps)
            except EpisodeError as error:
                if error.__cause__ is None:  # the environment did not break: the episode ended early
                    raise
            self.close()
            self._made = make_environment(self._config)
        return replay(self._made, problem, seed, path.steps)

    def close(self) -> None:
        """Close the environment, which may fail if it is broken."""
        with suppress(Exception):
            self._made.close()
