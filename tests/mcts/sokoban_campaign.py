"""Provide a campaign on Sokoban levels: `python sokoban_campaign.py PROBLEMS RUN` runs one that tests can kill."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path

from mcts.campaign import run_campaign
from mcts.config import CampaignConfig
from mcts.turns import TurnWorker
from mmprm.config import build
from mmprm.environments.episode import Action, TurnRequest
from mmprm.tiny.sokoban import level_text, make_level
from mmprm.tiny.sokoban_player import SolverPlayer

MISTAKES = 0.3
MAX_TURNS = 16


class SlowPlayer(SolverPlayer):
    """Takes some time for each move, so that kills interrupt episodes."""

    async def act(self, request: TurnRequest) -> Action:
        await asyncio.sleep(0.02)
        return await super().act(request)


def write_levels(folder: Path, count: int) -> Path:
    """Write levels of 6 × 6 cells with two boxes that take 4 to 7 moves."""
    path, rng = folder / "levels.jsonl", random.Random(0)
    levels = [level_text(make_level(rng, 6, 2, range(4, 8))) for _ in range(count)]
    rows = [{"id": f"p{i}", "question": "Solve the level.", "level": level} for i, level in enumerate(levels)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def small_config(problems: Path, run: Path) -> CampaignConfig:
    """Return the configuration of the campaign that tests kill."""
    return config(problems, run, rollouts=4, max_rollouts=40)


def config(problems: Path, run: Path, rollouts: int = 16, max_rollouts: int = 200) -> CampaignConfig:
    values = {
        "output": str(run),
        "problems": {"path": str(problems)},
        "engine": {"model": "scripted"},
        "prompt": {"preset": "plain"},
        "environment": {"path": "sokoban", "max_turns": MAX_TURNS},
        "search": {"rollouts": rollouts, "max_rollouts": max_rollouts, "false_negative_rate": 0},
        "commit_seconds": 0.02,
    }
    return build(CampaignConfig, values)


def annotate(chosen: CampaignConfig, player: SolverPlayer) -> None:
    async def make(number: int) -> TurnWorker:
        assert chosen.environment is not None, "the campaign plays episodes"
        return TurnWorker(player, chosen.environment, chosen.seed, chosen.search)

    run_campaign(chosen, make_worker=make)


if __name__ == "__main__":
    annotate(small_config(Path(sys.argv[1]), Path(sys.argv[2])), SlowPlayer(MISTAKES))
