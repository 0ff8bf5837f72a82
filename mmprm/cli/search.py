"""Search for solutions step by step, guided by a process reward model, with best-of-N as an optional baseline.

The output folder holds candidates.jsonl (one line per solution) and summary.json (the accuracy of every selector with
its confidence interval, and the number of generated tokens). With `baseline`, the command also samples whole solutions
of the same problems and compares accuracy at an equal number of tokens. The policy and the process reward model run at
the same time and share the machine.

With `environment`, the policy plays episodes, and a step is a turn. The policy runs on one engine in this process.

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
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from mmprm import actors
from mmprm.cli.shared.aggregator import settled
from mmprm.cli.shared.jsonl import output, write_rows
from mmprm.cli.shared.options import add_config_options, load_config
from mmprm.cli.shared.policy import check_config, opened_player, opened_policy, with_engine_dtype
from mmprm.config import PathText
from mmprm.environments.first_prompt import first_prompt
from mmprm.environments.load import EnvironmentConfig
from mmprm.errors import DataError
from mmprm.evaluation.aggregators import described
from mmprm.grading.calibration import check_judge
from mmprm.grading.golds import check_golds
from mmprm.metrics import Interval
from mmprm.preflight import check_output, check_prm, check_prm_reads
from mmprm.prm.info import PrmInfo
from mmprm.problems import load_problems
from mmprm.report.tables import cell
from mmprm.sampling.policy import PolicyConfig
from mmprm.sampling.seeds import environment_seed
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.open import open_scorer, scorer_info
from mmprm.selection.accuracy import EqualTokens, accuracy, at_equal_tokens
from mmprm.selection.candidates import candidate_lines
from mmprm.selection.episodes import check_scorer, check_strategy, search_episodes
from mmprm.selection.guided import Searched, search_problems
from mmprm.selection.strategies import GuidedConfig
from mmprm.types import Problem, Scorer, Verdict


class GuidedSearchConfig(PolicyConfig):
    """Configures `mmprm search`."""

    output: PathText = "runs/search"
    """Folder for candidates.jsonl and summary.json."""
    scorer: ScorerConfig
    """Process reward model or thinking judge, and the settings for running it."""
    search: GuidedConfig = GuidedConfig()
    """Search strategy and its settings."""
    environment: EnvironmentConfig | None = None
    """Environment in which the policy plays episodes, whose turns are the steps; see docs/environments.md."""
    baseline: int = Field(0, ge=0)
    """Number of solutions to sample per problem for a best-of-N baseline, compared at an equal number of tokens; 0
    disables it."""
    aggregator: str | None = None
    """Aggregator of step scores that ranks partial and complete solutions; by default the one in the PRM's prm.json.
    Choices: min, last, mean, max, product, sum_log, sum_log_odds or mean_odds."""

    @model_validator(mode="after")
    def _environment_fits(self) -> GuidedSearchConfig:
        if self.environment is not None and self.engine.servers is not None:
            raise ValueError("engine.servers cannot play in an environment; remove it to use an engine of this process")
        if self.environment is not None and self.prompt.preset != "plain":
            raise ValueError(
                f"prompt.preset={self.prompt.preset} must be plain with an environment, whose observations are the "
                "prompt; set prompt.preset=plain"
            )
        return self


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    add_config_options(parser, GuidedSearchConfig)


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm search`."""
    config = with_engine_dtype(load_config(arguments, GuidedSearchConfig))
    begun = time.perf_counter()
    info = scorer_info(config.scorer)
    aggregator = settled(config.aggregator, info)
    problems = load_problems(config.problems, episodes=config.environment is not None)
    _check(config, problems, info)
    if config.environment is None and config.engine.servers is None:
        actors.connect(config.ray_address)  # before the scorer, which is slow to load
    scorer = open_scorer(config.scorer)
    try:
        if config.environment is None:
            searched, baseline = actors.run(_search(config, problems, aggregator, scorer))
        else:
            searched, baseline = _play(config, config.environment, problems, aggregator, scorer)
    finally:
        scorer.close()
    if not searched.results:
        problem_id, reason = next(iter(searched.failed.items()))
        raise DataError(
            f"{config.problems.path}: no problem could be searched (first failure: {problem_id}: {reason}); check the "
            "engine and the problems"
        )
    metrics = search_summary(searched, baseline, aggregator, config)
    folder = Path(config.output)
    groups = [result.group for result in searched.results]
    write_rows(folder / "candidates.jsonl", candidate_lines(groups, aggregator))
    with output(folder / "summary.json") as out:
        json.dump(metrics | {"seconds": time.perf_counter() - begun}, out, indent=2)
    print(_table(metrics))
    print(f"{len(groups)} problems, {len(searched.failed)} failed; see {folder}")
    print(f"aggregator {described(aggregator, info)}")
    if "score_tokens" in metrics:
        print(f"{metrics['unknown_scores']} paths unknown, {metrics['score_tokens']:,} tokens of the judge")


def _check(config: GuidedSearchConfig, problems: Sequence[Problem], info: PrmInfo) -> None:
    """Raise an error for settings and problems that cannot be searched, before the models are loaded."""
    check_output(config.output, "output")
    check_prm(config.scorer.prm)
    if config.environment is None:
        check_judge(config.grader.judge)
        check_golds(problems, config.grader, config.problems.path)
        check_prm_reads(config.scorer.prm, problems)
        check_config(config, problems, config.search.samples, "search.samples")
    else:
        check_strategy(config.search)
        check_scorer(info, config.scorer.prm)
        seed = environment_seed(config.seed, problems[0].id)
        first = first_prompt(config.environment, config.engine.images_per_prompt, problems[0], seed)
        check_prm_reads(config.scorer.prm, [first])
        sampling = config.sampling.model_copy(update={"max_tokens": config.environment.max_turn_tokens})
        turns = config.model_copy(update={"sampling": sampling})
        check_config(turns, [first], config.search.samples, "search.samples")


def search_summary(
    searched: Searched, baseline: Searched | None, aggregator: str, config: GuidedSearchConfig
) -> dict[str, Any]:
    """Summarize the run for summary.json: counts, tokens, and the accuracy of each selector."""
    groups = [result.group for result in searched.results]
    candidates = [candidate for group in groups for candidate in group.candidates]
    tokens = sum(result.tokens for result in searched.results)
    accuracies = accuracy(groups, aggregator, config.seed)
    score_tokens = sum(result.score_tokens for result in searched.results)
    unknown = sum(result.unknown_scores for result in searched.results)
    equal = None if baseline is None else compare_at_equal_tokens(searched, baseline, aggregator, config.seed)
    return {
        "search": config.search.model_dump(),
        "problems": len(groups),
        "failed": searched.failed,
        "solutions": len(candidates),
        "unknown_verdicts": sum(candidate.verdict is Verdict.UNKNOWN for candidate in candidates),
        "unsplit": dict(collections.Counter(c.unsplit for c in candidates if c.unsplit is not None)),
        "samples": sum(result.samples for result in searched.results),
        "generated_tokens": tokens,
        "tokens_per_problem": tokens / len(groups),
        **({"unknown_scores": unknown, "score_tokens": score_tokens} if unknown or score_tokens else {}),
        "aggregator": aggregator,
        "accuracy": {name: asdict(interval) for name, interval in accuracies.items()},
        "best_of_n_at_equal_tokens": None if equal is None else asdict(equal),
    }


def compare_at_equal_tokens(searched: Searched, baseline: Searched, aggregator: str, seed: int) -> EqualTokens | None:
    """Compare search with the baseline at an equal number of tokens.

    Returns None if no problem was completed by both.
    """
    whole = {result.group.problem.id: result.group for result in baseline.results}
    both = [result for result in searched.results if result.group.problem.id in whole]
    if not both:
        return None
    groups = [result.group for result in both]
    tokens = sum(result.tokens for result in both)
    return at_equal_tokens(groups, tokens, [whole[group.problem.id] for group in groups], aggregator, seed)


def _table(metrics: dict[str, Any]) -> str:
    """Format one line per selector: its accuracy, best-of-N's accuracy at an equal number of tokens, and their
    difference, each with its interval."""
    equal = metrics["best_of_n_at_equal_tokens"]
    strategy = metrics["search"]["strategy"]
    head = f"{'selector':<10}{strategy:>22}"
    tokens = f"{metrics['tokens_per_problem']:,.0f} tokens per problem"
    if equal is not None:
        head += f"{'best_of_' + format(equal['n'], '.3g'):>22}{'difference':>25}"
        tokens += f", {equal['tokens']:,.0f} for best_of_{equal['n']:.3g}"
    lines = [head]
    for name, interval in metrics["accuracy"].items():
        line = f"{name:<10}{cell(Interval(**interval)):>22}"
        if equal is not None:
            line += f"{cell(Interval(**equal['accuracy'][name])):>22}"
            line += f"{cell(Interval(**equal['difference'][name]), '+.3f'):>25}"
        lines.append(line)
    return "\n".join([*lines, tokens])


def _play(
    config: GuidedSearchConfig,
    environment: EnvironmentConfig,
    problems: Sequence[Problem],
    aggregator: str,
    scorer: Scorer,
) -> tuple[Searched, Searched | None]:
    with opened_player(config, environment) as player:

        def searched(search: GuidedConfig) -> Searched:
            return asyncio.run(
                search_episodes(
                    problems, player, scorer, environment, search, aggregate=aggregator, run_seed=config.seed
                )
            )

        found = searched(config.search)
        if not config.baseline:
            return found, None
        return found, searched(GuidedConfig(strategy="best_of_n", samples=config.baseline))


async def _search(
    config: GuidedSearchConfig, problems: Sequence[Problem], aggregator: str, scorer: Scorer
) -> tuple[Searched, Searched | None]:
    async with opened_policy(config) as (sampler, grader):

        async def searched(search: GuidedConfig) -> Searched:
            return await search_problems(
                problems,
                sampler,
                grader,
                scorer,
                search,
                aggregate=aggregator,
                step_format=config.step_format,
                run_seed=config.seed,
            )

        found = await searched(config.search)
        if not config.baseline:
            return found, None
        return found, await searched(GuidedConfig(strategy="best_of_n", samples=config.baseline))
