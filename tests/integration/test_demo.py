"""Run the whole demo once, at a very small size: every metric is measured and every file is written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mmprm.cli.main import main
from mmprm.prm.info import read_info
from mmprm.tiny.demo_metrics import headlines_of

SIZES = ("problems=24", "development=12", "test=12", "search.max_rollouts=96", "rl_steps=2")


@pytest.mark.integration
def test_the_pipeline_from_problems_to_a_report(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    overrides = [word for item in (f"output={out}", *SIZES) for word in ("--set", item)]
    assert main(["demo", *overrides]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["problems"] == 24
    assert summary["labels"] > 24
    assert summary["label_auc"] > 0.9
    accuracy = summary["accuracy"]
    assert 0.2 < accuracy["random"] < accuracy["oracle"] <= 1
    assert summary["policy_blank_image_accuracy"] < 0.15
    rl = summary["rl"]
    assert rl["accuracy_before"] == pytest.approx(accuracy["random"], abs=0.02), "the same samples except unknown ones"
    assert rl["accuracy_after"] - rl["accuracy_before"] == pytest.approx(rl["gain"]["value"])
    assert (rl["problems"], rl["steps"]) == (12, 2)
    assert (out / "rl" / "policy" / "config.json").exists()
    assert all(math.isfinite(line.value) for line in headlines_of(summary))
    assert read_info(out / "train" / "prm").aggregator == summary["aggregator"]["name"]
    page = (out / "report.html").read_text()
    assert "Reinforcement learning of the policy" in page
    assert "data:image/png;base64," in page
    assert "http://" not in page.replace("http://www.w3.org/", "")


@pytest.mark.integration
def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["demo", "--set", f"output={tmp_path}"]) == 2
    assert (tmp_path / "thesis.txt").read_text() == "mine"
