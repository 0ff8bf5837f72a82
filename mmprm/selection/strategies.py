"""Implement guided search strategies, which build the solutions to a problem step by step.

STRATEGIES lists them. Beam search keeps the best paths of one tree; DVTS keeps one path in each of several trees.
Sources: step beam search and lookahead, Snell et al., Scaling LLM Test-Time Compute Optimally (2024); DVTS, Beeching et
al., Scaling test-time compute with open models (2024).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from pydantic import Field, model_validator

from mmprm.config import Config
from mmprm.selection.paths import Path, PathState, Writer

PathScorer = Callable[[Sequence[Path]], Awaitable[list[float]]]
"""Function that returns a value for each open path. The search continues the paths with the highest values."""


class GuidedConfig(Config):
    strategy: Literal["best_of_n", "beam", "dvts"] = "best_of_n"
    """Search strategy. best_of_n: sample whole solutions and judge them at the end; beam: continue the best partial
    solutions after each step; dvts: run `beams` independent searches, each of which continues its best partial
    solution."""
    samples: int = Field(8, ge=1)
    """Number of solutions per problem. At each depth, this many steps are sampled, minus the number of complete
    solutions."""
    beams: int = Field(2, ge=1)
    """Number of partial solutions to continue after each step, over all searches for a problem. Each is continued
    samples/beams times."""
    lookahead: int = Field(0, ge=0)
    """Number of greedily decoded steps that are appended to a partial solution for scoring, and then discarded."""
    max_steps: int = Field(40, ge=1)
    """Maximum number of steps per solution; a solution that reaches it is not continued."""

    @model_validator(mode="after")
    def _fits(self) -> GuidedConfig:
        if self.strategy == "best_of_n":
            if self.lookahead:
                raise ValueError(
                    f"lookahead={self.lookahead} needs strategy beam or dvts, because best_of_n judges whole solutions"
                    "; set lookahead=0 or another strategy"
                )
        elif self.beams > self.samples:
            raise ValueError(
                f"beams={self.beams} must be at most samples={self.samples}, because each beam needs a sample; lower "
                "beams or raise samples"
            )
        return self


async def sample_whole(writer: Writer, judge: PathScorer, config: GuidedConfig) -> list[Path]:
    """Sample whole solutions instead of searching."""
    return await writer.solutions(config.samples)


async def beam(writer: Writer, judge: PathScorer, config: GuidedConfig) -> list[Path]:
    """Search one tree, keeping the `beams` best paths at each step."""
    return await _grow(writer, judge, config, slots=config.samples, kept=config.beams)


async def dvts(writer: Writer, judge: PathScorer, config: GuidedConfig) -> list[Path]:
    """Search `beams` independent trees, keeping one path in each. Samples differ even for equal prefixes."""
    trees = [
        _grow(writer, judge, config, slots=slots, kept=1, first_sample=tree * config.samples)
        for tree, slots in enumerate(even_shares(config.samples, config.beams))
    ]
    return [path for paths in await asyncio.gather(*trees) for path in paths]


STRATEGIES: dict[str, Callable[[Writer, PathScorer, GuidedConfig], Awaitable[list[Path]]]] = {
    "best_of_n": sample_whole,
    "beam": beam,
    "dvts": dvts,
}


def solutions(paths: Sequence[Path]) -> list[Path]:
    """Return the complete paths if there are any, else the open paths, else the broken ones (see `PathState`)."""
    for state in (PathState.COMPLETE, PathState.OPEN, PathState.BROKEN):
        if found := [path for path in paths if path.state is state]:
            return found
    raise AssertionError("a search samples at least once")


async def ahead(writer: Writer, path: Path, count: int) -> Path:
    """Extend the path by up to `count` greedily decoded steps, stopping early at the end of the solution or before a
    broken step (see `PathState`)."""
    for _ in range(count):
        (following,) = await writer.steps(path, 1, greedy=True)
        if following.state is PathState.BROKEN:
            break
        path = following
        if path.state is PathState.COMPLETE:
            break
    return path


def even_shares(total: int, parts: int) -> list[int]:
    """Divide `total` into `parts` integers that differ by at most one, in descending order."""
    return [total // parts + (part < total % parts) for part in range(parts)]


async def _grow(
    writer: Writer, judge: PathScorer, config: GuidedConfig, slots: int, kept: int, first_sample: int = 0
) -> list[Path]:
    """Grow one tree of paths; return all ended paths, followed by the open ones.

    A complete solution occupies one of the `slots`, so the tree ends with at most `slots` solutions and samples at most
    `slots` steps per depth.
    """
    ended: list[Path] = []
    going = [Path()]
    for _ in range(config.max_steps):
        left = slots - sum(path.state is PathState.COMPLETE for path in ended)
        pairs = [(path, n) for path, n in zip(going, even_shares(left, len(going)), strict=True) if n]
        sampled = await asyncio.gather(*(writer.steps(path, n, first_sample) for path, n in pairs))
        children = [child for samples in sampled for child in samples]
        ended += [child for child in children if child.state is not PathState.OPEN]
        going = await _best([child for child in children if child.state is PathState.OPEN], kept, writer, judge)
        if not going:
            break
    return ended + going


async def _best(paths: Sequence[Path], count: int, writer: Writer, judge: PathScorer) -> list[Path]:
    """Return the `count` paths with the highest values, best first. Paths with equal steps are merged.

    If there are at most `count` distinct paths, none is judged.
    """
    distinct: dict[tuple[str, ...], Path] = {}
    for path in paths:
        distinct.setdefault(writer.plain(path), path)
    different = list(distinct.values())
    if len(different) <= count:
        return different
    values = await judge(different)
    ranked = sorted(range(len(different)), key=lambda index: -values[index])
    return [different[index] for index in ranked[:count]]
