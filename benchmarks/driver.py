"""Measure the driver's CPU time for an RL step of 1,024 responses of 4,096 tokens, without engines or GPUs.

cut      split the responses into steps, map tokens to steps, and collect the scores of a PRM that responds instantly
credit   turn rewards and scores into per-token advantages
plan     check the samples and plan the micro-batches of eight ranks

Seconds are CPU time of one thread, because the driver has one event loop. Other processes slow it down only through
shared caches and hyperthreading; `load` is the load average of the machine.

Writes benchmarks/results/driver.json: `python benchmarks/driver.py [--rounds 3]`. The total must be at most 2 seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from machine import machine
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mmprm.types import Grading, Problem, Solution, StepScores, Verdict
from policy_rl.algorithms.advantages import AdvantageConfig
from policy_rl.algorithms.credit_config import CreditConfig
from policy_rl.algorithms.samples import AdvantageSettings, add_advantages, draft, kept_mask
from policy_rl.graded import GradedGroup, GradedResponse
from policy_rl.rewards.process import ProcessReward
from policy_rl.trainer.batch import Limits, check_finite, plan, tokens_of_groups
from policy_rl.types import Response, Reward, TrainingSample

RESULTS = Path(__file__).parent / "results" / "driver.json"
PROBLEMS, GROUP_SIZE, TOKENS = 128, 8, 4096
RANKS, TOKEN_BUDGET, PROMPT_TOKENS = 8, 16384, 512
BAR_SECONDS = 2.0
# Some characters have several bytes, so that tokens can end inside them.
SYLLABLES = ("an", "the", "ra", "ti", "on", "ver", "ex", "sum", "é", "tri", "gle", "is", "of", "ar", "ea", "²", "中")

SYMBOLS = "√≤≥∠πθ△°∞≈"


class Instant:
    """Stands in for a PRM and scores every step instantly."""

    async def judge(self, solutions: Sequence[Solution]) -> list[StepScores]:
        """Return a score between 0.5 and 0.9 for each step."""
        return [StepScores(tuple(0.5 + step % 5 / 10 for step in range(len(each.steps)))) for each in solutions]


def make_tokenizer(rng: random.Random) -> PreTrainedTokenizerFast:
    """Train a byte-level tokenizer with 1,000 tokens, some of which end inside a character, as Qwen's do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([make_text(rng, 2000, "x") for _ in range(20)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def make_text(rng: random.Random, words: int, symbols: str = SYMBOLS) -> str:
    """Write random steps of 30 to 120 words, each ending in one of `symbols`."""
    steps, left = [], words
    while left > 0:
        length = min(left, rng.randint(30, 120))
        parts = ("".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(length))
        steps.append(f"<step>{' '.join(parts)} = {rng.randint(1, 999)}{rng.choice(symbols)}.</step>\n")
        left -= length
    return "".join(steps)


def make_response(rng: random.Random, tokenizer: PreTrainedTokenizerFast) -> Response:
    """Make a response of TOKENS tokens: as many whole steps as fit, and an answer that fills the rest."""
    ids = encode(tokenizer, make_text(rng, TOKENS))[: TOKENS - 20]
    text = tokenizer.decode(ids)
    # The limit may cut a step, so keep the text up to the last whole one.
    whole = text[: text.rindex("</step>") + len("</step>")]
    ids, end = encode(tokenizer, whole + "<answer>"), encode(tokenizer, "</answer>")
    ids += encode(tokenizer, "7") * (TOKENS - len(ids) - len(end)) + end
    return Response(tokenizer.decode(ids), tuple(ids), tuple(-rng.random() for _ in ids), "stop")


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Tokenize a text and return its token ids."""
    return tokenizer.encode(text, add_special_tokens=False)


def make_groups(rng: random.Random, tokenizer: PreTrainedTokenizerFast) -> list[tuple[Problem, list[Response]]]:
    """Make PROBLEMS problems, each with GROUP_SIZE responses."""
    problems = (Problem(f"p{number}", "how many?", "4") for number in range(PROBLEMS))
    return [(problem, [make_response(rng, tokenizer) for _ in range(GROUP_SIZE)]) for problem in problems]


async def cut(groups: list[tuple[Problem, list[Response]]], process: ProcessReward) -> list[GradedGroup]:
    """Compute the process rewards of all groups. Half of the answers count as correct."""
    graded = []
    for problem, responses in groups:
        scores = await process.score(problem, responses)
        assert None not in scores
        made = [
            GradedResponse(
                response,
                Grading(Verdict.CORRECT if k % 2 else Verdict.INCORRECT, "4", ""),
                Reward(float(k % 2), {"accuracy": float(k % 2)}),
                step_rewards,
            )
            for k, (response, step_rewards) in enumerate(zip(responses, scores, strict=True))
        ]
        graded.append(GradedGroup(problem, PROMPT_TOKENS, 1, tuple(made)))
    return graded


def credit(groups: list[GradedGroup]) -> list[TrainingSample]:
    """Convert graded groups to training samples with advantages."""
    kept_PK = kept_mask(groups, 2)
    settings = AdvantageSettings(AdvantageConfig(), CreditConfig())
    return add_advantages(groups, kept_PK, draft(groups, kept_PK), settings)[0]


def plan_batch(samples: list[TrainingSample], limits: Limits) -> None:
    """Check the samples and plan their micro-batches, as each rank does."""
    for sample in samples:
        limits.check(sample)
    check_finite(samples)
    tokens_of_groups(samples)
    plan(samples, TOKEN_BUDGET, RANKS, share_prompt=True)


def measure(groups: list[tuple[Problem, list[Response]]], tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Measure the CPU seconds of each part, and return them with their total."""
    process = ProcessReward(tokenizer, "tags", "", Instant())
    limits = Limits(context=32768, reserved=frozenset({10**6}))
    times = [time.process_time()]
    graded = asyncio.run(cut(groups, process))
    times.append(time.process_time())
    samples = credit(graded)
    times.append(time.process_time())
    plan_batch(samples, limits)
    times.append(time.process_time())
    parts = [after - before for before, after in itertools.pairwise(times)]
    return dict(zip(("cut", "credit", "plan", "total"), (*parts, times[-1] - times[0]), strict=True))


def main() -> None:
    """Measure and write the results; exit with status 1 if the total exceeds BAR_SECONDS."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(0)
    tokenizer = make_tokenizer(rng)
    groups = make_groups(rng, tokenizer)
    rounds = [measure(groups, tokenizer) for _ in range(arguments.rounds)]
    seconds = {name: round(statistics.median(each[name] for each in rounds), 3) for name in rounds[0]}
    spread = [round(bound(each["total"] for each in rounds), 3) for bound in (min, max)]
    result = {
        "machine": machine(),
        "responses": PROBLEMS * GROUP_SIZE,
        "tokens": TOKENS,
        "rounds": arguments.rounds,
        "load": round(os.getloadavg()[0], 1),
        "seconds": seconds,
        "total_spread": spread,
        "bar": BAR_SECONDS,
        "met": seconds["total"] <= BAR_SECONDS,
    }
    print(json.dumps(result, indent=2))
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    raise SystemExit(0 if result["met"] else 1)


if __name__ == "__main__":
    main()
