"""Test the tiny policy: its tokens, its inputs against the real processor, and the shipped weights."""

from __future__ import annotations

import json
import random

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmprm.problems import open_image
from mmprm.prompts import PromptConfig
from mmprm.rendering import render
from mmprm.tiny import lessons
from mmprm.tiny.evaluate import evaluate_tiny
from mmprm.tiny.image import COLORS
from mmprm.tiny.model import build_model, weights_path
from mmprm.tiny.tokenizer import build_processor
from mmprm.tiny.world import NO_MISTAKES, make_problems, solve

PLAIN = PromptConfig(preset="plain")


@pytest.fixture(scope="module")
def processor():
    return build_processor()


def test_words_that_matter_are_one_token(processor) -> None:
    words = [
        "<step>",
        "</step>",
        "<answer>",
        "</answer>",
        "Question:",
        "Process:",
        "Yes",
        "No",
        "\n",
        "×",
        "<|im_end|>",
    ]
    for word in [*words, *COLORS, *(f"{color}=" for color in COLORS)]:
        assert len(processor.tokenizer(word)["input_ids"]) == 1, word


@pytest.mark.parametrize("text", ["<step>blue=5</step>\n", "Question: 12 - 3 × red= blue = ?", "Any English, “ASCII”!"])
def test_text_survives_the_tokenizer(processor, text: str) -> None:
    ids = processor.tokenizer(text)["input_ids"]
    assert processor.tokenizer.decode(ids) == text.replace("“", "<|unknown|>").replace("”", "<|unknown|>")


def test_prompt_and_prefill(processor) -> None:
    problem = make_problems(1, 0, "dev")[0].problem
    assert render(processor, problem, "<step>blue=", PLAIN) == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        f"{problem.question}<|im_end|>\n<|im_start|>assistant\n<step>blue="
    )
    turns = [{"role": "user", "content": "Hi "}, {"role": "assistant", "content": "<step>blue="}]
    text = processor.tokenizer.apply_chat_template(turns, tokenize=False, continue_final_message=True)
    assert text == "<|im_start|>user\nHi <|im_end|>\n<|im_start|>assistant\n<step>blue="


def test_training_inputs_equal_those_of_the_processor(processor) -> None:
    problems = make_problems(2, 0, "train")
    texts = [render(processor, tiny.problem, "".join(solve(tiny)), PLAIN) + "<|im_end|>" for tiny in problems]
    images = [open_image(tiny.problem.images[0]) for tiny in problems]
    expected = processor(text=texts, images=images, padding=True, padding_side="right", return_tensors="pt")
    batch = lessons.Collator(processor)([lessons.solution(tiny, random.Random(0), NO_MISTAKES) for tiny in problems])
    for name in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw"):
        assert torch.equal(batch[name], expected[name]), name
    model = build_model(processor.tokenizer).model
    positions, _ = model.get_rope_index(
        expected["input_ids"],
        expected["mm_token_type_ids"],
        expected["image_grid_thw"],
        attention_mask=expected["attention_mask"],
    )
    kept = expected["attention_mask"].bool().expand(3, -1, -1)
    assert torch.equal(batch["position_ids"][kept], positions[kept])
    targets = [token for token in batch["labels"][0].tolist() if token != lessons.IGNORED]
    assert processor.tokenizer.decode(targets) == "".join(solve(problems[0])) + "<|im_end|>"


def test_checks_are_half_true_and_a_drill_has_no_image(processor) -> None:
    rng = random.Random(0)
    asked = [lessons.checks(tiny, rng) for tiny in make_problems(50, 0, "train")]
    answers = [part.text for lesson in asked for part in lesson.parts if part.target]
    assert set(answers) == {"Yes", "No"}
    assert 0.4 < answers.count("Yes") / len(answers) < 0.6
    batch = lessons.Collator(processor)([lessons.drill(rng)])
    assert "pixel_values" not in batch
    assert batch["position_ids"][0, 0].tolist() == list(range(batch["input_ids"].shape[1]))


def test_the_shipped_policy() -> None:
    """The recorded training metrics meet the documented bounds, and a small new evaluation agrees with them."""
    files = list(weights_path().iterdir())
    assert sum(file.stat().st_size for file in files) <= 8_000_000
    metrics = json.loads((weights_path() / "tiny.json").read_text())
    assert 0.35 <= metrics["pass_at_1"] <= 0.65
    assert metrics["policy_blank_image_accuracy"] < 0.15
    assert metrics["incorrect_readings"] > 0.02
    assert metrics["incorrect_arithmetic"] > 0.02
    assert metrics["train_seconds"] <= 45 * 60

    model = AutoModelForImageTextToText.from_pretrained(weights_path())
    assert sum(parameter.numel() for parameter in model.parameters()) <= 3_000_000
    today = evaluate_tiny(model, AutoProcessor.from_pretrained(weights_path()), count=100, seed=1)
    assert 0.30 <= today["pass_at_1"] <= 0.70
    assert today["greedy_accuracy"] >= today["pass_at_1"] + 0.1
    assert today["policy_blank_image_accuracy"] < 0.15
    assert today["faithful"] > 0.9
