"""Test vLLM pooling engines on checkpoints of other PRM families: parity with transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from mmprm.convert.export import export_prm
from mmprm.errors import ConfigError, DataError
from mmprm.prm.info import FormatName, PrmTokens
from mmprm.prm.model import initialize_prm, save_prm
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.open import open_scorer
from mmprm.types import Solution
from tests.backbones import tiny_solutions, write_backbone

pytestmark = pytest.mark.integration


def spread(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(6.0 if weight.dim() > 1 else 1.0)
    return model


def exported(form: str, backbone: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        write_backbone(backbone, folder / "base")
        prm = initialize_prm(str(folder / "base"), PrmTokens(), add_missing_tokens=True)
        spread(prm.model)
        save_prm(folder / "prm", prm)
        export_prm(folder / "prm", folder / form, form)
        return folder / form

    return write


def rlhflow(folder: Path) -> Path:
    write_backbone("llama", folder)
    spread(AutoModelForCausalLM.from_pretrained(folder)).save_pretrained(folder)
    return folder


def visualprm(folder: Path) -> Path:
    write_backbone("internvl", folder)
    model = spread(AutoModelForImageTextToText.from_pretrained(folder))
    # one token per character, and its system prompt is long
    model.config.get_text_config().max_position_embeddings = 2048
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("qwen", exported("qwen", "qwen2")),
        ("trl", exported("trl", "llama")),
        ("rlhflow", rlhflow),
        ("visualprm", visualprm),
    ],
)
def test_vllm_scores_equal_those_of_transformers(
    name: FormatName, write: Callable[[Path], Path], tmp_path: Path
) -> None:
    """Parity holds with images, and both backends reject or truncate solutions that are too long."""
    config = ScorerConfig(prm=str(write(tmp_path)), format=name, too_long="cut")
    solutions = tiny_solutions("internvl" if name == "visualprm" else "llama", 20)
    long = Solution(solutions[0].problem, solutions[0].steps * 60)
    local = open_scorer(config)
    expected = local.score([*solutions, long])
    local.close()
    served = open_scorer(config.model_copy(update={"backend": "vllm"}))
    try:
        scores = served.score(solutions)
        cut = served.score([solutions[1], long])
        served._too_long = "refuse"
        with pytest.raises(DataError, match=r"tokens, but the PRM reads at most (512|2048)"):
            served.score([long])
    finally:
        served.close()
    assert max(max(item.scores) for item in expected) - min(min(item.scores) for item in expected) > 0.05
    assert 1 < len(expected[-1].scores) < len(long.steps)
    for got, wanted in zip([*scores, *cut], [*expected[:-1], expected[1], expected[-1]], strict=True):
        assert got.scores == pytest.approx(wanted.scores, abs=1e-3)


def test_a_value_head_is_left_to_transformers(tmp_path: Path) -> None:
    folder = write_backbone("llama", tmp_path)
    tokenizer = (folder / "tokenizer_config.json").read_text()
    (folder / "tokenizer_config.json").write_text(tokenizer.replace("{", '{"bos_token": "<|im_start|>",', 1))
    with pytest.raises(ConfigError, match=r"vLLM has no class for LlamaForCausalLM; use scorer\.backend=transformers"):
        open_scorer(ScorerConfig(prm=str(folder), format="skywork", backend="vllm"))
