"""Test the training of the built-in policy in seconds: a stopped and resumed run ends like an uninterrupted one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmprm.errors import ConfigError
from mmprm.tiny import pretrain
from mmprm.tiny.config import StepsConfig, TinyTrainConfig

STEPS = StepsConfig(vision=1, arithmetic=2, reading=1, solutions=1, checking=1, statements=1, both=1)
CONFIG = TinyTrainConfig(batch=2, problems=20, held_out=2, threads=1, steps=STEPS)


def test_a_stopped_run_resumes_after_its_last_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = pretrain.train(CONFIG, tmp_path / "whole", say=lambda line: None)
    assert metrics["problems"] == 2
    assert not (tmp_path / "whole" / "stages").exists()

    ordinary = pretrain._train_stage

    def stopped(stage: str, *rest: object) -> None:
        if stage == "solutions":
            raise KeyboardInterrupt
        ordinary(stage, *rest)

    monkeypatch.setattr(pretrain, "_train_stage", stopped)
    with pytest.raises(KeyboardInterrupt):
        pretrain.train(CONFIG, tmp_path / "stopped", say=lambda line: None)
    monkeypatch.setattr(pretrain, "_train_stage", ordinary)
    with pytest.raises(ConfigError, match="holds a run with another configuration"):
        pretrain.train(CONFIG.model_copy(update={"seed": 1}), tmp_path / "stopped", say=lambda line: None)
    said: list[str] = []
    pretrain.train(CONFIG, tmp_path / "stopped", say=said.append)
    assert "reading: already finished" in said
    whole, went_on = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert whole.keys() == went_on.keys()
    assert all(torch.equal(whole[name], went_on[name]) for name in whole)
