"""Compute the credit of branching responses, from Monte Carlo values of their prefixes and leave-one-out baselines.

A group is a tree. Its root is the prompt, whose n = K children are the responses. A branch point h is a prefix of a
response; its n children are the rest of the response and the continuations sampled from h. With the process reward
model's score p(h), if any, as a prior that counts as κ children, and the reward as the value of a leaf:

    V(h) = (Σ_c V(c) + κ·p(h)) / (n + κ)                           c: the children of h
    A(c) = V(c) − (Σ_{c' ≠ c} V(c') + κ·p(h)) / (n − 1 + κ)        V(after) − V(before), without c in "before"
    w(c) = w(h) / n                                                 1 for the responses

All tokens between h and its child c have advantage A(c) and weight w(c). A token that n children share thus counts once
and the tokens after it 1/n per child. Without branch points, A is RLOO's advantage.

With κ = 0, E[Σ w·A·∇log π] = K·∇E[R]: the gradient is that of the expected reward, as without branching. This requires
that whether a prefix becomes a branch point depends only on the prefix (and on other responses), never on what follows
it. With κ > 0, V(h) is biased by κ/(n + κ)·(p(h) − E[R | h]); as a baseline, p(h) adds no bias.

Related: VinePPO (values of steps by rollouts), TreeRL and Tree-GRPO (training on all leaves), SPO (segments).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BranchPoint:
    """Describes a prefix of `tokens` response tokens by the rewards of its continuations and the PRM's score."""

    tokens: int
    rewards: tuple[float, ...]
    prior: float | None = None


@dataclass(frozen=True, slots=True)
class Trunk:
    """Describes a response of a group: its reward, its length, and its branch points, shortest prefix first."""

    reward: float
    tokens: int
    points: tuple[BranchPoint, ...] = ()


@dataclass(frozen=True, slots=True)
class Edge:
    """Holds the advantage and the weight of the tokens between a branch point and one of its children."""

    advantage: float
    weight: float


@dataclass(frozen=True, slots=True)
class TrunkCredit:
    """Holds the credit of a response and of the continuations of its branch points.

    `segments` are triples (first token, end token, edge) that cover the response. `continuations` holds one tuple of
    edges per branch point, in the order of `BranchPoint.rewards`.
    """

    segments: tuple[tuple[int, int, Edge], ...]
    continuations: tuple[tuple[Edge, ...], ...]


def credit_of_group(trunks: Sequence[Trunk], prior_weight: float = 0.0) -> list[TrunkCredit]:
    """Compute the credit of each response of a group and of its continuations. `prior_weight` is κ."""
    assert len(trunks) > 1, "the baseline of a response is the mean value of the other responses"
    values = [values_of_points(trunk, prior_weight) for trunk in trunks]
    advantages = leave_one_out([each[0] for each in values])
    return [
        _trunk_credit(trunk, values_of_trunk, advantage, prior_weight)
        for trunk, values_of_trunk, advantage in zip(trunks, values, advantages, strict=True)
    ]


def values_of_points(trunk: Trunk, prior_weight: float = 0.0) -> list[float]:
    """Return the value of each branch point of a response, followed by the response's reward."""
    values = [trunk.reward]
    for point in reversed(trunk.points):
        children, prior = (values[-1], *point.rewards), _prior(point, prior_weight)
        values.append((sum(children) + prior[0] * prior[1]) / (len(children) + prior[1]))
    return values[::-1]


def leave_one_out(values: Sequence[float], prior: tuple[float, float] = (0.0, 0.0)) -> list[float]:
    """Subtract from each value the weighted mean of the other values and the prior, which is a pair (value, weight)."""
    total, count = sum(values) + prior[0] * prior[1], len(values) - 1 + prior[1]
    return [value - (total - value) / count for value in values]


def _trunk_credit(trunk: Trunk, values: Sequence[float], advantage: float, prior_weight: float) -> TrunkCredit:
    edge, start = Edge(advantage, 1.0), 0
    segments, continuations = [], []
    for point, after in zip(trunk.points, values[1:], strict=True):
        prior = _prior(point, prior_weight)
        if not point.rewards and not prior[1]:  # nothing is known about this prefix
            continuations.append(())
            continue
        segments.append((start, point.tokens, edge))
        own, *others = leave_one_out((after, *point.rewards), prior)
        weight = edge.weight / (1 + len(point.rewards))
        continuations.append(tuple(Edge(other, weight) for other in others))
        edge, start = Edge(own, weight), point.tokens
    segments.append((start, trunk.tokens, edge))
    return TrunkCredit(tuple(segments), tuple(continuations))


def _prior(point: BranchPoint, weight: float) -> tuple[float, float]:
    return (0.0, 0.0) if point.prior is None else (point.prior, weight)
