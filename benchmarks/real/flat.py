"""Annotate with flat Monte Carlo, as Math-Shepherd does: rollouts from every step of a few solutions, without a search.

The engines, prompts, grader, store and labels are those of `mmprm annotate`; only the choice of states differs.
"""

from __future__ import annotations

from benchmarks.real.annotated import FIXED, Annotated, annotate_sets, read_store
from benchmarks.real.workspace import CONFIGS, Workspace, text_of
from mcts.campaign import run_campaign
from mcts.config import CampaignConfig
from mcts.ray_worker import EngineActor, RayWorkers
from mcts.search import Roll, SearchConfig, SearchResult
from mcts.tree import SearchTree
from mmprm.config import load
from mmprm.types import Problem, Verdict

SOLUTIONS = 4
"""Number of solutions per problem whose steps are all labeled."""


async def search_flat(problem: Problem, roll: Roll, config: SearchConfig) -> SearchResult:
    """Sample `rollouts` solutions, then as many rollouts after each step of the first SOLUTIONS solutions.

    As in OmegaPRM, problems whose solutions are all correct or all incorrect are left out.
    """
    tree = SearchTree(config.alpha, config.beta, config.length_scale, config.c_puct)
    root = tree.add((), [await roll((), config.rollouts)])
    if root.counts.value in (None, 0.0, 1.0):
        return SearchResult(tree.freeze(problem.id), "too easy" if root.counts.value else "too hard")
    known = [rollout for rollout in root.rollouts if rollout.steps and rollout.verdict is not Verdict.UNKNOWN]
    for rollout in known[:SOLUTIONS]:
        for depth in range(1, len(rollout.steps)):
            prefix = rollout.steps[:depth]
            if prefix not in tree.states:
                tree.add(prefix, [await roll(prefix, config.rollouts)])
    return SearchResult(tree.freeze(problem.id), "all steps labeled")


class FlatActor(EngineActor):
    """Runs an engine that annotates problems with flat Monte Carlo instead of a search."""

    async def load(self, config: CampaignConfig, number: int, bind_core: bool) -> None:
        await super().load(config, number, bind_core)
        self._worker.search = search_flat


class FlatWorkers(RayWorkers):
    """Creates the workers of a flat Monte Carlo campaign."""

    actor_class = FlatActor


def annotate_flat(workspace: Workspace) -> Annotated:
    """Run or resume the campaign on the first problems, and read its store."""
    folder = workspace.folder / "flat"
    sets = annotate_sets(workspace, folder, FIXED)
    sets["problems.path"] = workspace.first_problems(workspace.sizes.flat_problems, "flat")
    config = load(CampaignConfig, str(CONFIGS / "annotate.yaml"), [f"{k}={text_of(v)}" for k, v in sets.items()])
    with FlatWorkers(config) as workers:
        run_campaign(config, make_worker=workers.make)
    return read_store(folder)
