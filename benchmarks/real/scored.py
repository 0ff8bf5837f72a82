"""Sample solutions of unseen problems with `mmprm rerank`, and score them with PRMs. Both can be resumed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.real.workspace import Workspace, run_command, sampling_sets
from mmprm.data.rows import read_file
from mmprm.sampling.dtype import this_device
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.open import open_scorer
from mmprm.selection.candidates import read_groups
from mmprm.selection.groups import CandidateGroup, score_groups
from mmprm.types import StepScores

CHUNK = 10
"""Number of problems to score between two writes to the file."""

Scores = dict[tuple[str, int], StepScores]
"""Maps (problem id, sample number) to step scores."""


def sampled(workspace: Workspace, split: str) -> list[CandidateGroup]:
    """Return the sampled and graded solutions of a split, sampling those that are missing."""
    output = workspace.folder / f"samples-{split}"
    if not (output / "summary.json").exists():
        sets = sampling_sets(workspace)
        sets |= {"problems.path": workspace.problems(split), "output": output, "samples": workspace.sizes.samples}
        run_command("rerank", None, sets)
    return read_groups(read_file(output / "candidates.jsonl"), workspace.load(split))


def scored(workspace: Workspace, prm: Path, split: str, samples: int) -> list[CandidateGroup]:
    """Return the first `samples` solutions of each problem with their step scores, scoring those that are missing."""
    path = prm.parent / f"scores-{split}.jsonl"
    known = _read(path)
    groups = [replace(group, candidates=group.candidates[:samples]) for group in sampled(workspace, split)]
    missing = [group for group in groups if any(_lacks(group, number, known) for number in range(samples))]
    if missing:
        with path.open("a", encoding="utf-8") as file:
            for lines in _score(prm, missing, known):
                file.write("".join(json.dumps(line) + "\n" for line in lines))
                file.flush()
        known = _read(path)
    return [_with_scores(group, known) for group in groups]


def _lacks(group: CandidateGroup, number: int, known: Scores) -> bool:
    return bool(group.candidates[number].steps) and (group.problem.id, number) not in known


def _score(prm: Path, groups: Sequence[CandidateGroup], known: Scores):
    """Score the missing candidates of a few groups at a time, and yield the lines to write."""
    dtype = "bfloat16" if this_device().bf16 else "float32"  # the faster one for a model of this width
    scorer = open_scorer(ScorerConfig(prm=str(prm), batch_tokens=2048, share_prefixes=True, dtype=dtype))
    try:
        for start in range(0, len(groups), CHUNK):
            chunk = groups[start : start + CHUNK]
            numbers = [[n for n in range(len(g.candidates)) if _lacks(g, n, known)] for g in chunk]
            wanted = [
                replace(group, candidates=tuple(group.candidates[n] for n in own))
                for group, own in zip(chunk, numbers, strict=True)
            ]
            found = score_groups(wanted, scorer)
            yield list(itertools.chain.from_iterable(map(_lines, found, numbers)))
    finally:
        scorer.close()


def _lines(group: CandidateGroup, numbers: Sequence[int]) -> list[dict]:
    return [
        {"problem_id": group.problem.id, "sample": number, "scores": candidate.scores.scores}
        for number, candidate in zip(numbers, group.candidates, strict=True)
        if candidate.scores is not None
    ]


def _read(path: Path) -> Scores:
    if not path.exists():
        return {}
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}"))
    return {(line["problem_id"], line["sample"]): StepScores(tuple(line["scores"])) for line in lines}


def _with_scores(group: CandidateGroup, known: Scores) -> CandidateGroup:
    candidates = tuple(
        replace(candidate, scores=known.get((group.problem.id, number)))
        for number, candidate in enumerate(group.candidates)
    )
    return replace(group, candidates=candidates)
