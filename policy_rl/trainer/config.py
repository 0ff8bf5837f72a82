"""Define the trainer's configuration: trained weights, loss, optimizer, critic and ranks."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from mmprm.backbone.trainable import TrainableConfig
from mmprm.config import Config
from mmprm.training.config import OptimizationConfig
from policy_rl.algorithms.distillation import DistillationConfig
from policy_rl.algorithms.losses import LossConfig

CHANGEABLE: dict[str, Any] = dict.fromkeys(
    ("timeout_seconds", "gradient_checkpointing", "share_prompt", "offload_reference"), True
) | {"optimization": {"learning_rate", "micro_batch_tokens", "max_bad_steps"}}
"""Settings that may change when a run is resumed. Of these, only the learning rate affects the results."""


class UpdateConfig(OptimizationConfig):
    """Configures the policy's optimizer. The RL loop determines the number and size of its steps."""

    learning_rate: float = Field(1e-6, gt=0)
    """Peak learning rate, constant unless warmup or final_learning_rate is set."""
    final_learning_rate: float = Field(1.0, ge=0, le=1)
    """Learning rate at the end of the run, as a fraction of the peak learning rate."""
    warmup: float = Field(0.0, ge=0, lt=1)
    """Fraction of the updates during which the learning rate rises to its peak."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW weight decay for matrices. Vectors (norms, biases) are not decayed."""


class CriticConfig(Config):
    """Configures the critic: value loss, clipping and learning rate."""

    coefficient: float = Field(0.5, gt=0)
    """Weight of the value loss relative to the policy loss."""
    clip: float | None = Field(0.2, gt=0)
    """PPO value clipping: the loss does not reward moving a value by more than this; null disables clipping."""
    learning_rate: float = Field(1e-5, gt=0)
    """Learning rate of the value head, which is initialized to 0. It follows the policy's learning rate schedule."""
    warmup_updates: int = Field(10, ge=0)
    """Number of initial updates that train only the value head, because an untrained critic is not a useful
    baseline."""


class TrainerConfig(TrainableConfig):
    """Configures the RL trainer."""

    ranks: int = Field(1, ge=1)
    """Number of training processes, one per GPU. Without a GPU, they share the CPU cores."""
    loss: LossConfig = LossConfig()
    """Surrogate loss, KL penalty and loss aggregation."""
    distillation: DistillationConfig | None = None
    """On-policy distillation: a reverse KL penalty against a teacher, per token. By default, there is no teacher."""
    critic: CriticConfig = CriticConfig()
    """Settings of the critic, for advantage estimators that use one."""
    optimization: UpdateConfig = UpdateConfig()
    """Learning rate, precision, sharding and micro-batches."""
    float32_logits: bool = True
    """Compute the logits in float32 even if the precision is bf16. Log-probabilities computed from bfloat16 logits are
    off by 0.02 nats on average and by more than 0.1 nats for some tokens."""
    offload_reference: bool = False
    """Keep the weights of the reference model and of the teacher in CPU memory and copy them to the GPU in each forward
    pass. Requires optimization.zero_stage=3. optimization.offload=all implies it."""
    share_prompt: bool = True
    """Compute a prompt once for all responses of its group that fit into micro_batch_tokens together. Loss and
    gradients are the same. Has no effect if the model's attention implementation does not allow it."""
    timeout_seconds: float = Field(3600, gt=0)
    """Maximum time in seconds to wait for a trainer call, such as an update or a checkpoint. The error reports what
    each rank is waiting for."""

    @model_validator(mode="after")
    def _offloads_only_shards(self) -> TrainerConfig:
        stage = self.optimization.zero_stage
        if self.offload_reference and stage < 3:
            raise ValueError(
                f"offload_reference=true with optimization.zero_stage={stage}: DeepSpeed offloads only weights that it "
                "shards; set optimization.zero_stage=3, or offload_reference=false"
            )
        return self


def reference_sharding(config: TrainerConfig) -> OptimizationConfig:
    """Return the sharding of the reference model and the teacher: that of the policy, except for offloading."""
    offloads = config.offload_reference or config.optimization.offload == "all"
    return config.optimization.model_copy(update={"offload": "all" if offloads else "none"})
