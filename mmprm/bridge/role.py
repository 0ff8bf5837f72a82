"""Ask a model, and cache every reply by the content of its request."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import asdict, dataclass

from mmprm.bridge.config import RoleConfig
from mmprm.data.images import image_digest
from mmprm.errors import EngineStoppedError, SamplingError
from mmprm.grading.reply_cache import ReplyCache, reply_key
from mmprm.types import Problem, Sampler, SampleRequest
from mmprm.weights import fingerprint

_FINISHED = ("stop", "length")
"""Finish reasons of usable replies; replies with any other reason were interrupted."""


@dataclass(frozen=True, slots=True)
class Said:
    """Holds a reply: its text, its thoughts (or "" if there are none), and whether the token limit cut it off."""

    text: str
    thoughts: str = ""
    cut: bool = False


class ModelRole:
    """Sends requests to one model, and caches the replies. Each reply is stored as soon as it arrives, before it is
    used.

    `open_model` starts the model's engines, or connects to its servers, when the first reply is missing in the cache.
    """

    def __init__(
        self, config: RoleConfig, cache: ReplyCache, open_model: Callable[[], AbstractAsyncContextManager[Sampler]]
    ) -> None:
        self._identity, self._cache, self._open_model = identity_of(config), cache, open_model
        self._model, self._sampler = config.engine.model, None
        self._opening, self._resources = asyncio.Lock(), AsyncExitStack()
        self.asked = self.cached = 0

    async def ask(self, request: Problem, seed: int) -> Said:
        """Return the reply to the request, from the cache if the same request was answered before.

        Raises EngineStoppedError if the engines do not start or the servers are unavailable, SamplingError if the
        request fails, and DataError if an image cannot be read; failures are not cached.
        """
        key = reply_key(self._identity, str(seed), request.question, *map(image_digest, request.images))
        stored = self._cache.get(key)
        if stored is not None:
            self.cached += 1
            return Said(**json.loads(stored))
        sampler = await self._opened()
        self.asked += 1
        (completion,) = await sampler.sample(SampleRequest(request, "", 1, seed))
        if completion.finish_reason not in _FINISHED:  # such as DeepSeek's insufficient_system_resource
            raise SamplingError(f"{self._model}: the reply was interrupted; run the command again")
        said = split_thoughts(completion.text, cut=completion.finish_reason == "length")
        self._cache.put(key, json.dumps(asdict(said)))
        return said

    async def _opened(self) -> Sampler:
        async with self._opening:
            if self._sampler is None:
                try:
                    self._sampler = await self._resources.enter_async_context(self._open_model())
                except SamplingError as error:  # which no other request can avoid
                    raise EngineStoppedError(str(error)) from error
            return self._sampler

    async def close(self) -> None:
        """Stop the engines, or close the connections to the servers."""
        self._sampler = None
        await self._resources.aclose()

    async def __aenter__(self) -> ModelRole:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def identity_of(config: RoleConfig) -> str:
    """Return a text that identifies the model and the settings that determine its replies."""
    settings = {"sampling": True, "engine": {"model", "max_pixels", "min_pixels"}}
    weights = "" if config.engine.servers is not None else fingerprint(config.engine.model)
    prompt = config.prompt.model_dump(mode="json")
    return json.dumps([config.model_dump(mode="json", include=settings), prompt, weights], sort_keys=True)


def split_thoughts(text: str, cut: bool = False) -> Said:
    """Split a reply into thoughts and text; the thoughts are the text before `</think>`.

    Some chat templates end the prompt with `<think>`, so the text may lack it.
    """
    text = text.encode("utf-8", "replace").decode()  # lone surrogates
    thoughts, closed, rest = text.partition("</think>")
    if not closed:
        return Said(text.strip(), "", cut)
    return Said(rest.strip(), re.sub(r"\A\s*<think>", "", thoughts).strip(), cut)
