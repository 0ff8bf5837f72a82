"""Test that a process reward model is trained on labels of turns, with the same loss however they are packed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mmprm.labels.build import LabelsConfig, build_labels
from mmprm.labels.parquet import read_parquet
from mmprm.prm.train import TrainConfig, train_prm
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.open import open_scorer
from mmprm.tiny.model import build_model
from mmprm.tiny.sokoban_player import SolverPlayer
from mmprm.tiny.sokoban_policy import build_sokoban_processor
from mmprm.types import Solution
from tests.mcts import sokoban_campaign

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a policy for Sokoban with random weights."""
    folder, processor = tmp_path_factory.mktemp("policy"), build_sokoban_processor()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        build_model(processor.tokenizer).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the labels of four levels that the solver played with mistakes."""
    folder = tmp_path_factory.mktemp("run")
    chosen = sokoban_campaign.small_config(sokoban_campaign.write_levels(folder, 4), folder / "run")
    sokoban_campaign.annotate(chosen, SolverPlayer(sokoban_campaign.MISTAKES))
    build_labels(LabelsConfig(store=chosen.output, output=str(folder / "labels.parquet"), dev=0))
    return folder / "labels.parquet"


def losses(output: Path) -> list[float]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row.get("kind", "train") == "train" and "loss" in row]


def test_turns_are_trained_on_and_scored(
    base: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = {"epochs": 3, "batch_size": 1000, "micro_batch_tokens": 8192, "learning_rate": 1e-4, "precision": "fp32"}
    found = {}
    for packing in ("none", "trees"):
        values = {"model": str(base), "labels": str(labels), "output": str(tmp_path / packing), "packing": packing}
        summary = train_prm(TrainConfig(**values, max_length=1024, training=training))
        found[packing] = losses(tmp_path / packing)
        assert summary.too_long == 0
    assert "packing=trees: episodes share no tokens" in capsys.readouterr().out
    assert found["trees"] == pytest.approx(found["none"], rel=1e-4)
    assert found["none"][-1] < found["none"][0]

    example = read_parquet(labels, turns=True)[0]
    seen = tuple(observation.parts for observation in example.observations)
    scorer = open_scorer(ScorerConfig(prm=str(tmp_path / "none" / "prm")))
    (scores,) = scorer.score([Solution(example.problem, example.path.steps, seen)])
    scorer.close()
    assert len(scores.scores) == len(example.path.steps)
