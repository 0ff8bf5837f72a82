"""Test which rollouts count for which prefix: by hand, and statistically on many trees of a known world."""

from __future__ import annotations

import random
from collections import defaultdict
from statistics import fmean

import pytest

from mcts.search import SearchConfig, search
from mmprm.trees.evidence import evidence, shared_labels
from mmprm.trees.serialization import count_verdicts
from mmprm.trees.stopping import StoppingRule
from mmprm.types import Counts, Node, Problem, Rollout, Steps, Tree, Verdict

R, W, U = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNKNOWN
SHARED = StoppingRule(false_negative_rate=0, min_shared_rollouts=3)


def node(steps: str, *rollouts: tuple[str, Verdict]) -> Node:
    """Return a node whose rollouts have one letter per step."""
    sampled = tuple(Rollout(tuple(text), verdict, 1, text) for text, verdict in rollouts)
    return Node(tuple(steps), (count_verdicts(sampled),), sampled)


def found(rule: StoppingRule, *nodes: Node) -> dict[str, Counts]:
    return {"".join(steps): counts for steps, counts in evidence(Tree("p", nodes), rule).items() if steps}


def test_by_hand() -> None:
    root = node("", ("abc", R), ("abd", R), ("axy", W), ("abz", U), ("q", R))
    assert found(SHARED, root) == {"a": Counts(2, 1, 1)}, "ab has two known verdicts, and q is a final step"
    # Searching axy made ax and a states. ax is labeled only by its own rollouts, and a as before.
    ax, a = node("ax", ("y", W), ("u", W)), node("a", ("xyz", R), ("bcd", R), ("bd!", W), ("bc", U), ("cc", R))
    assert found(SHARED, root, ax) == {"ax": Counts(0, 2), "a": Counts(2, 1, 1)}
    assert found(SHARED, root, ax, a) == {"ax": Counts(0, 2), "a": Counts(2, 1, 1)}
    assert found(SHARED, a, root)["a"] == Counts(3, 1, 1), "it has its own rollouts"
    # If two rollouts suffice, the root's batch labels ab; the batch of a depends on earlier results and adds nothing.
    two = StoppingRule(false_negative_rate=0, min_shared_rollouts=2)
    assert found(two, root, ax, a)["ab"] == Counts(2, 0, 1)
    assert found(StoppingRule(false_negative_rate=0, min_shared_rollouts=None), root, ax, a) == {
        "ax": Counts(0, 2),
        "a": Counts(3, 1, 1),
    }


def test_a_number_below_that_of_the_search_only_adds_labels() -> None:
    """Two of the root's rollouts pass through ax, which the search sampled from, and two through ab, which it did not.

    A higher number than that of the search leaves a with its own rollouts alone.
    """
    root = node("", ("abc", R), ("abd", R), ("axy", W), ("axz", W))
    ax, a = node("ax", ("y", W), ("u", R), ("v", W)), node("a", ("b", R))
    tree = Tree("p", (root, ax, a))
    searched = {(): Counts(2, 2), ("a",): Counts(2, 2), ("a", "x"): Counts(1, 2)}
    assert evidence(tree, SHARED) == searched
    assert evidence(tree, SHARED, 2) == searched | {("a", "b"): Counts(2, 0)}
    assert evidence(tree, SHARED, 5)["a",] == Counts(1, 0)
    only_own = StoppingRule(false_negative_rate=0, min_shared_rollouts=None)
    assert evidence(tree, only_own, 2) == evidence(tree, only_own) | {("a", "b"): Counts(2, 0)}


def test_only_the_first_batch_of_a_state_is_shared() -> None:
    """Later batches are sampled depending on earlier results, so they would be biased."""
    sampled = [Rollout(tuple(text), verdict, 1, text) for text, verdict in [("ab", R), ("ac", W), ("ad", R), ("ab", R)]]
    whole = Node((), (Counts(1, 1), Counts(2, 0)), tuple(sampled))
    assert found(StoppingRule(rollouts=4, min_shared_rollouts=2), whole) == {"a": Counts(1, 1)}
    assert found(StoppingRule(rollouts=4, min_shared_rollouts=3), whole) == {}


@pytest.mark.parametrize("verdict", [R, W, U])
def test_a_problem_that_is_always_or_never_solved_shares_nothing(verdict: Verdict) -> None:
    assert found(SHARED, node("", *[("abc", verdict)] * 5)) == {}


class World:
    """Samples six steps of three letters. X occurs with probability `bad` and is rarely repaired, so values are
    known.
    """

    def __init__(self, seed: int, bad: float, mended: float = 0.03) -> None:
        self.rng = random.Random(seed)
        self.bad, self.mended = bad, mended

    async def __call__(self, steps: Steps, n: int) -> tuple[Rollout, ...]:
        return tuple(self.rollout(steps) for _ in range(n))

    def rollout(self, steps: Steps) -> Rollout:
        text = list(steps)
        while len(text) < 6:
            text.append("X" if self.rng.random() < self.bad else self.rng.choices("ab", [0.85, 0.15])[0])
        correct = self.rng.random() < (self.mended if "X" in text else 0.95)
        written = tuple(text[len(steps) :])
        return Rollout(written, R if correct else W, 1, "".join(written))

    def value(self, steps: Steps) -> float:
        still_good = 0.0 if "X" in steps else (1 - self.bad) ** (6 - len(steps))
        return 0.95 * still_good + self.mended * (1 - still_good)


async def errors(
    config: SearchConfig, trees: int, bad: float = 0.15, mended: float = 0.03, minimum: int | None = None
) -> tuple[dict[str, list[float]], float]:
    """Return the label errors by kind, and the rollouts per label. `minimum` is that of the labels, if it is lower."""
    found: dict[str, list[float]] = defaultdict(list)
    rollouts = labels = 0
    for number in range(trees):
        world = World(number, bad, mended)
        tree = (await search(Problem(f"p{number}", "", ""), world, config)).tree
        shared = shared_labels(tree, config.min_shared_rollouts) if config.min_shared_rollouts else {}
        rollouts += sum(len(node.rollouts) for node in tree.nodes)
        own = evidence(tree, config)
        for steps, counts in evidence(tree, config, minimum).items():
            if steps:
                labels += 1
                kind = ("shared" if steps in shared else "state") + (" after X" if "X" in steps else "")
                kind = kind if steps in own else "added"
                found[kind].append(counts.value - world.value(steps))
    return found, rollouts / labels


def bias(found: dict[str, list[float]]) -> dict[str, float]:
    return {kind: fmean(values) for kind, values in found.items()}


async def test_labels_are_unbiased_and_cost_less() -> None:
    """The standard errors are below 0.004."""
    fixed, fixed_cost = await errors(
        SearchConfig(false_negative_rate=0, min_shared_rollouts=None, max_rollouts=400), 300
    )
    adaptive, cost = await errors(SearchConfig(max_rollouts=400), 300)
    shared, _ = await errors(SearchConfig(false_negative_rate=0, max_rollouts=400), 300)
    for found in (fixed, adaptive, shared):
        assert all(abs(mean) < 0.012 for mean in bias(found).values()), bias(found)
    assert sum(map(len, (adaptive["shared"], shared["shared"]))) > 300
    assert cost < 0.85 * fixed_cost


async def test_a_common_error_that_is_sometimes_corrected() -> None:
    """If a state kept only its own rollouts, the shared labels that remain would be biased upward by 0.03."""
    found, _ = await errors(SearchConfig(max_rollouts=200, min_shared_rollouts=3), 400, bad=0.3, mended=0.2)
    assert len(found["shared after X"]) > 300
    assert abs(bias(found)["shared after X"]) < 0.01


async def test_values_of_rarely_solved_problems_are_biased_upward() -> None:
    """A problem is searched only if one of its first rollouts is correct; states below the root are unbiased."""
    found, _ = await errors(SearchConfig(max_rollouts=200), 400, bad=0.4)
    means = bias(found)
    assert 0.0 < means["shared"] < 0.05
    assert abs(means["state"]) < 0.012
    assert abs(means["state after X"]) < 0.012


async def test_labels_from_single_rollouts_are_nearly_unbiased_without_a_search() -> None:
    """After a search, the prefixes that are not states are those whose first rollouts did not all fail."""
    alone = SearchConfig(rollouts=16, max_rollouts=16)
    found, _ = await errors(alone, 400, bad=0.3, mended=0.2, minimum=1)
    values = [value for each in found.values() for value in each]
    assert len(values) > 5_000
    assert abs(fmean(values)) < 0.012
    for minimum, expected in ((1, 0.14), (2, 0.11)):
        searched, _ = await errors(SearchConfig(max_rollouts=400), 200, bad=0.3, mended=0.2, minimum=minimum)
        means = bias(searched)
        assert abs(means["added"] - expected) < 0.01
        assert all(abs(mean) < 0.02 for kind, mean in means.items() if kind != "added"), means
