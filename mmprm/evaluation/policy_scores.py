"""Compute a policy's benchmark accuracy, overall and per group, with the aggregate scores that the benchmark publishes.

Shapes: Q question, N sample of a question.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mmprm.evaluation.benchmarks import aggregate_scores
from mmprm.evaluation.entries import Item
from mmprm.evaluation.pass_at_k import majority_share, pass_at_k, sizes
from mmprm.evaluation.policy import Answered, GradedSample
from mmprm.evaluation.policy_config import PolicyEvalConfig
from mmprm.metrics import Interval, bootstrap
from mmprm.problems import content_id
from mmprm.selection.groups import answer_key
from mmprm.types import Grading, Verdict


@dataclass(frozen=True, slots=True)
class Score:
    """Holds the metrics over a set of questions with 95% intervals, and the number of responses by verdict.

    - accuracy = correct / all, the mean over samples (avg@n), which estimates pass@1;
    - of_known = correct / (correct + incorrect), or None if no verdict is known;
    - pass_at: pass@k by k;
    - majority: fraction of questions whose most frequent answer is correct.

    Except in of_known, unknown verdicts and the responses of questions that could not be sampled (`failed`) do not
    count as correct, so they lower the metric.
    """

    accuracy: Interval
    of_known: Interval | None
    correct: int
    incorrect: int
    unknown: int
    failed: int
    pass_at: dict[int, Interval]
    majority: Interval | None


@dataclass(frozen=True, slots=True)
class QuestionScore:
    """Holds the fraction of correct responses to a question by grading stage.

    The members of a `family` are not independent of each other. `content` is a hash of the question's texts.
    """

    family: str
    content: str
    correct: dict[str, float]


@dataclass(frozen=True, slots=True)
class PolicyScores:
    """Holds a policy's results on a benchmark.

    `scores` maps the grading stage (symbolic, extracted, judged) to scores by group, such as "subject: algebra", where
    "all" covers all questions. `official` maps the stage to the benchmark's aggregate scores. `left_out` counts rows
    that are not part of the benchmark. `failed` maps the id of each question that could not be sampled to the reason.
    `cut` counts responses that reached the token limit. `by_question` maps the id of each question to its score.
    """

    benchmark: str
    model: str
    questions: int
    samples: int
    left_out: int
    failed: dict[str, str]
    cut: int
    tokens: float
    scores: dict[str, dict[str, Score]]
    official: dict[str, dict[str, float]]
    by_question: dict[str, QuestionScore] = field(default_factory=dict)


def stages(config: PolicyEvalConfig) -> list[str]:
    """Return the names of the configured grading stages, in order."""
    optional = {"extracted": config.extractor, "judged": config.grader.judge}
    return ["symbolic", *(name for name, setting in optional.items() if setting is not None)]


def scored(
    answered: Sequence[Answered], failed: dict[str, str], left_out: int, config: PolicyEvalConfig
) -> PolicyScores:
    """Compute the scores of each grading stage over all questions and per group, and the aggregate scores."""
    items = [each.item for each in answered]
    groups = {"all": list(range(len(items)))}
    for index, item in enumerate(items):
        for name in (f"{group}: {value}" for group, values in item.groups.items() for value in values):
            groups.setdefault(name, []).append(index)
    names = ["all", *sorted(name for name in groups if name != "all")]

    def scores(stage: str) -> dict[str, Score]:
        verdicts_QN = [[sample.gradings[stage].verdict for sample in each.samples] for each in answered]
        answers_QN = [[_key(sample.gradings[stage], each.item) for sample in each.samples] for each in answered]

        def inside(name: str) -> Score:
            verdicts, answers = ([table[i] for i in groups[name]] for table in (verdicts_QN, answers_QN))
            families = [items[i].family for i in groups[name]]
            return score(verdicts, answers, families, config.samples, config.seed)

        return {name: inside(name) for name in names}

    def official(stage: str) -> dict[str, float]:
        correct_NQ = [[_is_correct(each, number, stage) for each in answered] for number in range(config.samples)]
        return aggregate_scores(config.benchmark, items, correct_NQ)

    completions = [sample.completion for each in answered for sample in each.samples]
    return PolicyScores(
        benchmark=config.benchmark,
        model=config.engine.model,
        questions=len(items),
        samples=config.samples,
        left_out=left_out,
        failed=failed,
        cut=sum(completion.finish_reason == "length" for completion in completions),
        tokens=float(np.mean([completion.token_count for completion in completions])),
        scores={stage: scores(stage) for stage in stages(config)},
        official={stage: official(stage) for stage in stages(config)},
        by_question={each.item.problem.id: _question_score(each, config) for each in answered},
    )


def _question_score(answered: Answered, config: PolicyEvalConfig) -> QuestionScore:
    counts = {stage: sum(_is_correct(answered, n, stage) for n in range(config.samples)) for stage in stages(config)}
    problem = answered.item.problem
    content = content_id(problem.question, problem.answer, (), problem.choices)
    correct = {stage: count / config.samples for stage, count in counts.items()}
    return QuestionScore(answered.item.family, content, correct)


def _key(grading: Grading, item: Item) -> str | None:
    return answer_key(grading.extracted, item.problem)


def _is_correct(answered: Answered, number: int, stage: str) -> bool:
    return bool(answered.samples) and answered.samples[number].gradings[stage].verdict is Verdict.CORRECT


def score(
    verdicts_QN: Sequence[Sequence[Verdict]],
    answers_QN: Sequence[Sequence[str | None]],
    families: Sequence[str],
    samples: int,
    seed: int,
) -> Score:
    """Compute the metrics of questions with `samples` responses each; unanswered questions have none.

    The bootstrap resamples whole families, because versions of one problem are not independent.
    """
    correct_Q, incorrect_Q, unknown_Q = (
        np.array([sum(v is wanted for v in verdicts_N) for verdicts_N in verdicts_QN], dtype=float)
        for wanted in (Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNKNOWN)
    )
    known_Q = correct_Q + incorrect_Q

    def mean_of(value_Q: NDArray[np.float64]) -> Interval:
        return bootstrap(lambda indices: float(value_Q[indices].mean()), families, seed)

    def share_of_known(indices: NDArray[np.intp]) -> float:
        return float(correct_Q[inside][indices].sum() / known_Q[inside][indices].sum())

    inside = np.flatnonzero(known_Q)
    several = sizes(samples)[1:]
    votes_Q = np.array([majority_share(a, v) for a, v in zip(answers_QN, verdicts_QN, strict=True)])
    return Score(
        accuracy=mean_of(correct_Q / samples),
        of_known=bootstrap(share_of_known, [families[i] for i in inside], seed) if len(inside) else None,
        correct=int(correct_Q.sum()),
        incorrect=int(incorrect_Q.sum()),
        unknown=int(unknown_Q.sum()),
        failed=samples * sum(not verdicts_N for verdicts_N in verdicts_QN),
        pass_at={k: mean_of(np.array([pass_at_k(samples, int(c), k) for c in correct_Q])) for k in several},
        majority=mean_of(votes_Q) if several else None,
    )


def lines(answered: Iterable[Answered]) -> Iterable[dict[str, object]]:
    """Yield one row per response with its gradings, ordered by question and sample."""
    for each in answered:
        for number, sample in enumerate(each.samples):
            yield {"id": each.item.problem.id, "sample": number, **_line(each.item, sample)}


def _line(item: Item, sample: GradedSample) -> dict[str, object]:
    last = list(sample.gradings.values())[-1]
    return {
        "groups": {name: list(values) for name, values in item.groups.items()},
        "part": item.part,
        "answer": item.problem.answer,
        "response": sample.completion.text,
        "extracted": last.extracted,
        "verdicts": {stage: grading.verdict.name.lower() for stage, grading in sample.gradings.items()},
        "reason": last.reason,
        "finish_reason": sample.completion.finish_reason,
    }
