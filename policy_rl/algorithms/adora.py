"""Compute ADORA's group weights, reduced if the longest correct response does not exceed the mean length of the
incorrect ones."""

from __future__ import annotations

from statistics import fmean

from pydantic import Field

from mmprm.config import Config
from policy_rl.graded import GradedGroup


class AdoraConfig(Config):
    """Configures ADORA, which reduces the weight of groups whose correct responses are short."""

    weight: float = Field(0.1, ge=0, le=1)
    """Factor applied to a group's outcome advantages if its longest correct response does not exceed the mean length
    of its incorrect ones. Truncated incorrect responses are not counted."""


def adora_weight(group: GradedGroup, weight: float) -> float:
    """Return `weight` if the longest correct response does not exceed the mean incorrect length, otherwise 1.

    Lengths are in tokens. Truncated incorrect responses are not counted, as in ADORA's code: their length is the limit,
    not the policy's choice. A group without a correct response keeps weight 1, as in ADORA's code for images; so does a
    group without an untruncated incorrect response, as in its code for text.
    """
    correct, incorrect = [], []
    for each in group.responses:
        accuracy, length = each.reward.parts.get("accuracy"), each.response.token_count
        if each.reward.total is None or accuracy is None:
            continue
        if accuracy == 1:
            correct.append(length)
        elif each.response.finish_reason != "length":
            incorrect.append(length)
    if not correct or not incorrect:
        return 1.0
    return weight if max(correct) <= fmean(incorrect) else 1.0
