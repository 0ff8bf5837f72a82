"""Train the policy of step_borders.py, which writes calculations in step tags with a Qwen-like byte-level BPE."""

from __future__ import annotations

import itertools
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from mmprm.tiny.world import OPERATORS
from mmprm.types import Problem, Steps

PAD, BEGIN, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Regular expression with which Qwen's tokenizer splits text before it applies BPE merges."""
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BETWEEN = {"tags": "", "lines": "\n", "blank lines": "\n\n"}
MISTAKE_RATE = 0.12
DROPOUT = 0.1


def calculation(rng: random.Random) -> tuple[Problem, list[int], list[str]]:
    while True:
        digits = [rng.randint(1, 9) for _ in range(rng.randint(4, 7))]
        signs = [rng.choice(list(OPERATORS)) for _ in digits[1:]]
        values = list(results(digits, signs))
        if all(0 <= value < 100 for value in values):
            break
    words = itertools.chain.from_iterable(zip(signs, map(str, digits[1:]), strict=True))
    question = f"Left to right: {' '.join([str(digits[0]), *words])} = ?"
    return Problem(question, question, str(values[-1])), digits, signs


def results(digits: Sequence[int], signs: Sequence[str]) -> Iterator[int]:
    pairs = zip(signs, digits[1:], strict=True)
    values = itertools.accumulate(pairs, lambda value, pair: OPERATORS[pair[0]](value, pair[1]), initial=digits[0])
    return itertools.islice(values, 1, None)


def solution(digits: Sequence[int], signs: Sequence[str], rng: random.Random) -> Steps:
    """Write a solution in which some results are off by one or ten and later steps build on the error."""
    value, steps = digits[0], []
    for sign, digit in zip(signs, digits[1:], strict=True):
        result = OPERATORS[sign](value, digit)
        if rng.random() < MISTAKE_RATE:
            result = abs(result + rng.choice((-10, -1, 1, 10)))
        steps.append(f"<step>{value}{sign}{digit}={result}</step>")
        value = result
    return (*steps, f"<answer>{value}</answer>")


def text_of(problem: Problem, response: str = "") -> str:
    return f"{BEGIN}user\n{problem.question}{END}\n{BEGIN}assistant\n{response}"


def examples(rng: random.Random) -> Iterator[tuple[str, str]]:
    """Yield pairs of a prompt and a response, with a random separator between steps."""
    while True:
        problem, digits, signs = calculation(rng)
        yield text_of(problem), rng.choice(list(BETWEEN.values())).join(solution(digits, signs, rng)) + END


def build_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[PAD, BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map("".join, itertools.islice(examples(random.Random(seed)), 2000)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[BEGIN],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def train(folder: Path, steps: int, batch: int, seed: int, beginning: Path | None = None) -> None:
    """Train a policy from random weights, or continue training one with mixed tokenizations (BPE dropout).

    With mixed tokenizations, every second batch merges its tokens at random, because large corpora also contain text
    that is not tokenized in the usual way.
    """
    torch.manual_seed(seed)
    if beginning is None:
        tokenizer = build_tokenizer(seed)
        model = build_model(tokenizer)
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(beginning)
        model = Qwen2ForCausalLM.from_pretrained(beginning)
    joined = tokenizer.backend_tokenizer.model
    rate = 2e-3 if beginning is None else 5e-4
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.05)
    source, begun = examples(random.Random(f"{seed}/train")), time.monotonic()
    for step in range(steps):
        joined.dropout = DROPOUT if beginning is not None and step % 2 else None
        loss = loss_of(model, tokenizer, list(itertools.islice(source, batch)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step >= steps - 2:
            print(f"{step}/{steps} loss {loss.item():.4f} after {time.monotonic() - begun:.0f} s", file=sys.stderr)
    joined.dropout = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def loss_of(model: Qwen2ForCausalLM, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
    """Compute the mean cross-entropy over response tokens."""
    prompts, responses = (
        tokenizer(list(texts), add_special_tokens=False).input_ids for texts in zip(*pairs, strict=True)
    )
    rows = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    longest = max(map(len, rows))
    ids_BT = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels_BT = torch.full((len(rows), longest), -100)
    for b, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        ids_BT[b, : len(row)] = torch.tensor(row)
        labels_BT[b, len(prompt) : len(row)] = torch.tensor(row[len(prompt) :])
    logits_BTV = model(ids_BT, use_cache=False).logits
    return cross_entropy(logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten())
