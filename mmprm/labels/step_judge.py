"""Judge steps with a vision-language model on OpenAI-compatible servers: P(no error so far) for each labeled step."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from mmprm.client import Client, ClientConfig, Failure
from mmprm.config import Config, PathText
from mmprm.errors import DataError, EngineStoppedError, SamplingError
from mmprm.grading.judge import yes_or_no
from mmprm.grading.reply_cache import ReplyCache, reply_key
from mmprm.labels.parquet import LabeledExample
from mmprm.problems import content_id
from mmprm.prompts import PromptConfig, messages
from mmprm.sampling.images import with_images
from mmprm.types import Problem, Steps

_BEFORE = "Here are a problem and the beginning of a student's solution.\n\nProblem:\n"
_AFTER = """

Beginning of the solution:
{steps}

Are all of these steps right: what they read from the problem and its pictures, their calculations and their \
conclusions? It does not matter that the solution may be unfinished. Reply with one word, Yes or No."""

_PROMPT_HASH = hashlib.sha256((_BEFORE + _AFTER).encode()).hexdigest()[:16]

MIN_MASS = 0.5
"""Minimum value of P(Yes) + P(No); below it, the reply counts as neither Yes nor No."""
TOP_LOGPROBS = 20
"""Number of log-probabilities to request; the maximum in OpenAI's API and vLLM's default limit."""
EXAMPLES_TOGETHER = 256
"""Number of paths to judge concurrently; the client limits the number of requests."""


class StepJudgeConfig(Config):
    model: str
    """Name of the judge model on its servers."""
    client: ClientConfig
    """Servers that run the judge."""
    read: Literal["logprobs", "text"] = "logprobs"
    """How to read a reply. logprobs: P(Yes) / (P(Yes) + P(No)) at the first token; text: 1 for Yes and 0 for No, for
    servers that return no log-probabilities and for judges that reason first."""
    max_tokens: int = Field(16, ge=1)
    """Maximum number of tokens per reply if read=text."""
    cache: PathText = "runs/step_judge.sqlite"
    """Database file that caches the judge's replies, so that an interrupted run can resume."""


class StepJudge:
    """Judges steps with a model on OpenAI-compatible servers. Use and close it within one event loop; supports `async
    with`.

    `failures` counts the steps that got no probability, by reason.
    """

    def __init__(self, config: StepJudgeConfig) -> None:
        self._config = config
        self._max_tokens = config.max_tokens if config.read == "text" else 1
        self._cache = ReplyCache(config.cache)
        self._client = Client(config.client)
        self._content_ids: dict[str, str] = {}
        self.failures: Counter[str] = Counter()

    async def judge(self, examples: Sequence[LabeledExample]) -> list[LabeledExample]:
        """Add the judge's probability to each labeled step of the examples, or None where the judge gave no
        probability.

        Raises EngineStoppedError if the servers are unavailable. Earlier replies come from the cache.
        """
        judged: list[LabeledExample] = []
        for start in range(0, len(examples), EXAMPLES_TOGETHER):
            chunk = examples[start : start + EXAMPLES_TOGETHER]
            judged += await asyncio.gather(*(self._judge(example) for example in chunk))
        return judged

    async def close(self) -> None:
        await self._client.close()
        self._cache.close()

    async def __aenter__(self) -> StepJudge:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _judge(self, example: LabeledExample) -> LabeledExample:
        path = example.path
        asked = [
            self._probability(example.problem, path.steps[:depth]) if counts is not None else _nothing()
            for depth, counts in enumerate(path.counts, start=1)
        ]
        return replace(example, judged=tuple(await asyncio.gather(*asked)), judged_by=self._config.model)

    async def _probability(self, problem: Problem, steps: Steps) -> float | None:
        if problem.id not in self._content_ids:
            self._content_ids[problem.id] = content_id(problem.question, "", problem.images)
        content = self._content_ids[problem.id]
        asked = (self._config.model, _PROMPT_HASH, self._config.read, str(self._max_tokens))
        key = reply_key(*asked, content, *steps)
        said = self._cache.get(key)
        if said is None:
            try:
                said = await self._ask(problem, steps)
            except EngineStoppedError:
                raise
            except (SamplingError, DataError) as error:
                cause = error.__cause__
                return self._failed(cause.kind if isinstance(cause, Failure) else type(error).__name__)
            self._cache.put(key, said)
        probability = _READERS[self._config.read](said)
        return self._failed("reply was neither Yes nor No") if probability is None else probability

    async def _ask(self, problem: Problem, steps: Steps) -> str:
        numbered = "\n".join(f"{number}. {step}" for number, step in enumerate(steps, start=1))
        prompt = PromptConfig(preset="plain", user=_BEFORE + "{question}" + _AFTER.replace("{steps}", numbered))
        body: dict[str, Any] = {
            "model": self._config.model,
            "messages": await with_images(messages(problem, prompt), problem.images),
            "temperature": 0,
            "max_tokens": self._max_tokens,
        }
        if self._config.read == "logprobs":
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        (choice,) = (await self._client.chat(body, affinity=problem.id)).choices
        if self._config.read == "text":
            return choice.text
        if not choice.first_token:
            raise SamplingError("no log-probabilities; set judge.read=text") from Failure(
                "no log-probabilities: set judge.read=text"
            )
        return json.dumps(choice.first_token)

    def _failed(self, reason: str) -> None:
        self.failures[reason] += 1


def yes_probability(first_token: Sequence[tuple[str, float]]) -> float | None:
    """Return P(Yes) / (P(Yes) + P(No)) over all spellings, or None if the sum is below MIN_MASS."""
    mass = {True: 0.0, False: 0.0}
    for token, logprob in first_token:
        if (word := yes_or_no(token)) is not None:
            mass[word] += math.exp(logprob)
    total = mass[True] + mass[False]
    return mass[True] / total if total >= MIN_MASS else None


def _read_text(reply: str) -> float | None:
    correct = yes_or_no(reply)
    return None if correct is None else float(correct)


def _read_logprobs(reply: str) -> float | None:
    try:
        return yes_probability(json.loads(reply))
    except (ValueError, TypeError, RecursionError):  # the cache is damaged
        return None


_READERS = {"logprobs": _read_logprobs, "text": _read_text}


async def _nothing() -> None:
    """Return None in place of the judge's reply, for a step without a label."""
