"""Test exporting a PRM to other formats: their own readers give the same scores."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer, Qwen2Config

from mmprm.convert.export import Qwen2ForProcessRewardModel, export_prm, two_layer_head
from mmprm.errors import CheckpointError, ConfigError
from mmprm.prm.info import PrmTokens, read_info, write_info
from mmprm.prm.model import initialize_prm, load_prm, save_prm
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.transformers_scorer import TransformersScorer
from mmprm.types import ImageRef, Problem, Solution
from tests.backbones import write_backbone

SOLUTIONS = [
    Solution(Problem("a", "1 + 1 = ?", "2"), ("1+1=2", 'so "2" {{ it }}', "2")),
    Solution(Problem("b", "  Left to right:\n2 + 3?", "5"), ("2+3=6",)),
    Solution(Problem("c", "Übung ✓", "1"), ("", "\n1")),
]


def trained(folder: Path, backbone: str, tokens: PrmTokens | None = None, dtype: torch.dtype = torch.float32) -> Path:
    """Write a PRM as it is after training, with random weights, an aggregator and a threshold."""
    write_backbone(backbone, folder / "base")
    prm = initialize_prm(str(folder / "base"), tokens or PrmTokens(), add_missing_tokens=True, dtype=dtype)
    with torch.no_grad():
        for weight in prm.model.parameters():
            weight.mul_(6.0 if weight.dim() > 1 else 1.0)
        table_VH = prm.model.backbone.get_input_embeddings().weight
        table_VH[prm.renderer.marker_id] += torch.linspace(-1, 1, table_VH.shape[1])
    save_prm(folder / "prm", prm)
    write_info(folder / "prm", prm.info.model_copy(update={"aggregator": "min", "threshold": 0.4, "base": "some/base"}))
    return folder / "prm"


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("qwen2"), "qwen2")


def scores(folder: Path, solutions: list[Solution]) -> list[tuple[float, ...]]:
    return [item.scores for item in TransformersScorer(ScorerConfig(prm=str(folder))).score(solutions)]


def close(got: list[tuple[float, ...]], wanted: list[tuple[float, ...]]) -> None:
    for one, other in zip(got, wanted, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_two_layers_make_any_two_rows_exactly() -> None:
    """(3, -2) · (1, 2, 0, 0) = -1 and (0.5, 1) · (1, 2, 0, 0) = 2.5."""
    rows_CH = torch.tensor([[3.0, -2.0, 0.0, 0.0], [0.5, 1.0, 0.0, 0.0]])
    head = two_layer_head(rows_CH)
    assert head(torch.tensor([1.0, 2.0, 0.0, 0.0])).tolist() == [-1.0, 2.5]
    hidden_BH = torch.randn(100, 4)
    torch.testing.assert_close(head(hidden_BH), hidden_BH @ rows_CH.T)


def test_qwen_form_keeps_the_scores(qwen2: Path, tmp_path: Path) -> None:
    info = export_prm(qwen2, tmp_path / "qwen", "qwen")
    assert info == read_info(tmp_path / "qwen")
    assert (info.format, info.tokens.marker, info.aggregator, info.threshold) == ("qwen", "<extra_0>", "min", 0.4)
    expected = scores(qwen2, SOLUTIONS)
    assert max(map(max, expected)) - min(map(min, expected)) > 0.05
    close(scores(tmp_path / "qwen", SOLUTIONS), expected)


@torch.no_grad()
def test_qwen_form_with_the_published_protocol(qwen2: Path, tmp_path: Path) -> None:
    """Scores are the softmax probability of the second class at <extra_0>, after a system prompt."""
    export_prm(qwen2, tmp_path / "qwen", "qwen")
    assert Qwen2Config.from_pretrained(tmp_path / "qwen").architectures == ["Qwen2ForProcessRewardModel"]
    model, loading = Qwen2ForProcessRewardModel.from_pretrained(tmp_path / "qwen", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "qwen")
    for solution, expected in zip(SOLUTIONS, scores(qwen2, SOLUTIONS), strict=True):
        messages = [
            {"role": "system", "content": "Please reason step by step."},
            {"role": "user", "content": solution.problem.question},
            {"role": "assistant", "content": "<extra_0>".join(solution.steps) + "<extra_0>"},
        ]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
        ids_1T = tokenizer.encode(text, return_tensors="pt")
        (separator,) = tokenizer.encode("<extra_0>")
        logits_T2 = model.score(model.model(ids_1T).last_hidden_state)[0]
        right_S = logits_T2[ids_1T[0] == separator].softmax(dim=-1)[:, 1]
        assert right_S.tolist() == pytest.approx(expected, abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["qwen2", "llama"])
def test_trl_form(backbone: str, tmp_path: Path) -> None:
    """TRL's encoding with the original's output rows gives the same scores; no aggregator is stored, as the prompt
    differs.
    """
    prm = trained(tmp_path, backbone)
    info = export_prm(prm, tmp_path / "trl", "trl")
    assert (info.format, info.tokens.marker, info.base) == ("trl", "<prm>", "some/base")
    assert (info.aggregator, info.threshold) == (None, None)
    model, loading = AutoModelForTokenClassification.from_pretrained(tmp_path / "trl", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert model.config.id2label == {0: "incorrect", 1: "correct"}

    original, tokenizer = AutoModelForCausalLM.from_pretrained(prm), AutoTokenizer.from_pretrained(prm)
    marker, yes, no = (tokenizer.encode(word)[0] for word in ("<prm>", "Yes", "No"))
    expected = []
    for solution in SOLUTIONS:
        ids = tokenizer.encode(solution.problem.question, add_special_tokens=False)
        for step in solution.steps:
            ids += [*tokenizer.encode(step, add_special_tokens=False), marker]
        logits_TV = original(torch.tensor([ids])).logits[0][torch.tensor(ids) == marker]
        expected.append(tuple(logits_TV[:, [yes, no]].softmax(dim=-1)[:, 0].tolist()))
    close(scores(tmp_path / "trl", SOLUTIONS), expected)


def test_mm_prm_form_with_an_image(tmp_path: Path) -> None:
    prm = trained(tmp_path, "internvl")
    assert export_prm(prm, tmp_path / "copy", "mm-prm") == read_info(prm)
    buffer = io.BytesIO()
    Image.new("RGB", (56, 56), "red").save(buffer, "PNG")
    with_image = Solution(Problem("d", "How many?", "1", (ImageRef(data=buffer.getvalue()),)), ("One.", "1"))
    close(scores(tmp_path / "copy", [with_image]), scores(prm, [with_image]))


def test_the_data_type_is_kept(tmp_path: Path) -> None:
    prm = trained(tmp_path, "qwen2", dtype=torch.bfloat16)
    for form in ("mm-prm", "qwen", "trl"):
        export_prm(prm, tmp_path / form, form)
        assert Qwen2Config.from_pretrained(tmp_path / form).dtype == torch.bfloat16
    model = Qwen2ForProcessRewardModel.from_pretrained(tmp_path / "qwen", dtype="auto")
    rows_CH = load_prm(prm, "auto").model.backbone.get_output_embeddings().weight
    (no,) = AutoTokenizer.from_pretrained(prm).encode("No")
    assert torch.equal(model.score[0].weight[0], rows_CH[no])


def test_models_that_cannot_be_exported(qwen2: Path, tmp_path: Path) -> None:
    llama = trained(tmp_path / "llama", "llama", PrmTokens(yes="=", no="+"))
    with pytest.raises(CheckpointError, match=r"LlamaForCausalLM: format=qwen supports only Qwen2 .*use format=trl"):
        export_prm(llama, tmp_path / "x", "qwen")
    with pytest.raises(CheckpointError, match="needs the tokens <prm>, Yes and No, but the model was trained with"):
        export_prm(llama, tmp_path / "x", "mm-prm")
    with_image = trained(tmp_path / "internvl", "internvl")
    with pytest.raises(CheckpointError, match="reads images, which format=trl does not support; use format=mm-prm"):
        export_prm(with_image, tmp_path / "x", "trl")
    with pytest.raises(ConfigError, match="exists already"):
        export_prm(qwen2, tmp_path, "trl")
    with pytest.raises(CheckpointError, match="not a process reward model"):
        export_prm(qwen2.parent / "base", tmp_path / "x", "trl")
    assert not (tmp_path / "x").exists()
