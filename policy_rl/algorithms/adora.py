"""Weigh groups as ADORA does: less where the correct responses are not longer than the incorrect ones."""

from __future__ import annotations

from statistics import fmean

from pydantic import Field

from mmprm.config import Config
from policy_rl.graded import GradedGroup


class AdoraConfig(Config):
    weight: float = Field(0.1, ge=0, le=1)
    """Weight of the outcome advantages of a group whose longest correct response is not longer than its mean incorrect
    one, truncated incorrect ones left out."""


def adora_weight(group: GradedGroup, weight: float) -> float:
    """Return `weight` where the longest correct response is not longer than the mean incorrect one, else 1; lengths in
    tokens.

    Truncated incorrect responses are left out, as in ADORA's code: they have the length of the limit, not one that the
    policy chose. A group without a correct response keeps 1, as in ADORA's code for images, and so does one without an
    incorrect response that is not truncated, as in its code for text.
    """
    correct, incorrect = [], []
    for each in group.responses:
        accuracy, length = each.reward.parts.get("accuracy"), len(each.response.token_ids)
        if each.reward.total is None or accuracy is None:
            continue
        if accuracy == 1:
            correct.append(length)
        elif each.response.finish_reason != "length":
            incorrect.append(length)
    if not correct or not incorrect:
        return 1.0
    return weight if max(correct) <= fmean(incorrect) else 1.0
