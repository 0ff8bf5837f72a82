"""Test the scores of every family of process reward models on checkpoints in its published format."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from prm_tokenizers import STEPS, sentencepiece, solution
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForTokenClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2Model,
)

from mmprm.config import load
from mmprm.errors import CheckpointError, ConfigError, DataError
from mmprm.prm.formats import Format
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.transformers_scorer import TransformersScorer
from mmprm.types import ImageRef, Solution
from tests.backbones import HIDDEN, write_backbone


def spread(model: nn.Module, factor: float = 8.0) -> nn.Module:
    """Enlarge the weights, so that scores differ."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(factor if weight.dim() > 1 else 1.0)
    return model


def math_shepherd_folder(folder: Path) -> None:
    tokenizer = sentencepiece()
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    spread(LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)), 12.0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def native_folder(backbone: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        write_backbone(backbone, folder)
        kind = AutoModelForImageTextToText if backbone == "internvl" else AutoModelForCausalLM
        model = spread(kind.from_pretrained(folder))
        model.config.get_text_config().max_position_embeddings = 4096  # one token per character: long system prompts
        model.save_pretrained(folder)

    return write


def headed_folder(architecture: str, head: dict[str, Tensor], **special: str) -> Callable[[Path], None]:
    """Return a writer of a checkpoint as published: it names missing custom code, and its head is in a separate
    file.
    """

    def write(folder: Path) -> None:
        write_backbone("qwen2", folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<extra_0>"], **special})
        tokenizer.save_pretrained(folder)
        spread(Qwen2Model.from_pretrained(folder)).save_pretrained(folder)
        body = {f"model.{name}": weight for name, weight in load_file(folder / "model.safetensors").items()}
        (folder / "model.safetensors").unlink()
        files = {"model-00001-of-00002.safetensors": body, "model-00002-of-00002.safetensors": head}
        for file, weights in files.items():
            save_file(weights, folder / file, metadata={"format": "pt"})
        positions = {name: file for file, weights in files.items() for name in weights}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": positions}))
        config = json.loads((folder / "config.json").read_text())
        config |= {"architectures": [architecture], "auto_map": {"AutoModel": f"modeling_prm.{architecture}"}}
        (folder / "config.json").write_text(json.dumps(config))

    return write


def trl_folder(folder: Path) -> None:
    write_backbone("qwen2", folder)
    spread(AutoModelForTokenClassification.from_config(Qwen2Config.from_pretrained(folder))).save_pretrained(folder)


def random_head(*shapes: tuple[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for name, shape in shapes}


QWEN_HEAD = random_head(
    ("score.0.weight", (HIDDEN, HIDDEN)),
    ("score.0.bias", (HIDDEN,)),
    ("score.2.weight", (2, HIDDEN)),
    ("score.2.bias", (2,)),
)

VALUE_HEAD = random_head(("v_head.summary.weight", (1, HIDDEN)), ("v_head.summary.bias", (1,)))

FOLDERS: dict[str, Callable[[Path], None]] = {
    "math-shepherd": math_shepherd_folder,
    "rlhflow": native_folder("llama"),
    "visualprm": native_folder("internvl"),
    "qwen": headed_folder("Qwen2ForProcessRewardModel", QWEN_HEAD, bos_token="<|im_start|>"),
    "skywork": headed_folder("Qwen2ForPrmModel", VALUE_HEAD, bos_token="<|im_start|>"),
    "trl": trl_folder,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                FOLDERS[name](made[name])
        return made[name]

    return folder


def image(width: int, height: int) -> ImageRef:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "white").save(buffer, "PNG")
    return ImageRef(data=buffer.getvalue())


def some_solutions(name: str) -> list[Solution]:
    rng = random.Random(0)
    images = {2: (image(56, 56),), 4: (image(112, 56), image(56, 56))} if name == "visualprm" else {}
    return [
        solution(tuple(rng.choice(STEPS) for _ in range(count)), "1+1=2-1", images.get(count, ()))
        for count in (2, 5, 1, 4, 3)
    ]


@torch.no_grad()
def slow_scores(name: str, folder: Path, found: Format, item: Solution) -> list[float]:
    """Score one solution from all logits, as the published code does."""
    inputs, read_BT = found.encode([item])
    positions = read_BT[0].nonzero().flatten()
    if name in ("qwen", "skywork"):
        body = load_file(folder / "model-00001-of-00002.safetensors")
        model = Qwen2Model(Qwen2Config.from_pretrained(folder))
        model.load_state_dict({key.removeprefix("model."): weight for key, weight in body.items()})
        hidden_TH = model.eval()(**inputs).last_hidden_state[0]
        if name == "skywork":
            values_T1 = hidden_TH @ VALUE_HEAD["v_head.summary.weight"].T + VALUE_HEAD["v_head.summary.bias"]
            return values_T1[positions, 0].sigmoid().tolist()
        inner_TH = (hidden_TH @ QWEN_HEAD["score.0.weight"].T + QWEN_HEAD["score.0.bias"]).relu()
        logits_T2 = inner_TH @ QWEN_HEAD["score.2.weight"].T + QWEN_HEAD["score.2.bias"]
        return logits_T2[positions].softmax(dim=-1)[:, 1].tolist()
    if name == "trl":
        model = AutoModelForTokenClassification.from_pretrained(folder)
        return model(**inputs).logits[0, positions].softmax(dim=-1)[:, 1].tolist()
    kind = AutoModelForImageTextToText if name == "visualprm" else AutoModelForCausalLM
    logits_TV = kind.from_pretrained(folder)(**inputs).logits[0]
    return logits_TV[positions][:, [found.yes_id, found.no_id]].softmax(dim=-1)[:, 0].tolist()


@pytest.mark.parametrize("name", FOLDERS)
def test_scores_of_a_checkpoint(name: str, folders: Callable[[str], Path]) -> None:
    """Scores from a folder without prm.json equal the reference computed one by one, at any batch size."""
    folder, solutions = folders(name), some_solutions(name)
    scorer = TransformersScorer(ScorerConfig(prm=str(folder), format=name))
    expected = [slow_scores(name, folder, scorer._format, item) for item in solutions]
    assert [len(scores) for scores in expected] == [2, 5, 1, 4, 3]
    assert max(map(max, expected)) - min(map(min, expected)) > 0.05
    for batch_tokens in (1, 16384):
        scorer._config = scorer._config.model_copy(update={"batch_tokens": batch_tokens})
        for got, wanted in zip(scorer.score(solutions), expected, strict=True):
            assert got.scores == pytest.approx(wanted, abs=1e-6)
    with pytest.raises(CheckpointError, match=r"set its format \(scorer\.format\)"):
        TransformersScorer(ScorerConfig(prm=str(folder)))


def test_score_positions_account_for_image_tokens(folders: Callable[[str], Path]) -> None:
    """Scores are read before each +; a 56 × 56 image takes four tokens, and two tiles with a thumbnail twelve."""
    scorer = TransformersScorer(ScorerConfig(prm=str(folders("visualprm")), format="visualprm"))
    found = scorer._format
    items = [solution(images=(image(56, 56),)), solution(images=(image(112, 56), image(56, 56)))]
    inputs, read_BT = found.encode(items)
    for row, tokens in enumerate((4, 16)):
        names = found.tokenizer.convert_ids_to_tokens(inputs["input_ids"][row].tolist())
        assert names.count("<IMG_CONTEXT>") == tokens
        positions = read_BT[row].nonzero().flatten().tolist()
        assert [names[position - 2 : position + 3] for position in positions] == [
            ["<|im_start|>", "assistant", "\n", "+", "<|im_end|>"]
        ] * 2
    text = found.text(items[1])
    assert "### Question:\n<IMG_CONTEXT>\n<IMG_CONTEXT>\n1+1?\n\n### Solution Process:\n1+1=2<|im_end|>" in text
    marked = found.text(solution(question="<image>\nHow <image> many?", images=(image(56, 56),)))
    assert "<image>" not in marked
    for token in ("<IMG_CONTEXT>", "<img>", "</img>", "<video>"):
        with pytest.raises(DataError, match=f"step 1 contains '{token}'"):
            found.mark(solution((token,)))


def test_checkpoints_of_another_kind_are_refused(folders: Callable[[str], Path]) -> None:
    """A head or an output layer is never initialized randomly."""

    def opened(folder: str, name: str) -> None:
        TransformersScorer(ScorerConfig(prm=str(folders(folder)), format=name))

    with pytest.raises(CheckpointError, match=r"a qwen .* has a head score\.\* with 2 outputs, .* none"):
        opened("skywork", "qwen")
    with pytest.raises(CheckpointError, match=r"a skywork .* head v_head\.summary\.\* with 1 outputs"):
        opened("qwen", "skywork")
    with pytest.raises(CheckpointError, match=r"has no weights for lm_head\.weight of Qwen2ForCausalLM"):
        opened("qwen", "rlhflow")
    with pytest.raises(CheckpointError, match="'<prm>' must be one token"):
        opened("rlhflow", "mm-prm")
    with pytest.raises(ConfigError, match="format"):
        load(ScorerConfig, None, ["prm=x", "format=gpt"])


def test_a_head_with_one_class_is_rejected(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "outcome"
    write_backbone("qwen2", folder)
    config = Qwen2Config.from_pretrained(folder, num_labels=1)
    AutoModelForTokenClassification.from_config(config).save_pretrained(folder)
    with pytest.raises(CheckpointError, match="with 2 outputs, but the checkpoint has 1 outputs"):
        TransformersScorer(ScorerConfig(prm=str(folder), format="trl"))
