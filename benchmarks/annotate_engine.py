"""Annotate with real engines: the built-in policy in vLLM, with one engine per core.

The same search runs on the same problems under three schedules:

default   adaptive rollouts, shared evidence, as many trees in flight as keep the engines busy
fixed     K rollouts per state, no shared evidence, as many trees in flight as keep the engines busy
serial    like fixed, but one problem at a time on one engine with all cores: the schedule of published pipelines
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import ray

from mcts.campaign import run_campaign
from mcts.config import CampaignConfig
from mcts.progress import CampaignSummary
from mmprm.cli.demo import DEMO_PROMPT, SAMPLING
from mmprm.config import build
from mmprm.grading.symbolic import GraderConfig, SymbolicGrader
from mmprm.problems import write_problems
from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig, on_one_core
from mmprm.sampling.pool import SamplerPool
from mmprm.sampling.seeds import derive_seed
from mmprm.tiny.model import weights_path
from mmprm.tiny.world import make_problems
from mmprm.trees.evidence import evidence
from mmprm.trees.store import Store
from mmprm.trees.tallies import sessions
from mmprm.types import Problem, SampleRequest, Steps, Tree, Verdict

FRESH = 256
"""Number of fresh rollouts that approximate a prefix's true value."""
CORES = sorted(os.sched_getaffinity(0))
SCHEDULES = {
    "default": {},
    "fixed": {"search": {"rollouts": 16, "false_negative_rate": 0, "min_shared_rollouts": None}},
    "serial": {
        "search": {"rollouts": 16, "false_negative_rate": 0, "min_shared_rollouts": None},
        "trees_in_flight": 1,
        "workers": 1,
        "engine": {"model": "tiny", "cores": CORES},
    },
}


@dataclass(frozen=True)
class Run:
    """Describes a finished annotation campaign. `labels` maps each non-terminal (problem id, prefix) to its label."""

    summary: CampaignSummary
    trees: list[Tree]
    labels: dict[tuple[str, Steps], float]
    store: Store

    @property
    def seconds(self) -> float:
        """Return the seconds from the first engine's start to the last database commit."""
        return sum(session.seconds for session in sessions(self.store))

    @property
    def labels_per_second(self) -> float:
        return len(self.labels) / self.seconds

    @property
    def tokens_per_second(self) -> float:
        return self.summary.tokens / self.seconds

    @property
    def tokens_per_label(self) -> float:
        return self.summary.tokens / len(self.labels)


def annotate(schedule: str, problems: Sequence[Problem], folder: Path, seed: int, max_rollouts: int) -> Run:
    values = SCHEDULES[schedule]
    write_problems(folder / "problems.jsonl", problems)
    fixed = {
        "output": str(folder),
        "problems": {"path": str(folder / "problems.jsonl")},
        "engine": {"model": "tiny"},
        "prompt": DEMO_PROMPT.model_dump(),
        "sampling": SAMPLING.model_dump(),
        "seed": seed,
    }
    search = {"max_rollouts": max_rollouts} | values.get("search", {})
    config = build(CampaignConfig, fixed | values | {"search": search})
    summary = run_campaign(config, model_folder=str(weights_path()))
    store = Store.read(folder / "trees.sqlite")
    trees = list(store.trees())
    labels = {
        (tree.problem_id, steps): counts.value
        for tree in trees
        for steps, counts in evidence(tree, config.search).items()
        if steps
    }
    return Run(summary, trees, labels, store)


@dataclass(frozen=True)
class Policy:
    """Describes how to run and prompt a policy. By default, the built-in one."""

    engine: EngineConfig = field(default_factory=lambda: EngineConfig(model=str(weights_path())))
    sampling: SamplingConfig = SAMPLING
    prompt: PromptConfig = DEMO_PROMPT


class AllAtOnce:
    """Runs one engine in a Ray actor, as in a campaign, and sends all requests to it at once."""

    async def load(self, policy: Policy, core: int) -> None:
        from mmprm.sampling.vllm_sampler import VllmSampler

        self._sampler = VllmSampler(on_one_core(policy.engine, core), policy.sampling, policy.prompt)

    async def ask(self, requests: Sequence[SampleRequest]) -> tuple[int, float]:
        begun = time.perf_counter()
        answers = await asyncio.gather(*map(self._sampler.sample, requests))
        return sum(completion.token_count for answer in answers for completion in answer), time.perf_counter() - begun


def all_at_once(store: Store, seed: int, policy: Policy | None = None) -> tuple[int, float]:
    """Send all requests of a campaign at once to newly started engines; return generated tokens and seconds.

    Requests are balanced over the engines by their token counts.
    """
    load = [0] * len(CORES)
    requests: list[list[SampleRequest]] = [[] for _ in CORES]
    for problem_id in store.ids():
        batches = store.batches(problem_id)
        # Each problem goes to the engine with the fewest tokens so far.
        engine = load.index(min(load))
        load[engine] += sum(rollout.token_count for batch in batches for rollout in batch.rollouts)
        problem = store.problem(problem_id)
        for batch in batches:
            prefix = "".join(batch.steps)
            batch_seed = derive_seed(seed, problem_id, prefix, batch.first_sample)
            requests[engine].append(SampleRequest(problem, prefix, len(batch.rollouts), batch_seed))
    ray.init(include_dashboard=False, log_to_driver=False)
    try:
        actors = [ray.remote(num_cpus=1)(AllAtOnce).remote() for _ in CORES]
        ray.get([actor.load.remote(policy or Policy(), core) for core, actor in enumerate(actors)])
        answers = ray.get([actor.ask.remote(some) for actor, some in zip(actors, requests, strict=True)])
    finally:
        ray.shutdown()
    return sum(tokens for tokens, _ in answers), max(seconds for _, seconds in answers)


def label_errors(runs: dict[str, Run], labels: int, solutions: int, seed: int) -> dict[str, dict[str, Any]]:
    """Measure the label errors of each run, using FRESH new rollouts per prefix as ground truth.

    For each run, it returns the RMSE and bias over a sample of labels. It also returns the fraction of sampled
    solutions whose first error agrees with the fresh rollouts, that is, with the first prefix that never succeeds.
    `pairs` counts, among the solutions that both runs searched, those whose first error only one run located correctly.
    Its `problems` lists (solutions, correct in default minus correct in fixed) per problem.
    """
    rng = random.Random(seed)
    chosen = {name: rng.sample(sorted(run.labels), min(labels, len(run.labels))) for name, run in runs.items()}
    found = {name: _first_errors(run) for name, run in runs.items()}
    # The runs have the same seeds, so their roots share their first rollouts: both are tested on the same solutions.
    common = sorted(set.intersection(*(set(errors) for errors in found.values())))
    searched = rng.sample(common, min(solutions, len(common)))
    differing = [key for key in common if len({errors[key] for errors in found.values()}) > 1]
    wanted = {key for keys in chosen.values() for key in keys}
    for problem_id, steps in {*searched, *differing}:
        wanted |= {(problem_id, steps[:depth]) for depth in range(1, len(steps))}
    problems = {problem.id: problem for run in runs.values() for problem in run.store.problems()}
    truth = _fresh_values(sorted(wanted), problems, seed)
    pairs = {"solutions": len(common)}
    surplus: Counter[str] = Counter()
    metrics = {"pairs": pairs}
    for name, run in runs.items():
        errors = [run.labels[key] - truth[key] for key in chosen[name]]
        hits = [found[name][key] == _first_without_success(key, truth) for key in searched]
        correct = [key for key in differing if found[name][key] == _first_without_success(key, truth)]
        pairs[name] = len(correct)
        for problem_id, _ in correct:
            surplus[problem_id] += 1 if name == "default" else -1
        metrics[name] = {
            "rmse": fmean(error**2 for error in errors) ** 0.5,
            "bias": fmean(errors),
            "first_error": fmean(hits),
            "zero_share": fmean(run.labels[key] == 0 for key in chosen[name]),
        }
    searched_of = Counter(problem_id for problem_id, _ in common)
    pairs["problems"] = [(count, surplus[problem_id]) for problem_id, count in searched_of.items()]
    return metrics


def _first_errors(run: Run) -> dict[tuple[str, Steps], int]:
    """Map each incorrect solution from the root to the index of its first error, if the search located one.

    For a located error, a correct answer was reached from the steps before it. In addition, its own prefix has only
    incorrect rollouts, or it is the last step.
    """
    found = {}
    for tree in run.trees:
        reached = {
            (node.steps + rollout.steps)[:depth]
            for node in tree.nodes
            for rollout in node.rollouts
            if rollout.verdict is Verdict.CORRECT
            for depth in range(len(node.steps + rollout.steps) + 1)
        }
        for rollout in tree.nodes[0].rollouts:
            if rollout.verdict is not Verdict.INCORRECT or not rollout.steps:
                continue
            prefixes = [rollout.steps[:depth] for depth in range(1, len(rollout.steps))]
            broken = [run.labels.get((tree.problem_id, prefix)) == 0 and prefix not in reached for prefix in prefixes]
            position = broken.index(True) if True in broken else len(prefixes)
            if rollout.steps[:position] in reached:
                found[tree.problem_id, rollout.steps] = position
    return found


def _first_without_success(key: tuple[str, Steps], truth: dict[tuple[str, Steps], float]) -> int:
    problem_id, steps = key
    return next((d - 1 for d in range(1, len(steps)) if truth[problem_id, steps[:d]] == 0), len(steps) - 1)


def _fresh_values(
    keys: Sequence[tuple[str, Steps]], problems: dict[str, Problem], seed: int
) -> dict[tuple[str, Steps], float]:
    pool = SamplerPool(EngineConfig(model=str(weights_path())), SAMPLING, DEMO_PROMPT)
    gate = asyncio.Semaphore(64)

    async def value(grader: SymbolicGrader, problem_id: str, steps: Steps) -> float:
        problem, prefix = problems[problem_id], "".join(steps)
        async with gate:
            sampled = await pool.sample(
                SampleRequest(problem, prefix, FRESH, derive_seed(seed, problem_id, prefix, 10**6))
            )
        gradings = await asyncio.gather(*(grader.grade(problem, prefix + completion.text) for completion in sampled))
        known = [grading.verdict for grading in gradings if grading.verdict is not Verdict.UNKNOWN]
        return sum(verdict is Verdict.CORRECT for verdict in known) / len(known)

    async def values() -> list[float]:
        with SymbolicGrader(GraderConfig()) as grader:
            return await asyncio.gather(*(value(grader, *key) for key in keys))

    try:
        return dict(zip(keys, asyncio.run(values()), strict=True))
    finally:
        pool.close()
        ray.shutdown()


def one_round(folder: Path, number: int, arguments: Namespace) -> dict:
    """Run all annotation schedules once. `number` determines the problems, the seeds and the order of the schedules.

    Saturation is measured on many problems, and labels are compared on the first few of them.
    """
    chosen = [tiny.problem for tiny in make_problems(arguments.problems, number, "annotate")]
    sizes = {
        "many": ("default", arguments.problems),
        "default": ("default", arguments.few_problems),
        "fixed": ("fixed", arguments.few_problems),
        "serial": ("serial", arguments.serial_problems),
    }
    runs: dict[str, Run] = {}
    for name in random.Random(number).sample(list(sizes), len(sizes)):
        schedule, size = sizes[name]
        target = folder / f"{name}-{number}"
        target.mkdir(parents=True)
        runs[name] = annotate(schedule, chosen[:size], target, number, arguments.max_rollouts)
    many, default, fixed = runs["many"], runs["default"], runs["fixed"]
    tokens, seconds = all_at_once(many.store, number)
    errors = label_errors({"default": default, "fixed": fixed}, labels=120, solutions=40, seed=number)
    return {
        "saturation": many.tokens_per_second / (tokens / seconds),
        "tokens_all_at_once_over_campaign": tokens / many.summary.tokens,
        "speedup_over_serial": many.labels_per_second / runs["serial"].labels_per_second,
        "adaptive_token_ratio": default.tokens_per_label / fixed.tokens_per_label,
        "labels": {name: len(run.labels) for name, run in runs.items()},
        "labels_per_second": {name: run.labels_per_second for name, run in runs.items()},
        "tokens_per_second": {name: run.tokens_per_second for name, run in runs.items()},
        "tokens_per_label": {name: run.tokens_per_label for name, run in runs.items()},
        "rollouts_per_label": {name: run.summary.rollouts / len(run.labels) for name, run in runs.items()},
        "trees_in_flight_max": {name: run.summary.trees_in_flight_max for name, run in runs.items()},
        "errors": errors,
    }
