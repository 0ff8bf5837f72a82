"""Test that the simulation of branching computes the gradients of the real credit, and that they are unbiased."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import rl_branching
from rl_branching import EASY, GROUP_SIZE, HARD, RULES, Branch, Group, branches_of, exact, gradients, sample

from policy_rl.algorithms.tree_credit import BranchPoint, Edge, Trunk, credit_of_group

Q_S = np.array([EASY, HARD, HARD, EASY, HARD, EASY, EASY, HARD, EASY, EASY, HARD])


def gradient_of(group: Group, branches: list[Branch], index: int) -> np.ndarray:
    """Compute the gradient of one group with policy_rl.algorithms.tree_credit."""
    own = [
        [each for each in branches if each.exists_G[index] and each.response_G[index] == k] for k in range(GROUP_SIZE)
    ]
    correct_KS = group.correct_GKS[index]
    trunks = [
        Trunk(float(row.all()), len(Q_S), tuple(BranchPoint(b.step + 1, tuple(b.rewards_GN[index])) for b in points))
        for row, points in zip(correct_KS, own, strict=True)
    ]
    total_2S = np.zeros((2, len(Q_S)))

    def add(row: np.ndarray, first: int, end: int, edge: Edge) -> None:
        for step in range(first, end):
            slot = 0 if row[:step].all() else 1
            total_2S[slot, step] += edge.weight * edge.advantage * (row[step] - Q_S[step])

    for row, points, credit in zip(correct_KS, own, credit_of_group(trunks), strict=True):
        for first, end, edge in credit.segments:
            add(row, first, end, edge)
        for point, edges in zip(points, credit.continuations, strict=True):
            for rest, edge in zip(point.correct_GNS[index], edges, strict=True):
                add(np.concatenate([row[: point.step + 1], rest]), point.step + 1, len(Q_S), edge)
    return total_2S.reshape(-1) / GROUP_SIZE


@pytest.mark.parametrize("rule", RULES)
def test_gradients_are_those_of_tree_credit(rule: str) -> None:
    rng = np.random.default_rng(0)
    group = sample(Q_S, 6, rng)
    branches = branches_of(group, Q_S, rule, 2, 1, rng)
    found = gradients(group, Q_S, branches)
    for index in range(6):
        assert found[index] == pytest.approx(gradient_of(group, branches, index))


@pytest.mark.parametrize("rule", ["surprisal", "highest score"])
def test_the_mean_gradient_is_exact(rule: str) -> None:
    rng = np.random.default_rng(0)
    group = sample(Q_S, 40_000, rng)
    found = gradients(group, Q_S, branches_of(group, Q_S, rule, 4, 3, rng))
    errors = np.abs(found.mean(axis=0) - exact(Q_S)) / (found.std(axis=0) / 200)
    assert errors[~np.isnan(errors)].max() < 4.5


def test_the_budget_is_charged_with_the_longest_continuations() -> None:
    rng = np.random.default_rng(0)
    branches = branches_of(sample(Q_S, 3, rng), Q_S, "first", 4, 1, rng)
    # Of 8 × 192 = 1,536 tokens, the steps 1 and 2 take 4 × 186 + 4 × 180, and no later one fits.
    assert [branch.step for branch in branches if branch.exists_G.all()] == [0, 1]
    assert not any(branch.exists_G.any() for branch in branches[2:])
    assert rl_branching.MAX_TOKENS == 192
