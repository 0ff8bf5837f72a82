"""Which rollouts count for which prefix: by hand, and as statistics over many trees of a known world."""

from __future__ import annotations

import random
from collections import defaultdict
from statistics import fmean

import pytest

from mcts.search import SearchConfig, search
from mmprm.evidence import evidence
from mmprm.records import count_verdicts
from mmprm.stopping import StoppingRule
from mmprm.types import Counts, Node, Problem, Rollout, Steps, Tree, Verdict

R, W, U = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNKNOWN
SHARED = StoppingRule(doubt=0, shared=3)


def node(steps: str, *rollouts: tuple[str, Verdict]) -> Node:
    """One letter a step."""
    drawn = tuple(Rollout(tuple(text), verdict, 1, text) for text, verdict in rollouts)
    return Node(tuple(steps), (count_verdicts(drawn),), drawn)


def found(rule: StoppingRule, *nodes: Node) -> dict[str, Counts]:
    return {"".join(steps): counts for steps, counts in evidence(Tree("p", nodes), rule).items() if steps}


def test_by_hand() -> None:
    root = node("", ("abc", R), ("abd", R), ("axy", W), ("abz", U), ("q", R))
    assert found(SHARED, root) == {"a": Counts(2, 1, 1)}, "ab has two known verdicts, and q! was a last step"
    # axy was searched: ax by its own rollouts alone. Those from a count for what lies behind a, and no others any more.
    ax, a = node("ax", ("y", W), ("u", W)), node("a", ("xyz", R), ("bcd", R), ("bd!", W), ("bc", U), ("cc", R))
    assert found(SHARED, root, ax) == {"ax": Counts(0, 2), "a": Counts(2, 1, 1)}
    assert found(SHARED, root, ax, a) == {"ax": Counts(0, 2), "a": Counts(3, 1, 1)}
    assert found(StoppingRule(doubt=0, shared=2), root, ax, a)["ab"] == Counts(1, 1, 1)
    assert found(StoppingRule(doubt=0, shared=None), root, ax, a) == {"ax": Counts(0, 2), "a": Counts(3, 1, 1)}


@pytest.mark.parametrize("verdict", [R, W, U])
def test_a_problem_that_is_always_or_never_solved_shares_nothing(verdict: Verdict) -> None:
    assert found(SHARED, node("", *[("abc", verdict)] * 5)) == {}


class World:
    """Six steps from three letters; each is bad with a chance that differs by letter, and few solutions recover."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    async def __call__(self, steps: Steps, n: int) -> tuple[Rollout, ...]:
        return tuple(self.rollout(steps) for _ in range(n))

    def rollout(self, steps: Steps) -> Rollout:
        text = list(steps)
        while len(text) < 6:
            text.append(self.rng.choices("abX", [0.7, 0.15, 0.15])[0])
        right = self.rng.random() < (0.03 if "X" in text else 0.95)
        written = tuple(text[len(steps) :])
        return Rollout(written, R if right else W, 1, "".join(written))


def true_value(steps: Steps) -> float:
    still_good = 0.0 if "X" in steps else 0.85 ** (6 - len(steps))
    return 0.95 * still_good + 0.03 * (1 - still_good)


async def errors(config: SearchConfig, trees: int) -> tuple[dict[str, float], float]:
    """Mean error of the labels by kind (bias), and rollouts a label."""
    found: dict[str, list[float]] = defaultdict(list)
    rollouts = labels = 0
    for number in range(trees):
        tree = (await search(Problem(f"p{number}", "", ""), World(number), config)).tree
        states = {node.steps for node in tree.nodes}
        rollouts += sum(len(node.rollouts) for node in tree.nodes)
        for steps, counts in evidence(tree, config).items():
            if steps:
                labels += 1
                kind = ("state" if steps in states else "shared") + (" after X" if "X" in steps else "")
                found[kind].append(counts.value - true_value(steps))
    return {kind: fmean(values) for kind, values in found.items()}, rollouts / labels


async def test_labels_are_nearly_unbiased_and_cost_less() -> None:
    """Standard errors are about 0.003. Of the prefixes that others run through, those whose rollouts were all right are
    never searched, which leaves a bias of at most about 0.02."""
    fixed, fixed_cost = await errors(SearchConfig(doubt=0, shared=None, max_rollouts=400), 300)
    adaptive, cost = await errors(SearchConfig(max_rollouts=400), 300)
    assert all(abs(bias) < 0.012 for bias in fixed.values())
    assert all(abs(bias) < (0.025 if kind == "shared" else 0.012) for kind, bias in adaptive.items()), adaptive
    assert cost < 0.75 * fixed_cost
