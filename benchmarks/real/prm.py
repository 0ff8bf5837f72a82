"""Train a PRM with `mmprm train`, and compare its first errors and chosen answers with those of the untrained PRM.

Development problems choose thresholds and aggregators; test problems, whose wordings no other stage saw, measure.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.real import labels
from benchmarks.real.truth import known_of, steps_true
from benchmarks.real.workspace import CONFIGS, Results, Workspace, read_json, run_command, sampling_sets, write_json
from mmprm.config import load
from mmprm.data.rows import read_file
from mmprm.metrics import (
    NO_ERROR,
    Interval,
    bootstrap,
    bootstrap_means,
    choose_threshold,
    first_below,
    processbench_f1,
)
from mmprm.prm.info import read_info
from mmprm.prm.model import initialize_prm, save_prm
from mmprm.prm.train import TrainConfig
from mmprm.selection.accuracy import accuracy_at_n
from mmprm.selection.candidates import read_groups
from mmprm.selection.groups import CandidateGroup
from mmprm.types import Problem

SIZES = (8, 16)
"""Numbers of samples among which the PRM chooses."""


@dataclass(frozen=True)
class Judged:
    """Contains scored solutions whose steps are decided up to the first error, with their true first errors."""

    problems: list[str]
    scores: list[tuple[float, ...]]
    first_errors: list[int]
    undecided: int


def measure(workspace: Workspace) -> Results:
    """Train on the labels of the adaptive campaign, and compare first errors with those of the untrained PRM."""
    seconds = train(workspace, "adaptive")
    untrained(workspace)
    found = {name: first_errors(workspace, name) for name in ("adaptive", "untrained")}
    difference = f1_difference(found["adaptive"], found["untrained"])
    return {
        "first_error_f1": difference.value,
        "first_error_f1_interval": [difference.low, difference.high],
        "trained": f1_summary(*found["adaptive"]),
        "untrained": f1_summary(*found["untrained"]),
        "solutions": len(found["adaptive"][0].scores),
        "undecided": found["adaptive"][0].undecided,
        "train_seconds": seconds,
    }


def measure_best_of_n(workspace: Workspace) -> Results:
    """Compare the PRM-weighted vote with the majority vote, and the trained with the untrained PRM."""
    aggregators = {name: choose_aggregator(workspace, name) for name in ("adaptive", "untrained")}
    groups = {name: scored(workspace, name, "test") for name in aggregators}
    sizes = [size for size in SIZES if size <= workspace.sizes.samples] or [workspace.sizes.samples]
    results: Results = {"problems": len(groups["adaptive"]), "aggregators": aggregators}
    for size in sizes:
        values = {name: votes(groups[name], aggregators[name], size) for name in groups}
        trained, plain = values["adaptive"], values["untrained"]
        gains = [
            [a - b for a, b in zip(trained["weighted"], trained["majority"], strict=True)],
            [a - b for a, b in zip(trained["weighted"], plain["weighted"], strict=True)],
        ]
        over_majority, over_untrained = bootstrap_means(gains, 0)
        accuracy = {key: float(np.mean(found)) for key, found in trained.items()}
        results |= {
            f"weighted_minus_majority_{size}": over_majority.value,
            f"weighted_minus_majority_{size}_interval": [over_majority.low, over_majority.high],
            f"trained_minus_untrained_{size}": over_untrained.value,
            f"trained_minus_untrained_{size}_interval": [over_untrained.low, over_untrained.high],
            f"accuracy_{size}": accuracy,
        }
    return results


def votes(groups: Sequence[CandidateGroup], aggregator: str, size: int) -> dict[str, list[float]]:
    """Return each problem's accuracy with several selectors, averaged over subsets of `size` samples."""
    each = [accuracy_at_n([group], aggregator, [size])[0].accuracy for group in groups]
    return {key: [one[key].value for one in each] for key in ("random", "majority", "weighted", "prm", "oracle")}


def prm_folder(workspace: Workspace, name: str) -> Path:
    return workspace.folder / f"prm-{name}" / "prm"


def train(workspace: Workspace, name: str) -> float:
    """Train a PRM on the labels of the campaign `name` unless it already exists; return the training seconds."""
    seconds = workspace.folder / f"prm-{name}" / "seconds.json"
    if not prm_folder(workspace, name).exists():
        write_json(seconds, run_command("train", "train.yaml", train_sets(workspace, name)))
    return read_json(seconds)


def train_sets(workspace: Workspace, name: str) -> dict[str, Path]:
    output = workspace.folder / f"prm-{name}"
    return {"model": workspace.policy, "labels": labels.labels_path(workspace, name), "output": output}


def untrained(workspace: Workspace) -> None:
    """Save the untrained PRM as a baseline, which shows how well the policy itself can judge its steps."""
    folder = prm_folder(workspace, "untrained")
    if not folder.exists():
        sets = [f"{key}={value}" for key, value in train_sets(workspace, "untrained").items()]
        config = load(TrainConfig, str(CONFIGS / "train.yaml"), sets)
        save_prm(folder, initialize_prm(config.model, config.tokens, config.add_missing_tokens))


def rerank(workspace: Workspace, split: str, prm: str | None, *options: str) -> Path:
    """Sample a split once with `mmprm rerank`, or score its samples with a PRM; return the output folder."""
    sampled = workspace.folder / f"samples-{split}"
    output = sampled if prm is None else workspace.folder / f"scored-{split}-{prm}"
    if prm is not None:
        rerank(workspace, split, None)
        output.mkdir(exist_ok=True)
        shutil.copy(sampled / "samples.jsonl", output)
    if not (output / "summary.json").exists() or options:
        sets = sampling_sets(workspace)
        sets |= {"problems.path": workspace.problems(split), "output": output, "samples": workspace.sizes.samples}
        if prm is not None:
            sets |= {"scorer.prm": prm_folder(workspace, prm), "scorer.batch_tokens": 2048}
            sets |= {"scorer.share_prefixes": True}
            sets |= {} if options or read_info(prm_folder(workspace, prm)).aggregator else {"aggregator": "min"}
        run_command("rerank", None, sets, *options)
    return output


def choose_aggregator(workspace: Workspace, prm: str) -> str:
    """Choose the PRM's aggregator on the development problems unless one is already chosen; return its name."""
    if read_info(prm_folder(workspace, prm)).aggregator is None:
        rerank(workspace, "dev", prm, "--choose-aggregator")
    chosen = read_info(prm_folder(workspace, prm)).aggregator
    assert chosen is not None, "--choose-aggregator writes it"
    return chosen


def scored(workspace: Workspace, prm: str, split: str) -> list[CandidateGroup]:
    file = rerank(workspace, split, prm) / "candidates.jsonl"
    return read_groups(read_file(file), workspace.load(split))


def judged(groups: Sequence[CandidateGroup], problems: Mapping[str, Problem]) -> Judged:
    """Find the true first errors of scored solutions; exclude and count solutions with an undecided step before it."""
    found = Judged([], [], [], 0)
    undecided = 0
    for group in groups:
        known = known_of(problems[group.problem.id])
        for candidate in group.candidates:
            if candidate.scores is None:
                continue
            true = steps_true(candidate.steps, known)
            error = true.index(False) if False in true else NO_ERROR
            if None in (true if error == NO_ERROR else true[:error]):
                undecided += 1
                continue
            found.problems.append(group.problem.id)
            found.scores.append(candidate.scores.scores)
            found.first_errors.append(error)
    return Judged(found.problems, found.scores, found.first_errors, undecided)


def first_errors(workspace: Workspace, prm: str) -> tuple[Judged, float]:
    """Return the scored test solutions, and the threshold chosen on the development problems."""
    development = judged(scored(workspace, prm, "dev"), workspace.load("dev"))
    threshold, _ = choose_threshold(development.scores, development.first_errors)
    return judged(scored(workspace, prm, "test"), workspace.load("test")), threshold


def f1_summary(judged: Judged, threshold: float) -> Results:
    """Return ProcessBench's F1 with an interval over problems, and the threshold."""
    claimed_K = np.array([first_below(scores, threshold) for scores in judged.scores])
    truth_K = np.array(judged.first_errors)
    interval = bootstrap(lambda i: processbench_f1(claimed_K[i], truth_K[i]).f1, judged.problems, 0)
    whole = processbench_f1(claimed_K, truth_K)
    return {"f1": asdict(interval), "threshold": threshold, "on_bad": whole.on_bad, "on_good": whole.on_good}


def f1_difference(one: tuple[Judged, float], other: tuple[Judged, float]) -> Interval:
    """Return the difference of two PRMs' F1 on the same solutions, resampling problems jointly."""
    assert one[0].first_errors == other[0].first_errors, "the same solutions"
    claimed = [np.array([first_below(scores, t) for scores in judged.scores]) for judged, t in (one, other)]
    truth_K = np.array(one[0].first_errors)

    def difference(indices: np.ndarray) -> float:
        first, second = (processbench_f1(each[indices], truth_K[indices]).f1 for each in claimed)
        return first - second

    return bootstrap(difference, one[0].problems, 0)
