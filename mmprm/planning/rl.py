"""Estimate the memory of reinforcement learning in each phase: rollout, log-probs, update, sync.

In each phase, the active parts must fit together with what every process keeps during the whole run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mmprm.planning.engine import (
    ASLEEP,
    EngineSettings,
    ScorerSettings,
    cache_note,
    engine_parts,
    engine_refusals,
    receive_buffers,
    scorer_parts,
    scorer_refusals,
    size_of,
)
from mmprm.planning.memory import width
from mmprm.planning.parts import ENGINE_RESERVE, GIB, GpuGroup, MemoryPlan, Parts
from mmprm.planning.shapes import Shape
from mmprm.planning.trainer import (
    SAVING,
    TRAINING,
    TrainerSettings,
    backward_parts,
    forward_parts,
    state_parts,
    trainer_host,
    update_parts,
)

RL_PHASES = ("rollout", "log-probs", "update", "sync")
Role = Literal["trainer", "engine", "scorer"]
ENCODED_PROMPT_BYTES = 2**30
"""Capacity of each rank's cache of prompts with their pixels; equals policy_rl.trainer.prompt_encoder.KEPT_BYTES."""


@dataclass(frozen=True, slots=True)
class RLSettings:
    """Holds the settings that determine an RL run's memory use. `gpus` counts GPUs by the processes that they run."""

    trainer: TrainerSettings
    engine: EngineSettings
    gpus: Mapping[tuple[Role, ...], int]
    gpu_gib: float
    nodes: int
    transport: Literal["ipc", "nccl", "file"]
    reference: bool
    """Whether a reference model is loaded."""
    computes_log_probs: bool
    """Whether log-probabilities of the policy or the reference model are computed before the updates."""
    scorer: ScorerSettings | None = None
    teacher: Shape | None = None
    """Layer sizes and parameter counts of the distillation teacher, which is sharded like the reference model."""
    host_gib: float | None = None
    offloads_reference: bool = False
    """Whether the reference model's shards are kept in CPU memory."""
    shards_reference: bool = True
    """Whether ZeRO-3 shards the reference model like the policy, rather than replicating it on every rank."""
    keeps_cache: bool = False
    """Whether a colocated trainer keeps its allocator's cache when the engines wake up, rather than freeing it."""
    wakes_at_once: bool = False
    """Whether colocated engines restore their key-value cache together with their weights, before the sync, rather than
    after it."""


def rl_plan(policy: Shape, prm: Shape | None, settings: RLSettings) -> MemoryPlan:
    """Estimate the memory of an RL run. `prm` describes the process reward model if one runs on the GPUs."""
    gpu = settings.gpu_gib * GIB
    parts = engine_parts(policy, settings.engine, gpu)
    refusals = engine_refusals(policy, settings.engine, parts)
    longest = settings.trainer.longest
    if longest > settings.engine.longest:
        refusals.append(
            f"a prompt and a response have up to {longest:,} tokens, but an engine's context is "
            f"engine.max_model_len={settings.engine.longest}; the longest prompt is set by --prompt-tokens"
        )
    if prm is not None and settings.scorer is not None:
        scorer = settings.scorer
        refusals += scorer_refusals(prm, scorer, scorer_parts(prm, scorer, gpu), "process.scorer")
    groups = [_group(roles, count, policy, prm, settings) for roles, count in settings.gpus.items()]
    return MemoryPlan(
        tuple(groups),
        _host(policy, settings),
        None if settings.host_gib is None else settings.host_gib * GIB,
        tuple(refusals),
        (cache_note(policy, settings.engine, parts, settings.trainer.longest),),
    )


def _group(roles: tuple[Role, ...], count: int, policy: Shape, prm: Shape | None, settings: RLSettings) -> GpuGroup:
    phases: dict[str, dict[str, float]] = {phase: {} for phase in RL_PHASES}
    colocated = "trainer" in roles
    for role in roles:
        if role == "trainer":
            found = _trainer(policy, settings, shared=len(roles) > 1)
        elif role == "engine":
            found = _engine(policy, settings, colocated)
        else:
            assert prm is not None, "a scorer has a shape"
            assert settings.scorer is not None, "a scorer has settings"
            found = dict.fromkeys(RL_PHASES, scorer_parts(prm, settings.scorer, settings.gpu_gib * GIB))
        for phase in RL_PHASES:
            phases[phase].update(found[phase])
    reserve = {} if colocated else {"reserve": ENGINE_RESERVE}
    name = f"{count} GPU{'s' if count > 1 else ''}, {' and '.join(roles)}"
    return GpuGroup(name, count, phases, settings.gpu_gib * GIB, **reserve)


def _trainer(policy: Shape, settings: RLSettings, shared: bool) -> dict[str, Parts]:
    """Estimate the memory of one trainer rank, by phase and part."""
    trainer = settings.trainer
    held = dict(state_parts(policy, trainer))
    if not settings.offloads_reference:
        shards = trainer.ranks if trainer.stage == 3 and settings.shards_reference else 1
        held |= {name: size / shards for name, size in _frozen(policy, settings).items()}
    backward, update = backward_parts(policy, trainer), update_parts(policy, trainer)
    # The backward pass and the optimizer step run in turn, so their buffers never exist at the same time.
    fuller = backward if sum(backward.values()) >= sum(update.values()) else update
    forward = forward_parts(policy, trainer) if settings.computes_log_probs else {}
    if settings.teacher is not None:  # the models run in turn
        forward = max(forward, forward_parts(settings.teacher, trainer), key=lambda parts: sum(parts.values()))
    cached = max(sum(fuller.values()), sum(forward.values())) if shared and settings.keeps_cache else 0.0
    by_phase = {
        "rollout": {"allocator's cache": cached},
        "log-probs": forward,
        "update": fuller,
        "sync": {"send buffers": max(cached, _send_buffers(policy, settings))},
    }
    return {phase: _named("trainer", {**held, **more}) for phase, more in by_phase.items()}


def _frozen(policy: Shape, settings: RLSettings) -> dict[str, float]:
    """Return the size in bytes of each frozen model of the trainer: the reference model and the teacher."""
    e, teacher = width(settings.trainer.precision), settings.teacher
    sizes = {"reference model": e * policy.total} if settings.reference else {}
    return sizes if teacher is None else sizes | {"teacher": e * teacher.total}


def _engine(policy: Shape, settings: RLSettings, colocated: bool) -> dict[str, Parts]:
    """Estimate an engine's memory by phase and part. A colocated engine sleeps while the trainer computes."""
    awake = engine_parts(policy, settings.engine, settings.gpu_gib * GIB)
    if not colocated:
        received = receive_buffers(policy, settings.engine, settings.transport)
        return {**dict.fromkeys(RL_PHASES, awake), "sync": {**awake, **received}}
    # Without compilation there are no CUDA graphs, about half of what a sleeping engine keeps.
    asleep = {"engine: asleep": ASLEEP if settings.engine.compiled else ASLEEP / 2}
    waking = dict(awake)
    if not settings.wakes_at_once:
        del waking["engine: key-value cache"]
    return {"rollout": awake, "log-probs": asleep, "update": asleep, "sync": waking}


def _send_buffers(policy: Shape, settings: RLSettings) -> float:
    """Return the number of bytes that rank 0 allocates while it sends weights to the engines.

    These are the largest tensor, both gathered and in the engines' dtype, and packed buffers. With ipc, there is one
    buffer of 1 GiB, or of the size of the largest tensor if that is larger. With nccl, there are two, and a third that
    is being filled, each of 1 GiB plus at most one tensor.
    """
    sent = size_of(settings.engine.dtype) * policy.largest
    whole = width(settings.trainer.precision) * policy.largest if settings.trainer.stage == 3 else 0.0
    packed = {"ipc": max(GIB, sent), "nccl": 3 * (GIB + sent), "file": 0.0}[settings.transport]
    return whole + sent + packed


def _host(policy: Shape, settings: RLSettings) -> Mapping[str, float]:
    trainer, models = settings.trainer, 2 if settings.reference else 1
    host = dict(trainer_host(policy, trainer, settings.nodes, models))
    on_a_node = -(-trainer.ranks // settings.nodes)
    if settings.offloads_reference:
        for phase in (TRAINING, SAVING):
            host[phase] += on_a_node / trainer.ranks * sum(_frozen(policy, settings).values())
    if settings.teacher is not None:
        teacher = settings.teacher
        host["loading"] += (
            on_a_node * width(trainer.precision) * (teacher.converted if trainer.stage == 3 else teacher.total)
        )
    if policy.vision:
        for phase in (TRAINING, SAVING):
            host[phase] += -(-trainer.ranks // settings.nodes) * ENCODED_PROMPT_BYTES
    if settings.transport == "file":
        host["two versions of the weights, in shared memory"] = 2 * size_of(settings.engine.dtype) * policy.total
    return host


def _named(owner: str, parts: Parts) -> Parts:
    return {f"{owner}: {name}": size for name, size in parts.items()}
