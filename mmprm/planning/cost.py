"""Estimate the steps, FLOPs and GPU-hours of PRM training from the model's layer sizes."""

from __future__ import annotations

from dataclasses import dataclass

from mmprm.planning.memory import attention_operations, gpu_hours, matrix_operations
from mmprm.planning.shapes import Shape
from mmprm.prm.train import TrainConfig


@dataclass(frozen=True, slots=True)
class TrainingCost:
    """Holds the estimated cost of training on paths of equal length, each with an image."""

    steps: int
    tokens_per_step: float
    micro_batches: int
    operations: float
    hours: float


def cost_of(
    shape: Shape, config: TrainConfig, gpus: int, paths: int, path_tokens: int, peak: float, utilization: float
) -> TrainingCost:
    """Estimate the steps, FLOPs and hours of training on `paths` paths of `path_tokens` tokens each."""
    training = config.training
    steps = training.epochs * -(-paths // training.batch_size)
    all_tokens = float(paths * path_tokens * training.epochs)
    again = int(config.gradient_checkpointing)
    language = sum(shape.parts["language"]) - shape.unused
    # One forward pass, and backward for activations and for weights; adapters skip the latter for frozen weights.
    passes = (2 if config.lora else 3) + again
    operations = matrix_operations(language, all_tokens, passes)
    sequences = [(paths * training.epochs, float(path_tokens))]
    operations += attention_operations(shape.language, sequences, causal=True, passes=3 + again)
    if shape.vision:
        # As if all tokens were of images or videos; those of audio take fewer operations.
        seen = all_tokens * shape.vision.tokens
        # A frozen tower precedes everything that is trained, so no gradient passes through it.
        passes = 3 + again if shape.trains("vision") else 1
        operations += matrix_operations(sum(shape.parts["vision"]), seen, passes)
        alone = [(seen / shape.vision.length, shape.vision.length)]
        operations += attention_operations(shape.vision.layers, alone, causal=False, passes=passes)
    tokens_per_step = min(training.batch_size, paths) * path_tokens
    return TrainingCost(
        steps=steps,
        tokens_per_step=tokens_per_step,
        micro_batches=-(-tokens_per_step // (gpus * max(training.micro_batch_tokens, path_tokens))),
        operations=operations,
        hours=gpu_hours(operations, peak, utilization),
    )


def cost_text(cost: TrainingCost, paths: int, path_tokens: int, gpus: int, utilization: float) -> str:
    """Format a training cost as a table."""
    rows = [
        ("steps", f"{cost.steps:,}"),
        ("tokens per step", f"{cost.tokens_per_step:,.0f}"),
        ("micro-batches per GPU", f"{cost.micro_batches:,}"),
        ("operations", f"{cost.operations:.2e}"),
        ("GPU-hours", f"{cost.hours:,.1f}"),
        (f"hours on {gpus} GPUs", f"{cost.hours / gpus:,.2f}"),
    ]
    head = f"{paths:,} paths of {path_tokens:,} tokens, at {utilization:.0%} of the GPUs' peak, estimated"
    return "\n".join([head, *(f"  {name:<38}{value:>13}" for name, value in rows)])
