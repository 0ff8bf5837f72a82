"""How often a policy answers a benchmark rightly: by symbols alone and, apart, with the judge; by subject, too."""

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
from mmprm.evaluation.layouts import Item
from mmprm.grading.symbolic import GraderConfig
from mmprm.metrics import Interval, bootstrap
from mmprm.prompts import PromptConfig
from mmprm.rendering import template_of_file
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.sampling.seeds import derive_seed
from mmprm.types import Completion, Grader, Grading, Problem, Sampler, SampleRequest, Verdict

IN_FLIGHT = 1024
"""Questions that are asked at the same time."""


class PolicyEvalConfig(Config):
    layout: Literal["mmk12", "mathvista", "mathverse", "mathvision", "olympiadbench", "we-math"]
    """The benchmark, whose published columns are read."""
    output: PathText = "runs/eval"
    """Folder for the figures (policy-LAYOUT.json) and the responses (responses-LAYOUT.jsonl)."""
    split: str | None = None
    """Split of a hub data set or a folder; by default the one that is reported."""
    subset: str | None = None
    """Configuration name of a hub data set, for example OE_MM_maths_en_COMP."""
    images_root: str | None = None
    """Folder of relative picture paths; by default that of the file."""
    limit: int | None = Field(None, ge=1)
    """Read only so many rows from the start."""
    engine: EngineConfig
    """The policy's engine; the model "tiny" is the embedded policy."""
    sampling: SamplingConfig = SamplingConfig(temperature=0, max_tokens=4096)
    """How responses are drawn."""
    prompt: PromptConfig = PromptConfig(preset="think")
    """How the policy is asked."""
    grader: GraderConfig = GraderConfig()
    """How answers are judged; grader.judge decides what symbols cannot, in scores of its own."""
    seed: int = 0
    """Of the draws and the bootstrap."""
    workers: int | None = Field(None, ge=1)
    """Engines; by default one a GPU (group of tensor_parallel_size GPUs), without a GPU one a core."""
    ray_address: str | None = None
    """Address of a Ray cluster to join, host:port; by default that of RAY_ADDRESS or of `ray start` on this machine,
    else one is started here, which listens on the loopback interface alone. local: always start one."""

    @model_validator(mode="before")
    @classmethod
    def _chat_template_of_a_file(cls, values: Any) -> Any:
        return template_of_file(values, "engine", "chat_template")


@dataclass(frozen=True, slots=True)
class Answered:
    """`judged` is the symbolic grading where that is known, else the judge's; None without a judge."""

    item: Item
    completion: Completion
    symbolic: Grading
    judged: Grading | None


@dataclass(frozen=True, slots=True)
class Score:
    """Share of right answers among those with a known verdict, with its 95 % interval over problems; None without."""

    accuracy: Interval | None
    right: int
    wrong: int
    unknown: int


@dataclass(frozen=True, slots=True)
class FourWay:
    """We-Math's figures of composite problems, as shares of them, where every part has a known verdict.

    insufficient: a part and the whole are wrong; inadequate: all parts right, the whole wrong; rote: the whole right
    though a part is wrong (strict), or though all parts are (loose); mastery: the whole right otherwise.
    score = mastery + inadequate / 2.
    """

    problems: int
    unknown: int
    insufficient: float
    inadequate: float
    mastery: dict[str, float]
    rote: dict[str, float]
    score: dict[str, float]


@dataclass(frozen=True, slots=True)
class PolicyScores:
    """`scores`: by who judged (symbolic, judged) and subject, "all" among them. `left_out` rows are no part of the
    benchmark, `failed` questions could not be asked, `cut` responses reached the limit of tokens."""

    layout: str
    model: str
    questions: int
    left_out: int
    failed: dict[str, str]
    cut: int
    tokens: float
    scores: dict[str, dict[str, Score]]
    composite: dict[str, FourWay]


class Known(Protocol):
    """Responses that were drawn before; each new one is added as soon as it is there."""

    def get(self, problem: Problem) -> Completion | None: ...

    def add(self, problem: Problem, completion: Completion) -> None: ...


async def ask(
    items: Sequence[Item],
    sampler: Sampler | None,
    symbolic: Grader,
    judged: Grader | None,
    config: PolicyEvalConfig,
    known: Known,
) -> tuple[list[Answered], dict[str, str]]:
    """One response to each question, graded; and why, by id, a question has none. An engine that has stopped fails the
    whole. `judged` is only asked where `symbolic` does not know, `sampler` where there is no response yet; None will do
    where `known` has them all."""
    room = asyncio.Semaphore(IN_FLIGHT)

    async def one(item: Item) -> Answered | str:
        problem = item.problem
        async with room:
            completion = known.get(problem)
            if completion is None:
                assert sampler is not None, "there is a response to every question"
                try:
                    request = SampleRequest(problem, "", 1, derive_seed(config.seed, problem.id, "", 0))
                    (completion,) = await sampler.sample(request)
                except EngineStoppedError:
                    raise
                except MmprmError as error:
                    return str(error)
                known.add(problem, completion)
        text = completion.text
        grading = second = await symbolic.grade(problem, text)
        if judged is not None and grading.verdict is Verdict.UNKNOWN:
            second = await judged.grade(problem, text)
        return Answered(item, completion, grading, second if judged is not None else None)

    results = await asyncio.gather(*map(one, items))
    pairs = zip(items, results, strict=True)
    failed = {item.problem.id: result for item, result in pairs if isinstance(result, str)}
    return [result for result in results if isinstance(result, Answered)], failed


def scored(
    answered: Sequence[Answered], failed: dict[str, str], left_out: int, config: PolicyEvalConfig
) -> PolicyScores:
    kinds = {"symbolic": [each.symbolic.verdict for each in answered]}
    if config.grader.judge is not None:
        kinds["judged"] = [each.judged.verdict for each in answered if each.judged is not None]
    subjects = sorted({each.item.subject for each in answered})
    families = [each.item.family for each in answered]
    places = {"all": list(range(len(answered)))}
    places |= {s: [i for i, each in enumerate(answered) if each.item.subject == s] for s in subjects if s}

    def scores(verdicts: Sequence[Verdict]) -> dict[str, Score]:
        return {
            name: score([verdicts[i] for i in inside], [families[i] for i in inside], config.seed)
            for name, inside in places.items()
        }

    items = [each.item for each in answered]
    composite = {name: four_way(items, verdicts) for name, verdicts in kinds.items()}
    return PolicyScores(
        layout=config.layout,
        model=config.engine.model,
        questions=len(answered),
        left_out=left_out,
        failed=failed,
        cut=sum(each.completion.finish_reason == "length" for each in answered),
        tokens=float(np.mean([each.completion.token_count for each in answered])),
        scores={name: scores(verdicts) for name, verdicts in kinds.items()},
        composite=composite if config.layout == "we-math" else {},
    )


def score(verdicts: Sequence[Verdict], families: Sequence[str], seed: int) -> Score:
    """accuracy = right / (right + wrong); versions of one problem are drawn together."""
    pairs = zip(verdicts, families, strict=True)
    known = [(verdict is Verdict.CORRECT, family) for verdict, family in pairs if verdict is not Verdict.UNKNOWN]
    right_K = np.array([right for right, _ in known], dtype=float)

    def accuracy(drawn: NDArray[np.intp]) -> float:
        return float(right_K[drawn].mean())

    interval = bootstrap(accuracy, [family for _, family in known], seed) if known else None
    right = int(right_K.sum())
    return Score(interval, right, len(known) - right, len(verdicts) - len(known))


def four_way(items: Iterable[Item], verdicts: Sequence[Verdict]) -> FourWay:
    """Of problems with a part named "multi", the whole, and others (We-Math, section on four-dimensional metrics)."""
    families: dict[str, dict[str, Verdict]] = {}
    for item, verdict in zip(items, verdicts, strict=True):
        families.setdefault(item.family, {})[item.part] = verdict
    whole = {name: parts for name, parts in families.items() if "multi" in parts and len(parts) > 1}
    known = [parts for parts in whole.values() if Verdict.UNKNOWN not in parts.values()]

    def share(chosen: Iterable[bool]) -> float:
        return sum(chosen) / max(1, len(known))

    def rights(parts: dict[str, Verdict]) -> tuple[bool, list[bool]]:
        steps = [verdict is Verdict.CORRECT for part, verdict in parts.items() if part != "multi"]
        return parts["multi"] is Verdict.CORRECT, steps

    pairs = [rights(parts) for parts in known]
    inadequate = share(not right and all(steps) for right, steps in pairs)
    enough = {"strict": all, "loose": any}
    mastery = {name: share(right and test(steps) for right, steps in pairs) for name, test in enough.items()}
    return FourWay(
        problems=len(known),
        unknown=len(whole) - len(known),
        insufficient=share(not right and not all(steps) for right, steps in pairs),
        inadequate=inadequate,
        mastery=mastery,
        rote={name: share(right and not test(steps) for right, steps in pairs) for name, test in enough.items()},
        score={name: value + inadequate / 2 for name, value in mastery.items()},
    )


def lines(answered: Iterable[Answered]) -> Iterable[dict[str, object]]:
    """What is kept of each response."""
    for each in answered:
        problem, judged = each.item.problem, each.judged
        yield {
            "id": problem.id,
            "subject": each.item.subject,
            "part": each.item.part,
            "answer": problem.answer,
            "response": each.completion.text,
            "extracted": each.symbolic.extracted,
            "symbolic": each.symbolic.verdict.name.lower(),
            "judged": None if judged is None else judged.verdict.name.lower(),
            "reason": (each.symbolic if judged is None else judged).reason,
            "finish_reason": each.completion.finish_reason,
        }
