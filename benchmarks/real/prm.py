"""Train a PRM with `mmprm train`, and compare how well it and an untrained PRM locate first errors.

Development problems choose the threshold, and test problems give the results. Both are unseen; their wordings are those
of the annotated problems (familiar), or wordings that occur in no training data (reworded).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.real import labels
from benchmarks.real.scored import scored
from benchmarks.real.truth import known_of, steps_true
from benchmarks.real.workspace import CONFIGS, FAMILIAR, Results, Workspace, read_json, run_command, write_json
from mmprm.config import load
from mmprm.metrics import NO_ERROR, Interval, bootstrap, choose_threshold, first_below, processbench_f1
from mmprm.prm.model import initialize_prm, save_prm
from mmprm.prm.train import TrainConfig
from mmprm.selection.groups import CandidateGroup
from mmprm.types import Problem

UNTRAINED = "untrained"
EXAMPLES = 4
"""Number of solutions whose step scores are shown in the documentation."""


@dataclass(frozen=True)
class Judged:
    """Holds scored solutions whose first error, or its absence, is known: their problems, claims and truth.

    `claims` are the first errors according to the PRM at a threshold. `undecided` counts the solutions left out because
    the truth of a step before the first error is undecided.
    """

    problems: list[str]
    claims: np.ndarray
    truth: np.ndarray
    threshold: float
    undecided: int


def measure(workspace: Workspace) -> Results:
    """Train on the labels of the adaptive campaign, and compare first errors with those of the untrained PRM."""
    seconds = train(workspace, "adaptive")
    untrained(workspace)
    familiar = gain(workspace, FAMILIAR)
    difference = familiar.pop("difference")
    return {
        "first_error_f1": difference["value"],
        "first_error_f1_interval": [difference["low"], difference["high"]],
        **familiar,
        "reworded": gain(workspace, ""),
        "train_seconds": seconds,
        "examples": examples(workspace),
    }


def gain(workspace: Workspace, wordings: str) -> Results:
    """Return the F1 of the trained and the untrained PRM, and their difference, on test problems in these wordings."""
    trained, plain = (first_errors(workspace, name, wordings) for name in ("adaptive", UNTRAINED))
    return {
        "difference": asdict(f1_difference(trained, plain)),
        "trained": f1_summary(trained),
        UNTRAINED: f1_summary(plain),
        "problems": len(set(trained.problems)),
        "solutions": len(trained.problems),
        "undecided": trained.undecided,
    }


def examples(workspace: Workspace) -> list[Results]:
    """Return the first test solutions with a false step, one of each problem, with the scores of both PRMs."""
    split = f"{FAMILIAR}test"
    problems = workspace.load(split)
    trained, plain = (
        scored(workspace, prm_folder(workspace, name), split, workspace.sizes.judged_samples)
        for name in ("adaptive", UNTRAINED)
    )
    found = []
    for group, same in zip(trained, plain, strict=True):
        problem = problems[group.problem.id]
        for candidate, other in zip(group.candidates, same.candidates, strict=True):
            true = steps_true(candidate.steps, known_of(problem))
            if False in true and candidate.scores and other.scores:
                rows = zip(candidate.steps, true, candidate.scores.scores, other.scores.scores, strict=True)
                found.append({"question": problem.question, "answer": problem.answer, "steps": list(rows)})
                break
        if len(found) == EXAMPLES:
            break
    return found


def prm_folder(workspace: Workspace, name: str) -> Path:
    return workspace.folder / f"prm-{name}" / "prm"


def train(workspace: Workspace, name: str) -> float:
    """Train a PRM on the labels of the campaign `name` unless it exists; return the seconds that training took."""
    seconds = workspace.folder / f"prm-{name}" / "seconds.json"
    if not prm_folder(workspace, name).exists():
        write_json(seconds, run_command("train", "train.yaml", train_sets(workspace, name)))
    return read_json(seconds)


def train_sets(workspace: Workspace, name: str) -> dict[str, Path]:
    output = workspace.folder / f"prm-{name}"
    return {"model": workspace.policy, "labels": labels.labels_path(workspace, name), "output": output}


def untrained(workspace: Workspace) -> None:
    """Save the untrained PRM as a baseline, which shows what the policy itself knows about its steps."""
    folder = prm_folder(workspace, UNTRAINED)
    if not folder.exists():
        sets = [f"{key}={value}" for key, value in train_sets(workspace, UNTRAINED).items()]
        config = load(TrainConfig, str(CONFIGS / "train.yaml"), sets)
        save_prm(folder, initialize_prm(config.model, config.tokens, config.add_missing_tokens))


def first_errors(workspace: Workspace, name: str, wordings: str = FAMILIAR) -> Judged:
    """Judge the test solutions by a PRM, with the threshold that is best on the development problems.

    `wordings` is the prefix of the problem files.
    """

    def known(split: str) -> tuple[list[CandidateGroup], dict[str, Problem]]:
        groups = scored(workspace, prm_folder(workspace, name), split, workspace.sizes.judged_samples)
        return groups, workspace.load(split)

    problems, scores, truth, _ = decided(*known(f"{wordings}dev"))
    threshold, _ = choose_threshold(scores, truth)
    problems, scores, truth, undecided = decided(*known(f"{wordings}test"))
    claims = np.array([first_below(each, threshold) for each in scores])
    return Judged(problems, claims, np.array(truth), threshold, undecided)


def decided(
    groups: Sequence[CandidateGroup], problems: Mapping[str, Problem]
) -> tuple[list[str], list[tuple[float, ...]], list[int], int]:
    """Return (problem ids, scores, first errors) of the decided solutions, and the number of undecided ones."""
    owners, scores, errors, undecided = [], [], [], 0
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
            owners.append(group.problem.id)
            scores.append(candidate.scores.scores)
            errors.append(error)
    return owners, scores, errors, undecided


def f1_summary(judged: Judged) -> Results:
    """Return ProcessBench's F1 with an interval over problems, its two parts, and the threshold."""
    f1 = bootstrap(lambda i: processbench_f1(judged.claims[i], judged.truth[i]).f1, judged.problems, 0)
    whole = processbench_f1(judged.claims, judged.truth)
    return {"f1": asdict(f1), "threshold": judged.threshold, "on_bad": whole.on_bad, "on_good": whole.on_good}


def f1_difference(one: Judged, other: Judged) -> Interval:
    """Return the F1 of one PRM minus that of the other on the same solutions, resampling problems jointly."""
    assert one.problems == other.problems, "both PRMs must have scored the same solutions"

    def difference(indices: np.ndarray) -> float:
        first, second = (processbench_f1(each.claims[indices], each.truth[indices]).f1 for each in (one, other))
        return first - second

    return bootstrap(difference, one.problems, 0)
