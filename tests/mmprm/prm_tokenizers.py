"""Provide small tokenizers of the kinds that published process reward models use, and solutions to render."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    PreTrainedTokenizerFast,
)

from mmprm.prm.formats import Format, open_format
from mmprm.prm.info import PrmInfo
from mmprm.types import ImageRef, Problem, Solution

CHATML = (
    "{% for m in messages %}<|head|>{{ m['role'] }}\n{{ m['content'] }}<|eot|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant\n{% endif %}"
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
    """Return a byte-level tokenizer with fixed ids.

    0 1, 1 2, 2 3, 3 +, 4 -, 5 =, 6 ?, 7 space, 8 line break, 9 two of them, 10 space and +, then ADDED from 11: 11 bos,
    12 head, 13 /head, 14 eot, 15 system, 16 user, 17 assistant, 18 <extra_0>, 19 and 20 the whole system prompts of
    Qwen and VisualPRM, 21 and 22 VisualPRM's headings, 23 Step, 24 a colon.
    """
    vocabulary = {piece: number for number, piece in enumerate([*"123+-=?ĠĊ", "ĊĊ", "Ġ+"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ċ", "Ċ"), ("Ġ", "+")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ADDED])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, bos_token=bos)


def sentencepiece() -> PreTrainedTokenizerFast:
    """Return a tokenizer like Mistral's: ▁ for spaces and before the text, bos added, two spaces merged first."""
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


def sentencepiece_with_template() -> PreTrainedTokenizerFast:
    tokenizer = sentencepiece()
    tokenizer.chat_template = CHATML
    return tokenizer
