"""Test the tree of a search: candidates, selection order, and shared evidence."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mcts.tree import SearchTree
from mcts.value import q, u
from mmprm.trees.serialization import count_verdicts
from mmprm.types import Rollout, Steps, Verdict

ALPHA, BETA, LENGTH, C_PUCT = 0.5, 0.9, 8.0, 0.125


def rollout(*steps: str, verdict: Verdict = Verdict.INCORRECT) -> Rollout:
    return Rollout(steps, verdict, 1, "".join(steps))


def add(tree: SearchTree, steps: Steps, *rollouts: Rollout) -> None:
    tree.add(steps, [rollouts])


def tree() -> SearchTree:
    return SearchTree(ALPHA, BETA, LENGTH, C_PUCT)


def test_only_split_incorrect_rollouts_of_recoverable_states_are_candidates() -> None:
    correct = rollout("a ", "b", verdict=Verdict.CORRECT)
    searched = tree()
    add(searched, (), correct, rollout("a ", "c"), rollout("a ", "c"), rollout("d"), rollout(), rollout("x", "y"))
    add(searched, ("z",), rollout("p", "q"))
    unknown = rollout("u", "v", verdict=Verdict.UNKNOWN)
    add(searched, ("u",), correct, unknown)
    # x y has one word, a c has two: the shorter one first; no duplicate, no single step, no value 0, no UNKNOWN.
    taken = [searched.select() for _ in range(3)]
    assert [c.rollout.steps if c else None for c in taken] == [("x", "y"), ("a ", "c"), None]


def test_selection_order_by_hand() -> None:
    """The comments work out the order for c = 1.

    Root (value 1/2): Q = 0.7071·0.9^(1/8·words). State s (value 3/4): Q = 0.8409·… State s is preferred until its
    second visit has lowered its U.
    """
    searched = SearchTree(0.5, 0.9, 1000, 1.0)
    correct = rollout("k", "l", verdict=Verdict.CORRECT)
    add(searched, (), correct, correct, rollout("a", "b"), rollout("a", "c"))
    add(searched, ("s",), *[correct] * 3, *[correct] * 3, rollout("m", "n"), rollout("m", "o"))
    picks = [searched.select() for _ in range(4)]
    # Σ N = 0: .7071 against .8409 → s. Σ N = 1: .7071 + 1 against .8409 + 1/2 → root.
    # Σ N = 2: .7071 + 1.414/2 = 1.414 against .8409 + 1.414/2 = 1.548 → s. Then only root is left.
    assert [p.state.steps for p in picks if p] == [("s",), (), ("s",), ()]
    assert [p.rollout.steps for p in picks if p] == [("m", "n"), ("a", "b"), ("m", "o"), ("a", "c")]
    assert searched.select() is None
    assert (searched.total_visits, [s.visits for s in searched.states.values()]) == (4, [2, 2])


words = st.lists(st.sampled_from(["a ", "b c ", "d e f "]), min_size=2, max_size=4).map(tuple)
rollouts = st.lists(
    st.builds(lambda steps, verdict: rollout(*steps, verdict=verdict), words, st.sampled_from(Verdict)),
    min_size=1,
    max_size=5,
)


@given(st.lists(st.tuples(rollouts, st.integers(0, 4)), min_size=1, max_size=6), st.sampled_from([0.0, 0.125, 1.0]))
def test_heaps_equal_brute_force(script: list[tuple[list[Rollout], int]], c_puct: float) -> None:
    """States are added and candidates taken in random order; each choice is compared with a full scan."""
    searched = SearchTree(ALPHA, BETA, LENGTH, c_puct)
    waiting: dict[int, list[tuple[float, int, Steps]]] = {}
    visits: dict[int, int] = {}

    def scan() -> tuple[int, Steps] | None:
        total = sum(visits.values())
        entries = [
            (value + u(total, visits[number], c_puct), -number, value, -position, steps)
            for number, candidates in waiting.items()
            for value, position, steps in candidates
        ]
        if not entries:
            return None
        _, number, value, position, steps = max(entries)
        waiting[-number].remove((value, -position, steps))
        visits[-number] += 1
        return -number, steps

    for number, (sampled, takes) in enumerate([*script, ([rollout("a ", "b ")], 40)]):
        add(searched, (str(number),), *sampled)
        counts = count_verdicts(sampled)
        incorrect = dict.fromkeys(r.steps for r in sampled if r.verdict is Verdict.INCORRECT) if counts.correct else {}
        visits[number] = 0
        waiting[number] = [
            (q(counts.correct / counts.known, len("".join(steps).split()), ALPHA, BETA, LENGTH), position, steps)
            for position, steps in enumerate(incorrect)
        ]
        for _ in range(takes):
            candidate = searched.select()
            got = (int(candidate.state.steps[0]), candidate.rollout.steps) if candidate else None
            assert got == scan()
