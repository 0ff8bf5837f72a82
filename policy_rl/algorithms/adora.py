"""ADORA: smaller weights for groups whose correct responses are not longer than their incorrect ones."""

from __future__ import annotations

from pydantic import Field

from mmprm.config import Config
from policy_rl.graded import GradedGroup


class AdoraConfig(Config):
    weight: float = Field(0.1, ge=0, le=1)
    """Weight of the outcome advantages of a group whose longest right response is not longer than its mean wrong one,
    truncated wrong ones left out."""


def adora_weight(group: GradedGroup, weight: float) -> float:
    """`weight` where the longest right response is not longer than the mean wrong one, else 1; lengths in tokens.

    Wrong responses that were truncated are left out, as in ADORA's code: they have the length of the limit, not one
    that the policy chose. A group that lacks right or (untruncated) wrong responses keeps 1.
    """
    right, wrong = [], []
    for each in group.responses:
        accuracy, length = each.reward.parts.get("accuracy"), len(each.response.token_ids)
        if each.reward.total is None or accuracy is None:
            continue
        if accuracy == 1:
            right.append(length)
        elif each.response.finish_reason != "length":
            wrong.append(length)
    return weight if wrong and right and max(right) <= sum(wrong) / len(wrong) else 1.0
