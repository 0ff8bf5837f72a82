"""Ask a model on its servers, and cache every reply by the content of its request."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmprm.bridge.config import RoleConfig
from mmprm.client import Client
from mmprm.data.images import image_digest
from mmprm.errors import SamplingError
from mmprm.grading.reply_cache import ReplyCache, reply_key
from mmprm.sampling.images import with_images
from mmprm.types import ImageRef

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
    used."""

    def __init__(self, config: RoleConfig, cache: ReplyCache) -> None:
        self._config, self._cache = config, cache
        self._client = Client(config.client)
        self.asked = self.cached = 0

    async def ask(self, messages: Sequence[dict[str, Any]], images: Sequence[ImageRef], seed: int) -> Said:
        """Return the reply to the messages, from the cache if the same request was answered before.

        Raises SamplingError if the request fails and DataError if an image cannot be read; neither is cached.
        """
        config = self._config
        settings = (config.model, str(config.temperature), str(config.max_tokens), str(seed))
        key = reply_key(*settings, json.dumps(messages), *(image_digest(image) for image in images))
        stored = self._cache.get(key)
        if stored is not None:
            self.cached += 1
            return Said(**json.loads(stored))
        body = {
            "model": config.model,
            "messages": await with_images(messages, images),
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
            "seed": seed,
        }
        self.asked += 1
        (choice,) = (await self._client.chat(body, affinity=key.hex())).choices
        if choice.finish_reason not in _FINISHED:  # such as DeepSeek's insufficient_system_resource
            raise SamplingError(f"{config.model}: the reply ended with {choice.finish_reason!r}; run the command again")
        said = split_thoughts(choice.text, choice.reasoning, cut=choice.finish_reason == "length")
        self._cache.put(key, json.dumps(asdict(said)))
        return said

    async def close(self) -> None:
        """Close the client."""
        await self._client.close()

    async def __aenter__(self) -> ModelRole:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def split_thoughts(text: str, reasoning: str = "", cut: bool = False) -> Said:
    """Split a reply into thoughts and text; the thoughts are what the server returned separately, or the text before
    `</think>`.

    Some chat templates end the prompt with `<think>`, so the text may lack it.
    """
    text, reasoning = (part.encode("utf-8", "replace").decode() for part in (text, reasoning))  # lone surrogates
    if reasoning.strip():
        return Said(text.strip(), reasoning.strip(), cut)
    thoughts, closed, rest = text.partition("</think>")
    if not closed:
        return Said(text.strip(), "", cut)
    return Said(rest.strip(), re.sub(r"\A\s*<think>", "", thoughts).strip(), cut)
