"""Test the service with misbehaving connections: each affects only itself, and `/health` keeps responding."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from served import StepScorer, ask, client, make_service, running, server_of, until

from mmprm.scoring.http.connection_table import address_of
from mmprm.scoring.http.limits import MAX_HEADER, ServiceLimits

QUICK = ServiceLimits(header_seconds=0.4, connections=16, connections_per_address=8)
HEAD = b"HTTP/1.1\r\nHost: localhost\r\n"


def connect(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=20)


def read(caller: socket.socket) -> bytes:
    """Return all bytes up to the end or loss of the connection."""
    answer = b""
    with contextlib.suppress(OSError):
        while part := caller.recv(65536):
            answer += part
    return answer


def status_and_error(answer: bytes) -> tuple[int, dict[str, Any]]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/json" in head
    return int(head.split()[1]), json.loads(body)["error"]


def post(value: dict[str, Any], *headers: bytes) -> bytes:
    body = json.dumps(value).encode()
    lines = [b"Content-Type: application/json", b"Content-Length: %d" % len(body), *headers]
    return b"POST /v1/score " + HEAD + b"\r\n".join(lines) + b"\r\n\r\n" + body


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(make_service(StepScorer)) as url:
        yield url


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"], ids=["endless", "whole"])
def test_a_header_has_a_size(url: str, end: bytes) -> None:
    with connect(url) as caller:
        with contextlib.suppress(OSError):
            caller.sendall(b"GET /health " + HEAD + b"X-Long: " + b"a" * (MAX_HEADER + 10_000) + end)
        status, error = status_and_error(read(caller))
    message = "the request's header is larger than 64 KiB; shorten it"
    assert (status, error["type"], error["message"]) == (431, "too_large", message)


def test_a_header_below_the_size_is_read(url: str) -> None:
    with client(url) as http:
        assert http.get("/health", headers={"X-Long": "a" * (MAX_HEADER - 1000)}).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [b"\x16\x03\x01 no HTTP\r\n\r\n", b"GET /health HTTP/9.9\r\n\r\n", b"CONNECT a:1 " + HEAD + b"\r\n"],
    ids=["TLS", "version", "CONNECT"],
)
def test_invalid_http_gets_a_json_error(url: str, sent: bytes) -> None:
    with connect(url) as caller:
        caller.sendall(sent)
        status, error = status_and_error(read(caller))
    assert (status, error["type"]) == (400, "invalid_request")


def test_a_header_has_a_time_limit() -> None:
    with running(make_service(StepScorer, QUICK)) as url, connect(url) as silent, connect(url) as slow:
        slow.sendall(b"GET /health HT")
        begun = time.monotonic()
        assert read(silent) == b""
        status, error = status_and_error(read(slow))
        assert time.monotonic() - begun < 20
    assert (status, error["type"]) == (408, "too_slow")


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /health HT",
        b"POST /v1/score " + HEAD + b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
    ],
    ids=["silent", "half a header", "half a body"],
)
def test_too_many_connections_from_one_address_do_not_block_others(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Forty connections are opened where eight are allowed: the oldest idle ones are closed, with one log line."""
    caplog.set_level(logging.WARNING)
    limits = QUICK.model_copy(update={"header_seconds": 30.0})
    with running(make_service(StepScorer, limits)) as url, contextlib.ExitStack() as callers, client(url) as http:
        for _ in range(40):
            caller = callers.enter_context(connect(url))
            with contextlib.suppress(OSError):
                caller.sendall(sent)
        for _ in range(3):
            assert http.get("/health").status_code == 200
        assert http.post("/v1/score", json=ask("0.5")).status_code == 200
    (line,) = [record.getMessage() for record in caplog.records if "its share" in record.getMessage()]
    assert line.startswith("127.0.0.1: holds 8 of 16 connections")


def test_connections_with_pending_requests_are_not_closed() -> None:
    """Eight requests wait for the model; the ninth client is told to retry, and all eight get their scores."""
    scorer = StepScorer()
    service = make_service(lambda: scorer, QUICK.model_copy(update={"header_seconds": 30.0}))
    with running(service) as url, ThreadPoolExecutor(8) as pool:
        scorer.go.clear()
        taken = [
            pool.submit(httpx.post, f"{url}/v1/score", json=ask(str(number / 8)), timeout=60) for number in range(8)
        ]
        until(lambda: service.traffic.requests == 8)
        with connect(url) as caller:
            status, error = status_and_error(read(caller))
        scorer.go.set()
        assert [answer.result().json()["aggregate"] for answer in taken] == [number / 8 for number in range(8)]
    assert (status, error["type"]) == (429, "busy")


def test_a_half_closed_connection_is_answered(url: str) -> None:
    with connect(url) as caller:
        caller.sendall(post(ask("0.5")))
        caller.shutdown(socket.SHUT_WR)
        head, _, body = read(caller).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert json.loads(body)["scores"] == [0.5]


def test_a_half_closed_connection_waits_for_a_slow_model() -> None:
    """Interim responses distinguish a half-closed connection from a closed one."""
    scorer = StepScorer()
    service = make_service(lambda: scorer)
    with running(service) as url, connect(url) as caller:
        scorer.go.clear()
        caller.sendall(post(ask("0.5")))
        caller.shutdown(socket.SHUT_WR)
        interim = caller.recv(25)
        assert service.traffic.requests == 1
        scorer.go.set()
        answer = read(caller)
    assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert b'"scores":[0.5]' in answer.rpartition(b"HTTP/1.1 200 OK")[2]


def test_an_incomplete_request_is_an_error(url: str) -> None:
    with connect(url) as caller:
        caller.sendall(post(ask("0.5"))[:-3])
        caller.shutdown(socket.SHUT_WR)
        status, error = status_and_error(read(caller))
    assert (status, error["message"]) == (400, "the request ended before it was complete; send it again")


def test_pipelining_is_limited(url: str) -> None:
    request = b"GET /health " + HEAD + b"\r\n"
    with connect(url) as caller:
        caller.sendall(request * 5 + b"GET /v1/model " + HEAD + b"Connection: close\r\n\r\n")
        assert read(caller).count(b"HTTP/1.1 200 OK") == 6
    with connect(url) as caller:
        with contextlib.suppress(OSError):
            for _ in range(20):
                caller.sendall(request * 2000)
        assert read(caller).count(b"200 OK") < 40_000
    with client(url) as http:
        assert http.get("/health").status_code == 200


def test_a_body_in_many_small_pieces(url: str) -> None:
    body = b"".join(b"1\r\n%c\r\n" % byte for byte in json.dumps(ask("0.5", id="x" * 900)).encode())
    with connect(url) as caller:
        head = b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        caller.sendall(b"POST /v1/score " + HEAD + head + body + b"0\r\n\r\n")
        assert read(caller).startswith(b"HTTP/1.1 200 OK")


def test_expect_100_continue_is_answered(url: str) -> None:
    head, _, body = post(ask("0.5"), b"Expect: 100-continue", b"Connection: close").partition(b"\r\n\r\n")
    with connect(url) as caller:
        caller.sendall(head + b"\r\n\r\n")
        assert caller.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        caller.sendall(body)
        assert read(caller).startswith(b"HTTP/1.1 200 OK")


def test_a_client_that_does_not_read_is_dropped() -> None:
    """The response has five million bytes, of which the kernel buffers only a part; the rest is dropped."""
    service = make_service(StepScorer, ServiceLimits(answer_seconds=0.3))
    body = {"solutions": [ask(*[f"{0.1234567890123456 + number:.16f}"] * 1000) for number in range(250)]}
    with running(service) as url, socket.socket() as caller:
        caller.settimeout(20)
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        caller.connect(("127.0.0.1", int(url.rpartition(":")[2])))
        caller.sendall(post(body).replace(b"/v1/score ", b"/v1/score/batch ", 1))
        until(lambda: service.metrics.solutions._value.get() == 250)
        until(lambda: service.traffic.requests == 0)
        until(lambda: server_of[url].config.http.keywords["table"]._total == 0)
        assert 0 < len(read(caller)) < 4_000_000


def test_shutdown_does_not_wait_for_open_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service shuts down although clients keep connections with incomplete requests open."""
    monkeypatch.setattr("mmprm.scoring.http.server.CLOSING_SECONDS", 0.3)
    scorer = StepScorer()
    with contextlib.ExitStack() as callers:
        with running(make_service(lambda: scorer)) as url:
            for sent in (b"", b"GET /health HT", post(ask("0.5"))[:-3]):
                callers.enter_context(connect(url)).sendall(sent)
            begun = time.monotonic()
        assert time.monotonic() - begun < 30
    assert scorer.closed


@pytest.mark.parametrize("path", ["/health", "/metrics", "/docs", "/openapi.json", "/v1/model"])
def test_head_is_get_without_a_body(url: str, path: str) -> None:
    with client(url) as http:
        got, head = http.get(path), http.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == got.headers["content-type"]


@pytest.mark.parametrize("path", ["/v1/score", "/v1/score/batch", "/health", "/v1/model"])
def test_other_methods_get_405_with_the_allowed_ones(url: str, path: str) -> None:
    allowed = "POST" if "score" in path else "GET"
    with client(url) as http:
        for method in ("OPTIONS", "PUT", "DELETE", *(["GET", "HEAD"] if allowed == "POST" else ["POST"])):
            answer = http.request(method, path)
            assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)
            assert method == "HEAD" or answer.json()["error"]["type"] == "invalid_request"


def test_connection_limits_are_per_address() -> None:
    assert address_of("127.0.0.1") == address_of("::ffff:127.0.0.1") == "127.0.0.1"
    assert address_of("2001:db8::1") == address_of("2001:db8::ffff") == "2001:db8::/64"
    assert address_of("2001:db8:0:1::1") != address_of("2001:db8::1")


def test_requests_still_pending_at_shutdown_get_503(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test shortens the five seconds that the service allows for pending requests."""
    monkeypatch.setattr("mmprm.scoring.http.server.CLOSING_SECONDS", 0.3)
    scorer = StepScorer()
    service = make_service(lambda: scorer)
    with ThreadPoolExecutor(1) as pool, running(service) as url:
        scorer.go.clear()
        taken = pool.submit(httpx.post, f"{url}/v1/score", json=ask("0.5"), timeout=60)
        until(lambda: len(scorer.batches) == 1)
        server_of[url].should_exit = service.closing = True
        answer = taken.result()
        scorer.go.set()
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "closing")
