"""Guided search: solutions that grow step by step, as a process reward model sees it; best-of-N beside them.

The output folder holds candidates.jsonl (one line a solution) and summary.json (accuracy of every selector with its
interval, and the tokens that were generated). With `baseline`, whole solutions of the same problems are sampled too,
and compared at equal tokens. Policy and process reward model run at the same time and share the machine.

Examples:
  mmprm search --set problems.path=test.jsonl --set engine.model=tiny --set scorer.prm=runs/demo/train/prm \\
    --set search.strategy=beam --set baseline=16
  mmprm search --config configs/search/internvl3-8b.yaml --set search.strategy=dvts --set search.lookahead=1
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field

from mmprm.cli.jsonl import output
from mmprm.cli.options import add_config_options, load_config
from mmprm.cli.policy import with_weights
from mmprm.cli.rerank import candidate_lines
from mmprm.config import Config
from mmprm.errors import DataError
from mmprm.grading.calibration import check_judge
from mmprm.grading.open import open_grader
from mmprm.grading.symbolic import GraderConfig
from mmprm.metrics import Interval
from mmprm.prm.info import read_info
from mmprm.problems import ProblemsConfig, load_problems
from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.sampling.open import open_sampler
from mmprm.scoring.aggregate import chosen_aggregator
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.open import open_scorer
from mmprm.selection.accuracy import EqualTokens, accuracy, at_equal_tokens
from mmprm.selection.guided import Searched, search_problems
from mmprm.selection.strategies import GuidedConfig
from mmprm.steps import Markup
from mmprm.types import Scorer, Verdict


class GuidedSearchConfig(Config):
    output: str = "runs/search"
    """Folder for candidates.jsonl and summary.json."""
    problems: ProblemsConfig
    """The problems to answer."""
    engine: EngineConfig
    """The policy's engine; the model "tiny" is the embedded policy."""
    sampling: SamplingConfig = SamplingConfig()
    """How steps and whole solutions are drawn; max_tokens limits each of them."""
    prompt: PromptConfig = PromptConfig()
    """How the policy is asked."""
    markup: Markup = "tags"
    """How the policy marks its steps: tags, blank_lines or numbered."""
    grader: GraderConfig = GraderConfig()
    """How final answers are judged."""
    scorer: ScorerConfig
    """The process reward model and how it runs."""
    search: GuidedConfig = GuidedConfig()
    """The strategy and its width."""
    baseline: int = Field(0, ge=0)
    """Whole solutions sampled for each problem besides, to compare best-of-N at equal tokens; 0 compares nothing."""
    aggregator: str | None = None
    """min, last, mean, max, product, sum_log, sum_log_odds or mean_odds, for partial solutions and for the choice among
    complete ones; by default the one in the PRM's prm.json."""
    seed: int = 0
    """Run seed; with the content of a request it gives the request's seed. Also seeds the bootstrap."""
    workers: int | None = Field(None, ge=1)
    """Engines; by default one a GPU (group of tensor_parallel_size GPUs), without a GPU one a core."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_options(parser, GuidedSearchConfig)


def run(arguments: argparse.Namespace) -> None:
    config = load_config(arguments, GuidedSearchConfig)
    begun = time.perf_counter()
    aggregator = chosen_aggregator(config.aggregator, read_info(config.scorer.prm).aggregator)
    check_judge(config.grader.judge)
    scorer = open_scorer(config.scorer)
    try:
        searched, baseline = asyncio.run(_search(config, aggregator, scorer))
    finally:
        scorer.close()
    if not searched.results:
        problem_id, reason = next(iter(searched.failed.items()))
        raise DataError(f"{config.problems.path}: no problem could be searched; {problem_id}: {reason}")
    figures = summary(searched, baseline, aggregator, config)
    folder = Path(config.output)
    with output(folder / "candidates.jsonl") as out:
        groups = [result.group for result in searched.results]
        out.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in candidate_lines(groups, aggregator))
    with output(folder / "summary.json") as out:
        json.dump(figures | {"seconds": time.perf_counter() - begun}, out, indent=2)
    print(table(figures))
    print(
        f"{len(groups)} problems, {len(searched.failed)} failed; step scores aggregated by {aggregator}; see {folder}"
    )


def summary(
    searched: Searched, baseline: Searched | None, aggregator: str, config: GuidedSearchConfig
) -> dict[str, Any]:
    groups = [result.group for result in searched.results]
    candidates = [candidate for group in groups for candidate in group.candidates]
    tokens = sum(result.tokens for result in searched.results)
    accuracies = accuracy(groups, aggregator, config.seed)
    equal = None if baseline is None else compare(searched, baseline, aggregator, config.seed)
    return {
        "search": config.search.model_dump(),
        "problems": len(groups),
        "failed": searched.failed,
        "solutions": len(candidates),
        "unknown_verdicts": sum(candidate.verdict is Verdict.UNKNOWN for candidate in candidates),
        "unsplit": dict(collections.Counter(c.unsplit for c in candidates if c.unsplit is not None)),
        "draws": sum(result.draws for result in searched.results),
        "generated_tokens": tokens,
        "tokens_per_problem": tokens / len(groups),
        "aggregator": aggregator,
        "accuracy": {name: asdict(interval) for name, interval in accuracies.items()},
        "best_of_n_at_equal_tokens": None if equal is None else asdict(equal),
    }


def compare(searched: Searched, baseline: Searched, aggregator: str, seed: int) -> EqualTokens | None:
    """On the problems that neither failed; None where there is none."""
    whole = {result.group.problem.id: result.group for result in baseline.results}
    both = [result for result in searched.results if result.group.problem.id in whole]
    if not both:
        return None
    groups = [result.group for result in both]
    tokens = sum(result.tokens for result in both)
    return at_equal_tokens(groups, tokens, [whole[group.problem.id] for group in groups], aggregator, seed)


def table(figures: dict[str, Any]) -> str:
    """A line a selector: accuracy with its interval and, beside it, best-of-N at equal tokens and the difference."""
    equal = figures["best_of_n_at_equal_tokens"]
    strategy = figures["search"]["strategy"]
    head = f"{'selector':<10}{strategy:>22}"
    tokens = f"{figures['tokens_per_problem']:,.0f} tokens a problem"
    if equal is not None:
        head += f"{'best_of_' + format(equal['n'], '.3g'):>22}{'difference':>25}"
        tokens += f", {equal['tokens']:,.0f} of best_of_{equal['n']:.3g}"
    lines = [head]
    for name, interval in figures["accuracy"].items():
        line = f"{name:<10}{_cell(interval, '.3f'):>22}"
        if equal is not None:
            line += f"{_cell(equal['accuracy'][name], '.3f'):>22}{_cell(equal['difference'][name], '+.3f'):>25}"
        lines.append(line)
    return "\n".join([*lines, tokens])


def _cell(interval: dict[str, float], style: str) -> str:
    entry = Interval(**interval)
    return f"{entry.value:{style}} [{entry.low:{style}}, {entry.high:{style}}]"


async def _search(config: GuidedSearchConfig, aggregator: str, scorer: Scorer) -> tuple[Searched, Searched | None]:
    problems = load_problems(config.problems)
    async with (
        open_sampler(with_weights(config.engine), config.sampling, config.prompt, config.workers) as sampler,
        open_grader(config.grader) as grader,
    ):

        async def searched(search: GuidedConfig) -> Searched:
            return await search_problems(
                problems,
                sampler,
                grader,
                scorer,
                search,
                aggregate=aggregator,
                markup=config.markup,
                run_seed=config.seed,
            )

        found = await searched(config.search)
        if not config.baseline:
            return found, None
        return found, await searched(GuidedConfig(strategy="best_of_n", samples=config.baseline))
