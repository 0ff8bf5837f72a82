"""Measure a policy's benchmark accuracy, by symbolic grading alone and with the judge, overall and per subject.

Shapes: Q question, N sample of a question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from mmprm.config import Config, PathText
from mmprm.errors import EngineStoppedError, MmprmError
from mmprm.evaluation.benchmarks import Item
from mmprm.evaluation.four_way import FourWay, four_way
from mmprm.evaluation.pass_at_k import majority_share, pass_at_k, sizes
from mmprm.grading.symbolic import GraderConfig
from mmprm.metrics import Interval, bootstrap
from mmprm.problems import Columns
from mmprm.prompts import PromptConfig
from mmprm.rendering import template_of_file
from mmprm.sampling.config import START_TIMEOUT_SECONDS, EngineConfig, SamplingConfig
from mmprm.sampling.seeds import derive_seed
from mmprm.selection.groups import answer_key
from mmprm.types import Completion, Grader, Grading, Problem, Sampler, SampleRequest, Verdict

IN_FLIGHT = 1024
"""Maximum number of responses sampled concurrently."""


class PolicyEvalConfig(Config):
    benchmark: Literal["problems", "mmk12", "mathvista", "mathverse", "mathvision", "olympiadbench", "we-math"] = (
        "problems"
    )
    """Name of the benchmark, which determines the columns to read. `problems` means the columns that all other commands
    read."""
    columns: Columns = Columns()
    """Names of the columns if benchmark=problems."""
    samples: int = Field(1, ge=1)
    """Number of responses per question. With more than one, pass@k and the majority vote are also reported, and
    sampling.temperature must be above 0."""
    output: PathText = "runs/eval"
    """Output folder for the metrics (policy-BENCHMARK.json) and the responses (responses-BENCHMARK.jsonl)."""
    split: str | None = None
    """Split to read from a hub data set or a folder; defaults to the split on which results are published."""
    subset: str | None = None
    """Configuration name of a hub data set, for example OE_MM_maths_en_COMP."""
    image_root: PathText | None = None
    """Folder that relative image paths refer to; defaults to the folder of the problem file."""
    limit: int | None = Field(None, ge=1)
    """Maximum number of rows to read; default: all."""
    engine: EngineConfig
    """Engine that runs the policy; the model "tiny" is the built-in toy policy."""
    sampling: SamplingConfig = SamplingConfig(temperature=0, max_tokens=4096)
    """Sampling parameters for the responses."""
    prompt: PromptConfig = PromptConfig(preset="think")
    """Prompt preset and template for the policy."""
    grader: GraderConfig = GraderConfig()
    """Grader configuration. Answers that symbolic comparison cannot decide go to grader.judge and are scored
    separately."""
    seed: int = 0
    """Random seed for sampling and the bootstrap."""
    workers: int | None = Field(None, ge=1)
    """Number of engines; defaults to one per tensor_parallel_size GPUs or, if there are no GPUs, one per CPU core."""
    start_timeout_seconds: float = Field(START_TIMEOUT_SECONDS, gt=0)
    """Maximum time in seconds to wait for machines with enough free resources for the engines, not including the time
    to load the model."""
    ray_address: str | None = None
    """Address (host:port) of a Ray cluster to join; defaults to RAY_ADDRESS or a local `ray start`. If there is none,
    Ray is started here and listens on the loopback interface only. local: always start Ray here."""

    @model_validator(mode="after")
    def _different_samples(self) -> PolicyEvalConfig:
        if self.samples > 1 and self.sampling.temperature == 0:
            raise ValueError(
                f"samples={self.samples} with sampling.temperature=0 would sample the same response {self.samples} "
                "times; set sampling.temperature, for example to 1.0"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _chat_template_of_a_file(cls, values: Any) -> Any:
        return template_of_file(values, "engine", "chat_template")


@dataclass(frozen=True, slots=True)
class GradedSample:
    """Holds a response and its grading, by symbolic comparison and by the judge.

    `judged` is the symbolic grading if its verdict is known, otherwise the judge's grading, or None if there is no
    judge.
    """

    completion: Completion
    symbolic: Grading
    judged: Grading | None


@dataclass(frozen=True, slots=True)
class Answered:
    """Holds a question with its responses in sampling order."""

    item: Item
    samples: tuple[GradedSample, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """Holds the metrics over a set of questions with 95 % intervals, and the number of responses by verdict.

    - accuracy = correct / all, which is pass@1;
    - of_known = correct / (correct + incorrect), or None if no verdict is known;
    - pass_at: pass@k by k;
    - majority: fraction of questions whose most frequent answer is correct.

    Except in of_known, an unknown verdict does not count as correct, so it lowers the metric.
    """

    accuracy: Interval
    of_known: Interval | None
    correct: int
    incorrect: int
    unknown: int
    pass_at: dict[int, Interval]
    majority: Interval | None


@dataclass(frozen=True, slots=True)
class PolicyScores:
    """Holds a policy's results on a benchmark.

    `scores` maps the grading (symbolic, judged) to scores by subject, where "all" covers all questions. `left_out`
    counts rows that are not part of the benchmark. `failed` maps the id of each question that could not be sampled to
    the reason. `cut` counts responses that reached the token limit.
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
    composite: dict[str, FourWay]


class ResponseStore(Protocol):
    """Protocol for storing responses as soon as they arrive, and for looking up earlier ones."""

    def get(self, problem: Problem) -> tuple[Completion, ...]: ...

    def add(self, problem: Problem, completions: Sequence[Completion]) -> None: ...


async def ask(
    items: Sequence[Item],
    sampler: Sampler | None,
    symbolic: Grader,
    judged: Grader | None,
    config: PolicyEvalConfig,
    known: ResponseStore,
) -> tuple[list[Answered], dict[str, str]]:
    """Sample and grade responses; return the answered questions and, for the others, a dict from id to failure reason.

    Only missing responses are sampled; `sampler` may be None if `known` has all of them. `judged` grades only responses
    that `symbolic` cannot decide. Raises EngineStoppedError if the engine stops.
    """
    free = asyncio.Semaphore(max(1, IN_FLIGHT // config.samples))

    async def graded(problem: Problem, completion: Completion) -> GradedSample:
        grading = second = await symbolic.grade(problem, completion.text)
        if judged is not None and grading.verdict is Verdict.UNKNOWN:
            second = await judged.grade(problem, completion.text)
        return GradedSample(completion, grading, second if judged is not None else None)

    async def one(item: Item) -> Answered | str:
        problem = item.problem
        async with free:
            try:
                await _sample_missing(problem, sampler, config, known)
            except EngineStoppedError:
                raise
            except MmprmError as error:
                return str(error)
        completions = known.get(problem)[: config.samples]
        if len(completions) < config.samples:
            return "a response was aborted"
        return Answered(item, tuple(await asyncio.gather(*(graded(problem, c) for c in completions))))

    results = await asyncio.gather(*map(one, items))
    pairs = zip(items, results, strict=True)
    failed = {item.problem.id: result for item, result in pairs if isinstance(result, str)}
    return [result for result in results if isinstance(result, Answered)], failed


async def _sample_missing(
    problem: Problem, sampler: Sampler | None, config: PolicyEvalConfig, known: ResponseStore
) -> None:
    there = len(known.get(problem))
    if there >= config.samples:
        return
    assert sampler is not None, "no sampler is needed only if every question has its responses"
    seed = derive_seed(config.seed, problem.id, "", there)
    known.add(problem, await sampler.sample(SampleRequest(problem, "", config.samples - there, seed)))


def scored(
    answered: Sequence[Answered], failed: dict[str, str], left_out: int, config: PolicyEvalConfig
) -> PolicyScores:
    """Compute the scores over all questions and per subject, by symbolic grading and with the judge."""
    kinds = {"symbolic": [[s.symbolic.verdict for s in each.samples] for each in answered]}
    if config.grader.judge is not None:
        kinds["judged"] = [[s.judged.verdict for s in each.samples if s.judged is not None] for each in answered]
    answers_QN = [[answer_key(s.symbolic.extracted, each.item.problem) for s in each.samples] for each in answered]
    subjects = sorted({each.item.subject for each in answered})
    families = [each.item.family for each in answered]
    indices = {"all": list(range(len(answered)))}
    for subject in filter(None, subjects):
        indices[subject] = [i for i, each in enumerate(answered) if each.item.subject == subject]

    def scores(verdicts_QN: Sequence[Sequence[Verdict]]) -> dict[str, Score]:
        return {name: score_of(inside, verdicts_QN) for name, inside in indices.items()}

    def score_of(inside: Sequence[int], verdicts_QN: Sequence[Sequence[Verdict]]) -> Score:
        verdicts = [verdicts_QN[i] for i in inside]
        answers = [answers_QN[i] for i in inside]
        return score(verdicts, answers, [families[i] for i in inside], config.seed)

    items = [each.item for each in answered]
    # We-Math defines its metrics for one response per question.
    first = {name: [verdicts_N[0] for verdicts_N in verdicts_QN] for name, verdicts_QN in kinds.items()}
    completions = [sample.completion for each in answered for sample in each.samples]
    return PolicyScores(
        benchmark=config.benchmark,
        model=config.engine.model,
        questions=len(answered),
        samples=config.samples,
        left_out=left_out,
        failed=failed,
        cut=sum(completion.finish_reason == "length" for completion in completions),
        tokens=float(np.mean([completion.token_count for completion in completions])),
        scores={name: scores(verdicts_QN) for name, verdicts_QN in kinds.items()},
        composite={name: four_way(items, first[name]) for name in kinds} if config.benchmark == "we-math" else {},
    )


def score(
    verdicts_QN: Sequence[Sequence[Verdict]],
    answers_QN: Sequence[Sequence[str | None]],
    families: Sequence[str],
    seed: int,
) -> Score:
    """Compute the metrics of questions that all have the same number of samples.

    The bootstrap resamples whole families, because versions of one problem are not independent.
    """
    correct_Q = np.array([sum(v is Verdict.CORRECT for v in verdicts_N) for verdicts_N in verdicts_QN], dtype=float)
    unknown_Q = np.array([sum(v is Verdict.UNKNOWN for v in verdicts_N) for verdicts_N in verdicts_QN], dtype=float)
    n = len(verdicts_QN[0])
    known_Q = n - unknown_Q

    def mean_of(value_Q: NDArray[np.float64]) -> Interval:
        return bootstrap(lambda indices: float(value_Q[indices].mean()), families, seed)

    def share_of_known(indices: NDArray[np.intp]) -> float:
        return float(correct_Q[inside][indices].sum() / known_Q[inside][indices].sum())

    inside = np.flatnonzero(known_Q)
    several = sizes(n)[1:]
    votes_Q = np.array([majority_share(a, v) for a, v in zip(answers_QN, verdicts_QN, strict=True)])
    correct, unknown = int(correct_Q.sum()), int(unknown_Q.sum())
    return Score(
        accuracy=mean_of(correct_Q / n),
        of_known=bootstrap(share_of_known, [families[i] for i in inside], seed) if len(inside) else None,
        correct=correct,
        incorrect=n * len(verdicts_QN) - correct - unknown,
        unknown=unknown,
        pass_at={k: mean_of(np.array([pass_at_k(n, int(c), k) for c in correct_Q])) for k in several},
        majority=mean_of(votes_Q) if several else None,
    )


def lines(answered: Iterable[Answered]) -> Iterable[dict[str, object]]:
    """Yield one row per response with its gradings, ordered by question and sample."""
    for each in answered:
        for number, sample in enumerate(each.samples):
            yield {"id": each.item.problem.id, "sample": number, **_line(each.item, sample)}


def _line(item: Item, sample: GradedSample) -> dict[str, object]:
    judged = sample.judged
    return {
        "subject": item.subject,
        "part": item.part,
        "answer": item.problem.answer,
        "response": sample.completion.text,
        "extracted": sample.symbolic.extracted,
        "symbolic": sample.symbolic.verdict.name.lower(),
        "judged": None if judged is None else judged.verdict.name.lower(),
        "reason": (sample.symbolic if judged is None else judged).reason,
        "finish_reason": sample.completion.finish_reason,
    }
