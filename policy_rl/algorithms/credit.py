"""Assign process rewards to sequences, to steps (as returns), or to the last token of each step (as rewards).

Shapes: P prompt, K sample of its group, S step, N = P·K sample, T token. Step scores r_1 … r_S are a process reward
model's P(no error so far) or, if it was trained on values, P(success). `Credit` has one slot for each of the three,
which is zero or empty if the mode does not use it. `combine` merges `sources` with the outcome reward; `spread` copies
`returns_PKS` to every token of their step, where they are added to the advantage; `scatter_to_tokens` converts
`rewards_PKS` to token rewards for GAE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from policy_rl.algorithms.advantages import EPSILON, Estimator, differs, keep, rloo
from policy_rl.algorithms.baselines import BASELINES, ScoredSteps, to_go
from policy_rl.algorithms.calibration import calibrate
from policy_rl.algorithms.credit_config import CreditConfig
from policy_rl.algorithms.turn_credit import turn_returns


@dataclass(frozen=True, slots=True)
class Source:
    """Contains one reward per response from a single source: the outcome or the process reward model.

    `known_PK` is False where a reward should exist but does not. The source is normalized over the samples in
    `among_PK`, and adds nothing to the others.
    """

    rewards_PK: Tensor
    known_PK: Tensor
    among_PK: Tensor
    weight: float = 1.0

    @classmethod
    def of(cls, rewards_PK: Tensor, known_PK: Tensor | None = None) -> Source:
        """Create a source that covers every sample with a known reward, such as the outcome reward."""
        known_PK = torch.ones_like(rewards_PK, dtype=torch.bool) if known_PK is None else known_PK
        return cls(rewards_PK, known_PK, known_PK)


@dataclass(frozen=True, slots=True)
class Credit:
    """Contains process rewards as sequence rewards (`sources`), step returns, or step rewards.

    `scored_PK` marks the samples with process reward. Two masks mark samples that should have it but do not:
    `missing_PK` have no scored step, and `alone_PK` have no other sample in their group to be compared with.
    """

    sources: tuple[Source, ...]
    returns_PKS: Tensor
    rewards_PKS: Tensor
    scored_PK: Tensor
    missing_PK: Tensor
    alone_PK: Tensor


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Contains what mode=value needs: the outcome reward of every kept sample, and the settings of the estimation.

    Without calibration, the value of a step with score p is `scale`·p, in the units of `rewards_PK`. `lam` is λ.
    """

    rewards_PK: Tensor
    kept_PK: Tensor
    scale: float
    lam: float


@dataclass(frozen=True, slots=True)
class Part:
    """Contains the inputs of a credit mode: step scores, the masks scored_PK and known_PK, aggregator and outcomes.

    Steps of samples outside `scored_PK` are masked out, with score 0. `known_PK` excludes only the samples that should
    have step scores but do not, and those that are not kept.
    """

    steps: ScoredSteps
    scored_PK: Tensor
    known_PK: Tensor
    aggregate: Callable[[Sequence[float]], float] | None
    outcomes: Outcomes | None


TRANSFORMS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "none": lambda scores, eta: scores,
    "clip": lambda scores, eta: (scores - eta).clamp(max=0),
    "delta": lambda scores, eta: scores - torch.nn.functional.pad(scores[..., 1:], (0, 1)),
}
"""Functions that convert step scores to step rewards, keyed by credit.transform. Scores are 0 after the last step, so
delta uses r_{S+1} = 0 (Gao et al. 2024)."""

GATES: dict[str, Callable[[Tensor], Tensor]] = {"none": torch.ones_like, "correct": lambda correct_PK: correct_PK}


def return_to_go(scores_PKS: Tensor, mask_PKS: Tensor, config: CreditConfig) -> Tensor:
    """Compute step returns G_j = Σ_{l ≥ j} f(r_l) with transform f, optionally normalized over the group's steps.

    Excluded rows are masked. Plain sums reward padding a solution with harmless steps; with delta, G_j is r_j.
    """
    rewards_PKS = TRANSFORMS[config.transform](torch.where(mask_PKS, scores_PKS, 0), config.eta)
    rewards_PKS = torch.where(mask_PKS, rewards_PKS, 0)
    return to_go(_normalize(rewards_PKS, mask_PKS) if config.normalize_steps else rewards_PKS)


def soft_min(scores_PKS: Tensor, mask_PKS: Tensor, config: CreditConfig) -> Tensor:
    """Compute step returns with PURE's soft minimum: G_j = Σ_{l ≥ j} w_l·r_l.

    r = 2p − 1, and w = softmax(−r/τ) over the response's steps. G_1 is close to the lowest r, and steps after the
    lowest one get about 0.
    """
    rewards_PKS = 2 * scores_PKS - 1
    # The softmax of a row without steps is NaN; the mask below removes it.
    weights_PKS = torch.where(mask_PKS, -rewards_PKS / config.temperature, -torch.inf).softmax(dim=-1)
    return to_go(torch.where(mask_PKS, weights_PKS * rewards_PKS, 0))


def strict_min(scores_PKS: Tensor, mask_PKS: Tensor, config: CreditConfig) -> Tensor:
    """Compute step returns G_j = min_{l ≥ j} r_l with r = 2p − 1 (PURE).

    Padding is +∞ in the minimum, because 0 could be the lowest value.
    """
    rewards_PKS = torch.where(mask_PKS, 2 * scores_PKS - 1, torch.inf)
    return torch.where(mask_PKS, rewards_PKS.flip(-1).cummin(dim=-1).values.flip(-1), 0)


def progress(scores_PKS: Tensor, mask_PKS: Tensor, config: CreditConfig) -> Tensor:
    """Compute step returns G_j = p_j − p_{j−1} with p_0 = 1: what a step changes, whatever follows it.

    It is the process advantage of Rewarding Progress (Setlur et al. 2024), with the policy that labeled the PRM's data
    as the prover. The returns of a response sum to p_S − 1, so further steps earn nothing.
    """
    before_PKS = torch.nn.functional.pad(scores_PKS[..., :-1], (1, 0), value=1.0)
    return torch.where(mask_PKS, scores_PKS - before_PKS, 0)


STEP_RETURNS: dict[str, Callable[[Tensor, Tensor, CreditConfig], Tensor]] = {
    "return_to_go": return_to_go,
    "soft_min": soft_min,
    "strict_min": strict_min,
    "progress": progress,
}
"""Functions that compute step returns from (scores_PKS, mask_PKS, config), keyed by credit.mode."""


def _normalize(rewards_PKS: Tensor, mask_PKS: Tensor) -> Tensor:
    """Normalize the step rewards of a group: r becomes (r − mean)/(std + ε), with unbiased std.

    Masked steps become 0, and so do all steps of a group whose rewards are equal.
    """
    if not mask_PKS.any():  # no response in the batch has a scored step
        return rewards_PKS
    differs_P1 = differs(rewards_PKS.flatten(1), mask_PKS.flatten(1))
    count_P11 = mask_PKS.sum(dim=(1, 2), keepdim=True)
    mean_P11 = rewards_PKS.sum(dim=(1, 2), keepdim=True) / count_P11.clamp(min=1)
    centered_PKS = torch.where(mask_PKS, rewards_PKS - mean_P11, 0)
    variance_P11 = centered_PKS.square().sum(dim=(1, 2), keepdim=True) / (count_P11 - 1).clamp(min=1)
    return torch.where(differs_P1[..., None], centered_PKS / (variance_P11.sqrt() + EPSILON), 0)


def _scalar(part: Part, config: CreditConfig) -> dict[str, tuple[Source, ...]]:
    assert part.aggregate is not None, "mode=scalar needs an aggregator: that of prm.json"
    rewards_PK = part.steps.scores_PKS.new_zeros(part.scored_PK.shape)
    for p, k in part.scored_PK.nonzero().tolist():
        scores = part.steps.scores_PKS[p, k][part.steps.mask_PKS[p, k]]
        rewards_PK[p, k] = part.aggregate(scores.tolist())
    return {"sources": (Source(rewards_PK, part.known_PK, part.scored_PK, config.weight),)}


def _dense(part: Part, config: CreditConfig) -> dict[str, Tensor]:
    returns_PKS = STEP_RETURNS[config.mode](part.steps.scores_PKS, part.steps.mask_PKS, config)
    baseline = BASELINES[config.baseline]
    if baseline is not None:
        returns_PKS = baseline(returns_PKS, part.steps)
    return {"returns_PKS": config.weight * torch.where(part.steps.mask_PKS, returns_PKS, 0)}


def _value(part: Part, config: CreditConfig) -> dict[str, Tensor]:
    """Compute step returns by generalized advantage estimation (Schulman et al. 2016), with scores as values.

    With the values V_0 = 0, V_j = a·p_j + b after step j < S, and V_S = R, the outcome reward:

        A_j = Σ_{l ≥ j} λ^{l − j}·(V_l − V_{l−1})

    a and b are those of `calibrate` or, with calibrate=false, a = scale and b = 0. From A_1, the mean of the other kept
    samples is subtracted, where a sample without steps counts with its R.

    With λ = 1, A_j = R − V_{j−1}. The scores are then only a baseline, which depends on nothing but what precedes the
    step: if all samples are scored, the expected gradient is that of the outcome reward for any scores, and A_1 is
    RLOO's advantage. With λ < 1, errors of the scores bias the credit: the outcome counts with λ^{S − j} at step j.
    """
    assert part.outcomes is not None, "mode=value needs the outcomes of the responses"
    rewards_PK, mask_PKS = part.outcomes.rewards_PK, part.steps.mask_PKS
    last_PKS = mask_PKS & ~torch.nn.functional.pad(mask_PKS[..., 1:], (0, 1))
    scores_PKS, scale = part.steps.scores_PKS, part.outcomes.scale
    values_PKS = scale * scores_PKS
    if config.calibrate:
        values_PKS = calibrate(scores_PKS, mask_PKS & ~last_PKS, rewards_PK, scale)
    values_PKS = torch.where(last_PKS, rewards_PK[..., None], values_PKS)
    deltas_PKS = values_PKS - torch.nn.functional.pad(values_PKS[..., :-1], (1, 0))
    returns_PKS = turn_returns(deltas_PKS, mask_PKS, part.outcomes.lam)
    first_PK = torch.where(part.scored_PK, returns_PKS[..., :1].sum(dim=-1), rewards_PK)
    first_PK1 = rloo(first_PK, part.outcomes.kept_PK)[..., None]
    returns_PKS = torch.cat([first_PK1, returns_PKS[..., 1:]], dim=-1)[..., : mask_PKS.shape[-1]]
    return {"returns_PKS": torch.where(mask_PKS, returns_PKS, 0)}


def _step_gae(part: Part, config: CreditConfig) -> dict[str, Tensor]:
    return {"rewards_PKS": config.weight * part.steps.scores_PKS}


MODES: dict[str, Callable[[Part, CreditConfig], dict]] = {
    "scalar": _scalar,
    **dict.fromkeys(STEP_RETURNS, _dense),
    "value": _value,
    "step_gae": _step_gae,
}
"""Functions that compute the fields of Credit that a mode fills, keyed by credit.mode."""


def assign(
    steps: ScoredSteps,
    kept_PK: Tensor,
    outcome_PK: Tensor,
    config: CreditConfig,
    aggregate: Callable[[Sequence[float]], float] | None = None,
    outcomes: Outcomes | None = None,
) -> Credit:
    """Assign process rewards to the kept samples that pass credit.gate and have at least one scored step.

    If the baseline compares samples, only sets of at least two such samples are included: groups or, with
    compare_within=outcome, the samples of a group with the same outcome. `outcome_PK` is 1 for correct answers, 0 for
    incorrect ones and −1 for unknown ones; `aggregate` combines step scores with mode=scalar; `outcomes` are for
    mode=value.
    """
    asked_PK = kept_PK & GATES[config.gate](outcome_PK == 1)
    missing_PK = asked_PK & ~steps.mask_PKS.any(dim=-1)
    least = 2 if config.compares else 1
    compared = [keep(each_PK, least) for each_PK in _compared(asked_PK & ~missing_PK, outcome_PK, config)]
    known_PK = kept_PK & ~missing_PK
    parts = [Part(_only(steps, each_PK), each_PK, known_PK, aggregate, outcomes) for each_PK in compared]
    found = [MODES[config.mode](part, config) for part in parts]
    # Several sets occur only in modes with returns, and each of them fills the returns of its own samples.
    slots = found[0] if len(found) == 1 else {"returns_PKS": sum(each["returns_PKS"] for each in found)}
    nothing_PKS = torch.zeros_like(steps.scores_PKS)
    empty = {"sources": (), "returns_PKS": nothing_PKS, "rewards_PKS": nothing_PKS}
    scored_PK = torch.stack(compared).any(dim=0)
    alone_PK = asked_PK & ~missing_PK & ~scored_PK
    return Credit(**{**empty, **slots}, scored_PK=scored_PK, missing_PK=missing_PK, alone_PK=alone_PK)


def _compared(scored_PK: Tensor, outcome_PK: Tensor, config: CreditConfig) -> list[Tensor]:
    """Return the sets of samples within which returns are compared: all of them, or one set per outcome."""
    if config.compare_within == "group":
        return [scored_PK]
    return [scored_PK & (outcome_PK == outcome) for outcome in (1, 0, -1)]


def _only(steps: ScoredSteps, part_PK: Tensor) -> ScoredSteps:
    """Mask out the steps of all samples outside `part_PK`."""
    mask_PKS = steps.mask_PKS & part_PK[..., None]
    return ScoredSteps(torch.where(mask_PKS, steps.scores_PKS, 0), torch.where(mask_PKS, steps.tokens_PKS, 0), mask_PKS)


def combine(sources: Sequence[Source], estimator: Estimator, per_source: bool) -> tuple[Tensor, Tensor]:
    """Compute advantages from several sequence rewards; return (advantages_PK, kept_PK).

    By default, the estimator is applied to their weighted sum over the samples whose rewards are all known. With
    `per_source` it is applied to each source over the source's own samples, and the weighted results are added; a
    sample is kept if it takes part in at least one source. Weights are applied after the estimator in that case,
    because dividing by the standard deviation would cancel them.
    """
    if per_source:
        kept = [keep(source.known_PK & source.among_PK, estimator.least) for source in sources]
        advantages = [
            source.weight * estimator.advantages(source.rewards_PK, kept_PK)
            for source, kept_PK in zip(sources, kept, strict=True)
        ]
        return torch.stack(advantages).sum(dim=0), torch.stack(kept).any(dim=0)
    kept_PK = keep(torch.stack([source.known_PK for source in sources]).all(dim=0), estimator.least)
    rewards = [torch.where(source.among_PK, source.weight * source.rewards_PK, 0) for source in sources]
    return estimator.advantages(torch.stack(rewards).sum(dim=0), kept_PK), kept_PK


def spread(values_NS: Tensor, step_of_NT: Tensor) -> Tensor:
    """Copy each step's value to all of its tokens.

    `step_of_NT` holds the step index of each token, or −1 outside steps, where the result is 0.
    """
    # Tokens outside steps read an added column of zeros.
    outside = values_NS.shape[1]
    padded_NS = torch.nn.functional.pad(values_NS, (0, 1))
    return padded_NS.gather(1, torch.where(step_of_NT >= 0, step_of_NT, outside))


def scatter_to_tokens(values_NS: Tensor, step_of_NT: Tensor) -> Tensor:
    """Assign each step's value to its last token, and 0 to all other tokens."""
    # A token is the last of its step if the next token has another step index.
    following_NT = torch.nn.functional.pad(step_of_NT[:, 1:], (0, 1), value=-1)
    return torch.where(step_of_NT != following_NT, spread(values_NS, step_of_NT), 0)


def count_tokens(step_of_NT: Tensor, steps: int) -> Tensor:
    """Count the tokens of each step; return tokens_NS."""
    # Tokens outside steps are counted in an extra column, which is dropped.
    outside = step_of_NT.new_tensor(steps)
    counts_NS = step_of_NT.new_zeros(len(step_of_NT), steps + 1)
    counts_NS.scatter_add_(1, torch.where(step_of_NT >= 0, step_of_NT, outside), torch.ones_like(step_of_NT))
    return counts_NS[:, :steps]
