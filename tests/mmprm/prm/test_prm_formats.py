"""Every family of process reward models, token by token, and scored from a checkpoint of its own kind.

The published tokenizers are not at hand: these are small ones of the same kinds, with the ids written out by hand.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForTokenClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
)

from mmprm.config import load
from mmprm.errors import CheckpointError, ConfigError, DataError
from mmprm.prm.formats import Format, open_format
from mmprm.prm.info import PrmInfo, PrmTokens, read_info
from mmprm.prm.model import load_prm
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.transformers_scorer import TransformersScorer
from mmprm.types import ImageRef, Problem, Solution
from tests.backbones import HIDDEN, write_backbone

CHATML = (
    "{% for m in messages %}<|head|>{{ m['role'] }}\n{{ m['content'] }}<|eot|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant\n{% endif %}"
)
LLAMA3 = (
    "<|bos|>{% for m in messages %}<|head|>{{ m['role'] }}<|/head|>\n\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
)
QWEN_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
VISUALPRM_SYSTEM = (
    "You are an advanced AI assistant, designed to serve as a process supervision model. In this task, I will provide "
    "a problem statement followed by the first step of the solution process. For each subsequent turn, I will give you "
    "a new step in the solution. Your role is to assess whether the solution process is correct up to the current "
    "step.\n\n- In the **first round**, I will input the problem and the first step of the solution process.\n- In "
    "**each subsequent round**, I will provide the next step in the solution.\n\nFor each step, you should:\n\n- "
    'Respond with **"+"** if you believe the solution process is correct up to this step.\n- Respond with **"-"** if '
    'you detect any issues or errors in the process up to this step.\n\nPlease note:\n- Only respond with **"+"** or '
    '**"-"**. Do not provide any additional explanations, comments, or justifications.\n\nYour task is to verify the '
    "accuracy and correctness of each step in the given solution process."
)
ADDED = (
    *("<|bos|>", "<|head|>", "<|/head|>", "<|eot|>", "system", "user", "assistant", "<extra_0>"),
    *(QWEN_SYSTEM, VISUALPRM_SYSTEM, "### Question:", "### Solution Process:"),
    *("Step", ":"),
)
STEPS = ("1+1=2", "2-1=1")


def byte_level(template: str = CHATML, bos: str | None = None) -> PreTrainedTokenizerFast:
    """0 1, 1 2, 2 3, 3 +, 4 -, 5 =, 6 ?, 7 space, 8 line break, 9 two of them, 10 space and +, then ADDED from 11: 11
    bos, 12 head, 13 /head, 14 eot, 15 system, 16 user, 17 assistant, 18 <extra_0>, 19 and 20 the system prompts of Qwen
    and VisualPRM as a whole, 21 and 22 VisualPRM's headings, 23 Step, 24 a
    colon."""
    vocabulary = {piece: number for number, piece in enumerate([*"123+-=?ĠĊ", "ĊĊ", "Ġ+"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ċ", "Ċ"), ("Ġ", "+")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ADDED])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, bos_token=bos)


def sentencepiece() -> PreTrainedTokenizerFast:
    """As Mistral's: spaces become ▁, one is put in front, bos is added; two spaces merge before anything else."""
    pieces = ["<unk>", "<s>", "</s>", *"▁12+-=\nки", "ки", "▁ки", "▁+", "▁-", "▁▁", "a", "Step", ":"]
    assert [pieces[position] for position in (3, 4, 9, 12, 13, 14, 15)] == ["▁", "1", "\n", "ки", "▁ки", "▁+", "▁-"]
    merges = [("▁", "▁"), ("к", "и"), ("▁", "ки"), ("▁", "+"), ("▁", "-")]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("Step", ":")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


def solution(steps: tuple[str, ...] = STEPS, question: str = "1+1?", images: tuple[ImageRef, ...] = ()) -> Solution:
    return Solution(Problem("p", question, "1", images), steps)


def form(name: str, processor: Any, **tokens: str) -> Format:
    return open_format(processor, PrmInfo(format=name, tokens=tokens))


def ids_and_places(found: Format, item: Solution) -> tuple[list[int], list[int]]:
    marked = found.mark(item)
    return list(marked.ids), list(marked.positions)


def test_math_shepherd() -> None:
    """The marker is one token with the space before it, in the middle and at the end of the text; so are the judged
    tokens, which are not those of a + without space."""
    found = form("math-shepherd", sentencepiece())
    first, second = [18, 16, 4, 19, 16], [18, 16, 5, 19, 16]  # "Step 1: " and "Step 2: "
    ids = [1, 3, 4, 6, 4, 3, *first, 4, 6, 4, 8, 5, 13, 9, *second, 5, 7, 4, 8, 4, 13]
    assert ids_and_places(found, solution(question="1+1")) == (ids, [16, 28])
    assert ids_and_places(found, solution(("1+1=2 \n", "\n2-1=1"), "1+1")) == (ids, [16, 28])
    assert ids_and_places(found, solution(("Step 1: 1+1=2", "Step 2: 2-1=1"), "1+1")) == (ids, [16, 28])
    assert (found.yes_id, found.no_id, found.head) == (14, 15, "two_tokens")
    spaced = solution(("1 + 1",), "a")
    assert ids_and_places(found, spaced) == ([1, 3, 17, 3, *first, 4, 14, 3, 4, 13], [13])
    with pytest.raises(DataError, match="problem p: step 2 contains 'ки'"):
        found.mark(solution(("1", "1 ки 2")))
    assert ids_and_places(found, solution(("1", ""), "a")) == ([1, 3, 17, 3, *first, 4, 13, 9, *second, 13], [10, 17])
    merging = form("math-shepherd", byte_level(), marker="+", yes="=", no="-")
    with pytest.raises(DataError, match=r"problem p: step 1: its text merges with the following marker '\+'"):
        merging.mark(solution(("1",), "1"))
    with pytest.raises(CheckpointError, match="'ки' must be one token"):
        form("math-shepherd", byte_level())


def test_openrlhf_is_math_shepherd_with_other_tokens() -> None:
    found = form("math-shepherd", byte_level(), marker="<extra_0>", yes="=", no="-")
    assert ids_and_places(found, solution(question="1?")) == (
        [
            *(0, 6, 7, 23, 7, 0, 24, 7, 0, 3, 0, 5, 1, 7, 18),
            *(8, 23, 7, 1, 24, 7, 1, 4, 0, 5, 0, 7, 18),
        ],
        [14, 27],
    )
    assert (found.yes_id, found.no_id) == (5, 4)


def test_qwen() -> None:
    found = form("qwen", byte_level())
    head = [12, 15, 8, 19, 14, 8, 12, 16, 8, 0, 3, 0, 6, 14, 8, 12, 17, 8]
    assert ids_and_places(found, solution()) == (
        [*head, 0, 3, 0, 5, 1, 18, 1, 4, 0, 5, 0, 18, 14, 8],
        [23, 29],
    )
    assert ids_and_places(found, solution(("", "2"))) == ([*head, 18, 1, 18, 14, 8], [18, 20])
    assert (found.yes_id, found.no_id, found.head) == (None, None, "two_classes")
    with pytest.raises(DataError, match="problem p: question contains '<extra_0>'"):
        found.mark(solution(question="<extra_0>"))
    with pytest.raises(CheckpointError, match="'<extra_0>' must be one token"):
        form("qwen", sentencepiece_with_template())


def sentencepiece_with_template() -> PreTrainedTokenizerFast:
    tokenizer = sentencepiece()
    tokenizer.chat_template = CHATML
    return tokenizer


def test_rlhflow() -> None:
    """Read before each assistant's +, which differs from a + in a step, with and without space."""
    found = form("rlhflow", byte_level(LLAMA3))
    first = [11, 12, 16, 13, 9, 0, 3, 0, 6, 7, 0, 10, 0, 5, 1, 14, 12, 17, 13, 9, 3, 14]
    second = [12, 16, 13, 9, 1, 4, 0, 5, 0, 14, 12, 17, 13, 9, 3, 14]
    assert ids_and_places(found, solution(("1 +1=2 ", "2-1=1"))) == ([*first, *second], [19, 35])
    assert (found.yes_id, found.no_id, found.head) == (3, 4, "two_tokens")
    plus = ids_and_places(found, solution(("+", "", "+")))
    assert plus[0] == [
        *(11, 12, 16, 13, 9, 0, 3, 0, 6, 10, 14, 12, 17, 13, 9, 3, 14),
        *(12, 16, 13, 9, 14, 12, 17, 13, 9, 3, 14),
        *(12, 16, 13, 9, 3, 14, 12, 17, 13, 9, 3, 14),
    ]
    assert plus[1] == [14, 25, 37]
    with pytest.raises(CheckpointError, match=r"'12' must be one token in the assistant's turn, but is part of '1'"):
        form("rlhflow", byte_level(LLAMA3), yes="12")
    with pytest.raises(CheckpointError, match="no chat template"):
        form("rlhflow", sentencepiece())
    with pytest.raises(CheckpointError, match="drops assistant turns"):
        form("rlhflow", byte_level("{% for m in messages %}{{ m['role'] }}{% endfor %}"))


def test_judged_tokens_are_those_of_the_assistants_turn() -> None:
    """A template with a space before the turn: the tokens have it too, as the model predicts them."""
    found = form("rlhflow", byte_level("{% for m in messages %}<|head|> {{ m['content'] }}{% endfor %}"), no="-")
    assert (found.yes_id, found.no_id) == (10, 4)
    assert ids_and_places(found, solution(("1",), "1")) == ([12, 7, 0, 7, 0, 12, 10], [5])


def test_visualprm_without_image() -> None:
    found = form("visualprm", byte_level())
    opening = [12, 15, 8, 20, 14, 8, 12, 16, 8, 21, 8, 0, 3, 0, 6, 9, 22, 8]
    assert ids_and_places(found, solution()) == (
        [
            *(*opening, 0, 3, 0, 5, 1, 14, 8, 12, 17, 8, 3, 14, 8),
            *(12, 16, 8, 1, 4, 0, 5, 0, 14, 8, 12, 17, 8, 3, 14, 8),
        ],
        [27, 43],
    )
    assert (found.yes_id, found.no_id, found.head) == (3, 4, "two_tokens")


def test_skywork() -> None:
    """Tokenised apart: the line breaks in and behind a step stay two tokens."""
    found = form("skywork", byte_level(bos="<|bos|>"))
    assert ids_and_places(found, solution()) == (
        [11, 0, 3, 0, 6, 8, 0, 3, 0, 5, 1, 8, 1, 4, 0, 5, 0, 8],
        [11, 17],
    )
    assert ids_and_places(found, solution(("1\n", ""))) == ([11, 0, 3, 0, 6, 8, 0, 8, 8, 8], [8, 9])
    with pytest.raises(CheckpointError, match="no bos token"):
        form("skywork", byte_level())


def test_trl() -> None:
    """Question and first step are tokenized apart, so that `? +` has no token for space and +."""
    found = form("trl", byte_level())
    assert ids_and_places(found, solution()) == ([0, 3, 0, 6, 0, 3, 0, 5, 1, 8, 1, 4, 0, 5, 0, 8], [9, 15])
    assert ids_and_places(found, solution(("+1", "\n"), "1 ")) == ([0, 7, 3, 0, 8, 8, 8], [4, 6])
    with_bos = form("trl", byte_level(bos="<|bos|>"), marker="\n\n")
    assert ids_and_places(with_bos, solution(("1",), "2")) == ([11, 1, 0, 9], [3])
    longer = form("trl", byte_level(), marker="=?")
    assert ids_and_places(longer, solution(("1",), "2")) == ([1, 0, 5, 6], [3])


def test_padding_is_on_the_right_and_read_nowhere() -> None:
    found = form("rlhflow", byte_level(LLAMA3))
    inputs, read_BT = found.encode([solution(("1",), "1"), solution()])
    assert inputs["attention_mask"].sum(dim=1).tolist() == [15, 38]
    assert read_BT.nonzero().tolist() == [[0, 12], [1, 19], [1, 35]]


@pytest.mark.parametrize("name", ["math-shepherd", "qwen", "rlhflow", "visualprm", "skywork", "trl"])
def test_what_no_family_can_express(name: str) -> None:
    found = form(name, sentencepiece() if name == "math-shepherd" else byte_level(bos="<|bos|>"))
    with pytest.raises(DataError, match="problem p: a solution must have at least one step"):
        found.mark(solution(()))
    with pytest.raises(DataError, match="problem p: has images"):
        found.mark(solution(images=(ImageRef(path="x.png"),)))


def test_tokens_come_from_the_family(tmp_path: Path) -> None:
    (tmp_path / "prm.json").write_text('{"format": "math-shepherd", "tokens": {"marker": "<extra_0>"}}')
    assert read_info(tmp_path).tokens == PrmTokens(marker="<extra_0>", yes="+", no="-")
    assert PrmInfo(format="qwen").tokens.marker == "<extra_0>"
    assert PrmInfo().tokens == PrmTokens()
    with pytest.raises(CheckpointError, match=r"has format math-shepherd, but scorer\.format=qwen"):
        read_info(tmp_path, "qwen")
    with pytest.raises(CheckpointError, match="has format 'math-shepherd', which only supports scoring"):
        load_prm(tmp_path)
    assert read_info(tmp_path / "other", "trl").format == "trl"
    with pytest.raises(CheckpointError, match=r"set scorer\.format to one of math-shepherd, qwen, rlhflow"):
        read_info(tmp_path / "other")


# Checkpoints of each kind, with random weights.


def spread(model: nn.Module, factor: float = 8.0) -> nn.Module:
    """Larger weights, so that scores differ."""
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
        model.config.get_text_config().max_position_embeddings = 4096  # a token a character: long system prompts
        model.save_pretrained(folder)

    return write


def headed_folder(architecture: str, head: dict[str, Tensor], **special: str) -> Callable[[Path], None]:
    """As published: the code of a class of its own is named and not there; the head lies in another file."""

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
    """One solution at a time, all logits, as the published code computes them."""
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
    """Equal to the slow computation of each alone, in batches of any size; from a folder without prm.json."""
    folder, solutions = folders(name), some_solutions(name)
    scorer = TransformersScorer(ScorerConfig(prm=str(folder), format=name))
    expected = [slow_scores(name, folder, scorer._format, item) for item in solutions]
    assert [len(scores) for scores in expected] == [2, 5, 1, 4, 3]
    assert max(map(max, expected)) - min(map(min, expected)) > 0.05
    for batch_tokens in (1, 16384):
        scorer._config = scorer._config.model_copy(update={"batch_tokens": batch_tokens})
        for got, wanted in zip(scorer.score(solutions), expected, strict=True):
            assert got.scores == pytest.approx(wanted, abs=1e-6)
    with pytest.raises(CheckpointError, match=r"set scorer\.format"):
        TransformersScorer(ScorerConfig(prm=str(folder)))


def test_places_stay_where_they_are_when_images_grow(folders: Callable[[str], Path]) -> None:
    """A 56 × 56 image is one tile of four tokens; two tiles and a thumbnail are twelve. Read before each +."""
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
    """Never a head or an output layer of random weights."""

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


def test_a_head_with_one_class_is_no_judge(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "outcome"
    write_backbone("qwen2", folder)
    config = Qwen2Config.from_pretrained(folder, num_labels=1)
    AutoModelForTokenClassification.from_config(config).save_pretrained(folder)
    with pytest.raises(CheckpointError, match="with 2 outputs, but the checkpoint has 1 outputs"):
        TransformersScorer(ScorerConfig(prm=str(folder), format="trl"))
