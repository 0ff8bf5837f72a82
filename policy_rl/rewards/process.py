"""Compute the process reward of responses: split them into steps, score the steps with a PRM, map the scores to tokens.

    process = ProcessReward(tokenizer, markup, prefill, prm)
    scored = await process.score(problem, responses)     # a group as it arrives, while others are still generated

A response that cannot be split, or that the PRM rejects, has no process reward: its result is None, it is counted in
`process.unscored` by reason, and it keeps its outcome reward. (With mode=scalar and without per_source, both rewards
form one sum; half of a sum is not a reward, so the response is left out there.)

Shapes: T token of a response.
"""

from __future__ import annotations

import functools
import math
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate, takewhile
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
"""Number of decoded tokens to cache: about the size of the largest vocabulary."""

Decode = Callable[[Sequence[int]], str]


class ProcessConfig(Config):
    """Configure the process reward model of a run."""

    scorer: ScorerConfig
    """Process reward model: a checkpoint, or a running `mmprm serve`. A response that scorer.too_long refuses has no
    process reward; if it truncates a response, the steps that were not scored have none."""
    aggregator: str | None = None
    """How step scores become one number with credit.mode=scalar; by default as the PRM's prm.json says."""
    cores: int = Field(1, ge=1)
    """Cores that a local PRM uses without a GPU. Ray does not book them: the engines, one per core, keep running
    meanwhile."""
    own_gpu: bool = True
    """Give a local PRM its own GPU; false: it uses one of the last engine's, where engine.gpu_memory_utilization must
    leave enough memory."""
    start_timeout_seconds: float = Field(1800, gt=0)
    """Maximum time in seconds to wait for the PRM to load."""
    score_timeout_seconds: float = Field(3600, gt=0)
    """Maximum time in seconds to wait for the scores of one group."""
    max_restarts: int = Field(3, ge=0)
    """Number of times that the PRM's process may die and be restarted before the run ends."""

    def aggregate(self) -> Aggregator:
        """Return the aggregator for credit.mode=scalar.

        Raises ConfigError if neither the configuration nor the PRM names one.
        """
        return aggregator(chosen_aggregator(self.aggregator, scorer_info(self.scorer).aggregator))


class Judge(Protocol):
    """Describe what scores solutions."""

    async def judge(self, solutions: Sequence[Solution]) -> list[ScoreResult]:
        """Return the scores of each solution, or the reason why it has none: a DataError if it cannot be scored."""
        ...


class ProcessReward:
    """Compute step rewards of responses per sampled token.

    `prefill` is the text with which the prompt already begins each response; `unscored` counts the responses without
    process reward by reason.

    A token belongs to the step in which it begins: a token that contains the end of a step and the first characters of
    the next one belongs to the first of them, and the bytes of one character stay together. A token without text
    (special, end of turn) belongs to the step at its position, and after the last character to the last step.
    """

    def __init__(self, tokenizer: Any, step_format: StepFormat, prefill: str, prm: Judge) -> None:
        self.unscored: Counter[str] = Counter()
        self._step_format: StepFormat = step_format
        self._prefill, self._prm = prefill, prm

        @functools.lru_cache(PIECES)
        def one(token_id: int) -> str:
            return tokenizer.decode([token_id], skip_special_tokens=True)

        def decode(token_ids: Sequence[int]) -> str:
            return one(token_ids[0]) if len(token_ids) == 1 else tokenizer.decode(token_ids, skip_special_tokens=True)

        self._decode: Decode = decode

    async def score(self, problem: Problem, responses: Sequence[Response]) -> list[StepRewards | None]:
        """Return one result per response, in order; None for a response without process reward.

        Raises TrainingError, naming the problem, for scores that are not probabilities and for a PRM that fails.
        """
        cuts = [self._cut(response) for response in responses]
        solutions = [Solution(problem, found.steps) for found, _ in cuts if found.steps]
        answers = iter(await self._prm.judge(solutions) if solutions else ())
        return [
            self._scored(problem, found, step_of_token, next(answers)) if found.steps else self._none(found.reason)
            for found, step_of_token in cuts
        ]

    def _cut(self, response: Response) -> tuple[StepSplit, tuple[int, ...]]:
        found = plain_steps(response.text, self._step_format, self._prefill)
        if not found.steps:
            return found, ()
        verbatim = written_steps(split(self._prefill + response.text, self._step_format).steps, len(self._prefill))
        begins_T = token_begins(response.token_ids, response.text, self._decode)
        step_of_token = step_of_tokens(verbatim, [len(self._prefill) + begin for begin in begins_T])
        if set(step_of_token) != set(range(len(verbatim))):
            return StepSplit((), "step without a token"), ()
        return found, step_of_token

    def _scored(
        self, problem: Problem, found: StepSplit, step_of_token: tuple[int, ...], answer: ScoreResult
    ) -> StepRewards | None:
        if isinstance(answer, DataError):
            if not self.unscored["refused by the PRM"]:
                print(f"no process reward, and for others alike: {answer}", file=sys.stderr, flush=True)
            return self._none("refused by the PRM")
        if isinstance(answer, MmprmError):
            raise answer
        if isinstance(answer, Exception):
            raise TrainingError(
                f"problem {problem.id}: the PRM failed ({type(answer).__name__}: {answer}); try it with mmprm score"
            ) from answer
        scores, count = answer.scores, len(found.steps)
        if not 0 < len(scores) <= count or not all(math.isfinite(score) and 0 <= score <= 1 for score in scores):
            raise TrainingError(
                f"problem {problem.id}: the PRM gave {len(scores)} scores for {count} steps, "
                f"{', '.join(f'{score:g}' for score in scores[:8])}; each must be a probability in [0, 1]; look at its "
                "weights, or set process.scorer.dtype=float32"
            )
        return StepRewards(scores, tuple(step if step < len(scores) else -1 for step in step_of_token))

    def _none(self, reason: str | None) -> None:
        self.unscored[reason or ""] += 1


def plain_steps(text: str, step_format: StepFormat, prefill: str = "") -> StepSplit:
    """Return the steps of a response as the PRM reads them, or the reason why it has none.

    The reason is that of `split`, or "empty step".
    """
    found = split(prefill + text, step_format)
    steps = tuple(plain(step, step_format) for step in written_steps(found.steps, len(prefill)))
    return StepSplit(steps, found.reason) if all(steps) else StepSplit((), "empty step")


def written_steps(steps: Steps, given: int) -> Steps:
    """Join steps that end within the first `given` characters to the step after them.

    The prompt wrote these characters, so such steps have no token to reward.
    """
    count = sum(end <= given for end in accumulate(map(len, steps)))
    return ("".join(steps[: count + 1]), *steps[count + 1 :]) if count < len(steps) else steps


def step_of_tokens(steps: Sequence[str], begins_T: Sequence[int]) -> tuple[int, ...]:
    """Return the index of the step in which each token begins; a token at the very end belongs to the last step."""
    *inner, _ = accumulate(map(len, steps))
    return tuple(bisect_right(inner, begin) for begin in begins_T)


def token_begins(token_ids: Sequence[int], text: str, decode: Decode) -> list[int]:
    """Return, for each token, how many characters of `text` (which is `decode(token_ids)`) are complete before it.

    Tokens are decoded in runs that begin and end between characters. If decoding a run depends on the tokens before it
    (SentencePiece drops a leading space, and garbles complete characters next to an incomplete one), the run is decoded
    with a few tokens of context, and if necessary with all of them.
    """
    for context in (0, 4, len(token_ids)):
        begins_T = _begins(token_ids, text, decode, context)
        if begins_T is not None:
            return begins_T
    raise TrainingError(
        f"the tokens of a response do not add up to its text {text[:80]!r}: this tokenizer changes text as it decodes; "
        "set clean_up_tokenization_spaces to false in its tokenizer_config.json"
    )


def _begins(token_ids: Sequence[int], text: str, decode: Decode, context: int) -> list[int] | None:
    """Return the result of token_begins with `context` tokens of context.

    Returns None if the runs do not add up to the text.
    """
    begins_T: list[int] = []
    done = first = 0  # characters and tokens in the runs so far
    head = piece = ""  # decoded text of the context, and of the tokens of this run
    for index in range(len(token_ids)):
        begins_T.append(done + _shared(piece, text[done : done + len(piece)]))
        window = decode(token_ids[max(0, first - context) : index + 1])
        piece = window[len(head) :] if window.startswith(head) else ""
        if window.startswith(head) and text.startswith(piece, done):
            done, first = done + len(piece), index + 1
            head, piece = (decode(token_ids[max(0, first - context) : first]) if context else ""), ""
    return begins_T if done == len(text) else None


def _shared(left: str, right: str) -> int:
    """Return the length of the common prefix."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))
