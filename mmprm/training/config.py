"""Keys of a training run that hold for any model and loss."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from mmprm.config import Config


class TrainingConfig(Config):
    epochs: int = Field(1, ge=1)
    """Passes over the training samples."""
    batch_size: int = Field(512, ge=1)
    """Samples of one optimizer step, over all ranks."""
    micro_batch_tokens: int = Field(16384, ge=1)
    """Most tokens, padding included, that a rank runs at once; a longer sample runs alone."""
    learning_rate: float = Field(4e-6, gt=0)
    """Peak of the schedule."""
    final_learning_rate: float = Field(0.0, ge=0, le=1)
    """Where the schedule ends, as a share of the peak."""
    learning_rate_decay: Literal["cosine", "linear"] = "cosine"
    """How the learning rate falls from its peak to the end of the schedule."""
    warmup: float = Field(0.03, ge=0, lt=1)
    """Share of the steps with a rising learning rate."""
    weight_decay: float = Field(0.05, ge=0)
    """AdamW decay of matrices; vectors (norms, biases) have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW moment decays."""
    gradient_clipping: float = Field(1.0, ge=0)
    """Largest gradient norm; 0 does not clip."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16 keeps float32 master weights; on CPU fp32 is faster."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """What is sharded over ranks: 1 optimizer state, 2 and gradients, 3 and weights; in bf16 0 is the same as 1."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What waits in CPU memory: the optimizer's state and update, or all, the weights too; slower, for large models."""
    seed: int = 0
    """Decides the order of samples, and dropout."""
    eval_every: int = Field(0, ge=0)
    """Optimizer steps between evaluations; 0 evaluates only at the end."""
    save_every: int = Field(0, ge=0)
    """Optimizer steps between checkpoints to resume from; 0 keeps none."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints that are kept."""
    keep_best: bool = False
    """Write a checkpoint at each evaluation too, and keep that of the lowest held-out loss, as checkpoints/best."""
    log_every: int = Field(10, ge=1)
    """Optimizer steps between metrics on the console; metrics.jsonl and TensorBoard get every step."""
    max_bad_steps: int = Field(5, ge=1)
    """Steps in a row whose loss or gradient is not finite that end the run; each is skipped and counted."""

    @property
    def stage(self) -> int:
        """The stage that runs. In bf16 DeepSpeed's stage 0 sums gradients in bf16 and counts one step of Adam too many;
        on one rank nothing is sharded anyway."""
        return max(1, self.zero_stage) if self.precision == "bf16" else self.zero_stage

    @field_validator("offload")
    @classmethod
    def _needs_sharding(cls, offload: str, info: ValidationInfo) -> str:
        least = {"none": 0, "optimizer": 1, "all": 3}[offload]
        if info.data.get("zero_stage", least) < least:
            raise ValueError(
                f"needs training.zero_stage of at least {least}: DeepSpeed offloads what it shards; set "
                f"training.zero_stage={least}, or training.offload=none"
            )
        return offload
