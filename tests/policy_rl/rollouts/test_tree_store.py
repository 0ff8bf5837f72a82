"""Test that the trees of a run become labels, and that a newer tree of a problem replaces the earlier one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from mmprm.cli.main import main
from mmprm.labels.build import LabelsConfig, build_labels
from mmprm.labels.parquet import read_parquet
from mmprm.trees.evidence import evidence
from mmprm.trees.stopping import rule_of
from mmprm.trees.store import Store
from mmprm.types import Counts, Grading, Problem, Verdict
from policy_rl.graded import BranchedPrefix, GradedGroup, GradedResponse
from policy_rl.rewards.cutter import StepCutter
from policy_rl.rollouts.config import BranchingConfig, may_branch
from policy_rl.rollouts.tree_store import TreeStore
from policy_rl.types import Response, Reward


class Letters:
    """Decodes each token to the character with this code."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(map(chr, token_ids))


CUTTER = StepCutter(Letters(), "blank_lines", "> ")


def graded(text: str, accuracy: float | None, finish_reason: str = "stop") -> GradedResponse:
    response = Response(text, list(map(ord, text)), [-1.0] * len(text), finish_reason)
    verdict = {1.0: Verdict.CORRECT, 0.0: Verdict.INCORRECT, None: Verdict.UNKNOWN}[accuracy]
    return GradedResponse(response, Grading(verdict, None, "exact"), Reward(accuracy, {"accuracy": accuracy}))


def group(
    responses: Sequence[GradedResponse], branches: Sequence[BranchedPrefix] = (), name: str = "p", version: int = 0
) -> GradedGroup:
    return GradedGroup(Problem(name, "what?", "4"), 5, version, tuple(responses), tuple(branches))


RESPONSES = [graded("a\n\nb\n\n4", 1.0), graded("a\n\nc\n\n5", 0.0), graded("d\n\n4", 1.0)]
CONTINUED = (graded("a\n\nb\n\n4", 1.0), graded("a\n\ne\n\n5", 0.0), graded("a\n\nf", None), graded("a\n\n4", 1.0))
TREE = group(RESPONSES, [BranchedPrefix(0, 3, 0.7, CONTINUED)])


def stored(folder: Path, *groups: GradedGroup) -> Store:
    trees = TreeStore.open(folder, "blank_lines", CUTTER)
    for each in groups:
        trees.write([each])
    trees.close()
    return Store.read(folder / "trees")


def values(store: Store, name: str = "p") -> dict[tuple[str, ...], Counts]:
    return evidence(store.tree(name), rule_of(store.config))


def test_a_prefix_is_labeled_by_its_continuations(tmp_path: Path) -> None:
    """The rest of the response itself is not counted, and unknown verdicts are no failures."""
    store = stored(tmp_path, TREE)
    assert values(store) == {(): Counts(2, 1), ("> a\n\n",): Counts(2, 1, 1)}
    (_, node) = store.tree("p").nodes
    assert [rollout.steps for rollout in node.rollouts] == [("b\n\n", "4"), ("e\n\n", "5"), ("f",), ("4",)]
    assert [rollout.text for rollout in node.rollouts] == ["b\n\n4", "e\n\n5", "f", "4"]
    assert [rollout.token_count for rollout in node.rollouts] == [4, 4, 1, 1], "without the prefix"
    store.close()
    assert main(["tree", str(tmp_path / "trees"), "p"]) == 0


def test_labels_of_a_run(tmp_path: Path) -> None:
    stored(tmp_path, TREE, group(RESPONSES, name="q")).close()
    output = tmp_path / "labels.parquet"
    summary = build_labels(LabelsConfig(store=str(tmp_path / "trees"), output=str(output), dev=0))
    assert (summary.counts.problems, summary.counts.labels) == (2, 1)
    labels = {
        each.path.steps[: depth + 1]: label.value
        for each in read_parquet(output)
        for depth, label in enumerate(each.path.counts)
        if label is not None and each.problem.id == "p"
    }
    assert labels[("> a",)] == pytest.approx(2 / 3)
    assert {steps[-1]: value for steps, value in labels.items() if steps[-1] in "45"} == {"4": 1.0, "5": 0.0}


def test_a_truncated_response_counts_without_its_steps(tmp_path: Path) -> None:
    """Its last step is not an answer."""
    cut = graded("b\n\nc", 0.0, "length")
    store = stored(tmp_path, group([*RESPONSES, cut]))
    assert values(store) == {(): Counts(2, 2)}
    last = store.tree("p").nodes[0].rollouts[-1]
    assert (last.steps, last.unsplit, last.text) == ((), "truncated", "> b\n\nc")
    store.close()


def test_equal_prefixes_are_one_state(tmp_path: Path) -> None:
    branches = [BranchedPrefix(0, 3, None, CONTINUED[:2]), BranchedPrefix(1, 3, None, CONTINUED[:1])]
    store = stored(tmp_path, group(RESPONSES, branches))
    assert values(store)[("> a\n\n",)] == Counts(2, 1)
    store.close()


def test_a_newer_tree_replaces_the_earlier_one(tmp_path: Path) -> None:
    """Writing the same step again after a kill changes nothing, and trees of other problems stay."""
    other, newer = group(RESPONSES, name="q"), group(RESPONSES[2:], version=3)
    store = stored(tmp_path, TREE, other, newer, newer)
    assert values(store) == {(): Counts(1, 0)}
    assert values(store, "q") == {(): Counts(2, 1)}
    assert store.ids("done") == ["p", "q"]
    store.close()


def test_the_last_of_several_groups_of_a_problem_is_stored(tmp_path: Path) -> None:
    """A step at the end of a pass over few problems may have two groups of a problem."""
    trees = TreeStore.open(tmp_path, "blank_lines", CUTTER)
    trees.write([TREE, group(RESPONSES[2:], version=1)])
    trees.close()
    store = Store.read(tmp_path / "trees")
    assert values(store) == {(): Counts(1, 0)}
    store.close()


def test_a_problem_whose_new_tree_was_not_written_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between the removal of a tree and the new one must not leave a finished problem without a tree."""
    trees = TreeStore.open(tmp_path, "blank_lines", CUTTER)
    trees.write([TREE, group(RESPONSES, name="q")])

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(trees._store, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            trees.write([TREE])
    assert trees.count == 1
    trees.write([TREE])
    assert trees.count == 2
    trees.close()


def test_a_run_that_starts_over_has_no_trees(tmp_path: Path) -> None:
    stored(tmp_path, TREE).close()
    trees = TreeStore.open(tmp_path, "blank_lines", CUTTER)
    trees.clear()
    assert trees.count == 0
    trees.write([TREE])
    assert trees.count == 1
    trees.close()


def test_aborted_and_unsplit_responses_have_no_steps(tmp_path: Path) -> None:
    store = stored(tmp_path, group([graded("a\n\n4", 1.0, "abort"), graded("a\n\n \n\n4", 0.0), graded("4", 1.0)]))
    rollouts = store.tree("p").nodes[0].rollouts
    assert [rollout.verdict for rollout in rollouts] == [Verdict.UNKNOWN, Verdict.INCORRECT, Verdict.CORRECT]
    store.close()


def test_a_fraction_of_the_groups_branches() -> None:
    config = BranchingConfig(groups=0.25)
    found = [may_branch(config, 0, version, f"p{number}") for version in range(20) for number in range(50)]
    assert sum(found) / len(found) == pytest.approx(0.25, abs=0.05)
    assert may_branch(config, 0, 3, "p1") == may_branch(config, 0, 3, "p1")
    assert all(may_branch(BranchingConfig(), 0, 0, f"p{number}") for number in range(50))
    assert any(may_branch(BranchingConfig(groups=0.001), 0, 0, f"p{number}") for number in range(9000))
    with pytest.raises(ValidationError, match=r"greater than or equal to 0.001"):
        BranchingConfig(groups=0.0004)  # less than the resolution, so no group would branch
