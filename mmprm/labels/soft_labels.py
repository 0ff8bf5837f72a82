"""Compute soft labels from search trees, as a small set of labeled paths per tree that contains each label once.

The soft label of a step is the estimated share of correct rollouts from the prefix that ends with it (`Counts.value`).
A label belongs to a distinct (problem, prefix of plain steps) with evidence, as computed by `mmprm.trees.evidence`. The
last step of a complete solution is labeled by the solution's verdict.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from mmprm.steps import StepFormat, plain
from mmprm.trees.evidence import evidence
from mmprm.trees.stopping import StoppingRule
from mmprm.types import Counts, LabeledPath, Steps, Tree, Verdict

CORRECT, INCORRECT = Counts(correct=1), Counts(incorrect=1)


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """Counts the problems, paths and labels in a set of labeled paths.

    `labels` counts distinct non-terminal prefixes; complete solutions are counted separately.
    """

    problems: int
    paths: int
    labels: int
    labels_terminal: int
    terminal_correct: int


def label_tree(
    tree: Tree, rule: StoppingRule, step_format: StepFormat | None, seed: int, min_shared_rollouts: int | None = None
) -> list[LabeledPath]:
    """Return labeled paths that cover all leaf states of a tree, with equal numbers of correct and incorrect solutions.

    A path continues as a complete solution if one passes through its state. All solutions of the rarer kind are used; a
    path whose solution would upset the balance ends at its leaf state.

    Without a step format, steps are kept word for word. Among states with equal plain steps, only the first counts.
    Each label is stored on the first path with its prefix; other paths have None there. States and solutions with a
    step that is empty without its markup are ignored. The choices depend only on `seed` and the problem.
    `min_shared_rollouts` is explained in `evidence`.
    """
    counts_by_steps = evidence(tree, rule, min_shared_rollouts)
    root = counts_by_steps[()].value if () in counts_by_steps else None
    states, verdicts = _states(counts_by_steps, step_format), _solutions(tree, step_format)
    solutions = {steps: correct for steps, correct in verdicts.items() if steps not in states}
    rng = random.Random(f"{seed}/{tree.problem_id}")
    chosen = _choose(_deepest(states), solutions, rng)
    paths, unused = [], dict(states)
    for steps in chosen:
        counts: list[Counts | None] = [unused.pop(steps[:depth], None) for depth in range(1, len(steps) + 1)]
        complete = steps in solutions
        if complete:
            counts[-1] = CORRECT if solutions[steps] else INCORRECT
        paths.append(LabeledPath(tree.problem_id, steps, tuple(counts), complete, root))
    assert not unused, "every state lies on a path"
    return paths


def count_labels(paths: Iterable[LabeledPath]) -> LabelCounts:
    """Count the problems, paths and labels in the given paths."""
    paths = list(paths)
    complete = [path for path in paths if path.complete]
    labeled = sum(counts is not None for path in paths for counts in path.counts)
    return LabelCounts(
        problems=len({path.problem_id for path in paths}),
        paths=len(paths),
        labels=labeled - len(complete),
        labels_terminal=len(complete),
        terminal_correct=sum(path.counts[-1] == CORRECT for path in complete),
    )


def _states(counts_by_steps: dict[Steps, Counts], step_format: StepFormat | None) -> dict[Steps, Counts]:
    """Map each non-empty prefix, stripped of step markup, to its verdict counts, in tree order."""
    states: dict[Steps, Counts] = {}
    for verbatim, counts in counts_by_steps.items():
        steps = _plain(verbatim, step_format)
        if steps and all(steps):
            states.setdefault(steps, counts)
    return states


def _solutions(tree: Tree, step_format: StepFormat | None) -> dict[Steps, bool]:
    """Map the plain steps of each complete solution to its correctness. Solutions with conflicting verdicts are
    skipped.

    Only the root's rollouts are used, as the policy writes them. Rollouts from deeper states would be a biased sample:
    the search visits incorrect prefixes most, and correct answers found after them are lucky recoveries.
    """
    verdicts: dict[Steps, set[Verdict]] = {}
    for rollout in (rollout for node in tree.nodes if not node.steps for rollout in node.rollouts):
        steps = _plain(rollout.steps, step_format)
        if steps and all(steps) and rollout.verdict is not Verdict.UNKNOWN:
            verdicts.setdefault(steps, set()).add(rollout.verdict)
    return {steps: Verdict.CORRECT in found for steps, found in verdicts.items() if len(found) == 1}


def _plain(steps: Steps, step_format: StepFormat | None) -> Steps:
    return steps if step_format is None else tuple(plain(step, step_format) for step in steps)


def _deepest(states: dict[Steps, Counts]) -> list[Steps]:
    """Return the leaf states, which are not prefixes of any other state."""
    inner = {steps[:depth] for steps in states for depth in range(1, len(steps))}
    return [steps for steps in states if steps not in inner]


def _choose(deepest: list[Steps], solutions: dict[Steps, bool], rng: random.Random) -> list[Steps]:
    """Select the paths to export: one through each leaf state, plus solutions to balance correct and incorrect ones.

    A path ends at its leaf state if no solution passes through the state or the solution would upset the balance.
    """
    through: dict[Steps, dict[bool, list[Steps]]] = {state: {True: [], False: []} for state in deepest}
    for steps, correct in solutions.items():
        for depth in range(1, len(steps)):
            if steps[:depth] in through:
                through[steps[:depth]][correct].append(steps)
    picked: dict[bool, dict[Steps, Steps]] = {True: {}, False: {}}
    # Process states with only one kind of solution first, so that states with both kinds can balance the numbers.
    for state in sorted(deepest, key=lambda state: all(through[state].values())):
        kinds = [correct for correct, found in through[state].items() if found]
        if kinds:
            correct = min(kinds, key=lambda kind: len(picked[kind]))
            picked[correct][state] = rng.choice(through[state][correct])
    correct_solutions = sum(solutions.values())
    both = min(correct_solutions, len(solutions) - correct_solutions)  # number of solutions to use of each kind
    cut, extra = set(), []
    for kind, chosen in picked.items():
        taken = set(chosen.values())
        spare = [steps for steps, correct in solutions.items() if correct == kind and steps not in taken]
        surplus, lacking = max(0, len(chosen) - both), max(0, both - len(chosen))
        cut |= set(rng.sample(list(chosen), surplus))
        extra += rng.sample(spare, lacking)
    solution_of = picked[True] | picked[False]
    return [state if state in cut else solution_of.get(state, state) for state in deepest] + extra
