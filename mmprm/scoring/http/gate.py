"""Check the API key, host, size and timing of every request and the service's readiness, and record metrics."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmprm.scoring.http.connection_table import address_of
from mmprm.scoring.http.limits import MIB, ServiceLimits
from mmprm.scoring.http.refused import Refused

if TYPE_CHECKING:
    from mmprm.scoring.http.service import Service

T = TypeVar("T")

_OPEN = {"/health", "/docs", "/openapi.json"}
"""Paths that are accessible without an API key: health checks and documentation."""
SCORING = {"/v1/score", "/v1/score/batch"}
LOCAL_NAMES = {"localhost", "127.0.0.1", "::1"}


class Gate:
    """Checks requests as ASGI middleware, and counts those in flight in the service's `traffic`."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        known = scope["path"] in _OPEN | SCORING | {"/v1/model", "/metrics"}
        path = scope["path"] if known else "other"
        begun, status, started = time.perf_counter(), 500, False

        async def counted(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
            await send(message)

        metrics = self._service.metrics
        try:
            self._check(scope, Headers(scope=scope))
            if scope["method"] == "POST" and path in SCORING:
                await self._with_body(scope, receive, counted)
            else:
                # The server omits the body of a response to HEAD.
                as_get = scope | {"method": "GET"} if scope["method"] == "HEAD" else scope
                await self._app(as_get, receive, counted)
        except Refused as refused:
            await self._service.answer(refused)(scope, receive, counted)
        except asyncio.CancelledError:
            refusal = self._service.refusal()
            if refusal is None or started:
                raise
            # Shutdown exceeded its time limit: unanswered requests are rejected like new ones.
            await self._service.answer(refusal)(scope, receive, counted)
        finally:
            metrics.requests.labels(path, str(status)).inc()
            metrics.seconds.labels(path).observe(time.perf_counter() - begun)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Check a request's headers and the service's state before the body is read; raise Refused if a check fails."""
        path, service = scope["path"], self._service
        if service.local_only and _hostname(headers.get("host", "")) not in LOCAL_NAMES:
            # A web page in a local browser could resolve its own name to 127.0.0.1 and read the answers
            # (DNS rebinding).
            raise Refused(
                403,
                "unauthorized",
                "without an API key, only requests to localhost are accepted; send the request to localhost",
            )
        if path not in _OPEN and service.key is not None and not _has_key(headers, service.key):
            raise Refused(401, "unauthorized", "send the API key as Authorization: Bearer KEY")
        if scope["method"] != "POST" or path not in SCORING:
            return
        if (refusal := service.refusal()) is not None:
            raise refusal
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "invalid_request", "Content-Type must be application/json; set the header")
        length = headers.get("content-length", "")
        size = int(length) if length.isdecimal() and len(length) < 19 else 0
        if size > service.limits.body_mib * MIB:
            raise _too_large(service.limits)
        service.traffic.check_bytes(caller_of(scope), size)

    async def _with_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the complete request body before passing the request on to the application.

        Only received bytes count as traffic, so a client that announces a large body but sends little cannot block
        others.
        """
        traffic, address = self._service.traffic, caller_of(scope)
        body = bytearray()
        try:
            async for part in _parts(receive, self._service.limits):
                traffic.check_bytes(address, len(part))
                traffic.bytes[address] += len(part)
                body += part
            with traffic.answering():
                await self._app(scope, _replay(body, receive), send)
        finally:
            traffic.release(traffic.bytes, address, len(body))


async def _parts(receive: Receive, limits: ServiceLimits) -> AsyncIterator[bytes]:
    """Yield the body of a request in chunks; raise Refused if it is too large or arrives too slowly."""
    got, more = 0, True
    latest = asyncio.get_running_loop().time() + limits.body_seconds
    while more:
        try:
            async with asyncio.timeout_at(latest):
                message = await receive()
        except TimeoutError as error:
            text = f"the body did not arrive within {limits.body_seconds:g} seconds; send less at once, or faster"
            raise Refused(408, "too_slow", text) from error
        if message["type"] == "http.disconnect":
            raise hung_up()
        part = message.get("body", b"")
        got, more = got + len(part), message.get("more_body", False)
        if got > limits.body_mib * MIB:
            raise _too_large(limits)
        yield part


def _replay(body: bytearray, receive: Receive) -> Receive:
    """Return an ASGI receive function that yields the body as one message, then any later messages."""
    messages: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed


def hung_up() -> Refused:
    return Refused(499, "gone", "the caller has disconnected")


def caller_of(scope: Scope) -> str:
    """Return the address to which a request's client is attributed."""
    return address_of((scope.get("client") or ("",))[0])


def _has_key(headers: Headers, key: str) -> bool:
    scheme, _, sent = headers.get("authorization", "").partition(" ")
    return hmac.compare_digest(sent.encode(), key.encode()) and scheme.lower() == "bearer"


def _too_large(limits: ServiceLimits) -> Refused:
    return Refused(413, "too_large", f"the body is larger than {limits.body_mib} MiB; send fewer solutions at once")


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Await `work`, cancelling it if the client disconnects."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise hung_up()
        return working.result()
    finally:
        working.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
