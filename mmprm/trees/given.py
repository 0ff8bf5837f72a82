"""Derive the labels of a given solution from the rollouts that were sampled from its prefixes.

The solution itself is graded once. Its verdict is stored as a single rollout without steps, sampled from the whole
solution.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from mmprm.trees.stopping import StoppingRule, first_batch_size, next_batch_size, recovery_probability, unbiased
from mmprm.types import Counts, GivenSolution, Node, Steps, Tree, Verdict

StepLabels = tuple[Counts | None, ...]
"""Counts that determine the label of each step of a solution, or None for a step without a label."""


def first_error_bounds(nodes: Sequence[Node], steps: Steps) -> tuple[int, int]:
    """Return (r, f): the first r steps are recoverable, and f is the length of the shortest failed prefix with more
    than r steps.

    r is the length of the longest prefix that a correct rollout begins with: correct rollouts also prove the steps that
    they share with the solution. A prefix failed if it has known verdicts and none is correct; `missing_rollouts` says
    whether they are enough. Without a failed prefix, f is one more than the number of steps. A correct verdict of the
    solution itself proves nothing, because two errors may cancel.
    """
    recoverable, failed = 0, [len(steps) + 1]
    for node in nodes:
        if node.counts.correct:
            proven = _proven(node, steps) if len(node.steps) < len(steps) else 0
            recoverable = max(recoverable, proven)
        elif node.counts.known:
            failed.append(len(node.steps))
    return recoverable, min(length for length in failed if length > recoverable)


def missing_rollouts(nodes: Sequence[Node], length: int, rule: StoppingRule) -> int:
    """Return the size of the next batch to sample from the prefix with `length` steps, or 0 if the stopping rule is
    satisfied.

    The prior is the counts of the nearest shorter prefix from which a rollout was correct.
    """
    sampled = _counts_at(nodes, length)
    return next_batch_size(first_batch_size(_ancestor(nodes, length), rule), sampled, rule)


def is_first_error(nodes: Sequence[Node], steps: Steps, length: int, rule: StoppingRule) -> bool:
    """Return whether enough rollouts from the prefix with `length` steps have failed to conclude that it contains an
    error.

    If the answer of the solution is correct, the number of failures does not suffice: the probability that the prefix
    is recoverable must be below `false_negative_rate`, given the values of the prefixes before it.
    """
    if missing_rollouts(nodes, length, rule):
        return False
    if not _counts_at(nodes, len(steps)).correct:
        return True
    failures = _counts_at(nodes, length).incorrect
    return recovery_probability(failures, _ancestor(nodes, length), rule.prior_reset) < rule.false_negative_rate


def label_steps(tree: Tree, given: GivenSolution, rule: StoppingRule) -> StepLabels:
    """Return the labels of a given solution's steps according to its mode; see `first_error_labels` and
    `value_labels`."""
    labels = first_error_labels if given.mode == "first_error" else value_labels
    return labels(tree.nodes, given.steps, rule)


def root_value(tree: Tree, rule: StoppingRule) -> float | None:
    """Return the Monte Carlo value of the question without any steps, or None if it was not sampled."""
    return next((unbiased(node.batches, rule).value for node in tree.nodes if not node.steps), None)


def first_error_labels(nodes: Sequence[Node], steps: Steps, rule: StoppingRule) -> StepLabels:
    """Label the recoverable steps 1, the last step of the failed prefix 0, and the last step of the solution with its
    verdict.

    All other steps stay unlabeled, and so does a failed prefix with too few rollouts. If the answer is correct and no
    error was found, all labels are 1. There are no labels at all if no prefix of an incorrect solution is known to be
    recoverable, since the problem may be too hard for the completer. A label keeps the counts of its prefix; for a
    recoverable step without a correct rollout from its own prefix, the counts are those of one correct rollout.
    """
    recoverable, failed = first_error_bounds(nodes, steps)
    verdict = _counts_at(nodes, len(steps))
    has_error = failed < len(steps) and is_first_error(nodes, steps, failed, rule)
    if verdict.correct and not has_error:
        recoverable = len(steps)
    labels: list[Counts | None] = [None] * len(steps)
    if not recoverable and not _counts_at(nodes, 0).correct:
        return tuple(labels)
    for length in range(1, recoverable + 1):
        own = _counts_at(nodes, length)
        own = own if own.correct else Counts(correct=1)
        labels[length - 1] = replace(own, estimate=1.0) if own.incorrect else own
    if has_error:
        labels[failed - 1] = _counts_at(nodes, failed)
    if verdict.known:
        labels[-1] = verdict
    return tuple(labels)


def value_labels(nodes: Sequence[Node], steps: Steps, rule: StoppingRule) -> StepLabels:
    """Return the unbiased value of each prefix, and the verdict of the whole solution for its last step."""
    values = {len(node.steps): unbiased(node.batches, rule) for node in nodes}
    found = (values.get(length, Counts()) for length in range(1, len(steps) + 1))
    return tuple(counts if counts.known else None for counts in found)


def _counts_at(nodes: Sequence[Node], length: int) -> Counts:
    return next((node.counts for node in nodes if len(node.steps) == length), Counts())


def _ancestor(nodes: Sequence[Node], length: int) -> Counts:
    """Return the counts of the nearest shorter prefix from which a rollout was correct."""
    shorter = [node for node in nodes if node.counts.correct and len(node.steps) < length]
    return max(shorter, key=lambda node: len(node.steps)).counts if shorter else Counts()


def _proven(node: Node, steps: Steps) -> int:
    """Return the length of the longest prefix of `steps` that a correct rollout from this node begins with."""
    rest = steps[len(node.steps) :]
    correct = (rollout.steps for rollout in node.rollouts if rollout.verdict is Verdict.CORRECT)
    return len(node.steps) + max(_common(written, rest) for written in correct)


def _common(one: Steps, other: Steps) -> int:
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
