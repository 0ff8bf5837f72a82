"""Provide a campaign on a scripted policy: `python scripted_campaign.py PROBLEMS RUN` runs one that tests can kill."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from mcts.campaign import run_campaign
from mcts.config import CampaignConfig
from mcts.worker import LocalWorker
from mmprm.config import build
from mmprm.errors import DataError
from mmprm.sampling.scripted import ScriptedSampler
from mmprm.trees.store import Store
from mmprm.types import Batch, Completion, Grading, Problem, SampleRequest, Verdict

STEPS = 6
PROBLEMS = 24


def write(problem: Problem, prefix: str, rng: random.Random) -> str:
    """Return six steps. Each is bad with probability 1/8, and no answer after a bad step is correct."""
    good = "bad" not in prefix
    text = ""
    for _ in range(prefix.count("<step>"), STEPS):
        good = good and rng.random() > 1 / 8
        text += f"<step>{'good' if good else 'bad'} {rng.randrange(3)}</step>"
    return text + f"<answer>{problem.answer if good else 'nothing'}</answer>"


class Sampler(ScriptedSampler):
    """Rejects problems whose question mentions a missing image."""

    async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
        if "missing" in request.problem.question:
            raise DataError(f"{request.problem.question}: the image cannot be read")
        return await super().sample(request)


class Grader:
    async def grade(self, problem: Problem, response: str) -> Grading:
        correct = f"<answer>{problem.answer}</answer>" in response
        return Grading(Verdict.CORRECT if correct else Verdict.INCORRECT, None, "exact")


def config(problems: str, run: str, **values: object) -> CampaignConfig:
    fixed = {
        "output": run,
        "problems": {"path": problems},
        "engine": {"model": "scripted"},
        "search": {"rollouts": 4, "max_rollouts": 80},
        "workers": 2,
        "trees_in_flight": 8,
        "commit_seconds": 0.02,
    }
    return build(CampaignConfig, fixed | values)


def local_worker(config: CampaignConfig, delay: float = 0.002) -> LocalWorker:
    return LocalWorker(Sampler(write, delay), Grader(), config.step_format, config.seed, config.search)


def write_problems(folder: Path, count: int) -> Path:
    path = folder / "problems.jsonl"
    rows = [{"id": f"p{i}", "question": f"question {i}", "answer": str(i)} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def batches(run: str | Path) -> dict[str, list[Batch]]:
    """Return all stored batches of a run, by problem."""
    store = Store.read(run)
    try:
        return {problem_id: store.batches(problem_id) for problem_id in store.ids()}
    finally:
        store.close()


def main() -> None:
    chosen = config(sys.argv[1], sys.argv[2])

    async def make(number: int) -> LocalWorker:
        return local_worker(chosen, delay=0.02)

    run_campaign(chosen, make_worker=make)


if __name__ == "__main__":
    main()
