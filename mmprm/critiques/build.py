"""Let a teacher write critiques of labeled solutions, and keep those whose verdicts agree with the labels.

1. The teacher is a thinking judge (mmprm.scoring.judge_scorer): the same requests, layouts and cache, so what the
   student learns to write is what `scorer.backend=judge` reads.
2. A critique that was cut off, that cannot be read, or that contradicts a label is refused and counted by its reason.
3. Labels are compared up to the first incorrect step; see mmprm.critiques.agreement.

Source: rejection sampling against step labels, as for ThinkPRM (Khalifa et al., Process Reward Models That Think, 2025,
section 3.2). The labels may come from Monte Carlo rollouts instead of people.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

from mmprm.critiques.agreement import LabelsUntilError, contradiction, step_labels
from mmprm.critiques.config import CritiquesConfig
from mmprm.critiques.rows import (
    CritiqueCounts,
    LabeledCritiques,
    LabeledSolutionSteps,
    count_critiques,
    write_critiques,
    write_judging_problems,
)
from mmprm.errors import DataError
from mmprm.files import whole_file
from mmprm.labels.parquet import LabeledExample, read_parquet
from mmprm.labels.selection import select_labels
from mmprm.problems import content_id
from mmprm.scoring.judge_scorer import Chain, JudgeScorer
from mmprm.types import Sampler, Solution

_CHUNK = 2000
"""Number of solutions sent to the teacher at once, large enough to keep its engine busy."""


def build_critiques(config: CritiquesConfig, sampler: Sampler | None = None) -> CritiqueCounts:
    """Write critiques of labeled solutions, and problems for reinforcement learning, to the output folder.

    Returns the counts, which are also written to summary.json. `sampler` replaces the teacher's engine. Raises
    DataError if no solution has a label, or if no critique is kept.
    """
    solutions = labeled_solutions(config)
    if not solutions:
        raise DataError(
            f"{config.labels}: no solution of the {config.split} split has a label; choose another split, or relax "
            "selection"
        )
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    write_judging_problems(folder / "problems.jsonl", solutions, config.teacher)
    judged: list[LabeledCritiques] = []
    if config.ask_teacher:
        with closing(JudgeScorer(config.teacher, sampler)) as teacher:
            judged = list(_judged(solutions, teacher))
        write_critiques(folder, judged, config)
    counts = count_critiques(solutions, judged, config.max_per_solution)
    with whole_file(folder / "summary.json") as file:
        file.write(json.dumps(asdict(counts), indent=2) + "\n")
    if config.ask_teacher and not counts.kept:
        reason, count = next(iter(counts.refused.items()))
        raise DataError(
            f"{folder / 'refused.jsonl'}: no critique was kept ({count:,} × {reason}); read the texts there, and set "
            "teacher.verdict_format or teacher.request so that the teacher writes verdicts that can be read"
        )
    return counts


def labeled_solutions(config: CritiquesConfig) -> list[LabeledSolutionSteps]:
    """Return the labeled solutions of the split, with their labels. Each solution's id depends on its steps."""
    examples, _ = select_labels(read_parquet(config.labels, config.split), config.selection)
    labels = step_labels(examples, config.selection.rule.value_above)
    pairs = zip(examples, labels, strict=True)
    return [(_solution(example), known) for example, known in pairs if any(label is not None for label in known)]


def _solution(example: LabeledExample) -> Solution:
    steps = example.path.steps
    name = f"{example.problem.id}-{content_id('', json.dumps(steps))}"
    return Solution(replace(example.problem, id=name), steps)


def _judged(solutions: Sequence[LabeledSolutionSteps], teacher: JudgeScorer) -> Iterator[LabeledCritiques]:
    for start in range(0, len(solutions), _CHUNK):
        chunk = solutions[start : start + _CHUNK]
        found = teacher.chains([solution for solution, _ in chunk])
        print(f"{start + len(chunk):,} of {len(solutions):,} solutions have critiques", file=sys.stderr, flush=True)
        for (solution, labels), chains in zip(chunk, found, strict=True):
            if isinstance(chains, DataError):
                chains = [Chain("a request that cannot be written", 0, str(chains))]
            yield LabeledCritiques(solution, labels, chains, [_reason(chain, labels) for chain in chains])


def _reason(chain: Chain, labels: LabelsUntilError) -> str | None:
    return chain.verdicts if isinstance(chain.verdicts, str) else contradiction(chain.verdicts, labels)
