"""What every request passes before any route: key, host, state, size; and the figures of GET /metrics."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmprm.scoring.wire import MIB, Limits, Refused

if TYPE_CHECKING:
    from mmprm.scoring.service import Service

OPEN = {"/health", "/docs", "/openapi.json"}
"""Paths that need no key: what a load balancer and a reader need."""
SCORING = {"/v1/score", "/v1/score/batch", "/v1/model"}
LOCAL_NAMES = {"localhost", "127.0.0.1", "::1"}


@dataclass
class Traffic:
    """Requests for scoring that have passed and are not answered yet, and the bytes of their bodies."""

    requests: int = 0
    bytes: int = 0

    @contextmanager
    def passing(self, counts: bool, size: int) -> Iterator[None]:
        self.requests += counts
        self.bytes += size
        try:
            yield
        finally:
            self.requests -= counts
            self.bytes -= size


class Metrics:
    """One registry a service, in the text format of Prometheus."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        one = {"registry": self._registry}
        self.requests = Counter("mmprm_requests", "Answered requests", ["path", "status"], **one)
        self.errors = Counter("mmprm_errors", "Refused requests and solutions", ["type"], **one)
        self.seconds = Histogram("mmprm_request_seconds", "Latency of requests", ["path"], **one)
        self.queue = Gauge("mmprm_queue_solutions", "Solutions that wait for the model", **one)
        self.in_flight = Gauge("mmprm_in_flight_requests", "Requests for scoring that are not answered yet", **one)
        self.solutions = Counter("mmprm_solutions_scored", "Solutions that got scores", **one)
        self.steps = Counter("mmprm_steps_scored", "Steps that got a score", **one)
        sizes = [2**power for power in range(11)]
        self.batches = Histogram("mmprm_batch_solutions", "Solutions scored together", buckets=sizes, **one)
        self.ready = Gauge("mmprm_ready", "1 while requests are taken", **one)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class Gate:
    """ASGI middleware. Counts what has passed it and is not answered yet in the service's `traffic`."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        known = scope["path"] in OPEN | SCORING | {"/metrics"}
        path = scope["path"] if known else "other"
        begun, status = time.perf_counter(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        metrics = self._service.metrics
        try:
            size = self._admitted(scope, Headers(scope=scope))
            with self._service.traffic.passing(path in SCORING, size):
                await self._app(scope, self._limited(receive), counted)
        except Refused as refused:
            await self._service.answer(refused)(scope, receive, counted)
        finally:
            metrics.requests.labels(path, str(status)).inc()
            metrics.seconds.labels(path).observe(time.perf_counter() - begun)

    def _admitted(self, scope: Scope, headers: Headers) -> int:
        """Bytes of the body; without a Content-Length as many as it may have. Raises Refused."""
        path, service = scope["path"], self._service
        if service.local_only and _hostname(headers.get("host", "")) not in LOCAL_NAMES:
            # A page in this machine's browser could make its own name mean 127.0.0.1 and read the answers.
            raise Refused(403, "unauthorized", "without an API key only requests to localhost are taken")
        if path not in OPEN and service.key is not None and not _has_key(headers, service.key):
            raise Refused(401, "unauthorized", "send the API key as Authorization: Bearer KEY")
        if scope["method"] != "POST" or path not in SCORING:
            return 0
        if (refusal := service.refusal()) is not None:
            raise refusal
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "invalid_request", "Content-Type must be application/json")
        most = service.limits.body_mib * MIB
        length = headers.get("content-length", "")
        size = int(length) if length.isdecimal() and len(length) < 19 else most
        if size > most:
            raise _too_large(service.limits)
        if service.traffic.bytes + size > service.limits.in_flight_mib * MIB:
            text = f"requests of {service.limits.in_flight_mib} MiB are not answered yet; try again later"
            raise Refused(429, "busy", text)
        return size

    def _limited(self, receive: Receive) -> Receive:
        """Of the body's size, and of the time until all of it is here. What it raises are HTTPExceptions, since these
        pass through FastAPI's reading of the body."""
        got, whole, limits = 0, False, self._service.limits
        latest = asyncio.get_running_loop().time() + limits.body_seconds

        async def limited() -> Message:
            nonlocal got, whole
            try:
                async with asyncio.timeout_at(None if whole else latest):
                    message = await receive()
            except TimeoutError as error:
                text = f"the body was not here after {limits.body_seconds:g} seconds; send less at once, or faster"
                raise HTTPException(408, text) from error
            got += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if got > limits.body_mib * MIB:
                raise HTTPException(413, str(_too_large(limits)))
            return message

        return limited


def _has_key(headers: Headers, key: str) -> bool:
    scheme, _, sent = headers.get("authorization", "").partition(" ")
    return hmac.compare_digest(sent.encode(), key.encode()) and scheme.lower() == "bearer"


def _too_large(limits: Limits) -> Refused:
    return Refused(413, "too_large", f"the body is larger than {limits.body_mib} MiB; send fewer solutions at once")


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
