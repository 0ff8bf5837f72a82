"""Ask a language-model judge about answers that symbolic comparison cannot decide; failures yield UNKNOWN."""

from __future__ import annotations

import asyncio
import hashlib
import re

from pydantic import Field

from mmprm.client import Client, ClientConfig, Failure
from mmprm.config import Config, PathText
from mmprm.errors import SamplingError
from mmprm.grading.reply_cache import ReplyCache, reply_key
from mmprm.types import Grader, Grading, Problem, Verdict

_PROMPT = """\
Compare a student's final answer with the reference answer to a question. Do not solve the question: the reference \
answer is right. The two agree when they mean the same, however they are written.

Question:
{question}

Reference answer:
{gold}

Student's answer:
{answer}

Do they agree? Reply with one word, Yes or No."""

PROMPT_HASH = hashlib.sha256(_PROMPT.encode()).hexdigest()[:16]
"""Hash of the judge's prompt; calibrations and cached replies made with another prompt are not used."""

TALKED = "judge talked instead of answering"


class AnswerJudgeConfig(Config):
    """Configures the judge: its model, servers, cache and calibration."""

    model: str
    """Name of the judge model on its servers."""
    client: ClientConfig
    """Connection settings for the judge's servers."""
    cache: PathText = "runs/judge.sqlite"
    """File that caches the judge's replies."""
    calibration: PathText = "runs/judge.json"
    """Calibration file that mmprm grade --calibrate writes for this judge. The judge cannot be used without it."""
    min_precision: float = Field(0.9, ge=0, lt=1)
    """Minimum fraction of accepted answers that are correct. The calibration's 95% interval must be above it."""
    min_agreement: float = Field(0.9, ge=0, lt=1)
    """Minimum fraction of decided answers with a correct verdict. The calibration's 95% interval must be above it."""
    max_tokens: int = Field(16, ge=1)
    """Maximum number of tokens in a reply. A reasoning judge needs more tokens, and a server that strips its reasoning
    from the reply.
    """


class AnswerJudge:
    """Asks the judge about each distinct (question, gold, answer) once, at temperature 0, and caches the reply."""

    def __init__(self, config: AnswerJudgeConfig) -> None:
        self._config = config
        self._cache = ReplyCache(config.cache)
        self._client = Client(config.client)
        self._in_flight: dict[bytes, asyncio.Task[tuple[Verdict, str]]] = {}

    async def decide(self, problem: Problem, answer: str) -> tuple[Verdict, str]:
        """Return a (verdict, reason) pair; if the judge or its server fails, the verdict is UNKNOWN."""
        question = "\n".join((problem.question, *problem.choices))
        asked = (self._config.model, PROMPT_HASH, str(self._config.max_tokens))
        key = reply_key(*asked, question, problem.answer, answer)
        cached = self._cache.get(key)
        if cached is not None:
            return _verdict(cached)
        if key not in self._in_flight:
            task = asyncio.create_task(self._ask(key, question, problem.answer, answer))
            self._in_flight[key] = task
            task.add_done_callback(lambda _: self._in_flight.pop(key))
        # A cancelled caller must not cancel the request for the others that wait for it.
        return await asyncio.shield(self._in_flight[key])

    async def close(self) -> None:
        """Cancel requests in flight and close the client and the cache."""
        for task in self._in_flight.values():
            task.cancel()
        await asyncio.gather(*self._in_flight.values(), return_exceptions=True)
        await self._client.close()
        self._cache.close()

    async def __aenter__(self) -> AnswerJudge:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _ask(self, key: bytes, question: str, gold: str, answer: str) -> tuple[Verdict, str]:
        # Substitute in one pass, because a question or answer may contain braces and even these names.
        fields = {"{question}": question, "{gold}": gold, "{answer}": answer}
        prompt = re.sub(r"\{(?:question|gold|answer)\}", lambda match: fields[match[0]], _PROMPT)
        body = {
            "model": self._config.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": self._config.max_tokens,
        }
        try:
            reply = await self._client.chat(body, affinity=question)
        except SamplingError as error:
            kind = error.__cause__.kind if isinstance(error.__cause__, Failure) else type(error).__name__
            return Verdict.UNKNOWN, f"judge failed: {kind}"
        text = reply.choices[0].text
        self._cache.put(key, text)
        return _verdict(text)


class JudgedGrader:
    """Grades with the symbolic grader, and asks the judge only if the verdict is UNKNOWN."""

    def __init__(self, symbolic: Grader, judge: AnswerJudge) -> None:
        self._symbolic = symbolic
        self._judge = judge

    async def grade(self, problem: Problem, response: str) -> Grading:
        """Grade a response; see types.Grader."""
        grading = await self._symbolic.grade(problem, response)
        if grading.verdict is not Verdict.UNKNOWN or grading.extracted is None:
            return grading
        verdict, reason = await self._judge.decide(problem, grading.extracted)
        return Grading(verdict, grading.extracted, reason)


def yes_or_no(reply: str) -> bool | None:
    """Parse a Yes or No reply, ignoring case, periods, quotes and Markdown, or return None for any other reply."""
    return {"yes": True, "no": False}.get(reply.strip().strip("*_`\"'.").lower())


def _verdict(reply: str) -> tuple[Verdict, str]:
    agrees = yes_or_no(reply)
    if agrees is None:
        return Verdict.UNKNOWN, TALKED
    return (Verdict.CORRECT, "judge: same answer") if agrees else (Verdict.INCORRECT, "judge: another answer")
