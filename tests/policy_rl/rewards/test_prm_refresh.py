"""Test when a PRM is retrained, and that a killed refresh resumes with what it has left behind."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mmprm.config import build
from mmprm.errors import ConfigError, TrainingError
from mmprm.labels.parquet import LabeledExample, read_parquet, split_of, write_parquet
from mmprm.scoring.config import ScorerConfig
from mmprm.types import Counts, LabeledPath, Problem
from policy_rl.graded import BranchedPrefix, GradedGroup, GradedResponse, StepRewards
from policy_rl.rewards.prm_actor import RemotePrm
from policy_rl.rewards.prm_refresh import PrmRefresh, RefreshConfig, check_refresh_files, labels_of
from policy_rl.rewards.process import ProcessConfig
from policy_rl.rollouts.tree_store import TreeStore
from tests.policy_rl.rollouts.test_tree_store import CUTTER, graded

SEED, DEV = 0, 0.5
NAMES = [f"p{number}" for number in range(40)]
HELD_OUT = [name for name in NAMES if split_of(name, SEED, DEV, 0.0) == "dev"]
TRAINED = [name for name in NAMES if name not in HELD_OUT]


def scored(text: str, accuracy: float | None, scores: Sequence[float], tokens: Sequence[int]) -> GradedResponse:
    each = graded(text, accuracy)
    step_of_token = [step for step, count in enumerate(tokens) for _ in range(count)]
    return GradedResponse(each.response, each.grading, each.reward, StepRewards(tuple(scores), step_of_token))


def group(name: str, good: float = 0.9, bad: float = 0.1, version: int = 0) -> GradedGroup:
    """Return a group with a correct and an incorrect response, with these scores of their last steps."""
    responses = (scored("a\n\n4", 1.0, (0.5, good), (3, 1)), scored("b\n\n5", 0.0, (0.5, bad), (3, 1)))
    return GradedGroup(Problem(name, f"what is {name}?", "4"), 5, version, responses)


class ScriptedPrm:
    """Stands in for the PRM. A training command writes a PRM, or dies or is stopped in one of its attempts."""

    def __init__(self, dies: int = 0, stops: int = 0) -> None:
        self.loaded: Path | None = None
        self.commands: list[list[str]] = []
        self._dies, self._stops = dies, stops

    async def run_instead(self, command: Sequence[str], log: Path, timeout_seconds: float) -> None:
        self.commands.append(list(command))
        output = Path(next(part for part in command if part.startswith("output=")).removeprefix("output="))
        (output / "checkpoints").mkdir(parents=True, exist_ok=True)
        if self._dies == len(self.commands):
            raise TrainingError("training a new PRM failed")
        if self._stops == len(self.commands):
            return
        (output / "prm").mkdir()
        (output / "prm" / "prm.json").write_text("{}")

    async def replace(self, folder: Path) -> None:
        assert (folder / "prm.json").is_file()
        self.loaded = folder


def refresh_of(folder: Path, prm: ScriptedPrm, **values: object) -> PrmRefresh:
    trees = TreeStore.open(folder, "blank_lines", CUTTER)
    trees.write([group(name) for name in NAMES])
    config = RefreshConfig(**{"train": "train.yaml", "window": 8, "dev": DEV, "min_problems": 40} | values)
    return PrmRefresh(config, folder, SEED, prm, trees)


def test_labels_of_a_tree() -> None:
    """A prefix is positive above one half, and unknown verdicts do not count. A response that is cut has no score."""
    continued = [(graded("a\n\n4", 1.0), graded("a\n\n5", accuracy)) for accuracy in (1.0, 0.0, None)]
    branches = [BranchedPrefix(0, 3, score, each) for score, each in zip((0.2, 0.3, 0.4), continued, strict=True)]
    branches.append(BranchedPrefix(0, 3, None, continued[0]))
    unscored = graded("a\n\n4", 1.0)
    unknown = scored("a\n\n4", None, (0.5, 0.6), (3, 1))
    responses = (*group("p").responses, unscored, unknown)
    found = list(labels_of(GradedGroup(Problem("p", "", "4"), 5, 0, responses, tuple(branches))))
    assert found == [(0.9, True), (0.1, False), (0.2, True), (0.3, False), (0.4, True)]
    each = scored("a\n\n4", 1.0, (0.5,), (3,))
    outside = GradedResponse(each.response, each.grading, each.reward, StepRewards((0.5,), (0, 0, 0, -1)))
    truncated = replace(each, response=replace(each.response, finish_reason="length"))
    for one in (outside, truncated):
        assert list(labels_of(GradedGroup(Problem("p", "", "4"), 5, 0, (one,)))) == []
    assert list(labels_of(GradedGroup(Problem("p", "", "4"), 5, 0, (scored("a\n\n4", 1.0, (0.5,), (4,)),))))


def test_the_auc_is_that_of_the_newest_held_out_labels(tmp_path: Path) -> None:
    refresh = refresh_of(tmp_path, ScriptedPrm())
    metrics = refresh.see([group(name) for name in TRAINED])
    assert metrics["prm_tree_labels"] == 0, "a PRM is not judged by problems that it may be trained on"
    assert math.isnan(refresh.see([group(name) for name in HELD_OUT[:3]])["prm_tree_auc"]), "only 6 of 8 labels"
    assert refresh.see([group(HELD_OUT[3])]) == {"prm_tree_auc": 1.0, "prm_tree_labels": 8, "prm_refreshes": 0}
    # Of 4 · 4 pairs, the correct response with 0.05 loses 4, and the incorrect one with 0.95 wins 3 more.
    found = refresh.see([group(HELD_OUT[4], good=0.05, bad=0.95)])["prm_tree_auc"]
    assert found == pytest.approx(9 / 16)


def test_a_low_auc_trains_and_loads_a_new_prm(tmp_path: Path) -> None:
    prm = ScriptedPrm()
    refresh = refresh_of(tmp_path, prm)
    refresh.see([group(name) for name in HELD_OUT[:4]])
    asyncio.run(refresh.retrain_if_due(6))
    assert prm.commands == [], "the AUC is 1"
    refresh.see([group(name, 0.1, 0.9) for name in HELD_OUT[:4]])
    asyncio.run(refresh.retrain_if_due(7))
    folder = tmp_path / "prm" / "step-00000007"
    assert prm.loaded == folder / "prm"
    assert (refresh.version, refresh.count) == (7, 1)
    assert not (folder / "train").exists(), "its checkpoints are not needed any more"
    assert refresh.see([])["prm_tree_labels"] == 0, "a new PRM is judged by new labels"
    examples = read_parquet(folder / "labels.parquet")
    assert {each.problem.id for each in examples if each.split == "dev"} == set(HELD_OUT)


def test_a_killed_refresh_resumes(tmp_path: Path) -> None:
    """The second attempt uses the first one's labels and checkpoints; the third one finds a finished PRM."""
    prm = ScriptedPrm(dies=1)
    refresh = refresh_of(tmp_path, prm)
    refresh.see([group(name, 0.1, 0.9) for name in HELD_OUT[:4]])
    before = json.loads(json.dumps(refresh.state()))
    with pytest.raises(TrainingError):
        asyncio.run(refresh.retrain_if_due(7))
    labels = tmp_path / "prm" / "step-00000007" / "labels.parquet"
    written = labels.stat().st_mtime_ns
    for _ in range(2):
        refresh._trees.close()
        refresh = refresh_of(tmp_path, prm)
        asyncio.run(refresh.restore(before))
        asyncio.run(refresh.retrain_if_due(7))
        assert (refresh.version, refresh.count) == (7, 1)
    assert len(prm.commands) == 2
    assert labels.stat().st_mtime_ns == written


def test_a_restored_run_loads_its_version(tmp_path: Path) -> None:
    prm = ScriptedPrm()
    refresh = refresh_of(tmp_path, prm)
    refresh.see([group(name, 0.1, 0.9) for name in HELD_OUT[:4]])
    asyncio.run(refresh.retrain_if_due(7))
    refresh.see([group(HELD_OUT[0], version=7)])
    state = json.loads(json.dumps(refresh.state()))
    refresh._trees.close()
    other = ScriptedPrm()
    resumed = refresh_of(tmp_path, other)
    asyncio.run(resumed.restore(state))
    assert other.loaded == prm.loaded
    assert resumed.state() == state
    assert state["labels"] == [[0.9, True], [0.1, False]]


def test_a_new_prm_is_not_judged_by_scores_of_the_earlier_one(tmp_path: Path) -> None:
    """A group that was sampled ahead or carried over was sampled by an earlier policy version than the next ones."""
    refresh = refresh_of(tmp_path, ScriptedPrm())
    refresh.see([group(name, 0.1, 0.9) for name in HELD_OUT[:4]])
    asyncio.run(refresh.retrain_if_due(7))
    assert refresh.see([group(HELD_OUT[0], version=6)])["prm_tree_labels"] == 0
    assert refresh.see([group(HELD_OUT[0], version=7)])["prm_tree_labels"] == 2


def test_a_stopped_training_is_an_error_and_resumes(tmp_path: Path) -> None:
    """After SIGTERM, mmprm train succeeds without a PRM."""
    prm = ScriptedPrm(stops=1)
    refresh = refresh_of(tmp_path, prm)
    refresh.see([group(name, 0.1, 0.9) for name in HELD_OUT[:4]])
    with pytest.raises(TrainingError, match=r"stopped before its end; see .*train\.log"):
        asyncio.run(refresh.retrain_if_due(7))
    assert refresh.count == 0
    asyncio.run(refresh.retrain_if_due(7))
    assert (refresh.count, len(prm.commands)) == (1, 2)


def test_a_prm_of_another_family_is_replaced_by_one_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    prm, created = RemotePrm.__new__(RemotePrm), []
    prm._config = build(ProcessConfig, {"scorer": {"prm": "theirs", "format": "qwen", "dtype": "bfloat16"}})

    async def start() -> None:
        pass

    monkeypatch.setattr(prm, "close", lambda: None)
    monkeypatch.setattr(prm, "_create", created.append)
    monkeypatch.setattr(prm, "_start", start)
    asyncio.run(prm.replace(Path("ours")))
    assert created == [ScorerConfig(prm="ours", dtype="bfloat16")]


def test_files_are_checked_before_the_run_starts(tmp_path: Path) -> None:
    tiny = str(Path(__file__).parents[3] / "configs" / "train" / "tiny.yaml")
    check_refresh_files(RefreshConfig(train=tiny))
    with pytest.raises(ConfigError, match=r"process\.refresh\.labels=gone\.parquet is not a file"):
        check_refresh_files(RefreshConfig(train=tiny, labels="gone.parquet"))
    (tmp_path / "bad.yaml").write_text("model: tiny\nepochs: 3\n")
    with pytest.raises(ConfigError, match=r"epochs"):
        check_refresh_files(RefreshConfig(train=str(tmp_path / "bad.yaml")))


def test_a_run_that_starts_over_uses_no_earlier_prm(tmp_path: Path) -> None:
    prm = ScriptedPrm()
    for attempt in (1, 2):
        refresh = refresh_of(tmp_path, prm)
        refresh.start_over()
        refresh.see([group(name, 0.1, 0.9) for name in HELD_OUT[:4]])
        asyncio.run(refresh.retrain_if_due(7))
        refresh._trees.close()
        assert len(prm.commands) == attempt


def test_a_run_that_starts_over_keeps_other_files(tmp_path: Path) -> None:
    """A PRM of the user's may be in a folder of the same name, such as that of mmprm train."""
    (tmp_path / "prm").mkdir()
    (tmp_path / "prm" / "prm.json").write_text("{}")
    refresh = refresh_of(tmp_path, ScriptedPrm())
    refresh.start_over()
    assert (tmp_path / "prm" / "prm.json").is_file()
    refresh._trees.close()


def test_too_few_trees_delay_the_training(tmp_path: Path) -> None:
    prm = ScriptedPrm()
    refresh = refresh_of(tmp_path, prm, min_problems=41)
    refresh.see([group(name, 0.1, 0.9) for name in HELD_OUT[:4]])
    asyncio.run(refresh.retrain_if_due(7))
    assert prm.commands == []


def test_earlier_labels_are_added_without_held_out_problems(tmp_path: Path) -> None:
    """Of three earlier problems, one is in the store, and one would be held out."""
    others = [f"q{number}" for number in range(20)]
    kept = next(name for name in others if split_of(name, SEED, DEV, 0.0) == "train")
    held_out = next(name for name in others if split_of(name, SEED, DEV, 0.0) == "dev")
    earlier = [
        LabeledExample(Problem(name, "what?", "4"), LabeledPath(name, ("a",), (Counts(1, 0),), complete=True), "train")
        for name in (kept, held_out, TRAINED[0])
    ]
    write_parquet(tmp_path / "earlier.parquet", earlier)
    refresh = refresh_of(tmp_path, ScriptedPrm(), labels=str(tmp_path / "earlier.parquet"))
    refresh.see([group(name, 0.1, 0.9) for name in HELD_OUT[:4]])
    asyncio.run(refresh.retrain_if_due(7))
    examples = read_parquet(tmp_path / "prm" / "step-00000007" / "labels.parquet")
    assert {each.problem.id for each in examples} == {*NAMES, kept}
    assert sum(each.problem.id == TRAINED[0] for each in examples) == 2, "the trees of the run take precedence"
