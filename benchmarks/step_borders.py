"""Measure the cost of prefixes that end inside a token: `make bench-borders` writes results/borders.json.

A small text policy with a Qwen-like byte-level vocabulary is trained to write calculations. Its step tags follow each
other directly (`><` is a token), on separate lines (`>\\n`) or with blank lines between them (`>\\n\\n`). Its own
solutions are cut after each tag. The same states are then continued both from the policy's token ids and from their
text. The policy is measured twice: trained on its own tokenization alone, and then also on mixed tokenizations (BPE
dropout).

inside_tokens   step borders at which the prompt ends inside one of the policy's tokens
difference      mean |value from ids - value from text|; noise: the same for two runs from ids with different seeds
repeated        fraction of samples from ids that did not match the prefix and were sampled again
unsplit         fraction of continuations that cannot be split into steps
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from machine import machine
from step_borders_policy import BETWEEN, calculation, train

from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.sampling.seeds import derive_seed
from mmprm.steps import split
from mmprm.tiny.world import ANSWER
from mmprm.types import Completion, Problem, SampleRequest, Tokens

ROOT = Path(__file__).parent.parent
ROLLOUTS = 256


class State(NamedTuple):
    """Represents a solution prefix that ends at a step tag, with the ids of the tokens that end within it."""

    problem: Problem
    prefix: str
    ids: tuple[int, ...]


def way(step: str) -> str | None:
    """Return the name of the step separator, determined from the whitespace after the first step."""
    trailing = step[len(step.rstrip()) :]
    return next((name for name, between in BETWEEN.items() if trailing == between), None)


def value(problem: Problem, prefix: str, completions: Sequence[Completion]) -> float:
    answers = [ANSWER.findall(prefix + completion.text)[-1:] for completion in completions]
    return fmean(answer == [problem.answer] for answer in answers)


def unsplit(completions: Sequence[Completion]) -> float:
    return fmean(not split(completion.text, "tags").steps for completion in completions)


def repeated(completions: Sequence[Completion]) -> float:
    """Return the fraction of samples that did not match the prefix and were sampled again.

    Their token count exceeds that of the completion and its end-of-turn token.
    """
    return fmean(c.tokens is None or c.token_count > len(c.tokens.ids) + 1 for c in completions)


async def states_of(sampler: Any, count: int, seed: int) -> tuple[dict[str, list[State]], dict[str, Counter[str]]]:
    """Sample one state per solution, grouped by step separator, and count the step borders that lie inside tokens.

    The counts are "borders" for the total, "inside_tokens_by_ids", and two for prefixes given as text. One of these is
    for prefixes cut at the tag, the other for prefixes cut after its line breaks, where a step ends.
    """
    rng = random.Random(f"{seed}/states")
    found: dict[str, list[State]] = {name: [] for name in BETWEEN}
    borders: dict[str, Counter[str]] = {name: Counter() for name in BETWEEN}
    while min(map(len, found.values())) < count:
        problem, *_ = calculation(rng)
        (written,) = await sampler.sample(SampleRequest(problem, "", 1, derive_seed(seed, problem.id, "", 0)))
        steps = split(written.text, "tags").steps
        name = way(steps[0]) if len(steps) > 2 else None
        if name is None or written.tokens is None or len(found[name]) == count:
            continue

        def starts_inside(ids: Sequence[int], tokens: Tokens = written.tokens) -> bool:
            return tokens.ids[: len(ids)] != tuple(ids)

        states = []
        for end in itertools.accumulate(map(len, steps[:-1])):
            tag = written.text[:end].rstrip()
            ids = written.tokens.ids[: written.tokens.whole_in(len(tag))]
            by_text = (
                sampler.template_owner(text, add_special_tokens=False).input_ids for text in (tag, written.text[:end])
            )
            at_tag, after_line_breaks = map(starts_inside, by_text)
            borders[name]["borders"] += 1
            borders[name]["inside_tokens_by_ids"] += starts_inside(ids)
            borders[name]["inside_tokens_by_text"] += at_tag
            borders[name]["inside_tokens_by_text_after_line_breaks"] += after_line_breaks
            states.append(State(problem, tag, ids))
        found[name].append(rng.choice(states))
    return found, borders


async def compare(sampler: Any, states: Sequence[State], seed: int) -> dict[str, float]:
    async def sampled(by_ids: bool, run: int) -> list[tuple[Completion, ...]]:
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

    runs = {"ids": await sampled(True, 0), "again": await sampled(True, 1), "text": await sampled(False, 2)}
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
        "repeated_by_ids": round(fmean(map(repeated, runs["ids"])), 4),
        "unsplit_by_ids": round(fmean(map(unsplit, runs["ids"])), 4),
        "unsplit_by_text": round(fmean(map(unsplit, runs["text"])), 4),
    }


async def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from mmprm.sampling.vllm_sampler import VllmSampler

    engine = EngineConfig(model=str(folder), kv_cache_gib=0.5)
    sampler = VllmSampler(engine, SamplingConfig(max_tokens=96), PromptConfig(preset="plain"))
    try:
        found, borders = await states_of(sampler, arguments.states, arguments.seed)
        metrics: dict[str, Any] = {}
        for name, states in found.items():
            metrics[name] = dict(borders[name]) | await compare(sampler, states, arguments.seed)
            print(name, metrics[name], file=sys.stderr)
    finally:
        sampler.close()
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "bench-borders", help="folder for the policies")
    parser.add_argument(
        "--steps", type=int, default=1200, help="training steps; a quarter more for mixed tokenizations (1200)"
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--states", type=int, default=8, help="states per way to write steps (8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "borders.json")
    arguments = parser.parse_args()
    own, mixed = arguments.folder / "own", arguments.folder / "mixed"
    if not (own / "config.json").is_file():
        train(own, arguments.steps, arguments.batch, arguments.seed)
    if not (mixed / "config.json").is_file():
        train(mixed, arguments.steps // 4, arguments.batch, arguments.seed + 1, beginning=own)
    metrics = {}
    for policy in (own, mixed):
        measured = asyncio.run(measure(policy, arguments))
        metrics |= {f"{name}, {policy.name} tokens": each for name, each in measured.items()}
    arguments.output.write_text(
        json.dumps({"rollouts": ROLLOUTS, "machine": machine(), "ways": metrics}, indent=2) + "\n"
    )
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()
