"""Test DeepSpeed's settings by ZeRO stage, and torch's settings for FlexAttention on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AttentionInterface, AutoModelForCausalLM

from mmprm.backbone.masks import COMPILED_GRAPHS, PACKED, use_block_masks
from mmprm.training.config import OptimizationConfig
from mmprm.training.sharding import deepspeed_config
from tests.backbones import write_backbone


@pytest.mark.parametrize(("stage", "overlaps"), [(0, False), (2, False), (3, True)])
def test_zero_3_gathers_the_next_weights_during_a_layer(stage: int, overlaps: bool) -> None:
    settings = deepspeed_config(OptimizationConfig(zero_stage=stage, precision="fp32"))["zero_optimization"]
    assert (settings["stage"], settings["overlap_comm"]) == (stage, overlaps)


def test_a_gpu_that_would_compile_too_many_attention_graphs_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error is better than falling back to attention that stores all pairs of tokens."""
    backbone = AutoModelForCausalLM.from_pretrained(write_backbone("qwen2", tmp_path / "base"))
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", False)
    try:
        use_block_masks(backbone)
        assert torch._dynamo.config.recompile_limit == 8, "without a GPU, no graphs are compiled"
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        use_block_masks(backbone)
        assert torch._dynamo.config.recompile_limit == COMPILED_GRAPHS == 64
        assert torch._dynamo.config.fail_on_recompile_limit_hit
    finally:
        AttentionInterface._global_mapping.pop(PACKED, None)
