"""Test the HTTP service with a scripted scorer: keys, health, batching, limits, and shutdown."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image
from served import StepScorer, ask, client, make_service, running, until

from mmprm.errors import CheckpointError
from mmprm.scoring.http.wire import ServiceLimits

KEY = "sk-secret"


def test_paths_are_rejected_without_an_image_root() -> None:
    with running(make_service(StepScorer)) as url, client(url) as http:
        answer = http.post("/v1/score", json=ask("0.5", images=[{"path": "/etc/passwd"}]))
        assert answer.status_code == 422
        assert "image_root is not set" in answer.json()["error"]["message"]


def test_nothing_is_disclosed_without_the_key(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with running(make_service(StepScorer, key=KEY)) as url, client(url) as http:
        for header in ({}, {"Authorization": "Bearer no"}, {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}):
            for method, path in (("POST", "/v1/score"), ("GET", "/v1/model"), ("GET", "/metrics"), ("GET", "/x")):
                answer = http.request(method, path, headers=header, json=ask("0.5"))
                assert (answer.status_code, answer.json()["error"]["type"]) == (401, "unauthorized")
                assert answer.headers["WWW-Authenticate"] == "Bearer"
        for path in ("/health", "/docs", "/openapi.json"):
            assert http.get(path).status_code == 200
        correct = {"Authorization": f"Bearer {KEY}"}
        assert http.post("/v1/score", json=ask("0.5"), headers=correct).json()["scores"] == [0.5]
        everything = http.get("/metrics", headers=correct).text + http.get("/v1/model", headers=correct).text
    output = capfd.readouterr()
    ours = "".join(record.getMessage() for record in caplog.records if not record.name.startswith("http"))
    assert KEY not in everything + output.out + output.err + ours


def test_loopback_rejects_other_host_names() -> None:
    with running(make_service(StepScorer, local_only=True)) as url, client(url) as http:
        for host in ("evil.example", "evil.example:80", "", "[", "127.0.0.1.evil.example"):
            assert http.get("/health", headers={"Host": host}).status_code == 403
        for host in ("localhost:8100", "[::1]:8100", "127.0.0.1"):
            assert http.get("/health", headers={"Host": host}).status_code == 200
        preflight = http.options("/v1/score", headers={"Origin": "https://evil.example"})
        assert preflight.status_code == 405
        assert not any(name.startswith("access-control") for name in preflight.headers)
        form = http.post("/v1/score", content=b"{}", headers={"Content-Type": "text/plain"})
        assert form.status_code == 415


def test_health_reports_when_requests_are_accepted() -> None:
    loaded = threading.Event()

    def scorer() -> StepScorer:
        assert loaded.wait(20)
        return StepScorer()

    service = make_service(scorer)
    with running(service, wait=False) as url, client(url) as http:
        health, refused = http.get("/health"), http.post("/v1/score", json=ask("0.5"))
        assert health.status_code == refused.status_code == 503
        assert health.json()["error"]["type"] == refused.json()["error"]["type"] == "loading"
        assert refused.headers["Retry-After"] == "1"
        assert http.get("/v1/model").json()["threshold"] == 0.25
        loaded.set()
        until(lambda: http.get("/health").status_code == 200)
        assert http.get("/health").json() == {"status": "ready", "model": "tiny"}
        assert http.post("/v1/score", json=ask("0.5")).status_code == 200


def test_a_model_that_cannot_be_loaded_stops_the_service() -> None:
    def scorer() -> StepScorer:
        raise CheckpointError("no weights")

    service = make_service(scorer)
    with running(service, wait=False):
        until(lambda: service.failure is not None)
    assert str(service.failure) == "no weights"


def test_queued_requests_are_batched_and_fail_individually() -> None:
    scorer = StepScorer()
    service = make_service(lambda: scorer, ServiceLimits(batch_seconds=1000))
    with running(service) as url, client(url, limits=httpx.Limits(max_connections=64)) as http:
        scorer.go.clear()

        def send(steps: tuple[str, ...]) -> httpx.Response:
            return http.post("/v1/score", json=ask(*steps))

        with ThreadPoolExecutor(40) as pool:
            first = pool.submit(send, ("0.5",))
            until(lambda: len(scorer.batches) == 1)
            steps = [(str(number / 64), "1") for number in range(30)] + [("0.5", "refuse"), ("0.25", "crash")]
            answers = [pool.submit(send, item) for item in steps]
            until(lambda: service._queue.waiting == 32)
            scorer.go.set()
            results = [answer.result() for answer in answers]
        assert first.result().json()["scores"] == [0.5]
        assert len(scorer.batches[1]) == 32
        for number, result in enumerate(results[:30]):
            assert result.json() == {
                "scores": [number / 64, 1], "aggregate": number / 64, "aggregator": "min", "model": "tiny"
            }  # fmt: skip
        assert results[30].status_code == 422
        assert results[30].json()["error"]["message"] == "problem request: it is refused"
        assert results[31].status_code == 500
        assert "ValueError" in results[31].json()["error"]["message"]
        assert "aspect" not in results[31].text
        assert http.get("/health").status_code == 200, "the model itself is alive"
        figures = figures_of(http)
    assert figures["mmprm_solutions_scored_total"] == 31
    assert figures["mmprm_steps_scored_total"] == 61
    assert figures['mmprm_errors_total{type="unscorable"}'] == figures['mmprm_errors_total{type="internal"}'] == 1
    assert figures['mmprm_requests_total{path="/v1/score",status="200"}'] == 31
    assert figures['mmprm_request_seconds_count{path="/v1/score"}'] == 33
    assert figures["mmprm_queue_solutions"] == figures["mmprm_in_flight_requests"] == 0
    assert figures['mmprm_batch_solutions_bucket{le="32.0"}'] == figures["mmprm_batch_solutions_count"]
    assert figures["mmprm_ready"] == 1


def figures_of(http: httpx.Client) -> dict[str, float]:
    lines = [line for line in http.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_a_model_that_has_died_is_not_ready() -> None:
    scorer = StepScorer()
    service = make_service(lambda: scorer)
    with running(service) as url, client(url) as http:
        scorer.dead = True
        assert http.post("/v1/score", json=ask("0.5")).status_code == 500
        until(lambda: service.failure is not None)
    assert scorer.closed


def test_the_backlog_is_bounded() -> None:
    scorer = StepScorer()
    service = make_service(lambda: scorer, ServiceLimits(in_flight=3, solutions=3))
    with running(service) as url, client(url) as http, ThreadPoolExecutor(1) as pool:
        scorer.go.clear()
        taken = pool.submit(http.post, "/v1/score/batch", json={"solutions": [ask("0.5"), ask("0.25")]})
        until(lambda: len(scorer.batches) == 1)
        answer = http.post("/v1/score/batch", json={"solutions": [ask("0.5"), ask("0.25")]})
        assert (answer.status_code, answer.json()["error"]["type"]) == (429, "busy")
        assert answer.headers["Retry-After"] == "1"
        scorer.go.set()
        assert [result["scores"] for result in taken.result().json()["results"]] == [[0.5], [0.25]]
        assert http.post("/v1/score", json=ask("0.5")).status_code == 200


def test_the_bytes_in_flight_are_bounded() -> None:
    scorer = StepScorer()
    service = make_service(lambda: scorer, ServiceLimits(body_mib=1, in_flight_mib=1))
    with running(service) as url, client(url) as http, ThreadPoolExecutor(1) as pool:
        scorer.go.clear()
        taken = pool.submit(http.post, "/v1/score", json=ask("0.5", id="x" * 1000))
        until(lambda: len(scorer.batches) == 1)
        rest = json.dumps(ask("0.5", question="x" * (2**20 - 500))).encode()
        answer = http.post("/v1/score", content=rest, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (429, "busy")
        scorer.go.set()
        assert taken.result().status_code == 200


def test_closing_finishes_accepted_requests_and_rejects_new_ones() -> None:
    scorer = StepScorer()
    service = make_service(lambda: scorer)
    with running(service) as url, client(url) as http, ThreadPoolExecutor(1) as pool:
        scorer.go.clear()
        taken = pool.submit(http.post, "/v1/score", json=ask("0.5"))
        until(lambda: len(scorer.batches) == 1)
        service.closing = True
        for answer in (http.get("/health"), http.post("/v1/score", json=ask("0.5"))):
            assert (answer.status_code, answer.json()["error"]["type"]) == (503, "closing")
        scorer.go.set()
        assert taken.result().json()["scores"] == [0.5]
        until(lambda: scorer.closed)


def test_a_body_that_does_not_arrive_occupies_no_slot() -> None:
    """Sending single bytes does not help; a complete request may wait as long as the model needs."""
    scorer = StepScorer()
    service = make_service(lambda: scorer, ServiceLimits(body_mib=1, in_flight_mib=1, body_seconds=0.4))
    with running(service) as url, client(url) as http, ThreadPoolExecutor(1) as pool:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=20) as caller:
            head = f"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: {2**20}\r\n"
            caller.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n")
            assert http.post("/v1/score", json=ask("0.5")).status_code == 200
            begun = time.monotonic()
            with contextlib.suppress(OSError):
                while time.monotonic() < begun + 0.6 or service.traffic.bytes.total():
                    assert time.monotonic() < begun + 20, "the body has no time limit"
                    caller.sendall(b" ")
                    time.sleep(0.05)
            assert service.traffic.bytes.total() == 0
            answer = b""
            with contextlib.suppress(OSError):
                while part := caller.recv(4096):  # until the service closes the connection
                    answer += part
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"] == {
            "type": "too_slow",
            "message": "the body did not arrive within 0.4 seconds; send less at once, or faster",
            "field": None,
        }
        scorer.go.clear()
        taken = pool.submit(http.post, "/v1/score", json=ask("0.5"))
        until(lambda: len(scorer.batches) == 1)
        time.sleep(0.6)
        scorer.go.set()
        assert taken.result().status_code == 200


STUCK = """
import sys, threading
from mmprm.scoring.http import server as http_server
from served import make_service
http_server.CLOSING_SECONDS = 0.2


class Server(http_server.Server):
    def handle_exit(self, sig, frame):
        super().handle_exit(sig, frame)
        print("closing", flush=True)


async def tell():
    print("up", flush=True)  # the signal handlers are in place


server = Server(make_service(lambda: threading.Event().wait()), shutdown_seconds=float(sys.argv[1]))
server.config.port = 0
server.config.callback_notify = tell
server.run()
"""


@pytest.mark.parametrize(("seconds", "signals"), [("60", 2), ("0.1", 1)])
def test_shutdown_does_not_wait_for_a_hanging_model(seconds: str, signals: int) -> None:
    """A second SIGTERM ends the process at once, and so does the shutdown timeout."""
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, seconds],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": paths},
    )
    try:
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == b"closing\n"
        if signals == 2:
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 1
    finally:
        process.kill()
        process.wait()


def test_canceled_requests_are_not_scored() -> None:
    scorer = StepScorer()
    service = make_service(lambda: scorer)
    with running(service) as url, client(url) as http, ThreadPoolExecutor(1) as pool:
        scorer.go.clear()
        taken = pool.submit(http.post, "/v1/score", json=ask("0.5"))
        until(lambda: len(scorer.batches) == 1)
        body = json.dumps(ask("0.25")).encode()
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as caller:
            head = f"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            caller.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
            until(lambda: service._queue.waiting == 1)
        until(lambda: service.traffic.requests == 1)
        scorer.go.set()
        assert taken.result().status_code == 200
        assert http.post("/v1/score", json=ask("1")).status_code == 200
    assert [[solution.steps for solution in batch] for batch in scorer.batches] == [[("0.5",)], [("1",)]]


def test_many_pixels_are_not_decoded_at_once() -> None:
    """Sixteen images have nine million pixels each, and seven fit into a batch."""
    encoder = io.BytesIO()
    Image.new("1", (3000, 3000)).save(encoder, "PNG")
    images = [{"data": base64.b64encode(encoder.getvalue()).decode()}]
    scorer = StepScorer()
    service = make_service(lambda: scorer, ServiceLimits(batch_pixels=64_000_000, batch_seconds=1000))
    with running(service) as url, client(url) as http:
        solutions = [ask(str(number / 16), images=images) for number in range(16)]
        answer = http.post("/v1/score/batch", json={"solutions": solutions})
    assert [result["aggregate"] for result in answer.json()["results"]] == [number / 16 for number in range(16)]
    assert [len(batch) for batch in scorer.batches] == [7, 7, 2]


def test_a_nan_score_is_an_error() -> None:
    with running(make_service(StepScorer)) as url, client(url) as http:
        answer = http.post("/v1/score", json=ask("0.5", "nan"))
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "internal")


def test_the_api_describes_itself_without_the_network() -> None:
    with running(make_service(StepScorer)) as url, client(url) as http:
        schema, page = http.get("/openapi.json").json(), http.get("/docs").text
        assert http.get("/nothing").json()["error"]["type"] == "not_found"
        assert http.get("/v1/score").status_code == 405
    assert {"/v1/score", "/v1/score/batch", "/v1/model", "/health", "/metrics"} == schema["paths"].keys()
    item = schema["components"]["schemas"]["BatchIn"]["properties"]["solutions"]["items"]
    assert item["$ref"].rpartition("/")[2] in schema["components"]["schemas"]
    assert "ErrorOut" in json.dumps(schema["paths"]["/v1/score"]["post"]["responses"]["422"])
    assert "http:" not in page
    assert "https:" not in page
    assert "<script" not in page
    for path in schema["paths"]:
        assert f"<code>{path}</code>" in page
