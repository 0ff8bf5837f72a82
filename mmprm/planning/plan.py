"""Plan training (`mmprm plan train`): memory and time from the shapes of a model, without weights or GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from mmprm.config import build
from mmprm.planning.memory import (
    States,
    activations,
    attention_operations,
    buffers,
    forward_only,
    gpu_hours,
    matrix_operations,
    states,
    width,
)
from mmprm.planning.shapes import Shape, shape_of
from mmprm.prm.train import TrainConfig

GIB = 2**30
RESERVE = 0.08
"""Share of a GPU's memory reserved for the CUDA context, NCCL and fragmentation."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Holds the bytes of one rank. The backward pass and the update do not overlap, so the larger one counts."""

    states: States
    activations: float
    vision: float
    rows: float
    buffers: float
    update: float
    limit: float

    @property
    def working(self) -> float:
        """Return the bytes in addition to the states."""
        return max(self.activations + self.vision + self.rows + self.buffers, self.update)

    @property
    def total(self) -> float:
        """Return the maximum of bytes on the GPU."""
        return self.states.on_gpu + self.working

    @property
    def usable(self) -> float:
        """Return the bytes of a GPU without the reserve."""
        return self.limit * (1 - RESERVE)

    @property
    def fits(self) -> bool:
        """Return whether the configuration fits on the GPU."""
        return self.total <= self.usable


@dataclass(frozen=True, slots=True)
class Run:
    """Describes a run over paths of equal length that all have images."""

    steps: int
    tokens_a_step: float
    micro_batches: int
    operations: float
    hours: float


def memory_of(shape: Shape, config: TrainConfig, gpus: int, gpu_gib: float) -> Memory:
    """Estimate the memory of the rank with the fullest micro-batch, in which every token may belong to an image."""
    training = config.training
    precision, offload, stage = training.precision, training.offload, training.stage
    tokens = max(training.micro_batch_tokens, config.max_length)
    e, hidden = width(precision), shape.language.hidden
    checkpointing = config.gradient_checkpointing
    backward, update = buffers(shape.trained, shape.frozen, shape.largest, gpus, stage, precision, offload)
    vision = 0.0
    if shape.vision:
        seen = round(tokens * shape.vision_tokens)
        if shape.parts["vision"][0]:
            vision = activations(shape.vision, seen, 0, precision, checkpointing)
        else:
            vision = forward_only(shape.vision, seen, precision)
        # The projector's input in float32 and normalized, and its inner layer before and after the activation.
        vision += tokens * ((4 + e) * shape.vision_tokens * shape.vision.hidden + 2 * e * hidden)
    return Memory(
        states=states(shape.trained, shape.frozen, gpus, stage, precision, offload),
        activations=activations(shape.language, tokens, config.max_length, precision, checkpointing),
        vision=vision,
        # Only two rows of the output layer are read, but their gradient is as large as the whole matrix.
        rows=e * shape.largest if shape.parts["embeddings"][0] else 0.0,
        buffers=backward,
        update=update,
        limit=gpu_gib * GIB,
    )


def run_of(
    shape: Shape, config: TrainConfig, gpus: int, paths: int, path_tokens: int, peak: float, utilisation: float
) -> Run:
    """Estimate steps, operations and hours of a run over `paths` paths of `path_tokens` tokens each."""
    training = config.training
    steps = training.epochs * -(-paths // training.batch_size)
    all_tokens = float(paths * path_tokens * training.epochs)
    again = int(config.gradient_checkpointing)
    language = sum(shape.parts["language"])
    passes = (2 if config.lora else 3) + again
    operations = matrix_operations(language, all_tokens, passes)
    sequences = [(paths * training.epochs, float(path_tokens))]
    operations += attention_operations(shape.language, sequences, causal=True, passes=3 + again)
    if shape.vision:
        seen = all_tokens * shape.vision_tokens
        passes = 3 + again if shape.parts["vision"][0] else 1
        operations += matrix_operations(sum(shape.parts["vision"]), seen, passes)
        alone = [(seen / shape.vision_length, shape.vision_length)]
        operations += attention_operations(shape.vision, alone, causal=False, passes=passes)
    tokens_a_step = min(training.batch_size, paths) * path_tokens
    return Run(
        steps=steps,
        tokens_a_step=tokens_a_step,
        micro_batches=-(-tokens_a_step // (gpus * max(training.micro_batch_tokens, path_tokens))),
        operations=operations,
        hours=gpu_hours(operations, peak, utilisation),
    )


def ways_to_fit(config: TrainConfig, gpus: int, gpu_gib: float) -> list[str]:
    """Return changes that make a configuration fit: each alone or, if none suffices, the first of them combined."""
    shape = shape_of(config)

    def fewest(changes: dict[str, Any]) -> int | None:
        """Return the number of GPUs on which it fits, found by doubling."""
        other = _changed(config, changes)
        own = shape_of(other) if "lora.rank" in changes else shape
        counts = [gpus * 2**power for power in range(11)]
        return next((n for n in counts if n <= max(gpus, 1024) and memory_of(own, other, n, gpu_gib).fits), None)

    changes = list(_changes(config))
    alone = [_spelled(change) for change in changes if fewest(change) == gpus]
    more = fewest({})
    if alone or more:
        return alone + ([f"--gpus {more}"] if more else [])
    sums = list(accumulate(changes, lambda before, change: before | change))
    needs = [(_spelled(together), fewest(together)) for together in sums]
    found = [name for name, count in needs if count == gpus]
    found += [f"{name} --gpus {count}" for name, count in needs if count]
    return found[:1]


def plan_text(shape: Shape, memory: Memory, config: TrainConfig, gpus: int) -> str:
    """Format the parameters and the memory as a table."""
    lines = [f"{'parameters':<26}{'trained':>18}{'frozen':>18}"]
    lines += [f"  {part:<24}{trained:>18,}{frozen:>18,}" for part, (trained, frozen) in shape.parts.items()]
    lines += [f"  {'total':<24}{shape.trained:>18,}{shape.frozen:>18,}", ""]
    lines.append(f"GiB per GPU, micro-batch {max(config.training.micro_batch_tokens, config.max_length):,} tokens")
    held = memory.states
    rows = [
        ("weights", held.weights),
        ("gradients", held.gradients),
        ("optimizer states", held.optimizer),
        ("activations", memory.activations),
        ("vision and projector", memory.vision),
        ("output rows", memory.rows),
        ("buffers", memory.buffers),
        ("update, instead", memory.update),
        ("total", memory.total),
    ]
    lines += [f"  {name:<24}{size / GIB:>18,.1f}" for name, size in rows]
    lines.append(f"  {'usable':<24}{memory.usable / GIB:>18,.1f}   of {memory.limit / GIB:g}")
    if held.host:
        lines.append(f"  {'CPU memory per GPU':<24}{held.host / GIB:>18,.1f}   {held.host * gpus / GIB:,.0f} in total")
    return "\n".join(lines)


def run_text(run: Run, paths: int, path_tokens: int, gpus: int, utilisation: float) -> str:
    """Format the run as a table."""
    rows = [
        ("steps", f"{run.steps:,}"),
        ("tokens per step", f"{run.tokens_a_step:,.0f}"),
        ("micro-batches per GPU", f"{run.micro_batches:,}"),
        ("operations", f"{run.operations:.2e}"),
        ("GPU-hours", f"{run.hours:,.1f}"),
        (f"hours on {gpus} GPUs", f"{run.hours / gpus:,.2f}"),
    ]
    head = f"{paths:,} paths of {path_tokens:,} tokens, at {utilisation:.0%} of the GPUs' peak"
    return "\n".join([head, *(f"  {name:<24}{value:>18}" for name, value in rows)])


def _changes(config: TrainConfig) -> Iterator[dict[str, Any]]:
    """Yield possible changes of the configuration, those with the smallest cost first."""
    training = config.training
    stage, tokens = training.zero_stage, training.micro_batch_tokens // 2
    if not config.gradient_checkpointing:
        yield {"gradient_checkpointing": True}
    for higher in range(stage + 1, 4):
        yield {"training.zero_stage": higher}
    while tokens >= config.max_length:
        yield {"training.micro_batch_tokens": tokens}
        tokens //= 2
    if training.offload == "none":
        yield {"training.offload": "optimizer", **({"training.zero_stage": 2} if stage < 2 else {})}
    if training.offload != "all":
        yield {"training.offload": "all", **({"training.zero_stage": 3} if stage < 3 else {})}
    if config.lora is None:
        yield {"lora.rank": 16}


def _spelled(changes: dict[str, Any]) -> str:
    """Return the changes as command-line options."""
    return " ".join(f"--set {key}={str(value).lower()}" for key, value in changes.items())


def _changed(config: TrainConfig, changes: dict[str, Any]) -> TrainConfig:
    values = config.model_dump(mode="json")
    for key, value in changes.items():
        group, _, name = key.rpartition(".")
        if group:
            values[group] = (values[group] or {}) | {name: value}
        else:
            values[name] = value
    return build(TrainConfig, values)
