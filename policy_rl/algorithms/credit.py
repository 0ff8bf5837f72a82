"""Assign process rewards to sequences, to steps (as returns), or to the last token of each step (as rewards).

Shapes: P prompt, K sample of its group, S step, N = P·K sample, T token. Step scores r_1 … r_S are a process reward
model's P(no error so far). `Credit` has one slot for each of the three, which is zero or empty if the mode does not use
it. `combine` merges `sources` with the outcome reward; `spread` copies `returns_PKS` to every token of their step,
where they are added to the advantage; `scatter_to_tokens` converts `rewards_PKS` to token rewards for GAE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mmprm.config import Config
from policy_rl.algorithms.advantages import EPSILON, Estimator, differs, keep
from policy_rl.algorithms.baselines import BASELINES, ScoredSteps, to_go

_DIFFERENCES = "credit is a difference of values"
OTHER_SOURCES: dict[str, tuple[tuple[str, ...], str]] = {
    "tree": ((), _DIFFERENCES),
    "both": ((), _DIFFERENCES),
    "environment": (("baseline", "gamma"), "credit is the return from a turn on"),
    "gigpo": (("gamma", "weight"), "credit is a difference of returns"),
}
"""Sources of credit other than the PRM's scores, each with the keys that apply to it and what its credit is."""


class CreditConfig(Config):
    """Configures how process rewards are assigned."""

    source: Literal["prm", "tree", "both", "environment", "gigpo"] = "prm"
    """Source of step credit. prm: scores of the process reward model, in addition to the outcome's advantage; tree: the
    rewards of continuations (`rollouts.branching`), instead of the outcome's advantage; both: like tree, but with the
    PRM's score as a prior for each value; environment: the rewards of an episode's turns, including its outcome,
    instead of the outcome's advantage; gigpo: advantages within groups of turns that begin in the same state, in
    addition to the outcome's advantage (GiGPO). The keys from `mode` on apply to prm, except that `baseline` also
    applies to environment, and `weight` to gigpo."""
    gamma: float = Field(1.0, ge=0, le=1)
    """Discount factor per turn, with source=environment or gigpo. GiGPO's paper uses 0.95."""
    prior_weight: float = Field(1.0, gt=0)
    """Weight of the PRM's prior with source=both, as an equivalent number of continuations."""
    mode: Literal["scalar", "return_to_go", "soft_min", "strict_min", "step_gae"] = "soft_min"
    """Conversion of step scores to rewards. scalar: an aggregate of them is added to the outcome reward; return_to_go:
    a step's return is the sum of the scores from that step on; soft_min, strict_min: a step's return is the lowest
    score from that step on; step_gae: with a critic, each score is a token reward at the end of its step."""
    weight: float = Field(1.0, gt=0)
    """Coefficient of the process reward, or of GiGPO's step-level advantage. The outcome reward has coefficient 1."""
    baseline: Literal["step_index", "pure_tokens", "prime_steps", "none"] = "step_index"
    """Baseline of step returns, for return_to_go, soft_min and strict_min. step_index: the mean return of the group's
    other responses at the same step; the credit is 0 if none of them has such a step. pure_tokens (PURE) and
    prime_steps (PRIME) reproduce published results: they subtract a rate per remaining token or step, which is biased
    by length. Process reward and outcome reward have separate baselines."""
    transform: Literal["none", "clip", "delta"] = "none"
    """Transform of step scores r_j, for return_to_go. none: r_j; clip: min(r_j − eta, 0); delta: r_j − r_{j+1}."""
    eta: float = 0.0
    """Threshold for transform=clip."""
    normalize_steps: bool = False
    """For return_to_go: normalize the (transformed) scores over all steps of the group before summing them.
    DeepSeekMath's form also needs baseline=none: it subtracts the mean once per remaining step, which is biased by
    length."""
    temperature: float = Field(0.1, gt=0)
    """For soft_min: temperature of the softmax that concentrates weight on the lowest-scored step."""
    gate: Literal["none", "correct"] = "none"
    """Responses that receive process rewards. none: all responses; correct: only correct responses, compared only with
    each other (PAPO)."""
    compare_within: Literal["group", "outcome"] = "group"
    """Responses with which the baseline compares a step's return. group: the group's other responses; outcome: only
    those whose answers are as correct as its own, so that the process reward says nothing about which outcome is
    better. normalize_steps then also normalizes within an outcome."""
    per_source: bool = False
    """With mode=scalar, apply the estimator to the outcome reward and the process reward separately, and add the
    results (PRIME). If false, apply it to their sum."""

    @property
    def compares(self) -> bool:
        """Return whether a sample's process reward is computed relative to other samples in its group."""
        return MODES[self.mode].compares and (BASELINES[self.baseline] is not None or self.normalize_steps)

    @property
    def needs_scores(self) -> bool:
        """Return whether to exclude responses without a process reward, because crediting them with 0 would not be
        neutral."""
        return self.mode != "scalar" and not self.compares

    @model_validator(mode="after")
    def _keys_belong_to_the_source(self) -> CreditConfig:
        if "prior_weight" in self.model_fields_set and self.source != "both":
            raise ValueError(
                f"prior_weight={self.prior_weight} has no effect with source={self.source}; set source=both, or leave "
                "prior_weight out"
            )
        set_keys = sorted(self.model_fields_set - {"source", "prior_weight"})
        if self.source in OTHER_SOURCES:
            keys, why = OTHER_SOURCES[self.source]
            wrong = [key for key in set_keys if key not in keys]
            if wrong:
                raise ValueError(
                    f"{wrong[0]}={getattr(self, wrong[0])} has no effect with source={self.source}, where {why}; leave "
                    f"{wrong[0]} out, or set source=prm"
                )
        elif "gamma" in set_keys:
            raise ValueError(
                f"gamma={self.gamma} discounts the rewards of turns; set source=environment or gigpo, or leave gamma "
                "out"
            )
        if self.source == "environment" and self.baseline not in ("step_index", "none"):
            raise ValueError(
                f"baseline={self.baseline} is for process rewards; use step_index or none with source=environment"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _baseline_has_one_key(cls, values: Any) -> Any:
        if isinstance(values, dict) and "token_baseline" in values:
            instead = "baseline=pure_tokens" if values["token_baseline"] else "baseline=none"
            raise ValueError(f"token_baseline={values['token_baseline']} does not exist; set credit.{instead}")
        if isinstance(values, dict) and values.get("per_source") and values.get("mode", "soft_min") in DENSE:
            raise ValueError(
                f"per_source={values['per_source']} is for mode=scalar; leave it out with mode="
                f"{values.get('mode', 'soft_min')}, for which PRIME's baseline is credit.baseline=prime_steps"
            )
        return values

    @model_validator(mode="after")
    def _options_belong_to_the_mode(self) -> CreditConfig:
        for key, modes in MODES_OF.items():
            value = getattr(self, key)
            if self.mode not in modes and key in self.model_fields_set and value not in (False, "none"):
                raise ValueError(
                    f"{key}={value} has no effect with mode={self.mode}; leave it out, or set mode to one of "
                    f"{', '.join(modes)}"
                )
        if self.eta and self.transform != "clip":
            raise ValueError(f"eta={self.eta} is the threshold of transform=clip; set that, or leave eta out")
        return self

    @model_validator(mode="after")
    def _outcomes_are_compared(self) -> CreditConfig:
        if self.compare_within == "group":
            return self
        reasons = {
            f"mode={self.mode}": self.mode not in DENSE,
            f"baseline={self.baseline}": not self.compares,
            f"gate={self.gate}": self.gate == "correct",
        }
        for setting, is_set in reasons.items():
            if is_set:
                raise ValueError(
                    f"compare_within={self.compare_within} has no effect with {setting}; leave it out, or use mode="
                    "soft_min, baseline=step_index and gate=none"
                )
        return self


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
class Part:
    """Contains the inputs of a credit mode: step scores, the masks scored_PK and known_PK, and the aggregator.

    Steps of samples outside `scored_PK` are masked out, with score 0. `known_PK` excludes only the samples that should
    have step scores but do not, and those that are not kept.
    """

    steps: ScoredSteps
    scored_PK: Tensor
    known_PK: Tensor
    aggregate: Callable[[Sequence[float]], float] | None


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


def _dense(
    returns: Callable[[Tensor, Tensor, CreditConfig], Tensor], part: Part, config: CreditConfig
) -> dict[str, Tensor]:
    returns_PKS = returns(part.steps.scores_PKS, part.steps.mask_PKS, config)
    baseline = BASELINES[config.baseline]
    if baseline is not None:
        returns_PKS = baseline(returns_PKS, part.steps)
    return {"returns_PKS": config.weight * torch.where(part.steps.mask_PKS, returns_PKS, 0)}


def _step_gae(part: Part, config: CreditConfig) -> dict[str, Tensor]:
    return {"rewards_PKS": config.weight * part.steps.scores_PKS}


@dataclass(frozen=True, slots=True)
class Mode:
    """Describes a credit mode: how it converts step scores to rewards, and whether it uses a baseline.

    `slots(part, config)` returns the slots of Credit that the mode fills. `compares`: a baseline computed from other
    samples is subtracted from the returns.
    """

    slots: Callable[[Part, CreditConfig], dict]
    compares: bool = False


MODES = {
    "scalar": Mode(_scalar),
    "return_to_go": Mode(partial(_dense, return_to_go), compares=True),
    "soft_min": Mode(partial(_dense, soft_min), compares=True),
    "strict_min": Mode(partial(_dense, strict_min), compares=True),
    "step_gae": Mode(_step_gae),
}

DENSE = tuple(name for name, mode in MODES.items() if mode.compares)

MODES_OF: dict[str, tuple[str, ...]] = {
    "baseline": DENSE,
    "transform": ("return_to_go",),
    "normalize_steps": ("return_to_go",),
    "temperature": ("soft_min",),
    "per_source": ("scalar",),
}
"""Credit modes to which each option of CreditConfig applies."""


def assign(
    steps: ScoredSteps,
    kept_PK: Tensor,
    outcome_PK: Tensor,
    config: CreditConfig,
    aggregate: Callable[[Sequence[float]], float] | None = None,
) -> Credit:
    """Assign process rewards to the kept samples that pass credit.gate and have at least one scored step.

    If the baseline compares samples, only sets of at least two such samples are included: groups or, with
    compare_within=outcome, the samples of a group with the same outcome. `outcome_PK` is 1 for correct answers, 0 for
    incorrect ones and −1 for unknown ones; `aggregate` combines step scores with mode=scalar.
    """
    mode = MODES[config.mode]
    asked_PK = kept_PK & GATES[config.gate](outcome_PK == 1)
    missing_PK = asked_PK & ~steps.mask_PKS.any(dim=-1)
    least = 2 if config.compares else 1
    compared = [keep(each_PK, least) for each_PK in _compared(asked_PK & ~missing_PK, outcome_PK, config)]
    known_PK = kept_PK & ~missing_PK
    found = [mode.slots(Part(_only(steps, each_PK), each_PK, known_PK, aggregate), config) for each_PK in compared]
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
