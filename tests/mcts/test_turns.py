"""Test the search over the turns of episodes: labels and first errors against Sokoban's solver, replay, and
failures.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mcts.config import CampaignConfig
from mcts.search import SearchConfig, search
from mcts.turns import TurnRolls
from mmprm.config import build
from mmprm.environments.episode import Action, TurnRequest
from mmprm.environments.first_prompt import first_prompt
from mmprm.environments.interface import Observation, Transition
from mmprm.environments.load import EnvironmentConfig
from mmprm.environments.pool import EnvironmentPool
from mmprm.errors import ConfigError, DataError, EpisodeError, StoreError
from mmprm.labels.build import LabelsConfig, build_labels
from mmprm.labels.parquet import read_parquet
from mmprm.metrics import roc_auc
from mmprm.tiny.sokoban import moves_to_solve
from mmprm.tiny.sokoban_player import SolverPlayer, action_text, state_after
from mmprm.trees.evidence import evidence
from mmprm.trees.store import Store
from mmprm.types import Batch, Counts, Problem, Steps, Tree, Verdict
from tests.mcts import sokoban_campaign
from tests.mcts.scripted_campaign import batches
from tests.mcts.sokoban_campaign import MISTAKES

LEVEL = "#####\n#@  #\n# $ #\n#  .#\n#####"
PROBLEM = Problem("p", "Solve the level.", "", extra={"level": LEVEL})
SOKOBAN = EnvironmentConfig(path="sokoban", max_turns=9)
UP, DOWN, LEFT, RIGHT = map(action_text, ("up", "down", "left", "right"))
LOST = (DOWN, DOWN, RIGHT, UP)
"""Moves that end with a push of the box against the upper wall, from which it can never reach the goal."""


def turn_rolls(player: object, stored: list[Batch], log: list[Batch], config: EnvironmentConfig = SOKOBAN) -> TurnRolls:
    return TurnRolls(PROBLEM, player, EnvironmentPool(config), config, 7, stored, log.append)


class Recording(SolverPlayer):
    """Records the requests to a solver that makes mistakes."""

    def __init__(self, mistake_rate: float = 0.4) -> None:
        super().__init__(mistake_rate)
        self.requests: list[TurnRequest] = []

    async def act(self, request: TurnRequest) -> Action:
        self.requests.append(request)
        return await super().act(request)


async def test_a_solver_wins_from_every_solvable_state() -> None:
    solver = Recording(mistake_rate=0)
    roll = turn_rolls(solver, [], [])
    for length in range(len(LOST)):
        (rollout,) = await roll(LOST[:length], 1)
        left = moves_to_solve(state_after(LEVEL, list(LOST[:length])))
        assert (rollout.verdict, rollout.reason, len(rollout.steps)) == (Verdict.CORRECT, "success", left)
        assert rollout.token_count == left
    (rollout,) = await roll(LOST, 1)
    assert (rollout.verdict, rollout.reason, len(rollout.steps)) == (Verdict.INCORRECT, "turn limit", 9 - len(LOST))
    assert [action.text for action in solver.requests[-1].actions[:4]] == list(LOST), "restored by replay"


async def test_a_restored_prefix_has_the_ids_with_which_it_was_sampled() -> None:
    player, log = Recording(mistake_rate=0.9), []
    roll = turn_rolls(player, [], log)
    root = await roll((), 8)
    lost = next(each for each in root if each.verdict is Verdict.INCORRECT)
    assert lost.step_ids == tuple((["up", "down", "left", "right"].index(text[8:-9]),) for text in lost.steps[:-1])
    await roll(lost.steps[:3], 1)
    assert tuple(action.ids for action in player.requests[-1].actions[:3]) == lost.step_ids[:3]


async def test_replay_equals_the_undisturbed_search() -> None:
    config = SearchConfig(rollouts=6, max_rollouts=60)
    log: list[Batch] = []
    whole = await search(PROBLEM, turn_rolls(Recording(), [], log), config)
    assert len(log) > 5
    for kept in range(0, len(log) + 1, 3):
        new: list[Batch] = []
        assert await search(PROBLEM, turn_rolls(Recording(), log[:kept], new), config) == whole
        assert new == log[kept:]
    player = Recording()
    await search(PROBLEM, turn_rolls(player, log, []), config)
    assert not player.requests


def solvable(problem: Problem, steps: Steps) -> bool:
    """Return whether the solver can still reach the goal within the turn limit."""
    left = moves_to_solve(state_after(problem.extra["level"], list(steps)))
    return left is not None and left <= sokoban_campaign.MAX_TURNS - len(steps)


def first_errors(tree: Tree, labels: dict[Steps, Counts]) -> list[tuple[Steps, int]]:
    """Return the root's incorrect rollouts whose first error was found by bisection, with the error's turn number."""
    found = []
    for rollout in tree.nodes[0].rollouts:
        prefixes = [rollout.steps[:length] for length in range(1, len(rollout.steps) + 1)]
        known = [(len(prefix), labels[prefix].value) for prefix in prefixes if prefix in labels]
        recoverable = max((length for length, value in known if value), default=0)
        failed = min((length for length, value in known if not value), default=len(rollout.steps))
        if rollout.verdict is Verdict.INCORRECT and failed == recoverable + 1:
            found.append((rollout.steps, failed))
    return found


def test_labels_and_first_errors_agree_with_the_solver(tmp_path: Path) -> None:
    """An unsolvable state has value 0. A solvable state can also have it if all 16 rollouts fail."""
    chosen = sokoban_campaign.config(sokoban_campaign.write_levels(tmp_path, 4), tmp_path / "run")
    sokoban_campaign.annotate(chosen, SolverPlayer(MISTAKES))
    store = Store.read(tmp_path / "run")
    values: list[float] = []
    truth: list[bool] = []
    agree: list[bool] = []
    for tree in store.trees():
        problem, labels = store.problem(tree.problem_id), evidence(tree, chosen.search)
        values += [counts.value for counts in labels.values()]
        truth += [solvable(problem, steps) for steps in labels]
        for steps, failed in first_errors(tree, labels):
            agree.append(solvable(problem, steps[: failed - 1]) and not solvable(problem, steps[:failed]))
    store.close()
    assert not any(value for value, good in zip(values, truth, strict=True) if not good)
    assert 20 < sum(truth) < len(truth) - 20
    assert roc_auc(values, truth) >= 0.95
    assert len(agree) >= 8
    assert sum(agree) >= 0.9 * len(agree)


def test_a_run_becomes_labels_with_observations(tmp_path: Path) -> None:
    chosen = sokoban_campaign.small_config(sokoban_campaign.write_levels(tmp_path, 4), tmp_path / "run")
    sokoban_campaign.annotate(chosen, SolverPlayer(MISTAKES))
    counts = build_labels(LabelsConfig(store=chosen.output, output=str(tmp_path / "labels.parquet"))).counts
    examples = read_parquet(tmp_path / "labels.parquet", turns=True)
    assert counts.paths == len(examples) >= 4
    for example in examples:
        assert [len(observation.images) for observation in example.observations] == [1] * (len(example.path.steps) + 1)
    store = Store.read(chosen.output)
    labels = {problem_id: evidence(store.tree(problem_id), chosen.search) for problem_id in store.ids()}
    store.close()
    assert counts.labels == sum(bool(steps) for found in labels.values() for steps in found)


def test_killed_twice_it_ends_as_if_undisturbed(tmp_path: Path) -> None:
    levels, run = sokoban_campaign.write_levels(tmp_path, 4), tmp_path / "killed"
    sokoban_campaign.annotate(sokoban_campaign.small_config(levels, tmp_path / "whole"), SolverPlayer(MISTAKES))
    third = committed(tmp_path / "whole") // 3
    for goal in (third, 2 * third):
        driver = subprocess.Popen([sys.executable, sokoban_campaign.__file__, str(levels), str(run)])
        while driver.poll() is None and committed(run) < goal:
            time.sleep(0.01)
        assert driver.poll() is None, "it is killed before it ends"
        driver.kill()
        driver.wait()
    assert third <= committed(run) < committed(tmp_path / "whole")
    sokoban_campaign.annotate(sokoban_campaign.small_config(levels, run), SolverPlayer(MISTAKES))
    assert batches(run) == batches(tmp_path / "whole")


def committed(run: Path) -> int:
    try:
        return sum(map(len, batches(run).values()))
    except StoreError:  # the driver has not created the store yet
        return 0


class Unreliable:
    """Fails in every third episode, or gives a different reward each time."""

    resets = turns = 0

    def __init__(self, fault: str) -> None:
        self._fault = fault

    def reset(self, problem: Problem, seed: int) -> Observation:
        Unreliable.resets += 1
        self._left = 2
        return Observation(("Go.",))

    def step(self, text: str) -> Transition:
        Unreliable.turns += 1
        if self._fault == "break" and Unreliable.resets % 3 == 0:
            raise OSError("no display")
        reward = float(Unreliable.turns) if self._fault == "random" else 1.0
        self._left = 0 if self._fault != "early" or Unreliable.resets == 3 else self._left - 1
        return Transition(Observation(("Done.",)), reward, terminated=self._left == 0)

    def close(self) -> None: ...


class Constant:
    async def act(self, request: TurnRequest) -> Action:
        return Action("go")


def unreliable(fault: str) -> EnvironmentConfig:
    """One environment at a time, so that the order of the episodes is known."""
    return EnvironmentConfig(path=f"{__name__}:Unreliable", arguments={"fault": fault}, max_environments=1)


async def test_an_environment_that_breaks_leaves_unknown_rollouts() -> None:
    """The third episode is the replay of the first batch, and the sixth belongs to the second batch."""
    Unreliable.resets = 0
    rolls = turn_rolls(Constant(), [], [], unreliable("break"))
    assert [rollout.verdict for rollout in await rolls((), 2)] == [Verdict.CORRECT] * 2
    second = await rolls((), 3)
    assert [rollout.verdict for rollout in second] == [Verdict.CORRECT, Verdict.CORRECT, Verdict.UNKNOWN]
    assert (second[2].steps, second[2].unsplit) == ((), "environment failed: OSError: no display")


@pytest.mark.parametrize(
    ("fault", "message"),
    [("random", "the reward of turn 1 differs when the same actions"), ("early", "the episode ended before turn 2")],
)
async def test_an_environment_that_is_not_deterministic_fails_its_problem(fault: str, message: str) -> None:
    Unreliable.resets = 0
    with pytest.raises(EpisodeError, match=f"problem p: {message}"):
        await turn_rolls(Constant(), [], [], unreliable(fault))((), 2)


class Walker:
    """Walks the shortest path over the lake, with an occasional mistake."""

    async def act(self, request: TurnRequest) -> Action:
        way = ["down", "down", "right", "right", "down", "right"]
        rng, turn = random.Random(request.seed), len(request.actions)
        return Action(action_text(rng.choice(["left", "down", "right"]) if rng.random() < 0.2 else way[turn % 6]))


async def test_a_gymnasium_environment_is_searched() -> None:
    pytest.importorskip("pygame")
    names = ("left", "down", "right", "up")
    lake = EnvironmentConfig(
        path="gymnasium:FrozenLake-v1", actions=names, arguments={"is_slippery": False}, max_turns=6
    )
    log: list[Batch] = []
    result = await search(PROBLEM, turn_rolls(Walker(), [], log, lake), SearchConfig(rollouts=8, max_rollouts=40))
    assert result.ended in ("no candidates left", "rollout budget")
    assert 0 < result.tree.nodes[0].counts.value < 1
    assert len(result.tree.nodes) > 1
    assert {rollout.reason for batch in log for rollout in batch.rollouts} >= {"success", "no success"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": {"preset": "steps"}}, "prompt.preset=steps must be plain with an environment"),
        ({"solutions": {"path": "s.jsonl"}}, "solutions cannot be labeled in an environment"),
        ({"engine": {"model": "m", "servers": {"urls": ["http://localhost:1"]}}}, "engine.servers cannot play"),
        ({"environment": {"path": "sokoban", "images": -1}}, "environment.images"),
    ],
)
def test_a_configuration_that_cannot_play_is_refused(values: dict, message: str) -> None:
    fixed = {
        "problems": {"path": "p.jsonl"},
        "engine": {"model": "m"},
        "prompt": {"preset": "plain"},
        "environment": {"path": "sokoban"},
    }
    with pytest.raises(ConfigError, match=message):
        build(CampaignConfig, fixed | values)


def test_the_first_prompt_is_checked_before_the_engine_starts() -> None:
    prompt = first_prompt(SOKOBAN, 9, PROBLEM, 0)
    assert (prompt.id, prompt.question, len(prompt.images)) == ("p", "Solve the level.", 1)
    with pytest.raises(ConfigError, match=r"engine\.images_per_prompt=8 must be at least 9, .* \(9 observations × 1\)"):
        first_prompt(SOKOBAN, 8, PROBLEM, 0)
    few = SOKOBAN.model_copy(update={"images": 3})
    assert first_prompt(few, 3, PROBLEM, 0) == prompt
    with pytest.raises(DataError, match="problem p: has no level"):
        first_prompt(SOKOBAN, 8, Problem("p", "?", ""), 0)


def test_a_run_keeps_its_levels_and_environment(tmp_path: Path) -> None:
    levels, player = sokoban_campaign.write_levels(tmp_path, 1), SolverPlayer(0)
    chosen = sokoban_campaign.small_config(levels, tmp_path / "run")
    sokoban_campaign.annotate(chosen, player)
    other = chosen.model_copy(update={"environment": chosen.environment.model_copy(update={"max_turns": 3})})
    with pytest.raises(StoreError, match=r"environment\.max_turns \(stored 16, asked 3\)"):
        sokoban_campaign.annotate(other, player)
    slower = chosen.environment.model_copy(update={"timeout_seconds": 3, "max_environments": 1})
    sokoban_campaign.annotate(chosen.model_copy(update={"environment": slower}), player)
    row = json.loads(levels.read_text())
    levels.write_text(json.dumps(row | {"level": LEVEL}))
    with pytest.raises(StoreError, match="problem 'p0' is stored with another level"):
        sokoban_campaign.annotate(chosen, player)
