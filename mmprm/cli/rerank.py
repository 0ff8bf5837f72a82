"""Sample, grade and score solutions, choose among them, and report the accuracy of every selector.

The output folder holds candidates.jsonl (one line per sampled solution), summary.json (accuracy as a function of the
number of samples, with confidence intervals) and samples.jsonl, the solutions before scoring. After an interruption,
or with another process reward model or aggregator, the command reuses these samples.

Without a scorer, the table holds only pass@1 (random), the majority vote and pass@N (oracle).

Examples:
  mmprm rerank --set problems.path=test.jsonl --set engine.model=tiny --set samples=16
  mmprm rerank --set problems.path=test.jsonl --set engine.model=tiny --set scorer.prm=runs/demo/train/prm
  mmprm rerank --config configs/rerank/internvl3-8b.yaml --set problems.path=dev.jsonl --choose-aggregator
  mmprm rerank --config configs/rerank/internvl3-8b.yaml --set problems.path=test.jsonl --set samples=16
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from mmprm import actors
from mmprm.cli.shared.aggregator import settled, warn
from mmprm.cli.shared.jsonl import output, write_rows
from mmprm.cli.shared.options import add_config_options, load_config
from mmprm.cli.shared.policy import check_config, opened_policy, with_engine_dtype
from mmprm.config import PathText
from mmprm.errors import ConfigError, DataError
from mmprm.evaluation.aggregators import choose_aggregator, described, with_choice
from mmprm.files import locked
from mmprm.grading.calibration import check_judge
from mmprm.grading.golds import check_golds
from mmprm.preflight import check_output, check_prm, check_prm_reads
from mmprm.prm.info import PrmInfo, write_info
from mmprm.problems import content_id, load_problems
from mmprm.report.tables import cell, selector_table
from mmprm.sampling.policy import PolicyConfig
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.open import open_scorer, scorer_info
from mmprm.selection.accuracy import AccuracyAtN, accuracy_at_n, sizes_up_to
from mmprm.selection.candidates import candidate_lines
from mmprm.selection.groups import CandidateGroup, SampledGroups, sample_groups, score_costs, score_groups
from mmprm.selection.sample_file import SampleFile
from mmprm.types import Problem, Verdict

_SAMPLES = "samples.jsonl"


class RerankConfig(PolicyConfig):
    """Configures `mmprm rerank`."""

    output: PathText = "runs/rerank"
    """Folder for candidates.jsonl, summary.json and samples.jsonl."""
    scorer: ScorerConfig | None = None
    """Process reward model or thinking judge, and the settings for running it; null disables scoring and the selectors
    that need scores."""
    samples: int = Field(8, ge=1)
    """Number of solutions sampled per problem."""
    aggregator: str | None = None
    """Aggregator of step scores; by default the one in the PRM's prm.json. Choices: min, last, mean, max, product,
    sum_log, sum_log_odds or mean_odds."""

    @model_validator(mode="after")
    def _aggregates_scores(self) -> RerankConfig:
        if self.aggregator is not None and self.scorer is None:
            raise ValueError(f"aggregator={self.aggregator} needs step scores; set scorer.prm, or leave it out")
        return self


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    parser.add_argument(
        "--choose-aggregator",
        action="store_true",
        help="choose the aggregator with the highest accuracy on these problems and store it in the PRM's prm.json",
    )
    add_config_options(parser, RerankConfig)


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm rerank`."""
    config = with_engine_dtype(load_config(arguments, RerankConfig))
    with locked(Path(config.output), "output"):
        _run(config, arguments.choose_aggregator)


def _run(config: RerankConfig, choosing: bool) -> None:
    begun = time.perf_counter()
    prm = config.scorer.prm if config.scorer else ""
    if choosing and not Path(prm or "-").is_dir():
        raise ConfigError(
            f"scorer.prm={prm!r} must be a local folder, because --choose-aggregator writes its prm.json; download the "
            "model and give its folder, or, for a server or a judge, set aggregator"
        )
    info = scorer_info(config.scorer) if config.scorer else PrmInfo()
    aggregator = settled(config.aggregator, info) if config.scorer and not choosing else None
    check_judge(config.grader.judge)
    check_output(config.output, "output")
    check_prm(prm)
    folder = Path(config.output)
    problems = load_problems(config.problems)
    check_prm_reads(prm, problems)
    check_golds(problems, config.grader, config.problems.path)
    sampled = _sampled(config, problems, folder / _SAMPLES)
    if not sampled.groups:
        problem_id, reason = next(iter(sampled.failed.items()))
        raise DataError(
            f"{config.problems.path}: no problem could be sampled (first failure: {problem_id}: {reason}); check the "
            "engine and the problems"
        )
    groups = _scored(sampled.groups, config.scorer)
    if choosing:
        info = _choose(groups, info, prm, config.seed)
        aggregator = info.aggregator
    unscored = [c.unscored for group in groups for c in group.candidates if c.unscored is not None]
    if unscored:
        print(f"note: {len(unscored)} solutions could not be scored, the first: {unscored[0]}", file=sys.stderr)
    points = accuracy_at_n(groups, aggregator, sizes_up_to(config.samples), config.seed)
    write_rows(folder / "candidates.jsonl", candidate_lines(groups, aggregator))
    with output(folder / "summary.json") as out:
        seconds = {"seconds": time.perf_counter() - begun}
        json.dump(rerank_summary(groups, sampled.failed, aggregator, points) | seconds, out, indent=2)
    print(selector_table(points))
    print(f"{len(groups)} problems, {len(sampled.failed)} failed; see {folder}")
    if aggregator is not None:
        print(f"aggregator {described(aggregator, info)}")
    if costs := score_costs(groups):
        print(f"{costs['unknown_scores']} solutions unknown, {costs['score_tokens']:,} tokens of the judge")


def _scored(groups: Sequence[CandidateGroup], config: ScorerConfig | None) -> list[CandidateGroup]:
    if config is None:
        return list(groups)
    scorer = open_scorer(config)
    try:
        return score_groups(groups, scorer)
    finally:
        scorer.close()


def rerank_summary(
    groups: Sequence[CandidateGroup], failed: dict[str, str], aggregator: str | None, points: Sequence[AccuracyAtN]
) -> dict[str, Any]:
    """Summarize the run for summary.json: counts, tokens, and the accuracy of each selector by number of samples."""
    candidates = [candidate for group in groups for candidate in group.candidates]
    return {
        "problems": len(groups),
        "failed": failed,
        "samples": len(candidates),
        "unknown_verdicts": sum(candidate.verdict is Verdict.UNKNOWN for candidate in candidates),
        "unsplit": dict(collections.Counter(c.unsplit for c in candidates if c.unsplit is not None)),
        "unscored": sum(candidate.unscored is not None for candidate in candidates),
        **score_costs(groups),
        "generated_tokens": sum(candidate.token_count for candidate in candidates),
        "aggregator": aggregator,
        "accuracy": {name: interval.value for name, interval in points[-1].accuracy.items()},
        "accuracy_at_n": [asdict(point) for point in points],
    }


def _choose(groups: Sequence[CandidateGroup], info: PrmInfo, prm: str, seed: int) -> PrmInfo:
    """Choose and store the best aggregator, print every aggregator's accuracy, and return the new contents of
    prm.json."""
    choice = choose_aggregator(groups, seed)
    warn(choice.name, info)
    info = with_choice(info, choice)
    write_info(prm, info)
    print(f"{prm}: aggregator {choice.name}, chosen on {choice.problems} problems")
    for name, accuracy in sorted(choice.candidates.items(), key=lambda item: -item[1].value):
        print(f"  {name:<14}{cell(accuracy)}")
    return info


def _sampled(config: RerankConfig, problems: Sequence[Problem], path: Path) -> SampledGroups:
    """Sample solutions for all problems, reusing stored ones that were sampled with the same settings."""
    resume_key = config.resume_key() | {"samples": config.samples, "problems": _digest(problems)}
    with SampleFile(path, resume_key, {problem.id: problem for problem in problems}, config.samples) as file:
        missing = [problem for problem in problems if problem.id not in file.groups]
        if file.groups:
            print(f"{path}: {len(file.groups)} of {len(problems)} problems are sampled already", file=sys.stderr)
        failed = {}
        if missing:
            check_config(config, missing, config.samples, "samples")
            failed = actors.run(_sample(config, missing, file.add)).failed
        return SampledGroups([file.groups[problem.id] for problem in problems if problem.id in file.groups], failed)


def _digest(problems: Sequence[Problem]) -> str:
    content = [(p.id, content_id(p.question, p.answer, p.media), p.choices) for p in problems]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


async def _sample(
    config: RerankConfig, problems: Sequence[Problem], keep: Callable[[CandidateGroup], None]
) -> SampledGroups:
    async with opened_policy(config) as (sampler, grader):
        return await sample_groups(
            problems,
            sampler,
            grader,
            samples=config.samples,
            step_format=config.step_format,
            run_seed=config.seed,
            keep=keep,
        )
