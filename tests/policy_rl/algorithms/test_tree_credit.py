"""Test the credit of responses that branch: worked numbers, and exact expectations on an enumerable policy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from policy_rl.algorithms.tree_credit import BranchPoint, Edge, Trunk, credit_of_group, values_of_points

# A policy that writes three binary tokens. PROBABILITY is that of a 1 after a prefix; its logits are the parameters.
DEPTH = 3
PREFIXES = [path for depth in range(DEPTH) for path in itertools.product((0, 1), repeat=depth)]
PROBABILITY = dict(zip(PREFIXES, (0.5, 0.3, 0.8, 0.6, 0.1, 0.7, 0.45), strict=True))
REWARD = dict(zip(itertools.product((0, 1), repeat=DEPTH), (1.0, 0.0, 0.2, 1.0, 0.0, 0.5, 1.0, 0.0), strict=True))

Path = tuple[int, ...]
Rule = Callable[[Path, Path], bool]
"""Whether a prefix (first argument) of a response (second argument) becomes a branch point."""

RULES: dict[str, Rule] = {
    "every prefix": lambda prefix, response: True,
    "by the last token": lambda prefix, response: prefix[-1] == 1,
    "the first 1": lambda prefix, response: sum(prefix) == 1 and prefix[-1] == 1,
    "by its probability": lambda prefix, response: 0.2 < PROBABILITY[prefix] < 0.5,
}


def ends(prefix: Path) -> Iterator[tuple[Path, float]]:
    """Yield each complete response that continues a prefix, with its probability given the prefix."""
    for rest in itertools.product((0, 1), repeat=DEPTH - len(prefix)):
        path, probability = prefix, 1.0
        for token in rest:
            probability *= PROBABILITY[path] if token else 1 - PROBABILITY[path]
            path = (*path, token)
        yield path, probability


def value(prefix: Path) -> float:
    return sum(probability * REWARD[path] for path, probability in ends(prefix))


def score(path: Path, start: int, end: int) -> np.ndarray:
    """Return the gradient of log π of tokens start … end − 1 with respect to the logits."""
    gradient = np.zeros(len(PREFIXES))
    for index in range(start, end):
        gradient[PREFIXES.index(path[:index])] = path[index] - PROBABILITY[path[:index]]
    return gradient


def true_gradient() -> np.ndarray:
    return sum(probability * REWARD[path] * score(path, 0, DEPTH) for path, probability in ends(()))


def branched(rule: Rule, m: int) -> list[tuple[float, Path, list[tuple[int, tuple[Path, ...]]]]]:
    """Enumerate (probability, response, [(length of a branch point, its m continuations)])."""
    found = []
    for path, probability in ends(()):
        lengths = [length for length in range(1, DEPTH) if rule(path[:length], path)]
        options = [list(itertools.product(list(ends(path[:length])), repeat=m)) for length in lengths]
        for chosen in itertools.product(*options):
            chance = probability * np.prod([each for group in chosen for _, each in group])
            points = [(length, tuple(end for end, _ in group)) for length, group in zip(lengths, chosen, strict=True)]
            found.append((chance, path, points))
    return found


def estimate(
    responses: Sequence[tuple[Path, list]], prior: Callable[[Path], float] | None, weight: float, train: bool
) -> np.ndarray:
    """Return Σ w·A·∇log π over the tokens of the responses and, with `train`, of the continuations."""
    trunks = [
        Trunk(REWARD[path], DEPTH, tuple(_point(path, *each, prior) for each in points)) for path, points in responses
    ]
    total = np.zeros(len(PREFIXES))
    for (path, points), credit in zip(responses, credit_of_group(trunks, weight), strict=True):
        for start, end, edge in credit.segments:
            total += edge.advantage * (edge.weight if train else 1.0) * score(path, start, end)
        for (length, continuations), edges in zip(points, credit.continuations, strict=True):
            for continuation, edge in zip(continuations, edges, strict=True):
                total += train * edge.advantage * edge.weight * score(continuation, length, DEPTH)
    return total


def _point(path: Path, length: int, continuations: tuple[Path, ...], prior) -> BranchPoint:
    rewards = tuple(REWARD[each] for each in continuations)
    return BranchPoint(length, rewards, None if prior is None else prior(path[:length]))


def expectation(
    rule: Rule, m: int = 1, prior: Callable[[Path], float] | None = None, weight: float = 0.0, train: bool = True
) -> tuple[np.ndarray, float]:
    """Return the exact mean of the gradient estimate of a group of two responses, and its total variance."""
    mean, square = np.zeros(len(PREFIXES)), 0.0
    for one, other in itertools.product(branched(rule, m), repeat=2):
        found = estimate([one[1:], other[1:]], prior, weight, train)
        mean += one[0] * other[0] * found
        square += one[0] * other[0] * found @ found
    return mean, square - mean @ mean


def competing(follows: int | None = None) -> np.ndarray:
    """Return the exact mean of the gradient estimate if, at each length, one of two responses is continued once.

    It is the one with the least likely last token, as with branching.choose=surprisal. With `follows`, it is continued
    only if this token follows.
    """
    mean = np.zeros(len(PREFIXES))
    for pair in itertools.product(ends(()), repeat=2):
        paths = [path for path, _ in pair]
        plan = [(min((0, 1), key=lambda index: last_probability(paths[index][:end])), end) for end in range(1, DEPTH)]
        plan = [(index, end) for index, end in plan if follows in (None, paths[index][end])]
        for chosen in itertools.product(*(list(ends(paths[index][:end])) for index, end in plan)):
            points: tuple[list, list] = ([], [])
            for (index, end), (continuation, _) in zip(plan, chosen, strict=True):
                points[index].append((end, (continuation,)))
            chance = np.prod([probability for _, probability in (*pair, *chosen)])
            mean += chance * estimate(list(zip(paths, points, strict=True)), None, 0.0, train=True)
    return mean


def last_probability(prefix: Path) -> float:
    one = PROBABILITY[prefix[:-1]]
    return one if prefix[-1] else 1 - one


class TestWorkedNumbers:
    def test_a_branch_point_with_three_continuations(self) -> None:
        # V(h) = (1 + 0 + 1 + 0) / 4 = ½. The rest of the response: 1 − (0 + 1 + 0) / 3.
        first, second = credit_of_group([Trunk(1.0, 9, (BranchPoint(4, (0.0, 1.0, 0.0)),)), Trunk(0.0, 5)])
        (start, middle, before), (again, end, after) = first.segments
        assert (start, middle, again, end) == (0, 4, 4, 9)
        assert (before, second.segments) == (Edge(0.5, 1.0), ((0, 5, Edge(-0.5, 1.0)),))
        assert (after.advantage, after.weight) == pytest.approx((2 / 3, 0.25))
        assert [each.advantage for each in first.continuations[0]] == pytest.approx([-2 / 3, 2 / 3, -2 / 3])
        assert {each.weight for each in first.continuations[0]} == {0.25}

    def test_two_branch_points_on_one_response(self) -> None:
        # Working backward: V = (0 + 1) / 2 = ½ after 6 tokens, then (½ + 1 + 1) / 3 = 5/6 after 2.
        trunk = Trunk(0.0, 8, (BranchPoint(2, (1.0, 1.0)), BranchPoint(6, (1.0,))))
        assert values_of_points(trunk) == pytest.approx([5 / 6, 0.5, 0.0])
        first, _ = credit_of_group([trunk, Trunk(1.0, 3)])
        credit = [(edge.advantage, edge.weight) for *_, edge in first.segments]
        assert credit == [pytest.approx(each) for each in ((5 / 6 - 1, 1), (0.5 - 1, 1 / 3), (0 - 1, 1 / 6))]
        assert [edge.advantage for edge in first.continuations[0]] == pytest.approx([0.25, 0.25])

    def test_a_prior_counts_as_a_number_of_children(self) -> None:
        # κ = 2, p = .9: V = (1 + 0 + 2·.9) / 4 = .7; the rest: 1 − (0 + 1.8) / 3; the continuation: 0 − (1 + 1.8) / 3.
        first, _ = credit_of_group([Trunk(1.0, 9, (BranchPoint(4, (0.0,), 0.9),)), Trunk(0.0, 5)], prior_weight=2.0)
        assert [edge.advantage for *_, edge in first.segments] == pytest.approx([0.7, 0.4])
        assert first.continuations[0][0].advantage == pytest.approx(-2.8 / 3)

    def test_a_prior_alone_is_a_value(self) -> None:
        # Without continuations, κ = 1: V = (1 + .5) / 2, and the rest is compared with p.
        first, _ = credit_of_group([Trunk(1.0, 9, (BranchPoint(4, (), 0.5),)), Trunk(0.0, 5)], prior_weight=1.0)
        assert [(edge.advantage, edge.weight) for *_, edge in first.segments] == [(0.75, 1.0), (0.5, 1.0)]

    def test_a_branch_point_without_known_verdicts_changes_nothing(self) -> None:
        plain = credit_of_group([Trunk(1.0, 9), Trunk(0.0, 5)])
        pointed = credit_of_group([Trunk(1.0, 9, (BranchPoint(4, (), 0.5),)), Trunk(0.0, 5)])
        assert [each.segments for each in pointed] == [each.segments for each in plain]

    def test_without_branch_points_it_is_rloo(self) -> None:
        credit = credit_of_group([Trunk(reward, 3) for reward in (1.0, 0.0, 0.5, 0.5)])
        advantages = [edge.advantage for each in credit for *_, edge in each.segments]
        assert advantages == pytest.approx([2 / 3, -2 / 3, 0.0, 0.0])


class TestExpectation:
    @pytest.mark.parametrize("train", [True, False])
    @pytest.mark.parametrize("rule", RULES)
    def test_the_gradient_is_that_of_the_expected_reward(self, rule: str, train: bool) -> None:
        mean, _ = expectation(RULES[rule], train=train)
        assert mean / 2 == pytest.approx(true_gradient(), abs=1e-12)

    def test_the_gradient_with_two_continuations(self) -> None:
        mean, _ = expectation(RULES["the first 1"], m=2)
        assert mean / 2 == pytest.approx(true_gradient(), abs=1e-12)

    def test_an_exact_prior_keeps_the_gradient(self) -> None:
        mean, _ = expectation(RULES["by the last token"], prior=value, weight=2.0)
        assert mean / 2 == pytest.approx(true_gradient(), abs=1e-12)

    def test_an_inaccurate_prior_changes_the_gradient(self) -> None:
        mean, _ = expectation(RULES["by the last token"], prior=lambda prefix: 0.9, weight=2.0)
        assert np.abs(mean / 2 - true_gradient()).max() > 0.01

    def test_a_rule_that_looks_ahead_changes_the_gradient(self) -> None:
        # Branching only responses that fail credits the prefixes of the others with their own success.
        mean, _ = expectation(lambda prefix, response: REWARD[response] < 0.5)
        assert np.abs(mean / 2 - true_gradient()).max() > 0.01

    def test_responses_compete_for_a_branch_point(self) -> None:
        mean = competing()
        assert mean / 2 == pytest.approx(true_gradient(), abs=1e-12)

    def test_a_step_that_ends_only_if_a_certain_token_follows_changes_the_gradient(self) -> None:
        # The numbers of numbered steps are such tokens: docs/rl.md lists this as a limit.
        mean = competing(follows=1)
        assert np.abs(mean / 2 - true_gradient()).max() > 0.01

    def test_branching_lowers_the_variance(self) -> None:
        _, plain = expectation(lambda prefix, response: False)
        _, trained = expectation(RULES["every prefix"])
        _, values_only = expectation(RULES["every prefix"], train=False)
        assert trained < values_only < plain
