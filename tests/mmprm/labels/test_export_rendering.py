"""Test that a model trained on an export is scored on the same tokens, for each format with a scorer."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoProcessor

from mmprm.backbone.processor import image_placeholder
from mmprm.labels.formats import LABEL_FORMATS, VISUALPRM_SYSTEM, Content, OutputRow, Record, content_of, record_of
from mmprm.prm.formats import open_format
from mmprm.prm.info import PrmInfo
from mmprm.types import Counts, ImageRef, LabeledPath, Problem, Solution
from tests.backbones import write_backbone
from tests.mmprm.prm.test_prm_formats import byte_level, sentencepiece

STEPS = (" 1+1=2\n", "2-1=1")
CORRECT = (Counts(1, 0), Counts(1, 0))
ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


def shepherd_ids(record: Record, tokenizer: Any) -> list[int]:
    """Tokenize one text with a mark after each step."""
    return tokenizer(record["input"])["input_ids"]


def trl_ids(record: Record, tokenizer: Any) -> list[int]:
    """Tokenize the prompt, each completion and the separators separately, as TRL does."""
    ids = tokenizer.encode(record["prompt"], add_special_tokens=False)
    for completion in record["completions"]:
        ids += tokenizer.encode(completion, add_special_tokens=False)
        ids += tokenizer.encode("\n", add_special_tokens=False)
    return ids


def chat_ids(record: Record, processor: Any) -> list[int]:
    """Render each turn with the chat template, replacing `<image>` by the template's own image text."""
    turns = [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in record["conversations"]]
    text = processor.apply_chat_template(turns, tokenize=False)
    return _tokens(processor, text)


def mm_prm_ids(record: Record, processor: Any) -> list[int]:
    """Render the human's text as the assistant turn after an empty user turn."""
    value = record["conversations"][0]["value"]
    turns = [{"role": "user", "content": ""}, {"role": "assistant", "content": value}]
    return _tokens(processor, processor.apply_chat_template(turns, tokenize=False))


def _tokens(processor: Any, text: str) -> list[int]:
    if hasattr(processor, "image_processor"):
        text = text.replace("<image>", image_placeholder(processor))
    return getattr(processor, "tokenizer", processor)(text, add_special_tokens=False)["input_ids"]


SCORERS: dict[str, tuple[str, Callable[[Record, Any], list[int]]] | None] = {
    "trl": ("trl", trl_ids),
    "math-shepherd": ("math-shepherd", shepherd_ids),
    "openrlhf": ("math-shepherd", shepherd_ids),
    "visualprm": ("visualprm", chat_ids),
    "mm-prm": ("mm-prm", mm_prm_ids),
    "prm800k": None,  # a format that only records labels: no model is trained on its text
}


@pytest.fixture(scope="module")
def internvl(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("internvl")
    write_backbone("internvl", folder)
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.add_tokens(["<prm>", "Yes", "No"], special_tokens=True)
    return processor


def exported(name: str, problem: Problem, steps: tuple[str, ...] = STEPS) -> tuple[Content, Record]:
    path = LabeledPath(problem.id, steps, CORRECT, False)
    content = content_of(path, problem, LABEL_FORMATS[name], "hard", 0.0)
    assert content is not None
    images = tuple(f"images/{number}.png" for number in range(len(problem.images)))
    record = record_of(OutputRow(content, problem, False, images), LABEL_FORMATS[name])
    assert record is not None
    return content, record


def test_every_format_has_a_rendering() -> None:
    assert SCORERS.keys() == LABEL_FORMATS.keys()


@pytest.mark.parametrize("name", [name for name, scorer in SCORERS.items() if scorer])
def test_export_and_scorer_render_the_same_tokens(name: str, internvl: Any) -> None:
    family, training_ids = SCORERS[name] or pytest.fail("has none")
    processor = sentencepiece() if family == "math-shepherd" else internvl if family == "mm-prm" else byte_level()
    scorer = open_format(processor, PrmInfo(format=family))
    problem = Problem("p", "1+1", "2", choices=("2", "1"))
    _, record = exported(name, problem)
    ids = training_ids(record, processor)
    assert ids == list(scorer.mark(Solution(problem, STEPS)).ids)
    assert len(ids) > 10


@pytest.mark.parametrize("name", ["visualprm", "mm-prm"])
@pytest.mark.parametrize("count", [1, 2])
def test_images_have_the_same_positions(name: str, count: int, internvl: Any) -> None:
    family, training_ids = SCORERS[name] or pytest.fail("has none")
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "PNG")
    problem = Problem("p", "<image>\nHow many?", "2", (ImageRef(data=buffer.getvalue()),) * count)
    scorer = open_format(internvl, PrmInfo(format=family))
    _, record = exported(name, problem)
    assert training_ids(record, internvl) == list(scorer.mark(Solution(problem, STEPS)).ids)


@pytest.mark.parametrize("name", ["math-shepherd", "openrlhf"])
def test_numbered_steps_keep_one_number(name: str) -> None:
    """Numbered and unnumbered steps are exported as the same record."""
    problem = Problem("p", "1+1", "2")
    plain, numbered = (exported(name, problem, steps) for steps in (STEPS, ("Step 1: 1+1=2", "Step 2: 2-1=1")))
    assert plain == numbered
    assert plain[1]["input"] == "1+1 Step 1: 1+1=2 ки\nStep 2: 2-1=1 ки"


def test_the_published_prompt_is_required() -> None:
    from mmprm.prm import formats

    assert formats.VISUALPRM_SYSTEM is VISUALPRM_SYSTEM
    assert len(VISUALPRM_SYSTEM) == 945
