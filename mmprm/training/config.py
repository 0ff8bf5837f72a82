"""Define the training settings that are independent of the model and the loss."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from mmprm.config import Config
from mmprm.trackers import TrackerName


class OptimizationConfig(Config):
    """Configures the optimizer, precision and sharding, independently of the data and the number of steps."""

    micro_batch_tokens: int = Field(16384, ge=1)
    """Maximum number of tokens per micro-batch on one rank, including padding. A longer sample runs alone."""
    learning_rate: float = Field(4e-6, gt=0)
    """Peak learning rate of the schedule."""
    final_learning_rate: float = Field(0.0, ge=0, le=1)
    """Learning rate at the end of the schedule, as a fraction of the peak."""
    learning_rate_decay: Literal["cosine", "linear"] = "cosine"
    """Shape of the learning rate's decay from the peak to the end of the schedule."""
    warmup: float = Field(0.03, ge=0, lt=1)
    """Fraction of the steps over which the learning rate increases linearly to its peak."""
    weight_decay: float = Field(0.05, ge=0)
    """AdamW weight decay for matrices; vectors (norms, biases) are not decayed."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Betas of AdamW: decay rates of the first and second moments."""
    gradient_clipping: float = Field(1.0, ge=0)
    """Maximum gradient norm; 0 disables clipping."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Precision of weights and activations. bf16 keeps float32 master weights; on CPU, fp32 is faster."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """ZeRO stage: 1 shards the optimizer state over the ranks, 2 also the gradients, 3 also the weights. In bf16, 0
    acts as 1."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """State to offload to CPU memory: `optimizer` offloads the optimizer's state and update, and `all` also the
    weights. Slower; meant for large models."""
    seed: int = 0
    """Random seed for the order of samples and for dropout."""
    max_bad_steps: int = Field(5, ge=1)
    """Number of consecutive steps with a non-finite loss or gradient after which training ends. Each such step is
    skipped."""

    @property
    def stage(self) -> int:
        """Return the ZeRO stage that is actually used, which is at least 1 in bf16.

        In bf16, DeepSpeed's stage 0 sums gradients in bf16 and counts one step of Adam too many. On one rank, stage 1
        shards nothing, so it costs nothing.
        """
        return max(1, self.zero_stage) if self.precision == "bf16" else self.zero_stage

    @field_validator("offload")
    @classmethod
    def _needs_sharding(cls, offload: str, info: ValidationInfo) -> str:
        least = {"none": 0, "optimizer": 1, "all": 3}[offload]
        if info.data.get("zero_stage", least) < least:
            raise ValueError(
                f"needs zero_stage of at least {least}, because DeepSpeed only offloads what it shards; set "
                f"zero_stage={least}, or offload=none"
            )
        return offload


class TrainingConfig(OptimizationConfig):
    """Configures supervised training: epochs, batches, evaluation, checkpoints and logging."""

    epochs: int = Field(1, ge=1)
    """Number of passes over the training samples."""
    batch_size: int = Field(512, ge=1)
    """Number of samples per optimizer step, over all ranks."""
    eval_every: int = Field(0, ge=0)
    """Number of optimizer steps between evaluations; 0 evaluates only at the end."""
    save_every: int = Field(0, ge=0)
    """Number of optimizer steps between checkpoints; 0 writes none."""
    keep_checkpoints: int = Field(2, ge=1)
    """Number of most recent checkpoints to keep on disk."""
    keep_best: bool = False
    """Whether to also save a checkpoint at each evaluation, and keep the one with the lowest held-out loss as
    checkpoints/best."""
    log_every: int = Field(10, ge=1)
    """Number of optimizer steps between console logs; metrics.jsonl and TensorBoard receive every step."""
    tracker: TrackerName | None = None
    """Additional experiment tracker: wandb, mlflow, swanlab or trackio; its package must be installed. Logs offline if
    not logged in."""
