"""Evaluate the tiny policy on held-out problems, sampling with transformers at temperature 1."""

from __future__ import annotations

import torch
from PIL import Image
from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from mmprm.problems import open_image
from mmprm.prompts import PromptConfig
from mmprm.rendering import render
from mmprm.steps import split
from mmprm.tiny.world import TinyProblem, error_kind, judge_steps, make_problems

MAX_TOKENS = 96


def evaluate_tiny(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, count: int, seed: int
) -> dict[str, float]:
    """Evaluate the policy on `count` test problems, once with their images and once with blank images.

    `pass_at_1` is the fraction of correct answers; `incorrect_readings` and `incorrect_arithmetic` are the fractions of
    incorrect steps of each kind. `faithful` is the fraction of solutions whose answer is correct if and only if all
    their steps are. `mean_tokens` is the mean response length.
    """
    problems = make_problems(count, seed, "test")
    torch.manual_seed(seed)
    model.eval()
    responses = respond(model, processor, problems)
    blank = respond(model, processor, problems, blank=True)
    incorrect = {"reading": 0, "arithmetic": 0}
    total = {"reading": 0, "arithmetic": 0}
    faithful = 0
    for tiny, response in zip(problems, responses, strict=True):
        steps = split(response, "tags").steps
        truths = judge_steps(tiny, steps)
        faithful += is_correct(tiny, response) == (bool(steps) and all(truths))
        for step, true in zip(steps, truths, strict=True):
            total[error_kind(step)] += 1
            incorrect[error_kind(step)] += not true
    tokens = processor.tokenizer(responses, add_special_tokens=False)["input_ids"]
    return {
        "pass_at_1": sum(map(is_correct, problems, responses)) / count,
        "greedy_accuracy": sum(map(is_correct, problems, respond(model, processor, problems, sample=False))) / count,
        "policy_blank_image_accuracy": sum(map(is_correct, problems, blank)) / count,
        "incorrect_readings": incorrect["reading"] / max(1, total["reading"]),
        "incorrect_arithmetic": incorrect["arithmetic"] / max(1, total["arithmetic"]),
        "faithful": faithful / count,
        "mean_tokens": sum(map(len, tokens)) / count + 1,  # plus the end token, which decoding drops
        "problems": count,
    }


def is_correct(tiny: TinyProblem, response: str) -> bool:
    """Return whether a response ends with the correct answer."""
    return response.endswith(f"<answer>{tiny.problem.answer}</answer>")


@torch.inference_mode()
def respond(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    problems: list[TinyProblem],
    *,
    blank: bool = False,
    sample: bool = True,
    batch: int = 250,
) -> list[str]:
    """Generate one response per problem with torch's global random state; with `blank`, all images are plain gray."""
    processor.tokenizer.padding_side = "left"  # generate() appends after the last position of each row
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0} if sample else {"do_sample": False}
    special = {"eos_token_id": processor.tokenizer.eos_token_id, "pad_token_id": processor.tokenizer.pad_token_id}
    responses = []
    for start in range(0, len(problems), batch):
        part = problems[start : start + batch]
        texts = [render(processor, tiny.problem, "", PromptConfig(preset="plain")) for tiny in part]
        images = [open_image(tiny.problem.images[0]) for tiny in part]
        if blank:
            images = [Image.new("RGB", image.size, (128, 128, 128)) for image in images]
        inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
        settings = GenerationConfig(max_new_tokens=MAX_TOKENS, **options, **special)
        tokens = model.generate(**inputs, generation_config=settings)[:, inputs["input_ids"].shape[1] :]
        responses += processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return responses
