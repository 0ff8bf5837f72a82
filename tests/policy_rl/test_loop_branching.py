"""Test runs whose responses branch, with a scripted policy that writes two steps and an answer."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_rl import WEIGHED, ScriptedPool, ScriptedTrainer, make_config, make_loop, metrics_of
from test_loop_resume import StopsAt

from mmprm.errors import ConfigError, SamplingError, TrainingError
from mmprm.trees.store import Store
from mmprm.types import Grading, Problem, Verdict
from policy_rl.graded import GradedGroup
from policy_rl.loop import Loop
from policy_rl.metrics import metric_names
from policy_rl.rewards.cutter import StepCutter
from policy_rl.rollouts.tree_store import TreeStore
from policy_rl.types import Group, Response, ResponsePrefix, TrainingSample

LIMIT = 30
TREE: dict[str, Any] = {
    "credit": {"source": "tree"},
    "rollouts": {"branching": {"continuations": 2, "token_budget": 4 * LIMIT}},
    "sampling": {"max_tokens": LIMIT},
    "step_format": "blank_lines",
}
FILTERED = {"filter": {"low": 0.1, "high": 0.9, "rounds": 1}, "trainer": WEIGHED}
FILTERED |= {"batch": {"prompts": 4, "group_size": 3, "updates": 2}}


class Letters:
    """Decodes each token to the character with this code."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(map(chr, token_ids))


class BranchingPool(ScriptedPool):
    """Writes two steps and an answer, one character per token, or completes a prefix."""

    def __init__(self, refuses: bool = False, prompt_tokens: int = 7) -> None:
        super().__init__()
        self._prompt_tokens = prompt_tokens
        self.branches: list[tuple[int, int | None, tuple[int, ...]]] = []
        self._refuses = refuses

    async def sample(
        self,
        problem: Problem,
        n: int,
        seed: int,
        version: int,
        max_tokens: int | None = None,
        prefix: ResponsePrefix | None = None,
    ) -> Group:
        assert version == self.version
        await asyncio.sleep(random.random() / 200)  # groups end in any order
        if prefix is not None:
            self.branches.append((n, max_tokens, tuple(prefix.token_ids.tolist())))
            if self._refuses:
                raise SamplingError("problem p: refused")
        responses = tuple(self._written(random.Random(seed + i), prefix) for i in range(n))
        return Group(problem, responses, version, 7 if prefix is None else self._prompt_tokens)

    def _written(self, rng: random.Random, prefix: ResponsePrefix | None) -> Response:
        given = [] if prefix is None else prefix.token_ids.tolist()
        steps = ["".join(rng.choices("abc", k=rng.randint(1, 3))) for _ in range(2)]
        words = [*steps, rng.choice(("right", "wrong"))][given.count(ord("\n")) // 2 :]
        ids = [*given, *map(ord, "\n\n".join(words))]
        before = np.zeros(0) if prefix is None else prefix.logprobs
        logprobs = np.concatenate([before, [-rng.random() for _ in ids[len(given) :]]])
        return Response("".join(map(chr, ids)), ids, logprobs, "stop")


class LastWord:
    """Grades a response by its answer."""

    async def grade(self, problem: Problem, response: str) -> Grading:
        return Grading(Verdict.CORRECT if response.endswith("right") else Verdict.INCORRECT, response[-5:], "")


def loop_of(
    output: Path,
    pool: ScriptedPool,
    learner: ScriptedTrainer,
    trees: TreeStore | None = None,
    refresh: Any = None,
    **changes: Any,
) -> Loop:
    cutter = StepCutter(Letters(), "blank_lines", "")
    config = make_config(output, **TREE | changes)
    return make_loop(config, pool, learner, grader=LastWord(), cutter=cutter, trees=trees, refresh=refresh)


def sent(batch: list[TrainingSample]) -> list[str]:
    return ["".join(map(chr, each.token_ids)) for each in batch]


def test_continuations_are_sampled_from_whole_steps_and_trained_on(tmp_path: Path) -> None:
    pool, trainer = BranchingPool(), ScriptedTrainer()
    asyncio.run(loop_of(tmp_path / "run", pool, trainer, steps=1).run())
    # Four groups, each continued after one first and one second step, twice.
    assert len(pool.branches) == 8
    assert {n for n, *_ in pool.branches} == {2}
    assert all(limit == LIMIT - len(ids) for _, limit, ids in pool.branches)
    assert all("".join(map(chr, ids)).endswith("\n\n") for *_, ids in pool.branches)
    (batch,) = trainer.batches
    assert len(batch) == 4 * 3 + 8 * 2
    masked = [(text, each.counted) for text, each in zip(sent(batch), batch, strict=True) if each.mask is not None]
    assert len(masked) == 16
    assert all(text[: (~counted).sum()].endswith("\n\n") for text, counted in masked)


def test_metrics_of_continuations(tmp_path: Path) -> None:
    pool, trainer = BranchingPool(), ScriptedTrainer()
    loop = loop_of(tmp_path / "run", pool, trainer, steps=1)
    asyncio.run(loop.run())
    (metrics,) = metrics_of(tmp_path / "run")
    assert metrics["branches"] == 8
    assert metrics["branch_tokens"] == sum(each.counted.sum() for each in trainer.batches[0][12:])
    assert 0 <= metrics["branch_decided"] <= 1
    assert 0 < metrics["branch_value"] < 1
    assert {name for name in metrics if name.startswith("branch")} <= metric_names(loop._config)


def test_the_budget_bounds_the_tokens_of_a_group(tmp_path: Path) -> None:
    pool, branching = BranchingPool(), {"continuations": 2, "max_per_step": 3, "token_budget": 60}
    asyncio.run(loop_of(tmp_path / "run", pool, ScriptedTrainer(), rollouts={"branching": branching}).run())
    lines = metrics_of(tmp_path / "run")
    # Two continuations of 22 to 27 tokens fit once, but not twice.
    assert {line["branches"] for line in lines} == {4}
    assert all(0 < line["branch_tokens"] <= 4 * 60 for line in lines)


def test_continuations_that_the_engine_refuses_are_counted(tmp_path: Path) -> None:
    trainer = ScriptedTrainer()
    asyncio.run(loop_of(tmp_path / "run", BranchingPool(refuses=True), trainer, steps=1).run())
    (metrics,) = metrics_of(tmp_path / "run")
    assert (metrics["dropped_refused"], metrics["branches"]) == (8, 0)
    assert len(trainer.batches[0]) == 12


def test_a_prompt_of_another_length_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"the prompt has 7 tokens, but 8 before a prefix; .* leave rollouts"):
        asyncio.run(loop_of(tmp_path / "run", BranchingPool(prompt_tokens=8), ScriptedTrainer()).run())


@pytest.mark.parametrize("changes", [{}, FILTERED], ids=["plain", "filter"])
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, changes: dict[str, Any]) -> None:
    """With a filter, the checkpoint contains carried-over groups and their continuations."""
    whole, resumed = ScriptedTrainer(), ScriptedTrainer()
    asyncio.run(loop_of(tmp_path / "whole", BranchingPool(), whole, **changes).run())
    assert not asyncio.run(loop_of(tmp_path / "parts", BranchingPool(), StopsAt(3), **changes).run()).finished
    assert asyncio.run(loop_of(tmp_path / "parts", BranchingPool(), resumed, **changes).run()).finished
    assert resumed.weights == whole.weights
    lines = [metrics_of(tmp_path / name) for name in ("whole", "parts")]
    assert repr(lines[0]) == repr(lines[1])
    if changes:
        assert any(line["carried"] for line in lines[0]), "nothing was carried over, so this shows nothing"


class Watching:
    """Stands in for PrmRefresh: records the groups and steps that it is asked about."""

    def __init__(self) -> None:
        self.groups: list[int] = []
        self.steps: list[int] = []
        self.restored: dict[str, Any] | None = None
        self.started_over = False
        self.is_due = False

    def see(self, groups: list[GradedGroup]) -> dict[str, float]:
        self.groups.append(len(groups))
        return {"prm_tree_auc": 0.75}

    async def retrain_if_due(self, step: int) -> None:
        self.steps.append(step)
        self.is_due = step == 3

    def start_over(self) -> None:
        self.started_over = True

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps}

    async def restore(self, state: dict[str, Any]) -> None:
        self.restored = state


def test_trees_are_kept_as_labels_without_credit_from_them(tmp_path: Path) -> None:
    """Half of the groups branch. A resumed run replaces the trees of repeated steps and restores the PRM."""
    branching = {"continuations": 2, "token_budget": 4 * LIMIT, "groups": 0.5, "store": True}
    changes: dict[str, Any] = {"credit": None, "rollouts": {"branching": branching}}

    def run(trainer: ScriptedTrainer, refresh: Watching) -> None:
        trees = TreeStore.open(tmp_path / "run", "blank_lines", StepCutter(Letters(), "blank_lines", ""))
        asyncio.run(loop_of(tmp_path / "run", BranchingPool(), trainer, trees, refresh, **changes).run())
        trees.close()

    stopped, resumed, trainer = Watching(), Watching(), ScriptedTrainer()
    run(StopsAt(3), stopped)
    run(trainer, resumed)
    # Neither the step after which the run stops nor the last one needs another PRM. A resumed run asks at once.
    assert (stopped.steps, resumed.restored, resumed.steps) == ([0, 1, 2], {"steps": [0, 1, 2]}, [3, 4, 5])
    saves = [call for call in trainer.calls if call.startswith("save ")]
    assert saves == ["save 4", "save 6"], "a checkpoint precedes the training of a PRM"
    assert (stopped.started_over, resumed.started_over) == (True, False)
    assert sum(len(batch) for batch in trainer.batches) == 3 * 12, "continuations are not trained on"
    lines = metrics_of(tmp_path / "run")
    assert [line["branches"] for line in lines] == [2 * count for count in stopped.groups + resumed.groups]
    assert {line["prm_tree_auc"] for line in lines} == {0.75}
    store = Store.read(tmp_path / "run" / "trees")
    trees = [tree for tree in store.trees() if len(tree.nodes) > 1]
    assert 0 < len(trees) <= sum(stopped.groups + resumed.groups)
    assert all(node.counts.known == 2 * len(node.batches) for tree in trees for node in tree.nodes[1:])
    store.close()


PRM = {"process": {"scorer": {"prm": "x"}}}
BOTH = {**TREE, **PRM, "credit": {"source": "both"}}
_JUDGE = {"engine": {"model": "m", "servers": {"urls": ["http://x:1"]}}}
JUDGE = {"process": {"scorer": {"backend": "judge", "judge": _JUDGE}}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rollouts": {"branching": {}}}, r"set credit.source=tree, or rollouts.branching.store=true to keep them"),
        ({"credit": {"source": "tree"}}, r"credit.source=tree needs continuations; set rollouts.branching"),
        ({**TREE, "credit": {"source": "both"}}, r"credit.source=both needs the scores .*; set process.scorer.prm"),
        ({**TREE, "rollouts": {"branching": {"choose": "undecided"}}}, r"choose=undecided needs the scores"),
        ({**BOTH, **JUDGE}, r"credit.source=both cannot be combined with process.scorer.backend=judge: .* reads"),
        (
            {**TREE, **JUDGE, "rollouts": {"branching": {"choose": "undecided"}}},
            r"choose=undecided cannot be combined with process.scorer.backend=judge",
        ),
        (
            {**TREE, "advantage": {"estimator": "grpo"}},
            r"advantage.estimator=grpo cannot be combined with credit.source",
        ),
        ({**TREE, "advantage": {"whiten": True}}, r"advantage.whiten=true cannot be combined"),
        ({**TREE, "adora": {}}, r"adora cannot be combined"),
        ({**TREE, "trainer": {"loss": {"aggregation": "sequence_mean"}}}, r"aggregation=sequence_mean cannot"),
        ({**BOTH, "rewards": {"format": "steps"}}, r"credit.source=both needs a reward of accuracy alone"),
        ({**BOTH, "rewards": {"accuracy_weight": 0}}, r"leaves nothing to reward; .* or set .* rewards.length$"),
        ({**TREE, "credit": {"source": "tree", "mode": "soft_min"}}, r"mode=soft_min has no effect with source=tree"),
        ({**TREE, "credit": {"source": "tree", "prior_weight": 2}}, r"prior_weight=2.0 has no effect with source=tree"),
        (
            {"rollouts": {"branching": {"store": True, "choose": "undecided"}}},
            r"choose=undecided needs the scores",
        ),
        (
            {"process": {"scorer": {"prm": "x"}, "refresh": {"train": "x.yaml"}}},
            r"process.refresh retrains the PRM on the trees of the run; set rollouts.branching.store=true",
        ),
        (
            {
                "process": {
                    "scorer": {"backend": "server", "server": {"urls": ["http://x:1"]}},
                    "refresh": {"train": "x"},
                }
            },
            r"refresh retrains a PRM that this run loads, but the scorer runs elsewhere",
        ),
        ({"rollouts": {"branching": {"min_score": 0.1}}}, r"min_score=0.1 is a bound for choose=undecided"),
        (
            {"rollouts": {"branching": {"choose": "undecided", "min_score": 0.9}}},
            r"min_score=0.9 must not exceed max_score=0.8",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_config(tmp_path, **changes)


def test_settings_that_fit(tmp_path: Path) -> None:
    tree = make_config(tmp_path, **TREE).tree_settings()
    both = make_config(tmp_path, **{**BOTH, "rewards": {"accuracy_weight": 2}}).tree_settings()
    assert (tree.prior_weight, both.prior_weight, both.prior_scale) == (0.0, 1.0, 2.0)
    assert make_config(tmp_path, **BOTH).step_credit is None
    labels = {"branching": {"store": True, "choose": "undecided"}}
    assert make_config(tmp_path, **JUDGE, rollouts=labels).step_credit is not None
