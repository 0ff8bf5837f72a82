"""Compare labels with a judge's verdicts, and drop labels on which the two disagree.

Both the label and the judge's P(no error so far) describe a prefix of steps. All functions are pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import Field

from mmprm.config import Config
from mmprm.errors import UnknownScoresError
from mmprm.halving import score_each
from mmprm.labels.parquet import LabeledExample
from mmprm.types import Counts, Scorer, Solution, Steps, StepScores

SCORED_TOGETHER = 2000
"""Number of solutions per call of the scorer: enough to batch similar lengths, few enough to isolate a bad solution."""

Prefix = tuple[str, Steps]
"""A (problem id, steps) pair."""


class AgreementRule(Config):
    value_above: float = Field(0.0, ge=0, lt=1)
    """Threshold for the Monte Carlo value of a label; a label above it counts as correct."""
    probability_at_least: float = Field(0.5, gt=0, le=1)
    """Threshold for the judge's probability; a step at or above it counts as correct."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """Holds the verdicts of the label and the judge on one prefix. `judge_correct` is None if the judge gave no
    verdict."""

    counts: Counts
    judged: float | None
    label_correct: bool
    judge_correct: bool | None

    @property
    def agree(self) -> bool:
        """Return whether the label and the judge agree."""
        return self.label_correct == self.judge_correct


@dataclass(frozen=True, slots=True)
class AgreementCounts:
    """Counts labeled prefixes by the verdicts of the label and the judge, and paths by whether their first errors
    agree."""

    both_correct: int
    both_incorrect: int
    label_alone_correct: int
    judge_alone_correct: int
    unjudged: int
    paths: int
    paths_agreeing: int


def opinions(examples: Iterable[LabeledExample], rule: AgreementRule) -> dict[Prefix, Opinion]:
    """Return the verdicts of the label and the judge on every labeled prefix. The paths of a problem share their
    labels."""
    found: dict[Prefix, Opinion] = {}
    for example in examples:
        judged = example.judged or (None,) * len(example.path.steps)
        for depth, (counts, probability) in enumerate(zip(example.path.counts, judged, strict=True), start=1):
            # A prefix has no value if the verdicts of all its rollouts are unknown.
            if counts is not None and counts.value is not None:
                found[example.problem.id, example.path.steps[:depth]] = Opinion(
                    counts,
                    probability,
                    counts.value > rule.value_above,
                    None if probability is None else probability >= rule.probability_at_least,
                )
    return found


def keep_agreeing_steps(examples: Sequence[LabeledExample], rule: AgreementRule) -> list[LabeledExample]:
    """Drop the labels that the judge does not confirm, and the examples that have no labels left."""
    known = opinions(examples, rule)
    kept = []
    for example in examples:
        opinions_S = [known.get(prefix) for prefix in prefixes_of(example)]
        counts = [
            label if opinion is not None and opinion.agree else None
            for label, opinion in zip(example.path.counts, opinions_S, strict=True)
        ]
        kept.append(relabeled(example, counts))
    return [example for example in kept if _has_label(example)]


def keep_agreeing_first_errors(examples: Sequence[LabeledExample], rule: AgreementRule) -> list[LabeledExample]:
    """Keep the paths on which the label and the judge find the first error at the same step, or both find none.

    Labels after the first error are dropped, because the judge confirms only its position. A label that several paths
    share is stored on the first of these paths that is kept.
    """
    known = opinions(examples, rule)
    placed: set[Prefix] = set()
    kept = []
    for example in examples:
        prefixes = prefixes_of(example)
        depth = _agreed_depth(prefixes, known)
        if depth is None:
            continue
        own = [
            known[prefix] if prefix in known and prefix not in placed and position < depth else None
            for position, prefix in enumerate(prefixes)
        ]
        placed.update(prefixes[:depth])
        counts = [opinion and opinion.counts for opinion in own]
        kept.append(replace(relabeled(example, counts), judged=tuple(opinion and opinion.judged for opinion in own)))
    return [example for example in kept if _has_label(example)]


AGREEMENTS = {"steps": keep_agreeing_steps, "first_errors": keep_agreeing_first_errors}
"""Maps each value of `agree` to the function that keeps the labels or paths on which the label and the judge agree."""


def count_agreement(examples: Sequence[LabeledExample], rule: AgreementRule) -> AgreementCounts:
    """Count how often the label and the judge agree, by prefix and by path."""
    known = opinions(examples, rule)
    said = Counter((opinion.label_correct, opinion.judge_correct) for opinion in known.values())
    depths = [_agreed_depth(prefixes_of(example), known) for example in examples]
    return AgreementCounts(
        both_correct=said[True, True],
        both_incorrect=said[False, False],
        label_alone_correct=said[True, False],
        judge_alone_correct=said[False, True],
        unjudged=said[True, None] + said[False, None],
        paths=len(depths),
        paths_agreeing=sum(depth is not None for depth in depths),
    )


def judge_with_scorer(
    examples: Sequence[LabeledExample], scorer: Scorer, name: str, costs: Counter[str] | None = None
) -> list[LabeledExample]:
    """Add a scorer's P(correct) to each labeled step of the examples, or None where it cannot score the step.

    `costs` counts the tokens of a thinking judge, and the paths about which its verdicts are unknown.
    """
    judged: list[LabeledExample] = []
    costs = Counter() if costs is None else costs
    for start in range(0, len(examples), SCORED_TOGETHER):
        chunk = examples[start : start + SCORED_TOGETHER]
        for example, scores in zip(chunk, _scores(chunk, scorer, costs), strict=True):
            pairs = zip(example.path.counts, scores, strict=True)
            probabilities = tuple(score if counts is not None else None for counts, score in pairs)
            judged.append(replace(example, judged=probabilities, judged_by=name))
    return judged


def _scores(examples: Sequence[LabeledExample], scorer: Scorer, costs: Counter[str]) -> list[tuple[float | None, ...]]:
    """Score the examples; those that cannot be scored, and steps that the scorer truncated, have no scores."""
    solutions = [Solution(example.problem, example.path.steps) for example in examples]
    found: list[tuple[float | None, ...]] = []
    for solution, answer in zip(solutions, score_each(scorer, solutions), strict=True):
        scores = answer.scores if isinstance(answer, StepScores) else ()
        found.append(scores + (None,) * (len(solution.steps) - len(scores)))
        if isinstance(answer, UnknownScoresError):
            costs["unknown"] += 1
        costs["tokens"] += getattr(answer, "tokens", None) or 0
    return found


def prefixes_of(example: LabeledExample) -> list[Prefix]:
    """Return the (problem id, steps) pair of each prefix of the example's path, shortest first."""
    steps = example.path.steps
    return [(example.problem.id, steps[:depth]) for depth in range(1, len(steps) + 1)]


def _agreed_depth(prefixes: Sequence[Prefix], known: Mapping[Prefix, Opinion]) -> int | None:
    """Return the number of steps up to and including the first error, or None if the label and the judge disagree on
    it.

    If neither finds an error, this is the number of all steps.
    """
    for depth, prefix in enumerate(prefixes, start=1):
        opinion = known.get(prefix)
        if opinion is not None and not opinion.agree:
            return None
        if opinion is not None and not opinion.label_correct:
            return depth
    return len(prefixes)


def relabeled(example: LabeledExample, counts: Sequence[Counts | None]) -> LabeledExample:
    """Replace the labels of an example. A path that loses its final label is marked as incomplete."""
    path = example.path
    complete = path.complete and counts[-1] is not None
    return replace(example, path=replace(path, counts=tuple(counts), complete=complete))


def _has_label(example: LabeledExample) -> bool:
    return any(counts is not None for counts in example.path.counts)
