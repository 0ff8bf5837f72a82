"""Estimate the memory of a trainer rank in PRM training, supervised fine-tuning and RL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mmprm.backbone.image_features import KEPT_FEATURE_BYTES
from mmprm.planning.memory import (
    LIVE_PARAMETERS,
    Offload,
    Precision,
    States,
    buffers,
    forward_only,
    kept_activations,
    output_layer,
    states,
    width,
    working_activations,
)
from mmprm.planning.parts import GIB, GpuGroup, MemoryPlan, Parts
from mmprm.planning.shapes import Shape

TRAINING, SAVING = "training, offloaded states and caches", "saving the model, gathered on rank 0"
"""Phases in which a node's CPU memory is needed."""


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """Holds the settings that determine a trainer's memory use."""

    ranks: int
    stage: int
    precision: Precision
    offload: Offload
    tokens: int
    """Number of tokens in the largest micro-batch."""
    longest: int
    """Number of tokens in the longest sequence."""
    checkpointing: bool
    reads_logits: bool = True
    """Whether the training loss needs logits over the whole vocabulary, as for a policy; a PRM needs only two per step.
    """
    float32_logits: bool = True


def trainer_states(shape: Shape, trainer: TrainerSettings) -> States:
    """Return the bytes of weights, gradients and optimizer states that a rank holds during the whole run."""
    return states(shape.trained, shape.frozen, trainer.ranks, trainer.stage, trainer.precision, trainer.offload)


def state_parts(shape: Shape, trainer: TrainerSettings) -> Parts:
    """Return the memory in bytes, by part, of weights, gradients and optimizer states on a rank's GPU."""
    held = trainer_states(shape, trainer)
    return {"weights": held.weights, "gradients": held.gradients, "optimizer states": held.optimizer}


def backward_parts(shape: Shape, trainer: TrainerSettings) -> Parts:
    """Estimate the memory in bytes, by part, that the forward and backward pass of the largest micro-batch needs.

    These are needed in addition to `state_parts`. The estimate assumes that every token may belong to an image. The
    output layer and the layers before it are not computed at the same time, so the larger one counts.
    """
    tokens, precision, layers = trainer.tokens, trainer.precision, shape.language
    setting = (tokens, trainer.longest, precision, trainer.checkpointing)
    beside, _ = buffers(
        shape.trained, shape.frozen, shape.largest, trainer.ranks, trainer.stage, precision, trainer.offload
    )
    working = {"largest layer, in work": working_activations(layers, *setting)}
    if trainer.reads_logits:
        trained = shape.trains("embeddings")
        logits = output_layer(shape.rows, layers.hidden, tokens, precision, trainer.float32_logits, trained=trained)
        working = _larger(working, {"output layer, in work": logits})
    elif shape.trains("embeddings"):
        # Only two rows of the output layer are read, but their gradient is as large as the whole matrix.
        working = {**working, "output rows": width(precision) * shape.rows * layers.hidden}
    return {
        "activations": kept_activations(layers, *setting),
        **working,
        _towers_name(shape): _towers(shape, trainer),
        "buffers": beside,
    }


def update_parts(shape: Shape, trainer: TrainerSettings) -> Parts:
    """Estimate the memory in bytes, by part, that an optimizer step needs in addition to `state_parts`."""
    _, update = buffers(
        shape.trained, shape.frozen, shape.largest, trainer.ranks, trainer.stage, trainer.precision, trainer.offload
    )
    return {"copy of the gradients": update}


def forward_parts(shape: Shape, trainer: TrainerSettings) -> Parts:
    """Estimate the memory in bytes, by part, for computing log-probabilities of the largest micro-batch, without a
    backward pass."""
    tokens, precision, layers = trainer.tokens, trainer.precision, shape.language
    logits = output_layer(shape.rows, layers.hidden, tokens, precision, trainer.float32_logits, backward=False)
    sizes = [
        forward_only(tower.layers, round(tokens * tower.tokens), precision)
        + tokens * tower.features * width(precision) * layers.hidden
        for tower in shape.towers.values()
    ]
    working = _larger(
        {"largest layer, in work": forward_only(layers, tokens, precision)}, {"output layer, in work": logits}
    )
    return {**working, _towers_name(shape): max(sizes, default=0.0), "buffers": gathered(shape, trainer)}


def gathered(shape: Shape, trainer: TrainerSettings) -> float:
    """Return the number of bytes of weights that ZeRO-3 keeps gathered at once."""
    if trainer.stage < 3:
        return 0.0
    return width(trainer.precision) * (min(LIVE_PARAMETERS, shape.total) + shape.largest)


def training_plan(
    shape: Shape,
    trainer: TrainerSettings,
    gpu_gib: float,
    nodes: int = 1,
    host_gib: float | None = None,
    name: str = "trainer",
) -> MemoryPlan:
    """Estimate the memory of a training run with one rank per GPU, when nothing else uses the GPUs."""
    held = state_parts(shape, trainer)
    phases = {
        "backward": {**held, **backward_parts(shape, trainer)},
        "update": {**held, **update_parts(shape, trainer)},
    }
    group = GpuGroup(f"{trainer.ranks} GPUs, {name}", trainer.ranks, phases, gpu_gib * GIB)
    host = trainer_host(shape, trainer, nodes)
    return MemoryPlan((group,), host, None if host_gib is None else host_gib * GIB)


def trainer_host(shape: Shape, trainer: TrainerSettings, nodes: int, models: int = 1) -> Mapping[str, float]:
    """Estimate the CPU memory in bytes, by phase, on the node of rank 0, which needs the most.

    Below stage 3, each rank loads `models` whole models before they move to its GPU. At stage 3, the files are
    memory-mapped, which needs no memory of the ranks, except for stored experts (see `Shape.converted`). During
    training, each rank keeps its offloaded states and, if they are frozen, the features of images. To save a model,
    rank 0 gathers it whole.
    """
    e = width(trainer.precision)
    ranks = -(-trainer.ranks // nodes)
    kept = ranks * (trainer_states(shape, trainer).host + feature_bytes(shape))
    return {
        "loading": ranks * models * e * (shape.converted if trainer.stage == 3 else shape.total),
        TRAINING: kept,
        SAVING: kept + e * shape.total,
    }


def feature_bytes(shape: Shape) -> int:
    """Return the capacity in bytes of a rank's cache of image features, which exists if vision and projector are
    frozen. The features of models that read audio are not cached."""
    frozen = shape.vision is not None and not shape.trains("vision") and not shape.trains("projector")
    return KEPT_FEATURE_BYTES if frozen and shape.audio is None else 0


def _towers_name(shape: Shape) -> str:
    return "vision, audio and projector" if shape.audio else "vision and projector"


def _towers(shape: Shape, trainer: TrainerSettings) -> float:
    """Return the bytes of activations in the towers and the projector, assuming that all tokens are of the kind that
    needs the most: of images and videos, or of audio."""
    return max((_tower(shape, part, trainer) for part in shape.towers), default=0.0)


def _tower(shape: Shape, part: str, trainer: TrainerSettings) -> float:
    tower, e = shape.towers[part], width(trainer.precision)
    seen = round(trainer.tokens * tower.tokens)
    if shape.trains(part):
        setting = (seen, 0, trainer.precision, trainer.checkpointing)
        size = kept_activations(tower.layers, *setting) + working_activations(tower.layers, *setting)
    else:
        size = forward_only(tower.layers, seen, trainer.precision)
    # The projector's input in float32 and normalized, and its inner layer before and after the activation.
    projector = (4 + e) * tower.tokens * tower.layers.hidden + 2 * e * shape.language.hidden
    return size + trainer.tokens * tower.features * projector


def _larger(left: Parts, right: Parts) -> Parts:
    return left if sum(left.values()) >= sum(right.values()) else right
