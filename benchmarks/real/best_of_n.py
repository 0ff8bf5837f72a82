"""Compare the PRM-weighted vote with the majority vote, and the trained with the untrained PRM, on unseen problems."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.real.prm import UNTRAINED, prm_folder
from benchmarks.real.scored import scored
from benchmarks.real.workspace import FAMILIAR, Results, Workspace
from mmprm.evaluation.aggregators import choose_aggregator, with_choice
from mmprm.metrics import bootstrap_means
from mmprm.prm.info import read_info, write_info
from mmprm.selection.accuracy import accuracy_at_n, sizes_up_to
from mmprm.selection.groups import CandidateGroup

SIZES = (8, 16)
"""Numbers of samples from which the PRM chooses."""
SHOWN = ("random", "majority", "weighted", "prm", "oracle")


def measure(workspace: Workspace) -> Results:
    """Return paired differences over the test problems, with the aggregators chosen on the development problems."""
    samples = workspace.sizes.samples
    aggregators, groups = {}, {}
    for name in ("adaptive", UNTRAINED):
        prm = prm_folder(workspace, name)
        aggregators[name] = chosen_aggregator(prm, scored(workspace, prm, f"{FAMILIAR}dev", samples))
        groups[name] = scored(workspace, prm, f"{FAMILIAR}test", samples)
    results: Results = {"problems": len(groups[UNTRAINED]), "aggregators": aggregators}
    results["curve"] = {}
    for size in sizes_up_to(samples):
        found = {name: votes(groups[name], aggregators[name], size) for name in groups}
        results["curve"][size] = accuracies(found["adaptive"], found[UNTRAINED])
        if size in SIZES or size == samples:
            results |= differences(found["adaptive"], found[UNTRAINED], size)
    return results


def chosen_aggregator(prm: Path, development: Sequence[CandidateGroup]) -> str:
    """Choose the aggregator on the development problems, store it in prm.json like `mmprm rerank`, and return it."""
    choice = choose_aggregator(development)
    write_info(prm, with_choice(read_info(prm), choice))
    return choice.name


def votes(groups: Sequence[CandidateGroup], aggregator: str, size: int) -> dict[str, np.ndarray]:
    """Return each problem's accuracy with several selectors, averaged over subsets of `size` samples."""
    each = [accuracy_at_n([group], aggregator, [size])[0].accuracy for group in groups]
    return {key: np.array([one[key].value for one in each]) for key in SHOWN}


def accuracies(trained: dict[str, np.ndarray], plain: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the mean accuracy of each selector, with the untrained PRM under names of its own."""
    found = {key: float(each.mean()) for key, each in trained.items()}
    return found | {f"{key}_untrained": float(plain[key].mean()) for key in ("weighted", "prm")}


def differences(trained: dict[str, np.ndarray], plain: dict[str, np.ndarray], size: int) -> Results:
    """Return paired differences with `size` samples, with intervals over problems."""
    gains = {
        "weighted_minus_majority": trained["weighted"] - trained["majority"],
        "trained_minus_untrained": trained["weighted"] - plain["weighted"],
    }
    results: Results = {}
    for name, interval in zip(gains, bootstrap_means(list(gains.values()), 0), strict=True):
        results[f"{name}_{size}"] = interval.value
        results[f"{name}_{size}_interval"] = [interval.low, interval.high]
    return results
