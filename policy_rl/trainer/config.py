"""Declare the keys of the trainer: trained weights, loss, ranks."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from mmprm.config import Config
from mmprm.training.config import TrainingConfig
from mmprm.training.lora import LoraConfig
from policy_rl.algorithms.losses import LossConfig

CHANGEABLE: dict[str, Any] = dict.fromkeys(("timeout_seconds", "gradient_checkpointing", "share_prompt"), True) | {
    "optimization": {"learning_rate", "micro_batch_tokens", "max_bad_steps"}
}
"""Keys that may differ in a resumed run: of these only the learning rate changes the results."""
SUPERVISED_ONLY = ("epochs", "batch_size", "eval_every", "save_every", "keep_checkpoints", "keep_best", "log_every")


class OptimisationConfig(TrainingConfig):
    learning_rate: float = Field(1e-6, gt=0)
    """Learning rate, constant unless warmup or final_learning_rate is set."""
    final_learning_rate: float = Field(1.0, ge=0, le=1)
    """Learning rate at the end of the run, as a share of the peak."""
    warmup: float = Field(0.0, ge=0, lt=1)
    """Share of the updates with a rising learning rate."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW weight decay of matrices; vectors (norms, biases) are not decayed."""

    @model_validator(mode="after")
    def _only_what_updates_need(self) -> OptimisationConfig:
        fields = type(self).model_fields
        for key in SUPERVISED_ONLY:
            if getattr(self, key) != fields[key].default:
                raise ValueError(
                    f"{key}={getattr(self, key)!r} is for supervised training; a policy is trained in updates of "
                    "rollouts, whose number and size the loop's own keys set"
                )
        return self


class CriticConfig(Config):
    coefficient: float = Field(0.5, gt=0)
    """Weight of the value loss beside the policy loss."""
    clip: float | None = Field(0.2, gt=0)
    """Maximum distance that the loss moves a value from the one before the update; null does not clip."""
    learning_rate: float = Field(1e-5, gt=0)
    """Learning rate of the value head, which is initialized to 0; its schedule is that of the policy."""
    warmup_updates: int = Field(10, ge=0)
    """First updates of the run in which only the value head learns: an untrained critic is not a baseline."""


class TrainerConfig(Config):
    ranks: int = Field(1, ge=1)
    """Training processes: one per GPU; without a GPU they share the cores."""
    loss: LossConfig = LossConfig()
    """Surrogate, KL and aggregation."""
    critic: CriticConfig = CriticConfig()
    """Value loss, for estimators with a critic."""
    optimization: OptimisationConfig = OptimisationConfig()
    """Learning rate, precision, sharding, micro-batches."""
    float32_logits: bool = True
    """Multiply by the output layer in float32, whatever the precision: log-probabilities of bfloat16 logits are off by
    0.02 nats on average and by more than 0.1 for some tokens."""
    frozen: tuple[str, ...] = ()
    """Weights that are not trained: vision, projector or language, whatever the model calls them, or regular
    expressions of parameter names."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of all weights; engines get the merged weights. null: train all weights that are
    not frozen."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, a third more time."""
    share_prompt: bool = True
    """Compute the prompt once for the responses of a group that fit micro_batch_tokens together, where the model's
    attention allows; loss and gradients are the same."""
    timeout_seconds: float = Field(3600, gt=0)
    """Maximum wait for one call of the trainer (an update, a checkpoint); the error says which rank waits for what."""
