"""Label given solutions from the run of one completer, or of several completers that labeled the same solutions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from mmprm.errors import ConfigError, StoreError
from mmprm.labels.prefixes import prefix_keys
from mmprm.steps import StepFormat, plain
from mmprm.trees.given import StepLabels, label_steps, root_value
from mmprm.trees.stopping import rule_of
from mmprm.trees.store import Store
from mmprm.types import Counts, LabeledPath, Problem, Tree


@dataclass(frozen=True, slots=True)
class LabeledGiven:
    """Holds a given solution with its labels, and for each step the disagreement of the completers."""

    solution: Problem
    path: LabeledPath
    disagreement: tuple[float | None, ...] | None


def check_completers(stores: Sequence[Store]) -> None:
    """Raise ConfigError unless all runs label given solutions in the same mode and step format."""
    first = stores[0]
    for store in stores[1:]:
        for key in ("solutions", "step_format"):
            one, other = first.config.get(key), store.config.get(key)
            if one != other or first.config.get("solutions") is None:
                raise ConfigError(
                    f"store: {first.path} has {key}={one} and {store.path} has {key}={other}; several runs must label "
                    "the same given solutions (mmprm annotate --solutions) in one mode and step format; give one run, "
                    "or runs that differ only in their completer"
                )


def label_given(stores: Sequence[Store], step_format: StepFormat) -> Iterator[LabeledGiven]:
    """Yield each given solution that has a label, with the combined labels of the completers that are done with it.

    The label of a prefix is kept on the first solution of its problem that begins with it.
    """
    rules = [rule_of(store.config) for store in stores]
    done = [set(store.ids("done")) for store in stores]
    labeled: set[bytes] = set()
    for solution in _solutions(stores):
        given = solution.given
        assert given is not None, "check_completers requires given solutions"
        trees = [
            store.tree(solution.id) if solution.id in finished else Tree(solution.id, ())
            for store, finished in zip(stores, done, strict=True)
        ]
        each = [label_steps(tree, given, rule) for tree, rule in zip(trees, rules, strict=True)]
        steps = tuple(plain(step, step_format) for step in given.steps)
        labels = list(combine_labels(each, given.mode))
        for number, key in enumerate(prefix_keys(given.problem_id, steps)):
            labels[number] = None if key in labeled else labels[number]
            if labels[number] is not None:
                labeled.add(key)
        if any(label is not None for label in labels):
            roots = [root_value(tree, rule) for tree, rule in zip(trees, rules, strict=True)]
            known = [value for value in roots if value is not None]
            path = LabeledPath(
                given.problem_id,
                steps,
                tuple(labels),
                complete=labels[-1] is not None,
                root_value=fmean(known) if known and given.mode == "values" else None,
            )
            yield LabeledGiven(solution, path, disagreement(each) if len(stores) > 1 else None)


def combine_labels(labels: Sequence[StepLabels], mode: str) -> StepLabels:
    """Combine the labels of several completers, step by step; the counts are added up.

    values: the mean of the completers' values, which is the value under a completer that is chosen at random;
    first_error: the maximum, because a correct rollout of any completer proves that a prefix is recoverable. The last
    step keeps the verdict of the solution.
    """
    known = [[label for label in step if label is not None] for step in zip(*labels, strict=True)]
    return (*(_combined(step, mode) for step in known[:-1]), known[-1][0] if known[-1] else None)


def disagreement(labels: Sequence[StepLabels]) -> tuple[float | None, ...]:
    """Return the largest difference between the completers' values of each step, or None for fewer than two values."""
    values = ([label.value for label in step if label is not None] for step in zip(*labels, strict=True))
    return tuple(max(known) - min(known) if len(known) > 1 else None for known in values)


_COMBINED: dict[str, Callable[[list[float]], float]] = {"values": fmean, "first_error": max}


def _combined(labels: list[Counts], mode: str) -> Counts | None:
    if len(labels) < 2:
        return labels[0] if labels else None
    total = sum((replace(label, estimate=None) for label in labels), Counts())
    return replace(total, estimate=_COMBINED[mode]([label.value for label in labels]))


def _solutions(stores: Sequence[Store]) -> Iterator[Problem]:
    """Yield the solutions of all stores, in order; raise StoreError if two stores hold different ones under one id."""
    ids = [set(store.ids()) for store in stores]
    for name in dict.fromkeys(name for store in stores for name in store.ids()):
        first, *others = [store for store, known in zip(stores, ids, strict=True) if name in known]
        solution = first.problem(name)
        for other in others:
            if other.problem(name).given != solution.given:
                raise StoreError(
                    f"{other.path}: solution {name!r} differs from the one in {first.path}; label the same solutions "
                    "with each completer"
                )
        yield solution
