"""Run annotation campaigns with `mmprm annotate`, read their stores, and estimate true values with fresh rollouts."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from benchmarks.real.workspace import FORM, MAX_TOKENS, PROMPTS, TEMPERATURE, Workspace, run_command, sampling_sets
from mmprm import actors
from mmprm.grading.symbolic import GraderConfig, SymbolicGrader
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.sampling.pool import SamplerPool
from mmprm.sampling.seeds import derive_seed
from mmprm.trees.database import STORE_NAME
from mmprm.trees.evidence import evidence
from mmprm.trees.stopping import rule_of
from mmprm.trees.store import Store
from mmprm.trees.tallies import ProblemTally, sessions, tallies
from mmprm.types import Counts, Problem, SampleRequest, Steps, Verdict

State = tuple[str, Steps]
"""Identifies a state by a problem's id and a verbatim prefix of steps."""

FIXED = {"search.rollouts": 16, "search.false_negative_rate": 0, "search.min_shared_rollouts": None}
"""Settings of OmegaPRM with a fixed number of rollouts per state."""
PRECISE = {
    "search.rollouts": 12,
    "search.false_negative_rate": 0.03,
    "search.max_posterior_std": 0.115,
    "search.min_shared_rollouts": 12,
}
"""Settings for labels about as precise as with 16 rollouts: few rollouts for failed states, up to 12 for the others.

Other states' rollouts decide whether a prefix can still succeed, but hardly ever label it.
"""
SCHEDULES: dict[str, dict[str, Any]] = {"adaptive": {}, "precise": PRECISE, "fixed": FIXED}
IN_FLIGHT = 4
"""Number of states whose fresh rollouts are sampled concurrently."""


@dataclass(frozen=True)
class Annotated:
    """Contains the results of a campaign: labels by state, totals by problem in problem order, and seconds."""

    labels: dict[State, Counts]
    problems: dict[str, ProblemTally]
    seconds: float

    @property
    def tokens(self) -> int:
        return sum(problem.tokens for problem in self.problems.values())

    @property
    def rollouts(self) -> int:
        return sum(problem.rollouts for problem in self.problems.values())

    def within(self, tokens: int) -> Annotated:
        """Keep the first problems whose tokens add up to at most `tokens`."""
        sums = itertools.accumulate(problem.tokens for problem in self.problems.values())
        return self.only([name for name, total in zip(self.problems, sums, strict=True) if total <= tokens])

    def only(self, names: Iterable[str]) -> Annotated:
        """Keep only the problems with these ids."""
        problems = {name: self.problems[name] for name in names}
        labels = {state: counts for state, counts in self.labels.items() if state[0] in problems}
        return Annotated(labels, problems, self.seconds)


def annotate_sets(workspace: Workspace, folder: Path, schedule: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **sampling_sets(workspace),
        "output": folder,
        "problems.path": workspace.problems("annotate"),
        "search.max_rollouts": workspace.sizes.max_rollouts,
        **schedule,
    }


def annotate(workspace: Workspace, name: str) -> Annotated:
    """Run or resume the campaign with the schedule `name`, and read its store.

    The adaptive campaign, whose labels train the PRM, annotates all problems. The others annotate the first ones.
    """
    folder = workspace.folder / name
    sets = annotate_sets(workspace, folder, SCHEDULES[name])
    if name != "adaptive":
        sets["problems.path"] = workspace.first_problems(workspace.sizes.compared, "compared")
    run_command("annotate", "annotate.yaml", sets)
    return read_store(folder)


def read_store(folder: Path) -> Annotated:
    store = Store.read(folder / STORE_NAME)
    rule = rule_of(store.config)
    labels = {
        (tree.problem_id, steps): counts
        for tree in store.trees()
        for steps, counts in evidence(tree, rule).items()
        if steps
    }
    problems = {tally.problem_id: tally for tally in tallies(store)}
    seconds = sum(session.seconds for session in sessions(store))
    store.close()
    return Annotated(labels, problems, seconds)


def sample_states(labels: Iterable[State], count: int, seed: int) -> list[State]:
    """Sample search states without replacement. The same labels give the same states."""
    ordered = sorted(labels)
    return random.Random(seed).sample(ordered, min(count, len(ordered)))


def fresh_values(workspace: Workspace, states: Sequence[State]) -> dict[State, float]:
    """Estimate the value of each state from fresh rollouts. Values found earlier are read from fresh.jsonl."""
    path = workspace.folder / "fresh.jsonl"
    known = _read_values(path)
    missing = [state for state in dict.fromkeys(states) if state not in known]
    if missing:
        problems = workspace.load("annotate")
        with path.open("a", encoding="utf-8") as file:
            for state, value in _sample_values(workspace, missing, problems, file):
                known[state] = value
    return {state: known[state] for state in states}


def _read_values(path: Path) -> dict[State, float]:
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return {(line["problem_id"], tuple(line["steps"])): line["value"] for line in lines}


def _sample_values(
    workspace: Workspace, states: Sequence[State], problems: Mapping[str, Problem], file: Any
) -> list[tuple[State, float]]:
    """Sample the states' rollouts, writing each value as soon as it is known."""
    engine = EngineConfig(model=str(workspace.policy), max_model_len=512)
    actors.connect("local")
    pool = SamplerPool(engine, SamplingConfig(temperature=TEMPERATURE, max_tokens=MAX_TOKENS), PROMPTS[FORM])
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def value(grader: SymbolicGrader, state: State) -> tuple[State, float]:
        problem, prefix = problems[state[0]], "".join(state[1])
        seed = derive_seed(1, problem.id, prefix, 10**6)
        async with gate:
            sampled = await pool.sample(SampleRequest(problem, prefix, workspace.sizes.fresh, seed))
        texts = [prefix + completion.text for completion in sampled]
        verdicts = [(await grader.grade(problem, text)).verdict for text in texts]
        known = [verdict for verdict in verdicts if verdict is not Verdict.UNKNOWN]
        found = sum(verdict is Verdict.CORRECT for verdict in known) / len(known)
        file.write(json.dumps({"problem_id": state[0], "steps": state[1], "value": found}) + "\n")
        file.flush()
        return state, found

    async def values() -> list[tuple[State, float]]:
        with SymbolicGrader(GraderConfig()) as grader:
            return await asyncio.gather(*(value(grader, state) for state in states))

    try:
        return asyncio.run(values())
    finally:
        pool.close()
        ray.shutdown()
