"""Send requests to OpenAI-compatible servers and `mmprm serve`, with bounded concurrency and retries."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import Field, field_validator

from mmprm.config import Config
from mmprm.errors import ConfigError, EngineStoppedError, SamplingError
from mmprm.http_response import Failure, HttpResponse, read_response
from mmprm.terminal import plain_text

CONNECT_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 3.0
"""Time in seconds after which the client closes an idle connection. vLLM's server closes it after 5 s. Otherwise, the
server could close the connection while a request is being sent."""
LONGEST_BACKOFF = 60.0
_DETAIL_LENGTH = 300
_QUOTED = 10_000
"""Maximum number of characters of a server's error message to process."""

T = TypeVar("T")
Body = dict[str, Any] | None

_BUSY = {408, 429, 502, 503, 504}
"""HTTP status codes of a busy server or proxy. The request itself may be valid."""
_REFUSED = {400, 413, 422}
"""HTTP status codes of a server that rejected this request. Other requests may be valid."""
_WAYS_OUT = {
    401: "set api_key_env to the name of the environment variable that holds the key",
    403: "the key has no access to this model; set api_key_env to the variable of another key",
    404: "check the model's name and the path of the URL, which often ends in /v1",
}


class ClientConfig(Config):
    urls: tuple[str, ...] = Field(min_length=1)
    """Base URLs of the servers, such as [http://localhost:8000/v1]. All requests for one problem go to the same URL, to
    reuse its prefix cache, and to the next URL if that one fails."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the API key. The key itself is never stored."""
    concurrency: int = Field(256, ge=1)
    """Maximum number of concurrent requests across all URLs."""
    timeout_seconds: float = Field(600.0, gt=0)
    """Maximum number of seconds to wait for one response."""
    max_answer_mib: int = Field(256, ge=1)
    """Maximum size of a response in MiB. A larger one counts as a failed attempt."""
    attempts: int = Field(8, ge=1)
    """Maximum number of attempts per URL before a request fails."""
    backoff_seconds: float = Field(1.0, gt=0)
    """Delay in seconds after the first failed attempt. It doubles with each failure up to one minute. The server's
    Retry-After is added to it."""

    @field_validator("urls")
    @classmethod
    def _are_http(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(
                    "each URL must begin with http:// or https://; write, for example, http://localhost:8000/v1"
                )
            if parts.username or parts.password or parts.query:
                raise ValueError(
                    "must not contain a user, password or query; put the key into a variable named by api_key_env"
                )
        if len(set(urls)) != len(urls):
            raise ValueError("holds the same URL twice; remove the duplicate")
        return tuple(url.rstrip("/") for url in urls)


@dataclass(frozen=True, slots=True)
class Choice:
    """Holds one completion in a server's response. `token_count` is None if the server does not return token ids.

    `first_token` holds the most likely first tokens and their log-probabilities if they were requested. `reasoning`
    holds the chain of thought that a server with a reasoning parser returns apart from the text.
    """

    text: str
    finish_reason: str
    token_count: int | None = None
    first_token: tuple[tuple[str, float], ...] = ()
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """Holds a server's response to a chat completion request.

    `completion_tokens` is the total over all choices; `prompt_text` is the rendered prompt, if it was requested.
    """

    choices: tuple[Choice, ...]
    completion_tokens: int | None = None
    prompt_text: str | None = None


class Client:
    """Sends requests to OpenAI-compatible servers. Use and close it within one event loop.

    Any number of requests may be `waiting`; at most `concurrency` of them are `running`.
    """

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._key = _api_key(config)
        authorization = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._http = httpx.AsyncClient(
            # No compression: a few bytes of a compressed response can expand to gigabytes.
            headers={"Content-Type": "application/json", "Accept-Encoding": "identity", **authorization},
            timeout=httpx.Timeout(config.timeout_seconds, connect=CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(
                max_connections=config.concurrency,
                max_keepalive_connections=config.concurrency,
                keepalive_expiry=KEEP_ALIVE_SECONDS,
            ),
        )
        self._slots = asyncio.Semaphore(config.concurrency)
        self.running = self.waiting = 0
        self._resting: dict[str, float] = {}
        self._last_answer = float("-inf")

    async def chat(self, body: dict[str, Any], affinity: str) -> Reply:
        """Send a request to /chat/completions; see `ask`. The probe request asks for a single token."""
        somebody = {"model": body["model"], "messages": [{"role": "user", "content": "1"}], "max_tokens": 1}
        return await self.ask("/chat/completions", body, affinity, _reply, somebody)

    async def ask(self, path: str, body: Body, affinity: str, read: Callable[[Any, Body], T], somebody: Body) -> T:
        """Send the body in a POST request, or a GET request if the body is None, and return the parsed response.

        `read` receives the response's JSON and the body, and raises Failure if the response is invalid. Requests with
        the same `affinity` are sent to the same URL as long as it responds.

        Raises SamplingError if only this request fails: the server rejected it, or it failed while other requests
        succeeded. If there is no other request to compare with, the probe request `somebody` is sent. Raises
        EngineStoppedError if no URL responds at all; the request can then be retried later.
        """
        urls = sorted(self._config.urls, key=lambda url: hashlib.sha256(f"{affinity} {url}".encode()).digest())
        async with self._slot():  # held during backoff too, to reduce the load on a struggling server
            began = time.monotonic()
            for attempt in range(self._config.attempts):
                for url in self._awake(urls):
                    try:
                        reply = await self._ask(url, path, body, read)
                    except Failure as error:
                        failure, failed_url = error, url
                        if error.busy:
                            self._resting[url] = time.monotonic() + self._pause(attempt, error)
                    else:
                        self._resting.pop(url, None)
                        self._last_answer = time.monotonic()
                        return reply
                if attempt + 1 < self._config.attempts:
                    await asyncio.sleep(self._pause(attempt, failure))
            alone = not failure.busy and (
                self._last_answer > began or await self._answers(failed_url, path, somebody, read)
            )
        raise self._given_up(failed_url, failure, alone) from failure

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        self.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._slots.release()

    def _awake(self, urls: Sequence[str]) -> list[str]:
        """Return the URLs that are not backing off or, if all of them are, the one that will be ready first."""
        now = time.monotonic()
        awake = [url for url in urls if self._resting.get(url, now) <= now]
        return awake or [min(urls, key=lambda url: self._resting[url])]

    def _pause(self, attempt: int, failure: Failure) -> float:
        backoff = min(self._config.backoff_seconds * 2**attempt, LONGEST_BACKOFF)
        return failure.retry_after + backoff * random.uniform(0.5, 1.0)

    async def _ask(self, url: str, path: str, body: Body, read: Callable[[Any, Body], T]) -> T:
        """Make one attempt to send a request. A Failure can be retried; SamplingError and EngineStoppedError cannot."""
        seconds = self._config.timeout_seconds
        try:
            content = None if body is None else json.dumps(body).encode()
            request = self._http.build_request("GET" if content is None else "POST", url + path, content=content)
            # httpx limits the time between two chunks, but not the total time.
            answer = await asyncio.wait_for(read_response(self._http, request, self._config.max_answer_mib), seconds)
        except httpx.ConnectTimeout as error:
            raise Failure("no connection", f"within {CONNECT_SECONDS:g} s", busy=True) from error
        except (TimeoutError, httpx.TimeoutException) as error:
            raise Failure(f"no answer within {seconds:g} s") from error
        except httpx.ConnectError as error:
            raise Failure("no connection", str(error), busy=True) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Failure("connection dropped", self.quoted(f"{type(error).__name__}: {error}")) from error
        if answer.status != 200:
            raise self._not_ok(url, answer)
        try:
            return read(answer.json(), body)
        except Failure as error:
            # The cause is dropped because it quotes the full response.
            raise Failure(error.kind, self.quoted(error.detail)) from None
        except (ValueError, RecursionError) as error:
            raise Failure("answer is not JSON", self.quoted(answer.text)) from error

    async def _answers(self, url: str, path: str, somebody: Body, read: Callable[[Any, Body], Any]) -> bool:
        """Return whether the server answers the probe request, which shows that its engine is alive."""
        try:
            await self._ask(url, path, somebody, read)
        except (Failure, SamplingError):
            return False
        self._last_answer = time.monotonic()
        return True

    def _not_ok(self, url: str, answer: HttpResponse) -> Exception:
        status, detail = answer.status, self.quoted(answer.message)
        if status in _BUSY or status >= 500:
            return Failure(f"status {status}", detail, busy=status in _BUSY, retry_after=answer.retry_after)
        text = f"{url}: status {status}: {detail}"
        if status in _REFUSED:
            error: SamplingError = SamplingError(f"{text}; correct what the message names, or check the server's log")
        else:
            error = EngineStoppedError(f"{text}; {_WAYS_OUT.get(status, 'check the URL')}")
        error.__cause__ = Failure(f"status {status}", detail)
        return error

    def _given_up(self, url: str, failure: Failure, alone: bool) -> SamplingError:
        text = f"{url}: {failure} ({self._config.attempts} attempts at each URL)"
        if alone:
            return SamplingError(f"{text}, while other requests were answered; see the server's log")
        return EngineStoppedError(f"{text}; check that the server runs and is not overloaded, or set another in urls")

    def quoted(self, text: str) -> str:
        """Return the start of a server's message, with the API key and terminal control characters removed."""
        text = plain_text(" ".join(text[:_QUOTED].split()))
        text = text.replace(self._key, "…") if self._key else text
        return text if len(text) <= _DETAIL_LENGTH else text[:_DETAIL_LENGTH] + "…"


def _api_key(config: ClientConfig) -> str | None:
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise ConfigError(f"api_key_env={config.api_key_env}: this environment variable is not set; export it")
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"api_key_env={config.api_key_env}: the key in it must be printable ASCII; export it again")
    return key


def _reply(values: Any, body: Body) -> Reply:
    """Parse the required fields of a chat completion; raise Failure if one is missing."""
    n = (body or {}).get("n", 1)
    try:
        choices = sorted(values["choices"], key=lambda choice: choice.get("index") or 0)
        parsed = tuple(_choice(choice) for choice in choices)
        tokens = (values.get("usage") or {}).get("completion_tokens")
        if tokens is not None and not isinstance(tokens, int):
            raise TypeError("usage.completion_tokens must be a number")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise Failure("answer is not a chat completion", reason) from error
    if len(parsed) != n:
        raise Failure("answer has an incorrect number of choices", f"asked for {n}, got {len(parsed)}")
    return Reply(parsed, tokens, values.get("prompt_text"))


def _choice(choice: dict[str, Any]) -> Choice:
    message = choice["message"]
    # vLLM names the chain of thought `reasoning`, DeepSeek and earlier versions of vLLM `reasoning_content`.
    reasoning = message.get("reasoning") or message.get("reasoning_content")
    # A reply that was cut off within its thoughts has no content.
    text = message["content"] if reasoning is None else message.get("content")
    for name, value in (("content", text), ("reasoning", reasoning)):
        if value is not None and not isinstance(value, str):
            raise TypeError(f"message.{name} must be text, got {type(value).__name__}")
    token_ids = choice.get("token_ids")
    tops = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs") or []
    return Choice(
        text=text or "",
        finish_reason=str(choice.get("finish_reason")),
        token_count=None if token_ids is None else len(token_ids),
        first_token=tuple((str(top["token"]), float(top["logprob"])) for top in tops),
        reasoning=reasoning or "",
    )
