"""Estimate the memory of inference: sampling engines, with a scorer that runs at the same time or afterwards."""

from __future__ import annotations

from mmprm.planning.engine import (
    EngineSettings,
    ScorerSettings,
    cache_note,
    engine_parts,
    engine_refusals,
    scorer_parts,
    scorer_refusals,
)
from mmprm.planning.parts import ENGINE_RESERVE, GIB, GpuGroup, MemoryPlan, Parts
from mmprm.planning.shapes import Shape


def serving_plan(
    policy: tuple[Shape, EngineSettings] | None,
    prm: tuple[Shape, ScorerSettings] | None,
    gpus: int,
    gpu_gib: float,
    together: bool,
    sequence: int,
    nodes: int = 1,
) -> MemoryPlan:
    """Estimate the memory of engines on all GPUs, and of a scorer on the first `tensor_parallel` of these GPUs.

    Args:
        policy: Shape and engine settings of the policy, or None.
        prm: Shape and scorer settings of the process reward model, or None.
        together: Whether both run at the same time; otherwise the engines are closed before the scorer starts.
        sequence: Number of tokens per sequence, to report how many sequences the cache holds.
        nodes: Number of machines that have the `gpus` GPUs together; a model is split over GPUs of one machine.
    """
    gpu = gpu_gib * GIB
    phases: dict[str, Parts] = {}
    refusals: list[str] = []
    notes: list[str] = []
    if policy is not None:
        shape, engine = policy
        phases["sampling"] = engine_parts(shape, engine, gpu)
        refusals += engine_refusals(shape, engine, phases["sampling"])
        notes.append(cache_note(shape, engine, phases["sampling"], sequence))
        refusals += _too_wide("engine", engine.tensor_parallel, gpus, nodes)
    alone = 0
    if prm is not None:
        shape, scorer = prm
        phases["scoring"] = scorer_parts(shape, scorer, gpu)
        refusals += scorer_refusals(shape, scorer, phases["scoring"])
        alone = scorer.tensor_parallel
        refusals += _too_wide("scorer", alone, gpus, nodes)
    return MemoryPlan(tuple(_groups(phases, gpus, alone, gpu, together)), {}, None, tuple(refusals), tuple(notes))


def _too_wide(group: str, split: int, gpus: int, nodes: int) -> list[str]:
    """Return an error message if a model is split over more GPUs than one machine has."""
    if split <= gpus // nodes:
        return []
    machines = "" if nodes == 1 else f" / hardware.nodes={nodes}"
    return [f"{group}.tensor_parallel_size={split} is more than hardware.gpus={gpus}{machines}"]


def _groups(phases: dict[str, Parts], gpus: int, scoring: int, gpu: float, together: bool) -> list[GpuGroup]:
    """Group the GPUs by the models that they run: one group, or two if only some GPUs run the scorer."""
    sampling = {name: parts for name, parts in phases.items() if name == "sampling"}
    # In a guided search both models work at the same time, so their parts add up in one phase.
    both = {"search": {name: size for parts in phases.values() for name, size in parts.items()}}
    first = both if together and len(phases) == 2 else phases
    if not scoring:
        return [_group("engine", gpus, sampling, gpu)]
    names = " and ".join({"sampling": "engine", "scoring": "scorer"}[phase] for phase in phases)
    groups = [_group(names, min(scoring, gpus), first, gpu)]
    if sampling and gpus > scoring:
        groups.append(_group("engine", gpus - scoring, sampling, gpu))
    return groups


def _group(name: str, count: int, phases: dict[str, Parts], gpu: float) -> GpuGroup:
    return GpuGroup(f"{count} GPU{'s' if count > 1 else ''}, {name}", count, phases, gpu, ENGINE_RESERVE)
