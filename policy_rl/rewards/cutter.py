"""Split responses into steps, and find the tokens of each step.

Shapes: T token of a response.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from mmprm.steps import StepFormat, StepSplit, plain, split
from mmprm.types import Steps
from policy_rl.rewards.token_begins import Pieces, caching, step_of_tokens, token_begins
from policy_rl.types import Response

_NO_TOKENS = np.zeros(0, dtype=np.int32)


class StepCutter:
    """Splits responses into steps, and maps each sampled token to its step.

    `prefill` is the beginning of each response that is part of the prompt.

    A token belongs to the step in which it starts: a token that spans the end of a step and the start of the next
    belongs to the first of them, and all bytes of a character belong to the same step. A token without text (special,
    end of turn) belongs to the step at its position or, after the last character, to the last step.

    A truncated response may end with the beginning of a step, which counts as a step. If it had no steps, the policy
    could avoid process rewards below 0 by never finishing.
    """

    def __init__(self, tokenizer: Any, step_format: StepFormat, prefill: str) -> None:
        self._step_format: StepFormat = step_format
        self._prefill = prefill

        def decode(token_ids: Sequence[int]) -> str:
            return tokenizer.decode(list(token_ids), skip_special_tokens=True)

        self._decode = caching(decode)
        self._pieces = Pieces(self._decode)

    def cut(self, response: Response) -> tuple[StepSplit, np.ndarray]:
        """Return the steps of a response as the PRM reads them, and step_of_token, the step index of each token.

        Without steps, the result names the reason, and step_of_token is empty. The steps of an episode are its turns.
        """
        if response.played is not None:
            return StepSplit(response.played.texts), response.played.turn_of_token
        verbatim, found = _both_forms(response, self._step_format, self._prefill)
        if not found.steps:
            return found, _NO_TOKENS
        begins_T = token_begins(response.token_ids, response.text, self._decode, self._pieces)
        step_of_token = step_of_tokens(verbatim, begins_T, len(self._prefill))
        # The reward of a step is assigned to its tokens, so each step needs at least one.
        if not np.bincount(step_of_token, minlength=len(verbatim)).all():
            return StepSplit((), "step without a token"), _NO_TOKENS
        return found, step_of_token

    def verbatim(self, response: Response) -> Steps:
        """Return the steps of a response with their markup; they concatenate to `whole_text`, or there are none."""
        return _both_forms(response, self._step_format, self._prefill)[0]

    def whole_text(self, response: Response) -> str:
        """Return the text of a response with the prefill, which is its beginning."""
        return self._prefill + response.text


def steps_of(response: Response, step_format: StepFormat, prefill: str = "") -> StepSplit:
    """Return the turns of an episode, or a response's steps without their markup, as the PRM reads them.

    Without steps, the result names the reason, which is that of `split`, or "empty step".
    """
    if response.played is not None:
        return StepSplit(response.played.texts)
    return _both_forms(response, step_format, prefill)[1]


def _both_forms(response: Response, step_format: StepFormat, prefill: str) -> tuple[Steps, StepSplit]:
    """Return the verbatim steps of a response without turns, and the result of `steps_of`."""
    found = split(prefill + response.text, step_format, truncated=response.ends_within_step)
    verbatim = written_steps(found.steps, len(prefill))
    steps = tuple(plain(step, step_format, truncated=response.ends_within_step) for step in verbatim)
    return verbatim, StepSplit(steps, found.reason) if all(steps) else StepSplit((), "empty step")


def written_steps(steps: Steps, given: int) -> Steps:
    """Merge steps that end within the prefill, the first `given` characters, into the step after them.

    The prefill is part of the prompt, so such steps have no token to reward.
    """
    count = sum(end <= given for end in accumulate(map(len, steps)))
    return ("".join(steps[: count + 1]), *steps[count + 1 :]) if count < len(steps) else steps
