"""Load a process reward model, score the steps of solutions, and rank responses."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from mmprm.api.inputs import AnyPath, asked_problem, check_argument, configured
from mmprm.cli.shared.aggregator import settled
from mmprm.data.cells import cut
from mmprm.errors import ConfigError, DataError
from mmprm.preflight import check_prm
from mmprm.prm.info import PrmInfo
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.open import ClosableScorer, open_scorer, scorer_info
from mmprm.selection.groups import Candidate, CandidateGroup, rewards, score_groups
from mmprm.steps import StepFormat, plain_split
from mmprm.types import Scorer, Solution, Steps, StepScores, Verdict


class LoadedScorer:
    """Holds a loaded process reward model and the content of its prm.json (`info`).

    Use it in a `with` block, or call `close` when it is no longer needed.
    """

    def __init__(self, scorer: ClosableScorer, info: PrmInfo) -> None:
        self._scorer = scorer
        self.info = info

    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        """Return P(no error so far) for each step of each solution, scoring the solutions in batches."""
        check_argument(solutions, list | tuple, "LoadedScorer.score", "solutions", "a list of mmprm.Solution objects")
        for index, solution in enumerate(solutions):
            check_argument(solution, Solution, "LoadedScorer.score", f"solutions[{index}]", "an mmprm.Solution")
        return self._scorer.score(solutions)

    def close(self) -> None:
        """Release the model's memory; the scorer cannot be used afterwards."""
        self._scorer.close()

    def __enter__(self) -> LoadedScorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class RankedResponse:
    """Holds a response and its scores. `index` is its position in the input list.

    `reward` is the aggregate of the step scores. A response that cannot be split into steps or scored has neither
    scores nor a reward; `reason` says why.
    """

    index: int
    response: str
    steps: Steps
    scores: tuple[float, ...] | None
    reward: float | None
    reason: str | None = None


def load_scorer(prm: AnyPath = "", **settings: Any) -> LoadedScorer:
    """Load a process reward model, or connect to its server.

    `prm` is a folder written by `mmprm train` or a checkpoint of another family (with `format`). `settings` are the
    keys of `scorer` in `mmprm score`: `load_scorer("prm", backend="vllm", dtype="bfloat16")`, or, for a server,
    `load_scorer(backend="server", server={"urls": ["http://localhost:8100"]})`. Raises ConfigError for an unknown key
    and CheckpointError for a folder without a process reward model.
    """
    config = configured(ScorerConfig, "load_scorer", {"prm": prm} | settings)
    info = scorer_info(config)
    check_prm(config.prm)
    return LoadedScorer(open_scorer(config), info)


def score_steps(
    scorer: Scorer | AnyPath,
    question: str,
    steps: Sequence[str],
    *,
    images: Any = (),
    choices: Sequence[str] = (),
) -> tuple[float, ...]:
    """Return P(no error so far) for each step of one solution.

    `scorer` comes from `load_scorer`; a path is loaded for this call only. `images` holds paths, encoded bytes,
    `ImageRef` or Pillow images. To score many solutions, pass them to `scorer.score` together.
    """
    _check_scorer(scorer, "score_steps")
    problem = asked_problem(question, images, choices, "score_steps")
    steps = _texts(steps, "score_steps", "steps", "one per step; mmprm.rerank splits responses into steps")
    with _opened(scorer) as loaded:
        (scored,) = loaded.score([Solution(problem, steps)])
    return scored.scores


def rerank(
    scorer: Scorer | AnyPath,
    question: str,
    responses: Sequence[str],
    *,
    images: Any = (),
    choices: Sequence[str] = (),
    step_format: StepFormat = "tags",
    aggregator: str | None = None,
) -> list[RankedResponse]:
    """Rank the responses to a question by their aggregated step scores, best first, with ties in the given order.

    `step_format` says how the responses mark their steps, and `aggregator` how step scores become one number; by
    default it is the one in prm.json. Responses that cannot be scored come last. Raises DataError if none can be
    scored.
    """
    _check_scorer(scorer, "rerank")
    check_argument(aggregator, str | None, "rerank", "aggregator", "the name of an aggregator, such as min")
    if step_format not in get_args(StepFormat):
        raise ConfigError(f"mmprm.rerank: step_format={step_format!r} must be one of {', '.join(get_args(StepFormat))}")
    problem = asked_problem(question, images, choices, "rerank")
    texts = _texts(responses, "rerank", "responses", "one per response")
    group = CandidateGroup(problem, tuple(_candidate(text, step_format) for text in texts))
    if not any(candidate.steps for candidate in group.candidates):
        raise DataError(
            f"mmprm.rerank: none of the {len(texts)} responses has steps by step_format={step_format} "
            f"({group.candidates[0].unsplit}); set step_format to tags, blank_lines, numbered or thoughts"
        )
    with _opened(scorer) as loaded:
        name = settled(aggregator, loaded.info if isinstance(loaded, LoadedScorer) else PrmInfo())
        (scored,) = score_groups([group], loaded)
    pairs = zip(scored.candidates, rewards(scored, name), strict=True)
    ranked = [_ranked(index, *pair) for index, pair in enumerate(pairs)]
    return sorted(ranked, key=lambda each: -math.inf if each.reward is None else each.reward, reverse=True)


def _check_scorer(scorer: Any, caller: str) -> None:
    if not hasattr(scorer, "score"):
        expected = "the folder of a process reward model, or a scorer of mmprm.load_scorer"
        check_argument(scorer, str | os.PathLike, caller, "scorer", expected)


@contextlib.contextmanager
def _opened(scorer: Scorer | AnyPath) -> Iterator[Scorer]:
    """Yield the given scorer, or a scorer loaded from the given path for the duration of the `with` block."""
    if not isinstance(scorer, str | os.PathLike):
        yield scorer if isinstance(scorer, LoadedScorer) else _CheckedScorer(scorer)
        return
    with load_scorer(scorer) as loaded:
        yield loaded


class _CheckedScorer:
    """Wraps a user's scorer; raises DataError if the number of its results or scores does not match the input."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        scored = list(self._scorer.score(solutions))
        if len(scored) != len(solutions):
            raise DataError(
                f"the scorer returned {len(scored)} results for {len(solutions)} solutions; return one StepScores each"
            )
        for solution, each in zip(solutions, scored, strict=True):
            if not 1 <= len(each.scores) <= len(solution.steps):
                count = f"{len(each.scores)} scores for {len(solution.steps)} steps"
                raise DataError(f"the scorer returned {count}; return one per step")
        return scored


def _candidate(text: str, step_format: StepFormat) -> Candidate:
    found = plain_split(text, step_format)
    return Candidate(text, found.steps, None, Verdict.UNKNOWN, 0, unsplit=found.reason)


def _ranked(index: int, candidate: Candidate, reward: float) -> RankedResponse:
    if candidate.scores is None:
        reason = candidate.unsplit or candidate.unscored
        return RankedResponse(index, candidate.response, candidate.steps, None, None, reason)
    return RankedResponse(index, candidate.response, candidate.steps, candidate.scores.scores, reward)


def _texts(values: Sequence[str], caller: str, name: str, hint: str) -> tuple[str, ...]:
    is_list = isinstance(values, list | tuple) and values
    if not is_list or not all(isinstance(value, str) and value.strip() for value in values):
        raise DataError(f"mmprm.{caller}: {name}={cut(repr(values))} must be a list of non-blank texts; pass {hint}")
    return tuple(values)
