"""Simulate rules of rollouts.branching.choose: variance of the policy gradient per generated token.

    python benchmarks/rl_branching.py [--groups 40000]

A problem has 11 to 18 steps of 6 tokens, like the long level of the toy world. The policy makes step j correctly with
probability q_j = sigmoid(θ_j): 0.93, or 0.75 for hard steps, a third of all. A response is correct if all of its steps
are (12% are); after a mistake, its steps have parameters of their own. A wrong step is as surprising as its probability
says; on easy steps, three mistakes share that probability. The PRM's score of a prefix has an AUC of about 0.97 for
whether it has a mistake. Prefixes are chosen as in policy_rl.rollouts.branching, and credited as in
policy_rl.algorithms.tree_credit. For each rule:

variance   trace of the covariance of the gradient estimate of a group, times its tokens, relative to groups that do not
           branch: the number of tokens for a given precision
bias       squared distance of the mean estimate from the exact gradient, relative to its expected value without bias
wrong      fraction of the chosen prefixes that have a mistake, so that all continuations fail

Shapes: G group of one problem, K response, S step, N continuation.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

GROUP_SIZE, STEP_TOKENS, MAX_TOKENS = 8, 6, 192
EASY, HARD, HARD_SHARE = 0.93, 0.75, 1 / 3
LOGIT = 1.3
"""Mean of the PRM's logit for a correct prefix, and minus its mean for a wrong one; the standard deviation is 1."""
PROBLEMS = 200


@dataclass(frozen=True, slots=True)
class Group:
    """Holds the responses of G groups: which steps and prefixes are correct, step log-probabilities, PRM scores."""

    correct_GKS: np.ndarray
    whole_GKS: np.ndarray
    logprobs_GKS: np.ndarray
    scores_GKS: np.ndarray


def _undecided(group: Group, step: int, rng: Generator) -> np.ndarray:
    score_GK = group.scores_GKS[..., step]
    return np.where((score_GK >= 0.2) & (score_GK <= 0.8), np.abs(score_GK - 0.5), np.inf)


RULES: dict[str, Callable[[Group, int, Generator], np.ndarray] | None] = {
    "no branching": None,
    "surprisal": lambda group, step, rng: group.logprobs_GKS[..., step],
    "first": lambda group, step, rng: np.zeros(group.logprobs_GKS.shape[:2]),
    "undecided": _undecided,
    "likely": lambda group, step, rng: -group.logprobs_GKS[..., : step + 1].sum(axis=-1),
    "highest score": lambda group, step, rng: -group.scores_GKS[..., step],
}
"""Functions that return the certainty of the prefixes that end with a step; the lowest is continued, unless it is
infinite."""


def sample(q_S: np.ndarray, groups: int, rng: Generator) -> Group:
    """Sample groups of responses to a problem."""
    correct_GKS = rng.random((groups, GROUP_SIZE, len(q_S))) < q_S
    whole_GKS = np.logical_and.accumulate(correct_GKS, axis=-1)
    mistakes_S = np.where(q_S == EASY, 3, 1)
    logprobs_GKS = np.log(np.where(correct_GKS, q_S, (1 - q_S) / mistakes_S)) / STEP_TOKENS
    logits_GKS = rng.normal(np.where(whole_GKS, LOGIT, -LOGIT), 1.0)
    return Group(correct_GKS, whole_GKS, logprobs_GKS, 1 / (1 + np.exp(-logits_GKS)))


@dataclass(frozen=True, slots=True)
class Branch:
    """Holds the branch points after a step, one per group: the response, and its continuations from the next step on.

    `exists_G` is False for groups that do not branch here.
    """

    step: int
    exists_G: np.ndarray
    response_G: np.ndarray
    correct_GNS: np.ndarray
    rewards_GN: np.ndarray


def branches_of(
    group: Group, q_S: np.ndarray, rule: str, continuations: int, first_step: int, rng: Generator
) -> list[Branch]:
    """Choose at most one prefix per step, from `first_step` on, while the budget lasts, and continue it."""
    certainty_of = RULES[rule]
    if certainty_of is None:
        return []
    groups = len(group.correct_GKS)
    budget_G, found = np.full(groups, GROUP_SIZE * MAX_TOKENS), []
    for step in range(first_step - 1, len(q_S) - 1):
        certainty_GK = certainty_of(group, step, rng)
        response_G = certainty_GK.argmin(axis=1)
        cost = continuations * (MAX_TOKENS - (step + 1) * STEP_TOKENS)
        exists_G = np.isfinite(certainty_GK.min(axis=1)) & (budget_G >= cost)
        budget_G -= cost * exists_G
        correct_GNS = rng.random((groups, continuations, len(q_S) - step - 1)) < q_S[step + 1 :]
        whole_G1 = group.whole_GKS[np.arange(groups), response_G, step][:, None]
        rewards_GN = (whole_G1 & correct_GNS.all(axis=-1)).astype(float)
        found.append(Branch(step, exists_G, response_G, correct_GNS, rewards_GN))
    return found


def values_of(group: Group, branches: list[Branch]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the value of each response from its first branch point on, and of each branch point's own next child."""
    rows_G, values_GK, after = np.arange(len(group.whole_GKS)), group.whole_GKS[..., -1].astype(float), []
    for branch in reversed(branches):
        after_G = values_GK[rows_G, branch.response_G]
        value_G = (after_G + branch.rewards_GN.sum(axis=1)) / (1 + branch.rewards_GN.shape[1])
        after.append(after_G)
        values_GK[rows_G, branch.response_G] = np.where(branch.exists_G, value_G, after_G)
    return values_GK, after[::-1]


def gradients(group: Group, q_S: np.ndarray, branches: list[Branch]) -> np.ndarray:
    """Return Σ w·A·∇log π / K of each group, for the parameters before a mistake and for those after it."""
    groups, steps = len(group.correct_GKS), len(q_S)
    rows_G = np.arange(groups)
    values_GK, after = values_of(group, branches)
    advantage_GK = values_GK - (values_GK.sum(axis=1, keepdims=True) - values_GK) / (GROUP_SIZE - 1)
    weight_GK = np.ones((groups, GROUP_SIZE))
    found_G2S = np.zeros((groups, 2, steps))
    here = {branch.step: (branch, after_G) for branch, after_G in zip(branches, after, strict=True)}
    for step in range(steps):
        whole_GK = group.whole_GKS[..., step - 1] if step else np.ones((groups, GROUP_SIZE), dtype=bool)
        term_GK = weight_GK * advantage_GK * (group.correct_GKS[..., step] - q_S[step])
        found_G2S[:, 0, step] += (term_GK * whole_GK).sum(axis=1)
        found_G2S[:, 1, step] += (term_GK * ~whole_GK).sum(axis=1)
        if step not in here:
            continue
        branch, after_G = here[step]
        total_G, count = after_G + branch.rewards_GN.sum(axis=1), branch.rewards_GN.shape[1]
        weight_G = weight_GK[rows_G, branch.response_G]
        other_GN = branch.rewards_GN - (total_G[:, None] - branch.rewards_GN) / count
        whole_G = group.whole_GKS[rows_G, branch.response_G, step]
        factor_GN = (branch.exists_G * weight_G / (1 + count))[:, None] * other_GN
        found_G2S[:, :, step + 1 :] += _of_continuations(branch.correct_GNS, whole_G, factor_GN, q_S[step + 1 :])
        own_G = after_G - (total_G - after_G) / count
        advantage_GK[rows_G, branch.response_G] = np.where(
            branch.exists_G, own_G, advantage_GK[rows_G, branch.response_G]
        )
        weight_GK[rows_G, branch.response_G] = np.where(branch.exists_G, weight_G / (1 + count), weight_G)
    return found_G2S.reshape(groups, 2 * steps) / GROUP_SIZE


def _of_continuations(
    correct_GNS: np.ndarray, whole_G: np.ndarray, factor_GN: np.ndarray, q_S: np.ndarray
) -> np.ndarray:
    before_GNS = np.ones_like(correct_GNS)
    before_GNS[..., 1:] = np.logical_and.accumulate(correct_GNS, axis=-1)[..., :-1]
    before_GNS &= whole_G[:, None, None]
    term_GNS = factor_GN[..., None] * (correct_GNS - q_S)
    return np.stack([(term_GNS * before_GNS).sum(axis=1), (term_GNS * ~before_GNS).sum(axis=1)], axis=1)


def exact(q_S: np.ndarray) -> np.ndarray:
    """Return the gradient of the expected reward: Π q · (1 − q_j), and 0 for the parameters after a mistake."""
    return np.concatenate([q_S.prod() * (1 - q_S), np.zeros(len(q_S))])


def measure(rule: str, continuations: int, first_step: int, groups: int) -> dict[str, float]:
    """Simulate groups of PROBLEMS problems; return the metrics of a rule, with its variance not yet relative."""
    rng, problems = np.random.default_rng(1), np.random.default_rng(0)
    squares = tokens = distance = spread = chosen = wrong = 0.0
    each = groups // PROBLEMS
    for _ in range(PROBLEMS):
        q_S = np.where(problems.random(problems.integers(11, 19)) < HARD_SHARE, HARD, EASY)
        group = sample(q_S, each, rng)
        branches = branches_of(group, q_S, rule, continuations, first_step, rng)
        found = gradients(group, q_S, branches)
        squares += ((found - exact(q_S)) ** 2).sum() / each
        distance += ((found.mean(axis=0) - exact(q_S)) ** 2).sum()
        spread += found.var(axis=0, ddof=1).sum() / each
        tokens += GROUP_SIZE * len(q_S) * STEP_TOKENS
        for branch in branches:
            count = branch.exists_G.mean()
            tokens += count * continuations * (len(q_S) - branch.step - 1) * STEP_TOKENS
            whole_G = group.whole_GKS[np.arange(each), branch.response_G, branch.step]
            chosen, wrong = chosen + count, wrong + (branch.exists_G & ~whole_G).mean()
    return {
        "variance": squares / PROBLEMS * tokens / PROBLEMS,
        "bias": distance / spread,
        "tokens": tokens / PROBLEMS,
        "wrong": wrong / max(chosen, 1e-12),
    }


def main() -> None:
    """Print the metrics of each rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=40_000)
    arguments = parser.parse_args()
    plain = measure("no branching", 1, 1, arguments.groups)
    for first_step in (1, 8):
        for continuations in (4, 8):
            for rule in list(RULES)[1:]:
                found = measure(rule, continuations, first_step, arguments.groups)
                found["variance"] /= plain["variance"]
                shown = {name: round(float(value), 3) for name, value in found.items()}
                print(f"{rule:<14} {continuations} from step {first_step}", json.dumps(shown), flush=True)


if __name__ == "__main__":
    main()
