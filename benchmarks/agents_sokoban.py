"""Annotate Sokoban levels for the agent benchmark, with a model or with the solver that makes mistakes as the policy.

`python -m benchmarks.agents_sokoban CONFIG.json` runs one campaign with the solver, so that it can be killed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mcts.campaign import run_campaign
from mcts.config import CampaignConfig
from mcts.turns import TurnWorker
from mmprm.config import build
from mmprm.environments.episode import Action, EpisodeStart, TurnRequest, TurnSampler, play
from mmprm.environments.load import EnvironmentConfig
from mmprm.environments.pool import EnvironmentPool
from mmprm.problems import write_problems
from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.sampling.seeds import derive_seed
from mmprm.tiny.sokoban_player import SolverPlayer
from mmprm.tiny.sokoban_problems import make_sokoban_problems
from mmprm.tiny.world import WorldSplit
from mmprm.types import Problem, Steps, Verdict

SOLVER = "solver"
"""Name of the policy that needs no model."""
MISTAKES = 0.3
CHECKED_ROLLOUTS = 64
MIN_SHARED_ROLLOUTS = 16
"""Minimum number of rollouts of a label that are shared with other states. The policy solves some states in a few
percent of the episodes, so labels from fewer rollouts are 0 in too many solvable states."""
PROMPT = PromptConfig(preset="plain")


@dataclass(frozen=True)
class Sizes:
    """Configures levels and rollouts. SMALL runs each part in seconds, to test it.

    Held-out levels get more rollouts than those that the PRM trains on: with fewer, too many states that are solved in
    few percent of the episodes look unsolvable for `first_error`.
    """

    size: int = 5
    boxes: int = 1
    max_turns: int = 20
    rl_turns: int = 12
    """Turn limit of configs/rl/sokoban-tiny.yaml, where lost levels are played to the limit, too."""
    rl_levels: int = 600
    """Number of levels of benchmarks/agents.py, on which the values of states are measured for RL."""
    rl_rollouts: int = 24
    train_levels: int = 300
    train_rollouts: int = 32
    max_train_rollouts: int = 128
    held_out_levels: int = 80
    rollouts: int = 64
    max_rollouts: int = 384
    epochs: int = 4

    def of_train(self) -> Sizes:
        """Return the sizes with the rollouts of the train split."""
        return replace(self, rollouts=self.train_rollouts, max_rollouts=self.max_train_rollouts)

    def of_values(self) -> Sizes:
        """Return the sizes of rollouts with the turn limit of RL, without a search for first errors."""
        return replace(self, max_turns=self.rl_turns, rollouts=self.rl_rollouts, max_rollouts=self.rl_rollouts)


SMALL = Sizes(
    rl_levels=4,
    rl_rollouts=8,
    train_levels=4,
    train_rollouts=8,
    max_train_rollouts=48,
    held_out_levels=3,
    rollouts=8,
    max_rollouts=48,
    epochs=1,
)


class SlowSolver(SolverPlayer):
    """Takes some time for each move, so that kills interrupt episodes."""

    async def act(self, request: TurnRequest) -> Action:
        """Return the next move after a pause; see SolverPlayer."""
        await asyncio.sleep(0.01)
        return await super().act(request)


def write_levels(path: Path, split: WorldSplit, count: int, sizes: Sizes) -> Path:
    """Write levels of a split to a file, unless it exists."""
    if not path.exists():
        write_problems(path, make_sokoban_problems(count, 0, split, sizes.size, sizes.boxes))
    return path


def campaign(levels: Path, output: Path, policy: str, sizes: Sizes) -> CampaignConfig:
    """Return the configuration of a campaign on Sokoban levels."""
    values: dict[str, Any] = {
        "output": str(output),
        "problems": {"path": str(levels)},
        "engine": {"model": policy, "images_per_prompt": sizes.max_turns, "kv_cache_gib": 0.5, "dtype": "float32"},
        "prompt": PROMPT.model_dump(exclude_unset=True),
        "environment": {"path": "sokoban", "max_turns": sizes.max_turns, "max_turn_tokens": 4},
        "search": {
            "rollouts": sizes.rollouts,
            "max_rollouts": sizes.max_rollouts,
            "false_negative_rate": 0,
            "min_shared_rollouts": MIN_SHARED_ROLLOUTS,
        },
        "commit_seconds": 0.1,
    }
    return build(CampaignConfig, values)


def annotate(config: CampaignConfig, player: TurnSampler | None = None) -> None:
    """Run a campaign, or resume it; with `player`, no engine starts. A finished campaign ends at once."""

    async def make(number: int) -> TurnWorker:
        assert player is not None, "only called with a player"
        assert config.environment is not None, "the campaign plays episodes"
        return TurnWorker(player, config.environment, config.seed, config.search)

    run_campaign(config, **({} if player is None else {"make_worker": make}))


def solver_or_none(policy: str) -> SolverPlayer | None:
    """Return the solver that makes mistakes if it is the policy; otherwise, the policy is a model."""
    return SolverPlayer(MISTAKES) if policy == SOLVER else None


@contextmanager
def turn_sampler(policy: str, environment: EnvironmentConfig) -> Iterator[TurnSampler]:
    """Open the policy as a sampler of actions in this process."""
    player = solver_or_none(policy)
    if player is not None:
        yield player
        return
    from mmprm.sampling.vllm_turns import VllmTurnSampler

    engine = EngineConfig(model=policy, images_per_prompt=environment.max_turns, kv_cache_gib=0.5, dtype="float32")
    sampler = VllmTurnSampler(engine, SamplingConfig(), PROMPT, environment)
    try:
        yield sampler
    finally:
        sampler.close()


async def solved_once(
    states: Sequence[tuple[Problem, Steps]], sampler: TurnSampler, environment: EnvironmentConfig
) -> list[bool]:
    """Return, for each state, whether any of CHECKED_ROLLOUTS episodes from it succeeds."""
    pool = EnvironmentPool(environment)

    async def check(problem: Problem, steps: Steps) -> bool:
        seed = derive_seed(1, problem.id, json.dumps(steps), 0)
        for first in range(0, CHECKED_ROLLOUTS, 8):
            actions = tuple(map(Action, steps))
            starts = (EpisodeStart(problem, 0, seed + first + i, actions) for i in range(8))
            found = await asyncio.gather(*(play(start, sampler, pool, environment) for start in starts))
            if any(episode.verdict is Verdict.CORRECT for episode in found):
                return True
        return False

    try:
        return list(await asyncio.gather(*(check(*state) for state in states)))
    finally:
        pool.close()


if __name__ == "__main__":
    annotate(build(CampaignConfig, json.loads(Path(sys.argv[1]).read_text())), SlowSolver(MISTAKES))
