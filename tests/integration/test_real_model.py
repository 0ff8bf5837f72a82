"""Test the pretrained model that `make real-model` converts: its token ids, chat template, and text generated
by vLLM.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmprm.prompts import PromptConfig
from mmprm.rendering import end_of_turn, opening, render
from mmprm.types import Problem, SampleRequest

MODEL = Path(__file__).parents[2] / ".real-model" / "SmolLM2-135M-Instruct"
PLAIN = PromptConfig(preset="plain")
QUESTIONS = (
    "Tom has 3 apples and buys 4 more. How many apples does he have?",
    "Name the capital of France.",
    "What is 15 + 27? Explain it in two steps.",
)
TOKENS = 24
IDS = {
    "Hello, world!": (19556, 28, 905, 17),
    "12 + 345 = 357": (33, 34, 1232, 216, 35, 36, 37, 446, 216, 35, 37, 39),
    "The answer is 42.": (504, 2988, 314, 216, 36, 34, 30),
    "Step 1: 3 × 4 = 12.\n\nDone.": (
        3512,
        216,
        33,
        42,
        216,
        35,
        15493,
        216,
        36,
        446,
        216,
        33,
        34,
        30,
        198,
        198,
        41462,
        30,
    ),
    "<step>2+3=5.</step>\n": (44, 5528, 46, 34, 27, 35, 45, 37, 30, 9617, 5528, 46, 198),
    " leading space": (2899, 1898),
    "x = \\frac{1}{2}": (104, 446, 3814, 18169, 107, 33, 15009, 34, 109),
    "naïve café – 中文": (3546, 46494, 37366, 816, 216, 28589, 29184),
    "It costs $1,250.50.": (1589, 3499, 1885, 33, 28, 34, 37, 32, 30, 37, 32, 30),
    "<|im_start|>user\nHi<|im_end|>\n": (1, 4093, 198, 26843, 2, 198),
}

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not MODEL.is_dir(), reason="the pretrained model is not here; make real-model fetches it"),
]


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def vllm_sampler() -> Iterator:
    """Return a greedy float32 sampler, pinned to no core because it is the only engine."""
    from mmprm.sampling.config import EngineConfig, SamplingConfig
    from mmprm.sampling.vllm_sampler import VllmSampler

    engine = EngineConfig(model=str(MODEL), dtype="float32", max_model_len=512, kv_cache_gib=0.5)
    sampler = VllmSampler(engine, SamplingConfig(max_tokens=TOKENS, temperature=0), PLAIN)
    yield sampler
    sampler.close()


@pytest.mark.parametrize("text", IDS)
def test_the_ids_of_a_text(tokenizer, text: str) -> None:
    assert tuple(tokenizer(text).input_ids) == IDS[text]
    assert tokenizer.decode(IDS[text]) == text


def test_a_turn_ends_with_the_token_that_stops_generation(tokenizer) -> None:
    from transformers import GenerationConfig

    end = end_of_turn(tokenizer, PLAIN)
    assert end == "<|im_end|>\n"
    assert tokenizer(end).input_ids[0] == tokenizer.eos_token_id == GenerationConfig.from_pretrained(MODEL).eos_token_id
    assert opening(tokenizer, PLAIN) == ""


def test_the_template_adds_a_system_turn_only_without_one(tokenizer) -> None:
    problem = Problem("p", "Hi", "")
    default = render(tokenizer, problem, "<step>", PLAIN)
    own = render(tokenizer, problem, "", PromptConfig(preset="plain", system="Add."))
    assert default.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert default.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<step>")
    assert own == "<|im_start|>system\nAdd.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_greedy_text_equals_that_of_transformers(tokenizer, vllm_sampler) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    problems = [Problem(str(number), question, "") for number, question in enumerate(QUESTIONS)]
    requests = [SampleRequest(problem, "", 1, 0, greedy=True) for problem in problems]

    async def sampled() -> list[str]:
        return [(await vllm_sampler.sample(request))[0].text for request in requests]

    expected = []
    for problem in problems:
        ids_1T = torch.tensor([tokenizer(render(tokenizer, problem, "", PLAIN)).input_ids])
        mask_1T = torch.ones_like(ids_1T)
        out_1T = model.generate(ids_1T, attention_mask=mask_1T, max_new_tokens=TOKENS, do_sample=False)
        expected.append(tokenizer.decode(out_1T[0, ids_1T.shape[1] :], skip_special_tokens=True))
    assert asyncio.run(sampled()) == expected
    assert "7" in expected[0]
    assert "Paris" in expected[1]
