"""Test the data type of a scorer, and the number of its GPUs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmprm.config import build
from mmprm.errors import ConfigError
from mmprm.sampling.dtype import Device
from mmprm.scoring.config import LocalScorerConfig, ScorerConfig
from mmprm.scoring.dtype import scorer_dtype


def folder_of(path: Path, **more: Any) -> str:
    """Write the config.json of a Qwen2 model, with or without a data type."""
    (path / "config.json").write_text(json.dumps({"model_type": "qwen2"} | more), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
def test_auto_is_the_checkpoints_dtype_on_gpu_and_float32_on_cpu(tmp_path: Path, key: str, stored: str) -> None:
    config = LocalScorerConfig(prm=folder_of(tmp_path, **{key: stored}))
    assert scorer_dtype(config, on_gpu=True) == stored
    assert scorer_dtype(config, on_gpu=False) == "float32"


def test_the_language_models_dtype_decides(tmp_path: Path) -> None:
    text = {"model_type": "qwen3_vl_text", "dtype": "bfloat16"}
    folder = folder_of(tmp_path, model_type="qwen3_vl", text_config=text, vision_config={"model_type": "qwen3_vl"})
    assert scorer_dtype(LocalScorerConfig(prm=folder), on_gpu=True) == "bfloat16"


def test_a_checkpoint_without_dtype_is_computed_in_float32(tmp_path: Path) -> None:
    assert scorer_dtype(LocalScorerConfig(prm=folder_of(tmp_path)), on_gpu=True) == "float32"


@pytest.mark.parametrize(("stored", "expected"), [("bfloat16", "float16"), ("float32", "float32")])
def test_a_gpu_without_bf16_instructions_computes_in_float16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str, expected: str
) -> None:
    monkeypatch.setattr("mmprm.scoring.dtype.this_device", lambda: Device("GPU", bf16=False))
    assert scorer_dtype(LocalScorerConfig(prm=folder_of(tmp_path, dtype=stored)), on_gpu=True) == expected


def test_a_configured_dtype_applies_everywhere(tmp_path: Path) -> None:
    config = LocalScorerConfig(prm=folder_of(tmp_path, dtype="float32"), dtype="float16")
    assert [scorer_dtype(config, on_gpu) for on_gpu in (True, False)] == ["float16", "float16"]


def test_several_gpus_need_vllm() -> None:
    with pytest.raises(ConfigError, match=r"tensor_parallel_size=2 with backend=transformers: .*; set backend=vllm"):
        build(ScorerConfig, {"prm": "prm", "tensor_parallel_size": 2})
    assert build(ScorerConfig, {"prm": "prm", "backend": "vllm", "tensor_parallel_size": 2}).tensor_parallel_size == 2
