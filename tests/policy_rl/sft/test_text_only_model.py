"""Test a text-only Llama whose template adds a system turn, accepts only text, and pads with its end-of-turn token.

Pretrained small models such as SmolLM2-Instruct are like this.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mmprm.errors import DataError
from mmprm.preflight import check_policy
from mmprm.prompts import PromptConfig
from mmprm.rendering import end_of_turn, render, turn_beginning
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.types import ImageRef, Problem
from policy_rl.sft.batch import ConversationEncoder, collate_conversations
from policy_rl.sft.conversations import Conversation
from tests.byte_level import END, qwen_like

TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|system|>Help.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
PLAIN = PromptConfig(preset="plain")
PROBLEM = Problem("p", "What is 2×3?", "6")
STEPS = "Step 1: 2×3=6.\nThe answer is 6."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = qwen_like()
    tokenizer.chat_template, tokenizer.pad_token = TEMPLATE, END
    end = tokenizer.eos_token_id
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def parts(folder: Path) -> tuple[Any, Any]:
    from mmprm.backbone.load import load_backbone

    return load_backbone(str(folder), torch.float32)


def test_the_preflight_checks_pass(folder: Path) -> None:
    owner = check_policy(EngineConfig(model=str(folder)), SamplingConfig(max_tokens=64), PLAIN, [PROBLEM], 4)
    assert render(owner, PROBLEM, "Step 1: ", PLAIN) == (
        "<|system|>Help.<|im_end|>\n<|user|>What is 2×3?<|im_end|>\n<|assistant|>Step 1: "
    )
    assert turn_beginning(owner, PLAIN) == ""
    assert end_of_turn(owner, PLAIN) == "<|im_end|>\n"


def test_a_problem_with_an_image_is_refused(folder: Path) -> None:
    seen = Problem("seen", "How many?", "6", (ImageRef(path="a.png"),))
    with pytest.raises(DataError, match="reads text only"):
        check_policy(EngineConfig(model=str(folder)), SamplingConfig(max_tokens=64), PLAIN, [seen])


def test_the_end_of_a_turn_is_learned_although_it_is_also_the_padding(parts: tuple[Any, Any]) -> None:
    backbone, tokenizer = parts
    encoder = ConversationEncoder(backbone, tokenizer, prompt=PLAIN)
    turns = ({"role": "user", "content": PROBLEM.question}, {"role": "assistant", "content": STEPS})
    short = (turns[0], {"role": "assistant", "content": "6"})
    rows = [[encoder(Conversation(name, each))] for name, each in (("long", turns), ("short", short))]
    batch = collate_conversations(rows, encoder)
    learned = [tokenizer.decode(ids_T[mask_T]) for ids_T, mask_T in zip(batch.token_NT, batch.response_NT, strict=True)]
    assert [text.removesuffix("\n") for text in learned] == [f"{STEPS}{END}", f"6{END}"]
    width, length = batch.present_BL.shape[1], len(rows[1][0].ids_T)
    assert batch.present_BL.sum(dim=1).tolist() == [width, length]
