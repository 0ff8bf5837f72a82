"""What a prefix costs that ends inside a token of the policy. `make bench-borders` writes results/borders.json.

A small text policy with a byte-level vocabulary cut like Qwen's is trained to write calculations, its step tags one
after the other (`><` is a token), line by line (`>\\n`) or with blank lines between (`>\\n\\n`). Its own solutions are
cut after each tag, and the same states are continued by the ids that the policy wrote and by their text.

inside_tokens   borders at which the prompt ends inside a token of the policy
difference      mean of |value by ids - value by text|; noise: the same between two runs by ids, with other seeds
unsplit         share of the continuations that cannot be cut into steps
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.sampling.seeds import derive_seed
from mmprm.steps import split
from mmprm.tiny.world import ANSWER, OPERATORS
from mmprm.types import Completion, Problem, SampleRequest, Steps

ROOT = Path(__file__).parent.parent
PAD, BEGIN, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where Qwen's vocabulary cuts a text before it joins bytes."""
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BETWEEN = {"tags": "", "lines": "\n", "blank lines": "\n\n"}
MISTAKE_RATE = 0.12
ROLLOUTS = 256


class State(NamedTuple):
    """A prefix of a solution that ends at a step's tag, and the tokens that end within it."""

    problem: Problem
    prefix: str
    ids: tuple[int, ...]


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
    """Some results are off by one or ten, and carried on."""
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
    """Pairs of a prompt and a response, in all ways to write steps."""
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


def train(folder: Path, steps: int, batch: int, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(seed)
    model = Qwen2ForCausalLM(
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
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)
    source, begun = examples(random.Random(f"{seed}/train")), time.monotonic()
    for step in range(steps):
        loss = loss_of(model, tokenizer, list(itertools.islice(source, batch)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == steps - 1:
            print(f"{step}/{steps} loss {loss.item():.4f} after {time.monotonic() - begun:.0f} s", file=sys.stderr)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"loss": round(loss.item(), 4), "seconds": round(time.monotonic() - begun)}


def loss_of(model: Qwen2ForCausalLM, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
    """Mean cross-entropy over the tokens of the responses."""
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


def way(step: str) -> str | None:
    """Return how the solution is written that this step begins."""
    behind = step[len(step.rstrip()) :]
    return next((name for name, between in BETWEEN.items() if behind == between), None)


def value(problem: Problem, prefix: str, completions: Sequence[Completion]) -> float:
    answers = [ANSWER.findall(prefix + completion.text)[-1:] for completion in completions]
    return fmean(answer == [problem.answer] for answer in answers)


def unsplit(completions: Sequence[Completion]) -> float:
    return fmean(not split(completion.text, "tags").steps for completion in completions)


async def states_of(sampler: Any, count: int, seed: int) -> tuple[dict[str, list[State]], dict[str, list[int]]]:
    """States by the way in which their solution is written, from as many solutions; and of each way [borders, those
    inside tokens by ids, and by text]."""
    rng = random.Random(f"{seed}/states")
    found: dict[str, list[State]] = {name: [] for name in BETWEEN}
    borders = {name: [0, 0, 0] for name in BETWEEN}
    while min(map(len, found.values())) < count:
        problem, *_ = calculation(rng)
        (written,) = await sampler.sample(SampleRequest(problem, "", 1, derive_seed(seed, problem.id, "", 0)))
        steps = split(written.text, "tags").steps
        name = way(steps[0]) if len(steps) > 2 else None
        if name is None or written.tokens is None or len(found[name]) == count:
            continue
        states = []
        for end in itertools.accumulate(map(len, steps[:-1])):
            prefix = written.text[:end].rstrip()
            ids = written.tokens.ids[: written.tokens.whole_in(len(prefix))]
            by_text = tuple(sampler.template_owner(prefix, add_special_tokens=False).input_ids)
            borders[name][0] += 1
            borders[name][1] += written.tokens.ids[: len(ids)] != ids
            borders[name][2] += written.tokens.ids[: len(by_text)] != by_text
            states.append(State(problem, prefix, ids))
        found[name].append(rng.choice(states))
    return found, borders


async def compare(sampler: Any, states: Sequence[State], seed: int) -> dict[str, float]:
    async def drawn(by_ids: bool, run: int) -> list[tuple[Completion, ...]]:
        requests = [
            SampleRequest(
                state.problem,
                state.prefix,
                ROLLOUTS,
                derive_seed(seed, state.problem.id, state.prefix, run * ROLLOUTS),
                prefix_ids=state.ids if by_ids else None,
            )
            for state in states
        ]
        return list(await asyncio.gather(*map(sampler.sample, requests)))

    runs = {"ids": await drawn(True, 0), "again": await drawn(True, 1), "text": await drawn(False, 2)}
    values = {
        name: [value(state.problem, state.prefix, answers) for state, answers in zip(states, each, strict=True)]
        for name, each in runs.items()
    }

    def difference(left: str, right: str) -> float:
        return fmean(abs(a - b) for a, b in zip(values[left], values[right], strict=True))

    return {
        "states": len(states),
        "difference": round(difference("ids", "text"), 4),
        "noise": round(difference("ids", "again"), 4),
        "mean_by_ids": round(fmean(values["ids"]), 4),
        "mean_by_text": round(fmean(values["text"]), 4),
        "unsplit_by_ids": round(fmean(map(unsplit, runs["ids"])), 4),
        "unsplit_by_text": round(fmean(map(unsplit, runs["text"])), 4),
    }


async def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from mmprm.sampling.vllm_sampler import VllmSampler

    engine = EngineConfig(model=str(folder), kv_cache_gib=0.5)
    sampler = VllmSampler(engine, SamplingConfig(max_tokens=160), PromptConfig(preset="plain"))
    try:
        found, borders = await states_of(sampler, arguments.states, arguments.seed)
        figures: dict[str, Any] = {}
        for name, states in found.items():
            total, by_ids, by_text = borders[name]
            inside = {"borders": total, "inside_tokens_by_ids": by_ids, "inside_tokens_by_text": by_text}
            figures[name] = inside | await compare(sampler, states, arguments.seed)
            print(name, figures[name], file=sys.stderr)
    finally:
        sampler.close()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, help="folder of the policy; trained there unless it holds one")
    parser.add_argument("--steps", type=int, default=1500, help="of its training (1500)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--states", type=int, default=32, help="of each way to write steps (32)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "borders.json")
    arguments = parser.parse_args()
    folder = arguments.policy or ROOT / "runs" / "bench-borders"
    if not (folder / "config.json").is_file():
        print(train(folder, arguments.steps, arguments.batch, arguments.seed), file=sys.stderr)
    figures = asyncio.run(measure(folder, arguments))
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    arguments.out.write_text(json.dumps({"rollouts": ROLLOUTS, "machine": machine, "ways": figures}, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
