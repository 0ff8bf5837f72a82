"""How a guided search grows the solutions of one problem: a table of strategies.

Step beam search and lookahead: Snell et al., Scaling LLM Test-Time Compute Optimally (2024). DVTS: Beeching et al.,
Scaling test-time compute with open models (2024). One is a tree that keeps its best paths, the other several trees that
keep one each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from pydantic import Field, model_validator

from mmprm.config import Config
from mmprm.selection.paths import Path, State, Writer

Judge = Callable[[Sequence[Path]], Awaitable[list[float]]]
"""The value of each open path; the highest go on."""


class GuidedConfig(Config):
    strategy: Literal["best_of_n", "beam", "dvts"] = "best_of_n"
    """best_of_n: whole solutions, judged at their end; beam: after each step the best partial solutions go on; dvts: as
    many independent searches as beams, each of which goes on with its best one."""
    samples: int = Field(8, ge=1)
    """Places for solutions of a problem: so many steps are drawn at each depth, less the complete solutions."""
    beams: int = Field(2, ge=1)
    """Partial solutions that go on after each step, over all searches of a problem; each is continued samples/beams
    times."""
    lookahead: int = Field(0, ge=0)
    """Judge a partial solution with so many further steps, the policy's likeliest ones, which are then dropped."""
    max_steps: int = Field(40, ge=1)
    """Longest solution; what is still open then counts as it is."""

    @model_validator(mode="after")
    def _fits(self) -> GuidedConfig:
        if self.strategy == "best_of_n":
            if self.lookahead:
                raise ValueError(
                    f"lookahead={self.lookahead} needs strategy beam or dvts: best_of_n judges whole solutions"
                )
        elif self.beams > self.samples:
            raise ValueError(f"beams={self.beams} must be at most samples={self.samples}: each beam needs a sample")
        return self


async def best_of_n(writer: Writer, judge: Judge, config: GuidedConfig) -> list[Path]:
    return await writer.solutions(config.samples)


async def beam(writer: Writer, judge: Judge, config: GuidedConfig) -> list[Path]:
    return await _grow(writer, judge, config, places=config.samples, kept=config.beams)


async def dvts(writer: Writer, judge: Judge, config: GuidedConfig) -> list[Path]:
    """The trees never see each other; their draws differ also where their prefixes are the same."""
    trees = [
        _grow(writer, judge, config, places=places, kept=1, first_draw=tree * config.samples)
        for tree, places in enumerate(shares(config.samples, config.beams))
    ]
    return [path for paths in await asyncio.gather(*trees) for path in paths]


STRATEGIES: dict[str, Callable[[Writer, Judge, GuidedConfig], Awaitable[list[Path]]]] = {
    "best_of_n": best_of_n,
    "beam": beam,
    "dvts": dvts,
}


def solutions(paths: Sequence[Path]) -> list[Path]:
    """The complete ones; where there is none, those still open at the end; where all broke off, these."""
    for state in (State.COMPLETE, State.OPEN, State.BROKEN):
        if found := [path for path in paths if path.state is state]:
            return found
    raise AssertionError("a search draws at least once")


async def ahead(writer: Writer, path: Path, count: int) -> Path:
    """The path with its likeliest `count` next steps; with fewer where the solution ends or breaks off before."""
    for _ in range(count):
        (following,) = await writer.steps(path, 1, greedy=True)
        if following.state is State.BROKEN:
            break
        path = following
        if path.state is State.COMPLETE:
            break
    return path


def shares(total: int, parts: int) -> list[int]:
    """The total in whole shares that differ by one at most, the larger ones first."""
    return [total // parts + (part < total % parts) for part in range(parts)]


async def _grow(
    writer: Writer, judge: Judge, config: GuidedConfig, places: int, kept: int, first_draw: int = 0
) -> list[Path]:
    """One tree. A complete solution takes up one of the places, so that the tree ends with at most so many, and no more
    steps are drawn at any depth. Returns all paths that ended, then those still open."""
    ended: list[Path] = []
    going = [Path()]
    for _ in range(config.max_steps):
        left = places - sum(path.state is State.COMPLETE for path in ended)
        pairs = [(path, n) for path, n in zip(going, shares(left, len(going)), strict=True) if n]
        drawn = await asyncio.gather(*(writer.steps(path, n, first_draw) for path, n in pairs))
        children = [child for draws in drawn for child in draws]
        ended += [child for child in children if child.state is not State.OPEN]
        going = await _best([child for child in children if child.state is State.OPEN], kept, writer, judge)
        if not going:
            break
    return ended + going


async def _best(paths: Sequence[Path], count: int, writer: Writer, judge: Judge) -> list[Path]:
    """The paths of highest value, best first; draws that give the same steps are one path. Without a choice to make
    nothing is judged."""
    distinct: dict[tuple[str, ...], Path] = {}
    for path in paths:
        distinct.setdefault(writer.plain(path), path)
    different = list(distinct.values())
    if len(different) <= count:
        return different
    values = await judge(different)
    ranked = sorted(range(len(different)), key=lambda index: -values[index])
    return [different[index] for index in ranked[:count]]
