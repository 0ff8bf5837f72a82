"""Configure how process rewards are assigned, and reject keys that have no effect.

The tables in policy_rl.algorithms.credit and baselines hold the functions that the names stand for.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from mmprm.config import Config

_DIFFERENCES = "credit is a difference of values"
OTHER_SOURCES: dict[str, tuple[tuple[str, ...], str]] = {
    "tree": ((), _DIFFERENCES),
    "both": ((), _DIFFERENCES),
    "environment": (("baseline", "gamma"), "credit is the return from a turn on"),
    "gigpo": (("gamma", "weight"), "credit is a difference of returns"),
}
"""Sources of credit other than the PRM's scores, each with the keys that apply to it and what its credit is."""

DENSE = ("return_to_go", "soft_min", "strict_min", "progress")
"""Credit modes that assign returns to steps, from which credit.baseline is subtracted."""

_ADDED = (*DENSE, "scalar", "step_gae")
"""Credit modes that add to the outcome's advantage."""

MODES_OF: dict[str, tuple[str, ...]] = {
    "weight": _ADDED,
    "gate": _ADDED,
    "baseline": DENSE,
    "transform": ("return_to_go",),
    "normalize_steps": ("return_to_go",),
    "temperature": ("soft_min",),
    "per_source": ("scalar",),
    "calibrate": ("value",),
}
"""Credit modes to which each option of CreditConfig applies."""


class CreditConfig(Config):
    """Configures how process rewards are assigned."""

    source: Literal["prm", "tree", "both", "environment", "gigpo"] = "prm"
    """Source of step credit. prm: scores of the process reward model, in addition to the outcome's advantage or, with
    mode=value, instead of it; tree: the rewards of continuations (`rollouts.branching`), instead of the outcome's
    advantage; both: like tree, but with the PRM's score as a prior for each value; environment: the rewards of an
    episode's turns, including its outcome, instead of the outcome's advantage; gigpo: advantages within groups of turns
    that begin in the same state, in addition to the outcome's advantage (GiGPO). The keys from `mode` on apply to prm,
    except that `baseline` also applies to environment, and `weight` to gigpo."""
    gamma: float = Field(1.0, ge=0, le=1)
    """Discount factor per turn, with source=environment or gigpo. GiGPO's paper uses 0.95."""
    prior_weight: float = Field(1.0, gt=0)
    """Weight of the PRM's prior with source=both, as an equivalent number of continuations."""
    mode: Literal["scalar", "return_to_go", "soft_min", "strict_min", "progress", "value", "step_gae"] = "soft_min"
    """Conversion of step scores to rewards. scalar: an aggregate of them is added to the outcome reward; return_to_go:
    a step's return is the sum of the scores from that step on; soft_min, strict_min: a step's return is the lowest
    score from that step on; progress: a step's return is its score minus that of the step before; value: generalized
    advantage estimation (advantage.lam) with the scores as values, instead of the outcome's advantage; step_gae: with a
    critic, each score is a token reward at the end of its step."""
    weight: float = Field(1.0, gt=0)
    """Coefficient of the process reward, or of GiGPO's step-level advantage. The outcome reward has coefficient 1."""
    baseline: Literal["step_index", "pure_tokens", "prime_steps", "none"] = "step_index"
    """Baseline of step returns, for return_to_go, soft_min, strict_min and progress. step_index: the mean return of the
    group's other responses at the same step; the credit is 0 if none of them has such a step. pure_tokens (PURE) and
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
    calibrate: bool = True
    """With mode=value, the value of a step with score p is a·p + b, fitted to the outcomes of the batch's other groups.
    If false, it is rewards.accuracy_weight·p."""

    @property
    def compares(self) -> bool:
        """Return whether a sample's process reward is computed relative to other samples in its group."""
        return self.mode in DENSE and (self.baseline != "none" or self.normalize_steps)

    @property
    def replaces_outcome(self) -> bool:
        """Return whether the accuracy is part of the step returns and has no advantage of its own."""
        return self.mode == "value"

    @property
    def needs_scores(self) -> bool:
        """Return whether to exclude responses without a process reward, because crediting them with 0 would not be
        neutral."""
        return self.mode != "scalar" and not self.compares and not self.replaces_outcome

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
            is_off = value in (False, "none") and (key, self.mode) != ("baseline", "value")
            if self.mode not in modes and key in self.model_fields_set and not is_off:
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
