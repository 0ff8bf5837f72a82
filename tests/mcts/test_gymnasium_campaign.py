"""Test `mmprm annotate` on gymnasium's FrozenLake and CliffWalking, with scripted walkers that make mistakes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcts.config import CampaignConfig
from mmprm.config import build
from mmprm.environments.episode import Action, TurnRequest
from mmprm.labels.build import LabelsConfig, build_labels
from mmprm.labels.parquet import read_parquet
from mmprm.problems import image_size
from mmprm.trees.evidence import evidence
from mmprm.trees.store import Store
from mmprm.types import Counts, Steps, Tree, Verdict
from tests.mcts import sokoban_campaign

pytest.importorskip("gymnasium", reason="needs the extra toy-text (gymnasium)")
pytest.importorskip("pygame", reason="needs the extra toy-text (pygame)")

MOVES = {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1)}
LAKE = ("SFFF", "FHFH", "FFFH", "HFFG")
START, GOAL, BUDGET = (3, 0), (3, 11), 30


class Walker:
    """Makes the move that `plan` chooses after the earlier ones, and a random move with probability `mistake_rate`."""

    def __init__(self, plan: Callable[[list[str]], str], mistake_rate: float) -> None:
        self._plan, self._mistake_rate = plan, mistake_rate

    async def act(self, request: TurnRequest) -> Action:
        rng = random.Random(request.seed)
        names = [action.text[8:-9] for action in request.actions]
        name = rng.choice(list(MOVES)) if rng.random() < self._mistake_rate else self._plan(names)
        return Action(f"<action>{name}</action>", token_count=1)


def over_the_lake(names: list[str]) -> str:
    """Go down, down, right, down, right, right; from elsewhere, back to the first column and down."""
    row, column = 0, 0
    for name in names:
        row, column = (min(3, max(0, at + by)) for at, by in zip((row, column), MOVES[name], strict=True))
    path = {(0, 0): "down", (1, 0): "down", (2, 0): "right", (2, 1): "down", (3, 1): "right", (3, 2): "right"}
    return path.get((row, column), "left" if column else "down")


def along_the_cliff(names: list[str]) -> str:
    """Go up, along the cliff, and down to the goal."""
    row, column = walked(names)[0]
    if column == 11:
        return "down"
    return "up" if row == 3 else "right"


def walked(names: list[str]) -> tuple[tuple[int, int], int]:
    """Return the position on the 4 × 12 grid, and the number of falls from the cliff, each of which leads back."""
    position, falls = START, 0
    for name in names:
        row, column = (position[axis] + MOVES[name][axis] for axis in (0, 1))
        position = min(3, max(0, row)), min(11, max(0, column))
        if position[0] == 3 and 0 < position[1] < 11:
            position, falls = START, falls + 1
    return position, falls


def annotate(
    folder: Path, player: Walker, environment: dict[str, Any], rollouts: int
) -> tuple[Tree, dict[Steps, Counts], Path]:
    """Run a campaign on one problem, and return its tree, its labels, and its folder."""
    (folder / "p.jsonl").write_text(json.dumps({"id": "p", "question": "Reach the goal."}) + "\n")
    values = {
        "output": str(folder / "run"),
        "problems": {"path": str(folder / "p.jsonl")},
        "engine": {"model": "scripted"},
        "prompt": {"preset": "plain"},
        "environment": environment,
        "search": {"rollouts": 8, "max_rollouts": rollouts, "false_negative_rate": 0},
    }
    config = build(CampaignConfig, values)
    sokoban_campaign.annotate(config, player)
    store = Store.read(folder / "run")
    (tree,) = store.trees()
    store.close()
    return tree, evidence(tree, config.search), folder / "run"


def test_frozen_lake_is_annotated_with_frames(tmp_path: Path) -> None:
    """A state on the ice can always be solved, so the first losing action of a failed episode is its last."""
    environment = {"path": "gymnasium:FrozenLake-v1", "actions": ["left", "down", "right", "up"], "max_turns": 30}
    environment["arguments"] = {"is_slippery": False, "desc": list(LAKE)}
    tree, labels, run = annotate(tmp_path, Walker(over_the_lake, 0.45), environment, rollouts=24)
    drowned = [each for each in tree.nodes[0].rollouts if each.verdict is Verdict.INCORRECT]
    assert drowned
    assert {each.reason for each in drowned} == {"no success"}
    known = [counts.value for steps, counts in labels.items() if not any(steps == each.steps for each in drowned)]
    assert len(known) > 3
    assert min(known) > 0
    build_labels(LabelsConfig(store=str(run), output=str(tmp_path / "labels.parquet")))
    example = next(iter(read_parquet(tmp_path / "labels.parquet", turns=True)))
    *text, image = example.observations[0].parts
    assert text == ["Reach the goal.\nActions: left, down, right, up.\n", "Observation: 0\n"]
    assert image_size(image) == (256, 256)


def test_the_first_fall_from_the_cliff_is_the_first_error(tmp_path: Path) -> None:
    """A fall costs 100, so no episode after it reaches the success threshold, although it continues."""
    environment = {"path": "gymnasium:CliffWalking-v1", "actions": list(MOVES), "max_turns": BUDGET}
    environment |= {"success_return": -float(BUDGET), "arguments": {"render_mode": None}}
    tree, labels, _ = annotate(tmp_path, Walker(along_the_cliff, 0.3), environment, rollouts=96)
    checked = 0
    for steps, counts in labels.items():
        (row, column), falls = walked([step[8:-9] for step in steps])
        needed = abs(row - 3) + 11 - column + 2 * (row == 3 and column < 11)
        if falls or len(steps) + needed > BUDGET:
            assert counts.value == 0, steps
        elif len(steps) + needed <= BUDGET - 8:  # some mistakes may still be made up for
            checked += 1
            assert counts.value > 0, steps
    assert checked > 3
    fell = [each for each in tree.nodes[0].rollouts if walked([step[8:-9] for step in each.steps])[1]]
    assert fell
    assert all(each.verdict is Verdict.INCORRECT for each in fell)
