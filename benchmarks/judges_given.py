"""Label given solutions of the built-in world, in which the correctness of each step is known.

The built-in policy completes their prefixes, with two methods:

adaptive    mmprm annotate --solutions with its defaults: bisection, and no further rollouts after a correct one
fixed       16 rollouts from every prefix of every solution, as in Math-Shepherd and MM-PRM
"""

from __future__ import annotations

import json
import random
from argparse import Namespace
from pathlib import Path
from statistics import fmean
from typing import Any

from mcts.campaign import run_campaign
from mcts.config import CampaignConfig
from mcts.worker import LocalWorker
from mmprm.cli.demo import DEMO_PROMPT, SAMPLING
from mmprm.config import build
from mmprm.grading.symbolic import SymbolicGrader
from mmprm.problems import write_problems
from mmprm.sampling.config import EngineConfig
from mmprm.sampling.vllm_sampler import VllmSampler
from mmprm.tiny.model import weights_path
from mmprm.tiny.world import Mistakes, TinyProblem, judge_steps, make_problems, solve
from mmprm.trees.given import label_steps
from mmprm.trees.stopping import StoppingRule, rule_of
from mmprm.trees.store import Store
from mmprm.types import Steps

MISTAKES = Mistakes(easy=0.08, hard=0.3)
"""Rates of mistakes with which 60% of the solutions have an error, as many as those of the built-in policy."""
FIXED_ROLLOUTS = 16
METHODS: dict[str, dict[str, Any]] = {
    "adaptive": {"mode": "first_error", "search": {}},
    "fixed": {
        "mode": "values",
        "search": {"rollouts": FIXED_ROLLOUTS, "false_negative_rate": 0, "min_shared_rollouts": None},
    },
}


def open_completer() -> VllmSampler:
    """Start one engine with the built-in policy."""
    return VllmSampler(EngineConfig(model=str(weights_path())), SAMPLING, DEMO_PROMPT)


def one_round(folder: Path, number: int, arguments: Namespace, completer: VllmSampler) -> dict[str, Any]:
    """Label the same solutions with both methods; return rollouts and correct first errors per solution."""
    problems = make_problems(arguments.problems, number, "annotate")
    rng = random.Random(number)
    solutions = {f"s{index}": (tiny, solve(tiny, rng, MISTAKES)) for index, tiny in enumerate(problems)}
    write_problems(folder / "problems.jsonl", [tiny.problem for tiny in problems])
    rows = (
        {"problem_id": tiny.problem.id, "solution_id": name, "author": "world", "steps": steps}
        for name, (tiny, steps) in solutions.items()
    )
    (folder / "solutions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {name: _label(folder, name, number, completer) for name in rng.sample(list(METHODS), len(METHODS))}
    truth = {name: _first_false(tiny, steps) for name, (tiny, steps) in solutions.items()}
    return {
        "solutions": len(solutions),
        "incorrect": sum(error is not None for error in truth.values()),
        "steps": fmean(len(steps) for _, steps in solutions.values()),
        "rows": [
            {
                "incorrect": truth[name] is not None,
                **{method: [rollouts, error == truth[name]] for method, (rollouts, error) in _row(found, name).items()},
            }
            for name in solutions
        ],
    }


def _row(found: dict[str, dict[str, tuple[int, Any]]], name: str) -> dict[str, tuple[int, Any]]:
    return {method: results[name] for method, results in found.items()}


def _label(folder: Path, method: str, seed: int, completer: VllmSampler) -> dict[str, tuple[int, int | str | None]]:
    """Return (rollouts, index of the first error, None or "unlabeled") of each solution."""
    output = folder / method
    config = build(
        CampaignConfig,
        {
            "output": str(output),
            "problems": {"path": str(folder / "problems.jsonl")},
            "solutions": {"path": str(folder / "solutions.jsonl"), "mode": METHODS[method]["mode"]},
            "search": METHODS[method]["search"],
            "engine": {"model": "tiny"},
            "prompt": DEMO_PROMPT.model_dump(),
            "sampling": SAMPLING.model_dump(),
            "seed": seed,
        },
    )
    grader = SymbolicGrader()

    async def make(_: int) -> LocalWorker:
        return LocalWorker(completer, grader, config.step_format, config.seed, config.search)

    try:
        run_campaign(config, make_worker=make)
    finally:
        grader.close()
    store = Store.read(output)
    try:
        rule = rule_of(store.config)
        return {name: _located(store, name, rule) for name in store.ids("done")}
    finally:
        store.close()


def _located(store: Store, name: str, rule: StoppingRule) -> tuple[int, int | str | None]:
    given, tree = store.problem(name).given, store.tree(name)
    assert given is not None, "the run must label given solutions"
    # The solution's own verdict takes no rollout, and 16 rollouts per step do not include the question.
    states = [node for node in tree.nodes if len(node.steps) < len(given.steps)]
    counted = [node for node in states if node.steps or given.mode == "first_error"]
    labels = label_steps(tree, given, rule)
    if all(label is None for label in labels):
        error: int | str | None = "unlabeled"
    else:
        error = next((index for index, label in enumerate(labels) if label is not None and label.value == 0), None)
    return sum(len(node.rollouts) for node in counted), error


def _first_false(tiny: TinyProblem, steps: Steps) -> int | None:
    truths = judge_steps(tiny, steps)
    return truths.index(False) if False in truths else None


def summarize(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the totals of each round: rollouts per solution, their ratio, and the share of correct first errors."""
    return {
        "rollout_ratio": [_ratio(each["rows"]) for each in rounds],
        "rollout_ratio_incorrect": [_ratio([row for row in each["rows"] if row["incorrect"]]) for each in rounds],
        **{
            f"{name}_{method}": [fmean(row[method][column] for row in each["rows"]) for each in rounds]
            for column, name in enumerate(("rollouts", "accuracy"))
            for method in METHODS
        },
    }


def _ratio(rows: list[dict[str, Any]]) -> float:
    return sum(row["adaptive"][0] for row in rows) / sum(row["fixed"][0] for row in rows)
