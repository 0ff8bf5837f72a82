"""Assign GPUs to the engines, trainer ranks and PRM of a run.

    async with reserved(config) as options:               # None without a GPU
        options.engines, options.ranks, options.prm          # arguments of ray.remote per actor

Ray assigns GPUs only by count, and may place two fractional requests on the same GPU or on different ones. A run
therefore reserves its GPUs on each machine as one bundle, assigns them to actors itself (`assign_gpus`), and sets
CUDA_VISIBLE_DEVICES for each process. Its actors request no further resources, not even CPUs.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from mmprm import actors
from mmprm.errors import ConfigError, TrainingError
from policy_rl.config import RLConfig

GpuSlot = tuple[int, int]
"""Identifies a GPU as (machine index, index among the run's GPUs on that machine)."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Describes the GPUs of each actor: a tuple of slots per engine, a slot per rank, and the PRM's slots, if any."""

    engines: tuple[tuple[GpuSlot, ...], ...]
    ranks: tuple[GpuSlot, ...]
    prm: tuple[GpuSlot, ...] = ()

    @property
    def gpus(self) -> dict[int, int]:
        """Return the number of GPUs needed per machine. A run always uses a machine's first GPUs."""
        used = {*sum(self.engines, ()), *self.ranks, *self.prm}
        return dict(sorted(Counter(machine for machine, _ in used).items()))


def assign_gpus(
    gpus: Sequence[int],
    ranks: int,
    tensor_parallel: int = 1,
    engines: int | None = None,
    colocated: bool = False,
    prm: Literal["none", "own", "shared"] = "none",
    prm_gpus: int = 1,
) -> Placement:
    """Assign GPUs to engines, ranks and the PRM. `gpus` lists the number of GPUs per machine.

    Each engine's GPUs are on one machine; each rank has one GPU. Colocated engines share GPUs with ranks; other engines
    use GPUs without a rank. By default, there are as many engines as fit: if they are not colocated, at most
    (GPUs − ranks − PRM's own) // tensor_parallel. The PRM gets `prm_gpus` GPUs on one machine: GPUs without an engine
    or rank ("own"), or the last of the engines' GPUs ("shared").

    Raises ConfigError if there are not enough GPUs.
    """
    slots = [(machine, gpu) for machine, count in enumerate(gpus) for gpu in range(count)]
    groups = [
        tuple((machine, first + number) for number in range(tensor_parallel))
        for machine, count in enumerate(gpus)
        for first in range(0, count - tensor_parallel + 1, tensor_parallel)
    ]
    own = prm_gpus if prm == "own" else 0
    capacity = ranks if colocated else len(slots) - ranks - own
    fitting = min(len(groups), capacity // tensor_parallel) if len(slots) >= ranks + own else 0
    count = fitting if engines is None else engines
    if not 1 <= count <= fitting:
        raise ConfigError(_too_few(gpus, ranks, tensor_parallel, engines, fitting, colocated, own))
    taken = [slot for group in groups[:count] for slot in group]
    free = [slot for slot in slots if slot not in taken]
    free_for_ranks = ranks - len(taken) if colocated else ranks
    prm_slots = {"none": (), "own": _own(free, free_for_ranks, prm_gpus), "shared": _shared(taken, prm_gpus)}[prm]
    if prm != "none" and not prm_slots:
        raise ConfigError(_no_machine_for_prm(prm, prm_gpus))
    rest = [slot for slot in (taken + free if colocated else free) if prm != "own" or slot not in prm_slots]
    return Placement(tuple(groups[:count]), tuple(sorted(rest[:ranks])), prm_slots)


def _own(free: Sequence[GpuSlot], ranks: int, count: int) -> tuple[GpuSlot, ...]:
    """Return the first `count` free slots of one machine, or () if no machine has that many.

    The first `ranks` slots are skipped if possible; the trainer then takes them. The slots are the first free ones of
    their machine, because a run uses a machine's first GPUs.
    """
    after = (group[:count] for group in _by_machine(free[ranks:]) if len(group) >= count)
    anywhere = (group[:count] for group in _by_machine(free) if len(group) >= count)
    return next(itertools.chain(after, anywhere), ())


def _shared(taken: Sequence[GpuSlot], count: int) -> tuple[GpuSlot, ...]:
    """Return `count` of the engines' slots that are all on one machine, or () if no machine has that many.

    They are the last slots on the last machine that has enough.
    """
    return next((group[-count:] for group in reversed(_by_machine(taken)) if len(group) >= count), ())


def _by_machine(slots: Sequence[GpuSlot]) -> list[tuple[GpuSlot, ...]]:
    return [tuple(group) for _, group in itertools.groupby(slots, key=lambda slot: slot[0])]


def _too_few(
    gpus: Sequence[int], ranks: int, width: int, engines: int | None, fitting: int, colocated: bool, own: int
) -> str:
    """Return an error message that names the setting that needs too many GPUs, and the values that would fit."""
    have = f"Ray has {' + '.join(map(str, gpus))} GPUs, trainer.ranks={ranks} take one each" + (
        " and share them with the engines" if colocated else " of their own"
    )
    have += f", the PRM takes {'one' if own == 1 else own}" if own else ""
    if fitting >= 1:
        rule = f"rollouts.engines={engines} with engine.tensor_parallel_size={width} must be 1 to {fitting}"
        way_out = f"set rollouts.engines={fitting}, or fewer trainer.ranks"
    elif width > max(gpus):
        rule = f"engine.tensor_parallel_size={width} must be at most {max(gpus)}, the GPUs of one machine"
        way_out = f"set it to {max(gpus)} or less"
    else:
        rule = f"no GPUs are left for an engine with engine.tensor_parallel_size={width}"
        way_out = "set fewer trainer.ranks"
    way_out += "" if colocated else ", or rollouts.colocated=true"
    way_out += ", or process.own_gpu=false" if own else ""
    return f"{rule}: {have}; {way_out}"


def _no_machine_for_prm(prm: str, count: int) -> str:
    rule = f"process.scorer.tensor_parallel_size={count} must be at most the number of GPUs"
    if prm == "own":
        return (
            f"{rule} that the engines leave free on one machine; set fewer rollouts.engines, or process.own_gpu=false"
        )
    return f"{rule} of the engines on one machine; set more rollouts.engines or a larger engine.tensor_parallel_size"


def place_run(config: RLConfig, gpus: Sequence[int]) -> Placement:
    """Assign GPUs to the actors of a configuration. `gpus` lists the number of GPUs per machine."""
    process = config.process
    local = process is not None and not process.scorer.is_remote
    prm = ("own" if process.own_gpu else "shared") if local else "none"
    rollouts, width = config.rollouts, config.engine.tensor_parallel_size
    prm_gpus = process.scorer.tensor_parallel_size if local else 1
    return assign_gpus(gpus, config.trainer.ranks, width, rollouts.engines, rollouts.colocated, prm, prm_gpus)


@dataclass(frozen=True, slots=True)
class ActorOptions:
    """Contains the ray.remote arguments for each actor."""

    engines: tuple[dict[str, Any], ...]
    ranks: tuple[dict[str, Any], ...]
    prm: dict[str, Any] | None


@asynccontextmanager
async def reserved(config: RLConfig) -> AsyncIterator[ActorOptions | None]:
    """Reserve a run's GPUs for the `with` block; yield the actor options, or None if Ray has no GPU.

    Raises TrainingError if the GPUs do not become free within rollouts.start_timeout_seconds.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    machines = sorted(
        (node["NodeManagerAddress"], int(node["Resources"]["GPU"]))
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU", 0) >= 1
    )
    if not machines:
        yield None
        return
    placement = place_run(config, [count for _, count in machines])
    # Ray has a resource per machine; requesting a small amount of it pins the bundle to that machine.
    bundles = [{"GPU": count, f"node:{machines[number][0]}": 0.001} for number, count in placement.gpus.items()]
    group = placement_group(bundles)
    try:
        await _wait(group, bundles, config.rollouts.start_timeout_seconds)
        yield await _options(placement, group)
    finally:
        remove_placement_group(group)


async def _wait(group: Any, bundles: Sequence[dict[str, float]], timeout_seconds: float) -> None:
    count = sum(bundle["GPU"] for bundle in bundles)
    await actors.wait(
        group.ready(),
        lambda: f"{count:g} GPUs; Ray has {actors.free_resources()} free",
        timeout_seconds,
        "end what occupies them, or raise rollouts.start_timeout_seconds",
        TrainingError,
    )


async def _options(placement: Placement, group: Any) -> ActorOptions:
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    machines = list(placement.gpus)
    bundle_of = {machine: PlacementGroupSchedulingStrategy(group, bundle) for bundle, machine in enumerate(machines)}
    ask = ray.remote(num_cpus=0)(_gpu_ids)
    calls = [
        ask.options(num_gpus=placement.gpus[machine], scheduling_strategy=bundle_of[machine]).remote()
        for machine in machines
    ]
    found = await asyncio.gather(*(actors.wait(call, "Ray to name the GPUs of a machine") for call in calls))
    ids = dict(zip(machines, found, strict=True))

    def options(slots: Sequence[GpuSlot]) -> dict[str, Any]:
        machine = slots[0][0]
        visible = ",".join(ids[machine][gpu] for _, gpu in slots)
        return {
            "num_cpus": 0,
            "num_gpus": 0,
            "scheduling_strategy": bundle_of[machine],
            "runtime_env": {"env_vars": {"CUDA_VISIBLE_DEVICES": visible}},
        }

    return ActorOptions(
        tuple(map(options, placement.engines)),
        tuple(options([slot]) for slot in placement.ranks),
        options(placement.prm) if placement.prm else None,
    )


def _gpu_ids() -> list[str]:
    """Return the GPU ids of this task's bundle. The task must request all GPUs of the bundle."""
    import ray

    return sorted(ray.get_runtime_context().get_accelerator_ids()["GPU"], key=lambda name: (len(name), name))
