"""Compute process rewards: split responses into steps, score the steps with a PRM, map the steps to tokens.

    process = ProcessReward(tokenizer, step_format, prefill, prm)
    scored = await process.score(problem, responses)     # one group as soon as it arrives

A response that cannot be split, or that the PRM rejects, has no process reward: its result is None, it is counted by
reason in `process.unscored`, and it keeps its outcome reward. (With mode=scalar and without per_source, the reward is
the sum of both, so a response without process reward is excluded.)

Shapes: T token of a response.
"""

from __future__ import annotations

import functools
import math
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, Protocol

from pydantic import Field

from mmprm.config import Config
from mmprm.errors import DataError, MmprmError, TrainingError
from mmprm.scoring.aggregate import Aggregator, aggregator, chosen_aggregator
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.http.queue import ScoreResult
from mmprm.scoring.open import scorer_info
from mmprm.steps import StepFormat, StepSplit, plain, split
from mmprm.types import Problem, Solution, Steps
from policy_rl.graded import StepRewards
from policy_rl.types import Response

PIECES = 2**18
"""Maximum number of decoded token sequences to cache, about the size of the largest vocabulary."""
PIECE_TOKENS = 4
"""Maximum number of tokens in a cached sequence: a UTF-8 character has at most four bytes."""

INCOMPLETE = "\ufffd"
"""Unicode replacement character, which tokenizers return for the bytes of an incomplete character."""

Decode = Callable[[Sequence[int]], str]


class ProcessConfig(Config):
    """Configures the process reward model (PRM) of a run."""

    scorer: ScorerConfig
    """Process reward model: a checkpoint, or a running `mmprm serve`. If scorer.too_long rejects a response, it has no
    process reward; if scorer.too_long truncates one, the unscored steps have none."""
    aggregator: str | None = None
    """How credit.mode=scalar aggregates step scores to one number; the default comes from the PRM's prm.json."""
    cores: int = Field(1, ge=1)
    """Number of CPU cores that a local PRM uses if there is no GPU. They are not reserved in Ray, because the engines,
    one per core, run at the same time."""
    own_gpu: bool = True
    """Give a local PRM its own GPU. If false, it shares a GPU of the last engine, where engine.gpu_memory_utilization
    must leave enough memory."""
    start_timeout_seconds: float = Field(1800, gt=0)
    """Timeout in seconds for loading the PRM."""
    score_timeout_seconds: float = Field(3600, gt=0)
    """Timeout in seconds for scoring one group."""
    max_restarts: int = Field(3, ge=0)
    """Maximum number of times to restart a dead PRM process before the run fails."""

    def aggregate(self) -> Aggregator:
        """Return the aggregator for credit.mode=scalar.

        Raises ConfigError if neither the configuration nor the PRM names one.
        """
        return aggregator(chosen_aggregator(self.aggregator, scorer_info(self.scorer).aggregator))


class Judge(Protocol):
    """Protocol for scoring solutions."""

    async def judge(self, solutions: Sequence[Solution]) -> list[ScoreResult]:
        """Score solutions; return the step scores of each one, or an exception (DataError if it cannot be scored)."""
        ...


class ProcessReward:
    """Scores the steps of responses, and maps each sampled token to its step.

    `prefill` is the beginning of each response that is part of the prompt; `unscored` counts the responses without
    process reward by reason.

    A token belongs to the step in which it starts: a token that spans the end of a step and the start of the next
    belongs to the first of them, and all bytes of a character belong to the same step. A token without text (special,
    end of turn) belongs to the step at its position or, after the last character, to the last step.
    """

    def __init__(self, tokenizer: Any, step_format: StepFormat, prefill: str, prm: Judge) -> None:
        self.unscored: Counter[str] = Counter()
        self._step_format: StepFormat = step_format
        self._prefill, self._prm = prefill, prm

        @functools.lru_cache(PIECES)
        def piece(token_ids: tuple[int, ...]) -> str:
            return tokenizer.decode(list(token_ids), skip_special_tokens=True)

        def decode(token_ids: Sequence[int]) -> str:
            if len(token_ids) <= PIECE_TOKENS:
                return piece(tuple(token_ids))
            return tokenizer.decode(token_ids, skip_special_tokens=True)

        self._decode: Decode = decode
        self._pieces = Pieces(decode)

    async def score(self, problem: Problem, responses: Sequence[Response]) -> list[StepRewards | None]:
        """Return the step rewards of each response to a problem, or None for a response without process reward.

        Raises TrainingError, naming the problem, if scores are not probabilities or if the PRM fails.
        """
        cuts = [self._cut(response) for response in responses]
        solutions = [Solution(problem, found.steps) for found, _ in cuts if found.steps]
        answers = iter(await self._prm.judge(solutions) if solutions else ())
        return [
            self._scored(problem, found, step_of_token, next(answers)) if found.steps else self._none(found.reason)
            for found, step_of_token in cuts
        ]

    def _cut(self, response: Response) -> tuple[StepSplit, tuple[int, ...]]:
        verbatim, found = _both_forms(response.text, self._step_format, self._prefill)
        if not found.steps:
            return found, ()
        begins_T = token_begins(response.token_ids, response.text, self._decode, self._pieces)
        step_of_token = step_of_tokens(verbatim, begins_T, len(self._prefill))
        if len(set(step_of_token)) < len(verbatim):
            return StepSplit((), "step without a token"), ()
        return found, step_of_token

    def _scored(
        self, problem: Problem, found: StepSplit, step_of_token: tuple[int, ...], answer: ScoreResult
    ) -> StepRewards | None:
        if isinstance(answer, DataError):
            if not self.unscored["refused by the PRM"]:
                print(
                    f"no process reward for this and similar responses: {answer}",
                    file=sys.stderr,
                    flush=True,
                )
            return self._none("refused by the PRM")
        if isinstance(answer, MmprmError):
            raise answer
        if isinstance(answer, Exception):
            raise TrainingError(
                f"problem {problem.id}: the PRM failed ({type(answer).__name__}: {answer}); reproduce it with mmprm "
                "score"
            ) from answer
        scores, count = answer.scores, len(found.steps)
        if not 0 < len(scores) <= count or not all(math.isfinite(score) and 0 <= score <= 1 for score in scores):
            raise TrainingError(
                f"problem {problem.id}: the PRM gave {len(scores)} scores for {count} steps, "
                f"{', '.join(f'{score:g}' for score in scores[:8])}; each must be a probability in [0, 1]; check its "
                "weights, or set process.scorer.dtype=float32"
            )
        if len(scores) < count:
            step_of_token = tuple(step if step < len(scores) else -1 for step in step_of_token)
        return StepRewards(scores, step_of_token)

    def _none(self, reason: str | None) -> None:
        self.unscored[reason or ""] += 1


def plain_steps(text: str, step_format: StepFormat, prefill: str = "") -> StepSplit:
    """Return the steps of a response in the form that the PRM reads, or the reason why there are none.

    The reason is that of `split`, or "empty step".
    """
    return _both_forms(text, step_format, prefill)[1]


def _both_forms(text: str, step_format: StepFormat, prefill: str) -> tuple[Steps, StepSplit]:
    """Return the verbatim steps of a response, and the result of `plain_steps`."""
    found = split(prefill + text, step_format)
    verbatim = written_steps(found.steps, len(prefill))
    steps = tuple(plain(step, step_format) for step in verbatim)
    return verbatim, StepSplit(steps, found.reason) if all(steps) else StepSplit((), "empty step")


def written_steps(steps: Steps, given: int) -> Steps:
    """Merge steps that end within the first `given` characters into the following step.

    These characters are part of the prompt, so such steps have no token to reward.
    """
    count = sum(end <= given for end in accumulate(map(len, steps)))
    return ("".join(steps[: count + 1]), *steps[count + 1 :]) if count < len(steps) else steps


def step_of_tokens(steps: Sequence[str], begins_T: Sequence[int], given: int = 0) -> tuple[int, ...]:
    """Return, for each token, the index of the step in which it starts; a token at the end belongs to the last step.

    The tokens are in text order. The first `given` characters of the steps are part of the prompt.
    """
    *inner, _ = accumulate(map(len, steps))
    first = [0, *(bisect_left(begins_T, border - given) for border in inner), len(begins_T)]
    return sum(((step,) * (stop - start) for step, (start, stop) in enumerate(pairwise(first))), ())


class Pieces(dict[int, str]):
    """Caches the text of single tokens, each decoded on first use."""

    def __init__(self, decode: Decode) -> None:
        super().__init__()
        self._decode = decode

    def __missing__(self, token: int) -> str:
        self[token] = piece = self._decode([token])
        return piece


def token_begins(
    token_ids: Sequence[int], text: str, decode: Decode, pieces: Mapping[int, str] | None = None
) -> list[int]:
    """Return the start offset of each token in `text`: the number of characters that are complete before it.

    `text` must equal `decode(token_ids)`. Tokens are decoded in runs that begin and end between characters. If decoding
    a run depends on the tokens before it (SentencePiece drops a leading space, and garbles complete characters next to
    an incomplete one), the run is decoded with a few tokens of context, and if necessary with all of them.
    """
    begins_T = _begins_of_pieces(token_ids, text, decode, Pieces(decode) if pieces is None else pieces)
    if begins_T is not None:
        return begins_T
    for context in (0, 4, len(token_ids)):
        begins_T = _begins(token_ids, text, decode, context)
        if begins_T is not None:
            return begins_T
    raise TrainingError(
        f"the tokens of a response do not add up to its text {text[:80]!r}: this tokenizer changes text as it decodes; "
        "set clean_up_tokenization_spaces to false in its tokenizer_config.json"
    )


def _begins_of_pieces(
    token_ids: Sequence[int], text: str, decode: Decode, piece_of: Mapping[int, str]
) -> list[int] | None:
    """Compute token_begins by decoding each token alone, except for tokens with incomplete characters.

    Returns None if the decoded pieces do not add up to the text.
    """
    pieces = list(map(piece_of.__getitem__, token_ids))
    borders = [index for index, piece in enumerate(pieces) if INCOMPLETE in piece]
    begins_T: list[int] = []
    done = 0
    for border in (*borders, len(token_ids)):
        if border < len(begins_T):  # part of a run that began at an earlier border
            continue
        whole = pieces[len(begins_T) : border]
        if not text.startswith("".join(whole), done):
            return None
        *own, done = accumulate(map(len, whole), initial=done)
        begins_T += own
        if border < len(token_ids):
            run, done = _run(token_ids, border, text, done, decode, 0)
            begins_T += run
    return begins_T if done == len(text) else None


def _begins(token_ids: Sequence[int], text: str, decode: Decode, context: int) -> list[int] | None:
    """Compute token_begins by decoding runs of tokens together with up to `context` preceding tokens.

    Returns None if the runs do not add up to the text.
    """
    begins_T: list[int] = []
    done = 0
    while len(begins_T) < len(token_ids):
        run, done = _run(token_ids, len(begins_T), text, done, decode, context)
        begins_T += run
    return begins_T if done == len(text) else None


def _run(
    token_ids: Sequence[int], first: int, text: str, done: int, decode: Decode, context: int
) -> tuple[list[int], int]:
    """Find the shortest run of tokens that decodes to the next characters; return (start offsets, end offset).

    The run begins at token `first`, after `done` characters. If there is no such run, returns the offsets of all
    remaining tokens, and `done` unchanged.
    """
    start = max(0, first - context)
    head = decode(token_ids[start:first]) if context else ""
    begins_T: list[int] = []
    piece, complete = "", done
    for index in range(first, len(token_ids)):
        complete = max(complete, done + _shared(piece, text[done : done + len(piece)]))
        begins_T.append(complete)
        window = decode(token_ids[start : index + 1])
        piece = window[len(head) :] if window.startswith(head) else ""
        if window.startswith(head) and text.startswith(piece, done):
            return begins_T, done + len(piece)
    return begins_T, done


def _shared(left: str, right: str) -> int:
    """Return the length of the common prefix of two texts."""
    for length, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return length
    return min(len(left), len(right))
