"""Choose among sampled solutions: sample, grade, score, choose, and report the accuracy of every selector.

The output folder holds candidates.jsonl (one line a sampled solution) and summary.json (accuracy against the number of
samples, with intervals).

Examples:
  mmprm rerank --set problems.path=test.jsonl --set engine.model=tiny --set scorer.prm=runs/demo/train/prm
  mmprm rerank --config configs/rerank/internvl3-8b.yaml --set problems.path=dev.jsonl --choose-aggregator
  mmprm rerank --config configs/rerank/internvl3-8b.yaml --set problems.path=test.jsonl --set samples=16
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field

from mmprm.cli.jsonl import output
from mmprm.cli.options import add_config_options, load_config
from mmprm.cli.policy import with_weights
from mmprm.config import Config
from mmprm.errors import DataError
from mmprm.evaluation.aggregators import choose_aggregator
from mmprm.grading.calibration import check_judge
from mmprm.grading.open import open_grader
from mmprm.grading.symbolic import GraderConfig
from mmprm.prm.info import read_info, write_info
from mmprm.problems import ProblemsConfig, load_problems
from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.sampling.open import open_sampler
from mmprm.scoring.aggregate import chosen_aggregator
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.open import open_scorer
from mmprm.selection.accuracy import AccuracyAtN, accuracy_at_n
from mmprm.selection.groups import Group, Sampled, choices, sample_groups, score_groups
from mmprm.steps import Markup
from mmprm.types import Verdict


class RerankConfig(Config):
    output: str = "runs/rerank"
    """Folder for candidates.jsonl and summary.json."""
    problems: ProblemsConfig
    """The problems to answer."""
    engine: EngineConfig
    """The policy's engine; the model "tiny" is the embedded policy."""
    sampling: SamplingConfig = SamplingConfig()
    """How solutions are drawn."""
    prompt: PromptConfig = PromptConfig()
    """How the policy is asked."""
    markup: Markup = "tags"
    """How the policy marks its steps: tags, blank_lines or numbered."""
    grader: GraderConfig = GraderConfig()
    """How final answers are judged."""
    scorer: ScorerConfig
    """The process reward model and how it runs."""
    samples: int = Field(8, ge=1)
    """Solutions sampled for each problem."""
    aggregator: str | None = None
    """min, last, mean, max, product, sum_log, sum_log_odds or mean_odds; by default the one in the PRM's prm.json."""
    seed: int = 0
    """Run seed; with the content of a request it gives the request's seed. Also seeds the bootstrap."""
    workers: int | None = Field(None, ge=1)
    """Engines; by default one a GPU (group of tensor_parallel_size GPUs), without a GPU one a core."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--choose-aggregator",
        action="store_true",
        help="choose the aggregator of highest accuracy on these problems and store it in the PRM's prm.json",
    )
    add_config_options(parser, RerankConfig)


def run(arguments: argparse.Namespace) -> None:
    config = load_config(arguments, RerankConfig)
    begun = time.perf_counter()
    info = read_info(config.scorer.prm)
    aggregator = "" if arguments.choose_aggregator else chosen_aggregator(config.aggregator, info.aggregator)
    check_judge(config.grader.judge)
    sampled = _sample(config)
    if not sampled.groups:
        problem_id, reason = next(iter(sampled.failed.items()))
        raise DataError(f"{config.problems.path}: no problem could be sampled; {problem_id}: {reason}")
    scorer = open_scorer(config.scorer)
    try:
        groups = score_groups(sampled.groups, scorer)
    finally:
        scorer.close()
    if arguments.choose_aggregator:
        choice = choose_aggregator(groups, config.seed)
        aggregator = choice.name
        write_info(config.scorer.prm, info.model_copy(update={"aggregator": aggregator}))
        print(f"{config.scorer.prm}: aggregator {aggregator}, chosen on {choice.problems} problems")
        for name, accuracy in sorted(choice.candidates.items(), key=lambda item: -item[1].value):
            print(f"  {name:<14}{accuracy.value:.3f} [{accuracy.low:.3f}, {accuracy.high:.3f}]")
    points = accuracy_at_n(groups, aggregator, _sizes(config.samples), config.seed)
    folder = Path(config.output)
    with output(folder / "candidates.jsonl") as out:
        out.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in candidate_lines(groups, aggregator))
    with output(folder / "summary.json") as out:
        seconds = {"seconds": time.perf_counter() - begun}
        json.dump(summary(groups, sampled.failed, aggregator, points) | seconds, out, indent=2)
    print(table(points))
    print(f"{len(groups)} problems, {len(sampled.failed)} failed; step scores aggregated by {aggregator}; see {folder}")


def candidate_lines(groups: Sequence[Group], aggregator: str) -> Iterator[dict[str, Any]]:
    """One object a candidate; `chosen` marks the first of highest reward in its group."""
    for group in groups:
        rewards = [choice.reward for choice in choices(group, aggregator)]
        best = rewards.index(max(rewards))
        for draw, candidate in enumerate(group.candidates):
            scored = candidate.scores is not None
            yield {
                "problem_id": group.problem.id,
                "draw": draw,
                "response": candidate.response,
                "steps": candidate.steps,
                "answer": candidate.answer,
                "verdict": candidate.verdict.name.lower(),
                "unsplit": candidate.unsplit,
                "tokens": candidate.token_count,
                "scores": candidate.scores.scores if scored else None,
                "reward": rewards[draw] if scored else None,
                "chosen": draw == best,
            }


def summary(
    groups: Sequence[Group], failed: dict[str, str], aggregator: str, points: Sequence[AccuracyAtN]
) -> dict[str, Any]:
    candidates = [candidate for group in groups for candidate in group.candidates]
    return {
        "problems": len(groups),
        "failed": failed,
        "samples": len(candidates),
        "unknown_verdicts": sum(candidate.verdict is Verdict.UNKNOWN for candidate in candidates),
        "unsplit": dict(collections.Counter(c.unsplit for c in candidates if c.unsplit is not None)),
        "generated_tokens": sum(candidate.token_count for candidate in candidates),
        "aggregator": aggregator,
        "accuracy": {name: interval.value for name, interval in points[-1].accuracy.items()},
        "accuracy_at_n": [asdict(point) for point in points],
    }


def table(points: Sequence[AccuracyAtN]) -> str:
    """Accuracy by selector and N, and at the largest N the paired difference to random with its interval."""
    last = points[-1]
    lines = [f"{'selector':<10}" + "".join(f"{f'N={point.n}':>8}" for point in points) + "   minus random"]
    for name, gain in last.minus_random.items():
        values = "".join(f"{point.accuracy[name].value:>8.3f}" for point in points)
        lines.append(f"{name:<10}{values}   {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]")
    return "\n".join(lines)


def _sample(config: RerankConfig) -> Sampled:
    return asyncio.run(_sample_async(config))


async def _sample_async(config: RerankConfig) -> Sampled:
    problems = load_problems(config.problems)
    async with (
        open_sampler(with_weights(config.engine), config.sampling, config.prompt, config.workers) as sampler,
        open_grader(config.grader) as grader,
    ):
        return await sample_groups(
            problems, sampler, grader, samples=config.samples, markup=config.markup, run_seed=config.seed
        )


def _sizes(samples: int) -> list[int]:
    """1, 2, 4, … and the number of samples itself."""
    return sorted({2**power for power in range(samples.bit_length()) if 2**power <= samples} | {samples})
