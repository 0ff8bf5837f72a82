"""Ask a language model for the final answer of a response in which the grader finds none.

Published evaluation scripts use a model for this. Here, the model can only copy: an answer that the response does not
contain is discarded.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from pydantic import Field

from mmprm.client import Client, ClientConfig, Failure
from mmprm.config import Config, PathText
from mmprm.data.choices import LETTERS, asked_question
from mmprm.errors import SamplingError
from mmprm.grading.extract import MAX_LENGTH, extract, without_thoughts
from mmprm.grading.reply_cache import ReplyCache, reply_key
from mmprm.types import Problem

_PROMPT = """\
Find the final answer in a response to a question. Do not solve the question, and do not correct the response.

Question:
{question}

Response:
{response}

Reply with the final answer only, copied exactly as the response writes it. If the response chooses an option, reply \
with its letter. If the response settles on no answer, reply None."""

_OWN_LETTER = re.compile(r"\A\s*\(?[A-Z]\s*[.:)]\s*")
_CHOSEN = re.compile(r"\(?([A-Z])(?:[.:)]|\Z)")
_ARTICLE = r"(?!\s+(?!(?:is|because|since|as|and|or|for)\b)[a-z])"
"""Follows a letter A that is no article, as in "A triangle"."""
_START = r"(?<!\w)(?<!\d[.,])(?<!(?<![\w)])[-−])"
"""Precedes a whole word or number; the 5 of 3.5 and the 3 of -3 are none."""
_END = r"(?!\w|[.,]\d)"

FAILED = "extractor failed"
"""Prefix of the reason that `find` returns if the request to the model fails; the verdict is then unknown."""

_PROMPT_HASH = hashlib.sha256(_PROMPT.encode()).hexdigest()[:16]


class ExtractorConfig(Config):
    """Configures the model that finds answers: its servers and cache."""

    model: str
    """Name of the model on its servers."""
    client: ClientConfig
    """Connection settings for the servers."""
    cache: PathText = "runs/extractor.sqlite"
    """File that caches the model's replies."""
    max_tokens: int = Field(64, ge=1)
    """Maximum number of tokens in a reply. A reasoning model needs more."""


class AnswerExtractor:
    """Finds answers at temperature 0, and caches the replies."""

    def __init__(self, config: ExtractorConfig) -> None:
        self._config = config
        self._cache = ReplyCache(config.cache)
        self._client = Client(config.client)

    async def find(self, problem: Problem, response: str) -> tuple[str | None, str]:
        """Return an (answer, reason) pair; the answer is None if the response states no answer or the request fails.

        If the request fails, the reason starts with "extractor failed".
        """
        shown = (without_thoughts(response).strip() or response)[-MAX_LENGTH:]
        question = asked_question(problem)
        key = reply_key(self._config.model, _PROMPT_HASH, str(self._config.max_tokens), question, shown)
        reply = self._cache.get(key)
        if reply is None:
            try:
                reply = await self._ask(question, shown)
            except SamplingError as error:
                kind = error.__cause__.kind if isinstance(error.__cause__, Failure) else type(error).__name__
                return None, f"{FAILED}: {kind}"
            self._cache.put(key, reply)
        answer = _answer(reply)
        if not answer:
            return None, "extractor: no answer"
        if not is_stated(answer, shown, problem.choices):
            return None, "extractor: its answer is not in the response"
        return answer, "extractor"

    async def close(self) -> None:
        """Close the client and the cache."""
        await self._client.close()
        self._cache.close()

    async def __aenter__(self) -> AnswerExtractor:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _ask(self, question: str, response: str) -> str:
        # Substitute in one pass, because a question or response may contain braces and even these names.
        fields = {"{question}": question, "{response}": response}
        prompt = re.sub(r"\{(?:question|response)\}", lambda match: fields[match[0]], _PROMPT)
        body = {
            "model": self._config.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": self._config.max_tokens,
        }
        return (await self._client.chat(body, affinity=question)).choices[0].text


def is_stated(answer: str, response: str, choices: Sequence[str]) -> bool:
    """Return whether the response contains the answer as whole words, ignoring case and spaces.

    A capital letter, also before a text as in "(B) 45", may stand for the option with this letter, which the response
    may then state by its text.
    """
    if (chosen := _CHOSEN.match(answer)) and chosen[1] in LETTERS[: len(choices)]:
        letter = chosen[1]
        text = _OWN_LETTER.sub("", choices[LETTERS.index(letter)])
        alone = rf"(?<!\w){letter}(?![\w'])" + (_ARTICLE if letter == "A" else "")
        return re.search(alone, response) is not None or _contains(response, text)
    return _contains(response, answer)


def _contains(response: str, words: str) -> bool:
    wanted, given = (" ".join(text.casefold().split()) for text in (words, response))
    return bool(wanted) and re.search(f"{_START}{re.escape(wanted)}{_END}", given) is not None


def _answer(reply: str) -> str:
    """Return the answer in a reply, without its wrapper or final period, or "" if the reply is empty or says "none"."""
    text = without_thoughts(reply).strip()
    answer = (extract(text) or text).strip().strip("`\"'*").removesuffix(".").strip()
    return "" if answer.casefold() in ("", "none", "n/a") else answer
