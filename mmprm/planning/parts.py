"""Describe a run's memory per GPU and per node in each phase, and format it as tables.

All numbers are estimates. GPUs on which the same processes run form a group.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

GIB = 2**30
RESERVE = 0.08
"""Fraction of a GPU's memory that is reserved for CUDA contexts, NCCL and fragmentation."""
ENGINE_RESERVE = 0.02
"""Fraction of memory reserved on GPUs without a trainer; estimates for engines and scorers already include their CUDA
contexts."""

Parts = Mapping[str, float]
"""Maps each part of the memory to its size in bytes."""

TABLE_WIDTH = 100
"""Width of a table with four phases, in characters."""
_NAME, _COLUMN = 40, 13
"""Widths in characters of the name column and of each phase's column."""


@dataclass(frozen=True, slots=True)
class GpuGroup:
    """Describes GPUs that run the same processes, with their memory use in bytes per GPU by phase and part."""

    name: str
    count: int
    phases: Mapping[str, Parts]
    limit: float
    reserve: float = RESERVE

    @property
    def usable(self) -> float:
        """Return the usable bytes of a GPU, not counting the reserve."""
        return self.limit * (1 - self.reserve)

    @property
    def fullest(self) -> str:
        """Return the phase that needs the most memory."""
        return max(self.phases, key=self.total)

    @property
    def peak(self) -> float:
        """Return the peak memory use over all phases, in bytes."""
        return self.total(self.fullest)

    @property
    def fits(self) -> bool:
        """Return whether every phase fits in the usable memory of a GPU."""
        return self.peak <= self.usable

    def total(self, phase: str) -> float:
        """Return the total number of bytes needed in a phase."""
        return sum(self.phases[phase].values())


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Describes the memory needs of a run.

    `host` holds the bytes of CPU memory that the fullest node needs, by phase. `refusals` holds reasons other than
    memory why the run cannot start.
    """

    groups: tuple[GpuGroup, ...]
    host: Mapping[str, float]
    host_limit: float | None = None
    refusals: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Return whether the run fits in memory and nothing else prevents its start."""
        return not self.shortfalls()

    @property
    def lacks_only_host_memory(self) -> bool:
        """Return whether the run fits except for the CPU memory of a node."""
        return not self.fits and not self.refusals and all(group.fits for group in self.groups)

    def shortfalls(self) -> list[str]:
        """Return one message per reason why the run cannot start: unsupported settings or too little memory."""
        found = list(self.refusals)
        for group in self.groups:
            if not group.fits:
                found.append(
                    f"{group.name}: {group.peak / GIB:.1f} GiB in the phase {group.fullest} do not fit into "
                    f"{group.usable / GIB:.1f} usable GiB of a GPU of {group.limit / GIB:g}"
                )
        for phase, size in self.host.items():
            if self.host_limit is not None and size > self.host_limit:
                found.append(
                    f"CPU memory: {size / GIB:.1f} GiB of a node for {phase} do not fit into "
                    f"hardware.host_memory_gib={self.host_limit / GIB:g}"
                )
        return found


def memory_text(plan: MemoryPlan) -> str:
    """Format a plan as tables in GiB per GPU and per node, at most TABLE_WIDTH characters wide."""
    lines: list[str] = []
    for group in plan.groups:
        lines += [*_group_lines(group), ""]
    if any(plan.host.values()):
        limit = "" if plan.host_limit is None else f", of {plan.host_limit / GIB:g}"
        lines.append(f"GiB of CPU memory on the fullest node, estimated{limit}")
        lines += [f"  {name:<{_NAME - 2}}{size / GIB:>{_COLUMN},.1f}" for name, size in plan.host.items() if size]
        lines.append("")
    for note in plan.notes:
        lines += textwrap.wrap(note, TABLE_WIDTH)
    return "\n".join(lines).rstrip()


def _group_lines(group: GpuGroup) -> list[str]:
    phases = list(group.phases)
    found = dict.fromkeys(name for parts in group.phases.values() for name in parts)
    # Names begin with their process ("engine: weights"), and the rows of a process belong together.
    owners = list(dict.fromkeys(name.partition(":")[0] for name in found))
    names = sorted(found, key=lambda name: owners.index(name.partition(":")[0]) if ":" in name else 0)
    lines = [f"{group.name}: GiB per GPU, estimated", _row("", phases)]
    for name in names:
        sizes = [group.phases[phase].get(name, 0.0) for phase in phases]
        if any(sizes):
            lines.append(_row(name, map(_shown, sizes)))
    lines.append(_row("total", [f"{group.total(phase) / GIB:,.1f}" for phase in phases]))
    lines.append(_row("usable", [f"{group.usable / GIB:,.1f}" for _ in phases]) + f"   of {group.limit / GIB:g}")
    return lines


def _row(name: str, cells: Sequence[str] | map) -> str:
    return f"  {name:<{_NAME - 2}}" + "".join(f"{cell:>{_COLUMN}}" for cell in cells)


def _shown(size: float) -> str:
    return f"{size / GIB:,.1f}" if size else "–"
