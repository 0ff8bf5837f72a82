"""Let the built-in world teach a thinking judge: labeled solutions, and a teacher that writes short critiques of them.

The teacher solves the problem itself, with mistakes, and compares its steps with the given ones up to the first
difference. It makes the same mistakes as the solutions, so it also misses errors; rejection sampling removes such
critiques. A critique repeats each given step after the teacher's own one, so that the comparison is local. The request
ends with the question, so that a critique begins as a solution does: the policy can write its own steps from the start,
and only has to learn to find the given ones.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

from mmprm.files import whole_file
from mmprm.labels.parquet import LabeledExample, write_parquet
from mmprm.problems import write_image
from mmprm.steps import plain
from mmprm.tiny.truth import errorless_so_far
from mmprm.tiny.world import Mistakes, TinyProblem, WorldSplit, make_problems, solve, truth_of
from mmprm.types import Completion, Counts, LabeledPath, Problem, SampleRequest, Steps

JUDGE: dict[str, Any] = {
    "verdict_format": "thinkprm",
    "request": "{steps}\n{question}",
    "sampling": {"temperature": 0.6, "top_p": 0.95, "max_tokens": 384},
}
"""Settings of a thinking judge that the built-in policy can follow: requests and critiques within its 1,024 tokens."""

_STEP = re.compile(r"^Step \d+: (.*)$", re.MULTILINE)


class WorldTeacher:
    """Samples critiques of the solution in a request of JUDGE, with mistakes at the given rates.

    Sample i of a request depends on its seed + i alone, and counts no tokens.
    """

    def __init__(self, mistakes: Mistakes) -> None:
        self._mistakes = mistakes

    async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
        """Return the critiques of a request; see types.Sampler."""
        given, _, question = request.problem.question.rpartition("\n")
        tiny = truth_of(Problem(request.problem.id, question, "", request.problem.images))
        seeds = range(request.seed, request.seed + request.n)
        solved = (solve(tiny, random.Random(seed), self._mistakes) for seed in seeds)
        return tuple(Completion(write_critique(own, _STEP.findall(given)), 0, "stop") for own in solved)


def write_critique(own: Steps, steps: list[str]) -> str:
    """Compare the steps with the judge's own solution, and give a verdict on each up to the first difference.

    `own` has step tags, as in the policy's training, and `steps` have none.
    """
    lines = []
    for number, (step, expected) in enumerate(zip(steps, [*own, *own[-1:] * len(steps)], strict=False), start=1):
        verdict = "correct" if step == plain(expected, "tags") else "incorrect"
        lines.append(f"Step {number}: {expected}{step} \\boxed{{{verdict}}}")
        if verdict == "incorrect":
            break
    return "\n".join(lines)


def make_labeled(count: int, seed: int, split: WorldSplit, mistakes: Mistakes) -> list[LabeledExample]:
    """Solve `count` problems with mistakes, and label every step of the solutions with the truth."""
    rng = random.Random(f"critiques/{seed}/{split}")
    return [_labeled(tiny, _plain(solve(tiny, rng, mistakes))) for tiny in make_problems(count, seed, split)]


def write_labeled(folder: Path, examples: list[LabeledExample]) -> None:
    """Write the solutions to labels.parquet and, as a benchmark for `mmprm eval processbench`, to solutions.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    write_parquet(folder / "labels.parquet", examples)
    with whole_file(folder / "solutions.jsonl") as file:
        for example in examples:
            correct = [counts is not None and counts.correct > 0 for counts in example.path.counts]
            row = {
                "id": example.problem.id,
                "problem": example.problem.question,
                "images": [write_image(image, folder) for image in example.problem.images],
                "steps": list(example.path.steps),
                "label": correct.index(False) if False in correct else -1,
            }
            file.write(json.dumps(row) + "\n")


def _plain(steps: Steps) -> Steps:
    return tuple(plain(step, "tags") for step in steps)


def _labeled(tiny: TinyProblem, steps: Steps) -> LabeledExample:
    counts = tuple(Counts(int(correct), int(not correct)) for correct in errorless_so_far(tiny.problem, steps))
    return LabeledExample(tiny.problem, LabeledPath(tiny.problem.id, steps, counts, complete=True), "train")
