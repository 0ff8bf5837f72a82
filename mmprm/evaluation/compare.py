"""Compare the benchmark accuracy of several policies, for example before and after fine-tuning.

Shapes: Q question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from mmprm.config import Config, PathText, differing_keys, with_current_names
from mmprm.data.rows import read_file
from mmprm.errors import DataError
from mmprm.evaluation.policy_scores import PolicyScores
from mmprm.metrics import Interval, bootstrap

_OF_THE_POLICY = ("engine.model", "engine.dtype", "engine.servers", "weights")
"""Groups of recorded settings that may differ between two policies."""


class CompareConfig(Config):
    """Configures `mmprm eval compare`."""

    output: PathText = "runs/eval"
    """Folder for the result (compare.json)."""
    stage: Literal["symbolic", "extracted", "judged"] = "symbolic"
    """Grading stage to compare; all policies must have been evaluated with it."""
    seed: int = 0
    """Random seed of the bootstrap intervals."""


@dataclass(frozen=True, slots=True)
class ComparedBenchmark:
    """Holds the accuracy (correct / all) of each policy on a benchmark, and its difference from the first policy's.

    The intervals of `change` are paired: policies are compared on the same questions. The first change is None.
    """

    questions: int
    accuracy: list[Interval]
    change: list[Interval | None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Holds the comparison by benchmark. `policies` are the compared folders, and `models` what was evaluated there.

    `left_out` maps a benchmark to the folders without a result; `notes` list differences in how policies were asked.
    """

    stage: str
    policies: list[str]
    models: list[str]
    benchmarks: dict[str, ComparedBenchmark]
    left_out: dict[str, list[str]]
    notes: list[str]


def compare_policies(folders: Sequence[Path], config: CompareConfig) -> Comparison:
    """Compare the results that `mmprm eval policy` wrote to the folders; the first folder is the baseline.

    Raises DataError if no benchmark has results in all folders, or if policies answered different questions.
    """
    if len(folders) < 2:
        raise DataError(f"{folders[0]}: is the only folder; give those of at least two policies, the baseline first")
    results = [_results(folder) for folder in folders]
    names = sorted({name for result in results for name in result})
    shared = [name for name in names if all(name in result for result in results)]
    missing = {name: [str(f) for f, r in zip(folders, results, strict=True) if name not in r] for name in names}
    if not shared:
        raise DataError(
            f"{', '.join(map(str, folders))}: no benchmark has results in all folders (policy-BENCHMARK.json); run "
            "mmprm eval policy on each policy, with an output folder per policy"
        )
    return Comparison(
        stage=config.stage,
        policies=[str(folder) for folder in folders],
        models=[result[shared[0]].model for result in results],
        benchmarks={name: _compared([result[name] for result in results], folders, config) for name in shared},
        left_out={name: absent for name, absent in missing.items() if absent},
        notes=[
            *(note for result, f in zip(results, folders, strict=True) for note in _mixed(result, f)),
            *(note for name in shared for note in _notes(name, folders)),
            *(note for name in shared for r, f in zip(results, folders, strict=True) for note in _failed(r[name], f)),
        ],
    )


def _results(folder: Path) -> dict[str, PolicyScores]:
    found = {}
    for file in sorted(folder.glob("policy-*.json")):
        try:
            scores = TypeAdapter(PolicyScores).validate_json(file.read_bytes())
        except ValidationError as error:
            raise DataError(f"{file}: was not written by mmprm eval policy; remove it ({error})") from error
        found[scores.benchmark] = scores
    return found


def _compared(results: Sequence[PolicyScores], folders: Sequence[Path], config: CompareConfig) -> ComparedBenchmark:
    by_question = [result.by_question for result in results]
    for result, folder in zip(results, folders, strict=True):
        file = folder / f"policy-{result.benchmark}.json"
        if config.stage not in result.scores:
            raise DataError(f"{file}: has no stage={config.stage}; evaluate all policies with it, or compare another")
        if not result.by_question:
            raise DataError(f"{file}: has no results by question; repeat mmprm eval policy, which samples nothing")
        if _contents(result) != _contents(results[0]):
            raise DataError(
                f"{file}: has other questions than {folders[0]}; evaluate both on the same file, subset and limit"
            )
    questions = list(by_question[0])
    families = [by_question[0][question].family for question in questions]
    correct = [np.array([each[question].correct[config.stage] for question in questions]) for each in by_question]

    def mean(value_Q: np.ndarray) -> Interval:
        return bootstrap(lambda indices: float(value_Q[indices].mean()), families, config.seed)

    changes = [mean(each - correct[0]) for each in correct[1:]]
    return ComparedBenchmark(len(questions), [mean(each) for each in correct], [None, *changes])


def _contents(result: PolicyScores) -> dict[str, str]:
    return {name: question.content for name, question in result.by_question.items()}


def _mixed(results: Mapping[str, PolicyScores], folder: Path) -> list[str]:
    """Return a note if the results of a folder are those of several models."""
    models = {result.model: name for name, result in results.items()}
    if len(models) == 1:
        return []
    listed = ", ".join(f"{model} ({name})" for model, name in models.items())
    return [f"{folder} has results of several models: {listed}; use an output folder per policy"]


def _notes(benchmark: str, folders: Sequence[Path]) -> list[str]:
    """Return a note for each policy that was asked with another prompt, sampling or seed than the first."""
    first, *others = [_asked_with(folder / f"responses-{benchmark}.jsonl") for folder in folders]
    notes = []
    for folder, other in zip(folders[1:], others, strict=True):
        differing = differing_keys(first, other) if first and other else {}
        named = [key for key in differing if not key.startswith(_OF_THE_POLICY)]
        if named:
            notes.append(f"{benchmark}: {folder} was evaluated with another {', '.join(named)} than {folders[0]}")
    return notes


def _failed(result: PolicyScores, folder: Path) -> list[str]:
    """Return a note if questions of a benchmark could not be sampled, which lowers the policy's accuracy."""
    if not result.failed:
        return []
    count = f"{len(result.failed):,} of {result.questions:,} questions"
    return [f"{result.benchmark}: {count} could not be sampled in {folder} and count as incorrect"]


def _asked_with(file: Path) -> dict[str, object]:
    if not file.is_file():
        return {}
    _, head = next(iter(read_file(file)), ("", {}))
    return with_current_names(head.get("asked_with", {}))
