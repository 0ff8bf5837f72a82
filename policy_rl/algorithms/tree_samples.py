"""Convert groups with branching responses to training samples; see policy_rl.algorithms.tree_credit for the estimator.

    samples = [*draft(groups, kept_PK), *draft_continuations(groups, kept_PK)]
    samples, metrics = add_tree_advantages(groups, kept_PK, samples, settings)

A continuation is a sample that begins with the tokens of its prefix, which are masked. The token trie of the update
therefore computes them only once, and they are trained on only as part of the response that was sampled first. Episodes
are not computed as a trie, but the same tokens are masked.

Shapes: P group, K sample of a group, T token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from policy_rl.algorithms.advantages import AdvantageConfig, clamp, returns_to_go
from policy_rl.algorithms.tree_credit import BranchPoint, Edge, Trunk, credit_of_group
from policy_rl.graded import BranchedPrefix, GradedGroup, GradedResponse
from policy_rl.types import Response, TrainingSample, as_sample


@dataclass(frozen=True, slots=True)
class TreeSettings:
    """Configures the credit of responses that branch.

    A PRM score p counts as `prior_weight` continuations with the reward `prior_scale`·p. If `train` is false, the
    continuations only determine values. `kl_in_reward` and `mask_truncated` are those of AdvantageSettings.
    """

    advantage: AdvantageConfig
    prior_weight: float = 0.0
    prior_scale: float = 1.0
    train: bool = True
    kl_in_reward: float = 0.0
    mask_truncated: bool = False


def draft_continuations(groups: Sequence[GradedGroup], kept_PK: Tensor) -> list[TrainingSample]:
    """Create training samples from the continuations of kept responses, without advantages."""
    drafts = []
    for p, group in enumerate(groups):
        for _, branches in _kept(group, kept_PK[p]):
            for branch in branches:
                for each in branch.known:
                    own = as_sample(group.problem, p, group.prompt_tokens, each.response)
                    after = np.arange(len(own.token_ids)) >= branch.tokens
                    drafts.append(replace(own, mask=own.counted & after))
    return drafts


def add_tree_advantages(
    groups: Sequence[GradedGroup], kept_PK: Tensor, samples: Sequence[TrainingSample], settings: TreeSettings
) -> tuple[list[TrainingSample], dict[str, float]]:
    """Compute the samples' advantages; return (samples, metrics).

    The samples are those of `draft` and, with `settings.train`, those of `draft_continuations`. The advantage of a
    token with weight w and credit A is s·w·clamp(A + Σ_{l ≥ t} γ^(l − t)·(−β·k1_l)). The factor s = tokens / Σ w, over
    all samples of the step, compensates for the denominator of token_mean, which counts every token once: with a single
    update, the loss is Σ w·(…) / Σ w.
    """
    made: list[TrainingSample] = []
    weight = tokens = size = 0.0
    for sample, row in zip(samples, _rows(groups, kept_PK, settings), strict=True):
        if settings.mask_truncated and row.response.finish_reason == "length":
            continue
        total_T = row.credit_T + _kl_to_go(sample, settings)
        advantages_T = row.weight_T * clamp(torch.from_numpy(total_T), settings.advantage.clamp).numpy()
        made.append(replace(sample, advantages=advantages_T))
        weight += row.weight_T[sample.counted].sum()
        tokens += sample.counted.sum()
        size += np.abs(advantages_T[sample.counted]).sum()
    scale = tokens / max(weight, 1e-12)
    scaled = [replace(each, advantages=(scale * each.advantages).astype(np.float32)) for each in made]
    return scaled, {"advantage_size": float(size / max(weight, 1e-12))}


@dataclass(frozen=True, slots=True)
class _Row:
    """Holds a response with the credit and the weight of each of its tokens."""

    response: Response
    credit_T: np.ndarray
    weight_T: np.ndarray


def _rows(groups: Sequence[GradedGroup], kept_PK: Tensor, settings: TreeSettings) -> list[_Row]:
    """Return the rows of the kept responses and, with `settings.train`, of the continuations, in the samples' order."""
    rows: list[_Row] = []
    continuations: list[_Row] = []
    for group, kept_K in zip(groups, kept_PK, strict=True):
        kept = list(_kept(group, kept_K))
        trunks = [_trunk(each, branches, settings) for each, branches in kept]
        credits = credit_of_group(trunks, settings.prior_weight) if trunks else []
        for (each, branches), credit in zip(kept, credits, strict=True):
            rows.append(_row(each.response, credit.segments, settings))
            for branch, edges in zip(branches, credit.continuations, strict=True):
                for continuation, edge in zip(branch.known, edges, strict=True):
                    end = len(continuation.response.token_ids)
                    continuations.append(_row(continuation.response, [(branch.tokens, end, edge)], settings))
    return [*rows, *continuations] if settings.train else rows


def _row(response: Response, segments: Sequence[tuple[int, int, Edge]], settings: TreeSettings) -> _Row:
    credit_T, weight_T = np.zeros(len(response.token_ids)), np.zeros(len(response.token_ids))
    for start, end, edge in segments:
        credit_T[start:end] = edge.advantage
        weight_T[start:end] = edge.weight if settings.train else 1.0
    return _Row(response, credit_T, weight_T)


def _kept(group: GradedGroup, kept_K: Tensor) -> Iterator[tuple[GradedResponse, list[BranchedPrefix]]]:
    """Yield the kept responses of a group, each with its branches in order of length."""
    for k in kept_K.nonzero()[:, 0].tolist():
        yield group.responses[k], [branch for branch in group.branches if branch.response == k]


def _trunk(each: GradedResponse, branches: Sequence[BranchedPrefix], settings: TreeSettings) -> Trunk:
    points = (
        BranchPoint(
            branch.tokens,
            tuple(continuation.reward.total for continuation in branch.known),
            None if branch.score is None else settings.prior_scale * branch.score,
        )
        for branch in branches
    )
    return Trunk(each.reward.total, len(each.response.token_ids), tuple(points))


def _kl_to_go(sample: TrainingSample, settings: TreeSettings) -> np.ndarray:
    """Return the discounted KL rewards from each token on: Σ_{l ≥ t} γ^(l − t)·(−β·k1_l), with k1 = old − ref."""
    if settings.kl_in_reward == 0:
        return np.zeros(len(sample.token_ids))
    rewards_1T = -settings.kl_in_reward * torch.from_numpy(np.array(sample.old - sample.ref))[None]
    mask_1T = torch.from_numpy(np.array(sample.counted))[None]
    return returns_to_go(rewards_1T, mask_1T, settings.advantage.gamma)[0].numpy()
