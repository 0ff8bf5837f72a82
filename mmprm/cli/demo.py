"""Run the whole pipeline on the built-in toy world, from annotation to PRM training, reranking and RL; write a report.

Examples:
  mmprm demo
  mmprm demo --set problems=40 --set search.max_searches=5 --set output=runs/small
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import Field

from mcts.campaign import run_campaign
from mcts.config import CampaignConfig
from mcts.progress import CampaignSummary
from mcts.search import SearchConfig
from mmprm.cli.shared.options import add_config_options, load_config
from mmprm.config import Config, PathText, build, load
from mmprm.errors import DataError, TrainingError
from mmprm.evaluation.aggregators import with_choice
from mmprm.grading.symbolic import GraderConfig, SymbolicGrader
from mmprm.labels.build import LabelsConfig, build_labels
from mmprm.labels.parquet import read_parquet
from mmprm.prm.info import read_info, write_info
from mmprm.prm.model import initialize_prm, save_prm
from mmprm.prm.train import TrainConfig, train_prm
from mmprm.problems import write_problems
from mmprm.prompts import PromptConfig
from mmprm.report.data import Headline
from mmprm.report.page import write_report
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.sampling.pool import SamplerPool
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.open import open_scorer
from mmprm.selection.groups import CandidateGroup, sample_groups, score_groups
from mmprm.tiny.demo_metrics import gain_of, gain_summary, headlines_of, measure, report_of, summary_of
from mmprm.tiny.image import blank
from mmprm.tiny.model import weights_path
from mmprm.tiny.world import make_problems
from mmprm.types import Problem, Verdict
from policy_rl.config import RLConfig
from policy_rl.run import train_policy

_SAMPLES = 8
DEMO_PROMPT = PromptConfig(preset="plain")
SAMPLING = SamplingConfig(max_tokens=96)
RL_RATE = 3e-4
"""Learning rate of the RL stage; higher than in the recipe, because the demo takes only a few steps."""
MARKER = "demo.json"


class DemoConfig(Config):
    """Configures `mmprm demo`."""

    output: PathText = "runs/demo"
    """Folder for everything that the demo writes. The output of an earlier demo is deleted first."""
    problems: int = Field(500, ge=2)
    """Number of problems to annotate."""
    development: int = Field(120, ge=2)
    """Number of development problems, used to choose the aggregator and the first-error threshold."""
    test: int = Field(300, ge=2)
    """Number of test problems for the reported metrics; no earlier stage uses them."""
    seed: int = 0
    """Seed of the problems, searches and samples."""
    test_seed: int = 1000
    """Seed of the test problems only."""
    train_config: PathText = "configs/train/tiny.yaml"
    """Configuration file for PRM training; the demo sets model, labels and output."""
    rl_config: PathText = "configs/rl/tiny.yaml"
    """Configuration file for policy training. The demo sets engine.model, problems, held_out, output, steps, seed and
    the learning rate."""
    rl_steps: int = Field(25, ge=1)
    """Number of RL steps for the policy, with outcome rewards only."""
    search: SearchConfig = SearchConfig(max_rollouts=320)
    """Settings of the tree search for each problem."""


@dataclass
class Clock:
    """Records the wall-clock time of each stage in seconds, in order of execution."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the stage `name` for the duration of the `with` block."""
        print(f"── {name}", flush=True)
        begun = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    add_config_options(parser, DemoConfig)


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm demo`."""
    config = load_config(arguments, DemoConfig)
    for check in (_train_config, _rl_config):  # invalid configurations should fail before the annotation, not after it
        check(config, Path(config.output))
    output = _fresh_folder(config)
    begun = time.perf_counter()
    clock = Clock()
    with clock.stage("annotate"):
        campaign = _annotate(config, output)
    with clock.stage("labels"):
        labels = build_labels(
            LabelsConfig(store=str(output / "annotate"), output=str(output / "labels.parquet"))
        ).counts
    with clock.stage("train"):
        trained = train_prm(_train_config(config, output))
    with clock.stage("sample"):
        development, test, blank_accuracy = _sample(config)
    with clock.stage("score"):
        untrained = _score(_untrained(config, output), development, test)
        development, test = _score(trained.prm, development, test)
    with clock.stage("choose"):
        examples = read_parquet(output / "labels.parquet")
        metrics = measure(examples, development, test)
        before = summary_of(measure(examples, *untrained))
        # Both are chosen on the development problems, so the test problems measure them without bias.
        info = with_choice(read_info(trained.prm), metrics.aggregator)
        write_info(trained.prm, info.model_copy(update={"threshold": metrics.first_error.threshold}))
    with clock.stage("rl"):
        (after,) = _sample_groups(_train_policy(config, output), [_test_problems(config)], config.seed)
        gain = gain_of(test, after, output / "rl" / "metrics.jsonl")
    summary = {
        "seconds_total": time.perf_counter() - begun,
        "problems": campaign.problems["done"],
        "labels": labels.labels,
        "labels_terminal": labels.labels_terminal,
        **summary_of(metrics),
        "untrained": {"prm_step_f1": before["prm_step_f1"], "accuracy_prm": before["accuracy"]["prm"]},
        "policy_blank_image_accuracy": blank_accuracy,
        "rl": gain_summary(gain),
        "trees_in_flight_max": campaign.trees_in_flight_max,
        "tokens_per_second": campaign.tokens_per_second,
        "rollouts": campaign.rollouts,
        "seconds": clock.seconds,
    }
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    headlines = headlines_of(summary)
    facts = {name: f"{seconds:.0f} s" for name, seconds in clock.seconds.items()}
    write_report(
        output / "report.html", report_of(metrics, test, headlines, output / "train" / "metrics.jsonl", gain, facts)
    )
    _print(headlines)
    print(f"{output / 'summary.json'} and {output / 'report.html'} hold the details")


def _print(headlines: Sequence[Headline]) -> None:
    for line in headlines:
        value = f"{line.value:.4g}" if isinstance(line.value, float) else f"{line.value:,}"
        met = {None: "", True: "met", False: "MISSED"}[line.met]
        print(f"{line.key:<30} {value:>10}  {line.bar or '':<24} {met}")


def _fresh_folder(config: DemoConfig) -> Path:
    output = Path(config.output)
    if output.exists() and any(output.iterdir()) and not (output / MARKER).exists():
        raise DataError(
            f"output={output}: contains files that no demo wrote; choose an empty folder with --set output=…"
        )
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    (output / MARKER).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return output


def _annotate(config: DemoConfig, output: Path) -> CampaignSummary:
    problems = [tiny.problem for tiny in make_problems(config.problems, config.seed, "annotate")]
    write_problems(output / "problems.jsonl", problems)
    campaign = build(
        CampaignConfig,
        {
            "output": str(output / "annotate"),
            "problems": {"path": str(output / "problems.jsonl")},
            "engine": {"model": "tiny"},
            "prompt": DEMO_PROMPT.model_dump(),
            "sampling": SAMPLING.model_dump(),
            "search": config.search.model_dump(),
            "seed": config.seed,
        },
    )
    return run_campaign(campaign, model_folder=str(weights_path()))


def _train_config(config: DemoConfig, output: Path) -> TrainConfig:
    sets = [f"model={weights_path()}", f"labels={output / 'labels.parquet'}", f"output={output / 'train'}"]
    return load(TrainConfig, config.train_config, sets)


def _untrained(config: DemoConfig, output: Path) -> Path:
    """Save the untrained PRM as a baseline, and return its folder.

    The baseline shows how well the base model already separates correct from incorrect steps.
    """
    train = _train_config(config, output)
    prm = initialize_prm(train.model, train.tokens, train.add_missing_tokens)
    save_prm(output / "untrained", prm)
    return output / "untrained"


def _sample(config: DemoConfig) -> tuple[list[CandidateGroup], list[CandidateGroup], float]:
    """Sample and grade responses to the development and test problems; also return the accuracy with blank test
    images."""
    development = [tiny.problem for tiny in make_problems(config.development, config.seed, "dev")]
    test = _test_problems(config)
    blanks = [replace(problem, images=(blank(),)) for problem in test]
    *groups, blank_groups = _sample_groups(weights_path(), [development, test, blanks], config.seed)
    return *groups, _pass_at_1(blank_groups)


def _test_problems(config: DemoConfig) -> list[Problem]:
    return [tiny.problem for tiny in make_problems(config.test, config.test_seed, "test")]


def _sample_groups(policy: Path, sets: Sequence[Sequence[Problem]], seed: int) -> list[list[CandidateGroup]]:
    sampler = SamplerPool(EngineConfig(model=str(policy)), SAMPLING, DEMO_PROMPT)
    grader = SymbolicGrader(GraderConfig())

    async def groups(problems: Sequence[Problem]) -> list[CandidateGroup]:
        sampled = await sample_groups(problems, sampler, grader, samples=_SAMPLES, step_format="tags", run_seed=seed)
        if sampled.failed:
            problem_id, reason = next(iter(sampled.failed.items()))
            raise DataError(f"{problem_id}: sampling failed: {reason}; run mmprm doctor, then start the demo again")
        return sampled.groups

    async def all_groups() -> list[list[CandidateGroup]]:
        return await asyncio.gather(*map(groups, sets))

    try:
        return asyncio.run(all_groups())
    finally:
        sampler.close()
        grader.close()


def _pass_at_1(groups: Sequence[CandidateGroup]) -> float:
    verdicts = [candidate.verdict for group in groups for candidate in group.candidates]
    return sum(verdict is Verdict.CORRECT for verdict in verdicts) / len(verdicts)


def _score(prm: Path, *sets: Sequence[CandidateGroup]) -> list[list[CandidateGroup]]:
    scorer = open_scorer(ScorerConfig(prm=str(prm)))
    try:
        return [score_groups(groups, scorer) for groups in sets]
    finally:
        scorer.close()


def _rl_config(config: DemoConfig, output: Path) -> RLConfig:
    values = {
        "engine.model": weights_path(),
        "problems.path": output / "rl" / "problems.jsonl",
        "held_out": "null",
        "output": output / "rl",
        "steps": config.rl_steps,
        "seed": config.seed,
        "trainer.optimization.learning_rate": RL_RATE,
    }
    return load(RLConfig, config.rl_config, [f"{key}={value}" for key, value in values.items()])


def _train_policy(config: DemoConfig, output: Path) -> Path:
    """Train the policy with outcome rewards only, using each problem of a separate split once."""
    rl = _rl_config(config, output)
    problems = make_problems(config.rl_steps * rl.batch.prompts, config.seed, "train")
    write_problems(Path(rl.problems.path), [tiny.problem for tiny in problems])
    trained = train_policy(rl)
    if trained.policy is None:
        raise TrainingError(f"RL stopped at step {trained.steps} of {trained.total}; run mmprm demo again")
    return trained.policy
