"""Test log-probabilities of policies of recent model types against the model's own logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmprm.backbone.load import load_backbone
from mmprm.backbone.masks import why_not_packed
from policy_rl.trainer.policy import Policy
from policy_rl.trainer.prompt_encoder import PromptEncoder
from tests.backbones import write_backbone
from tests.policy_rl.trainer.test_policy import PLAIN, alone, make_samples, run


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"])
def test_log_probs_equal_the_full_computation(name: str, tmp_path: Path) -> None:
    """Responses share a prompt, except for recurrent model types, where each has a padded row."""
    backbone, processor = load_backbone(str(write_backbone(name, tmp_path)), torch.float32)
    encoder = PromptEncoder(backbone, processor, PLAIN)
    samples = make_samples(name, encoder)
    reason = why_not_packed(backbone)
    assert (reason is None) == (name == "qwen3_vl_moe")
    outputs = run(Policy(backbone, temperature=0.7), samples, encoder, share=reason is None)
    for sample, output in zip(samples, outputs, strict=True):
        logprobs_T, entropy_T = alone(backbone, processor, sample, 0.7)
        torch.testing.assert_close(output.logprobs_NT, logprobs_T, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output.entropy_NT, entropy_T, rtol=1e-4, atol=1e-5)
