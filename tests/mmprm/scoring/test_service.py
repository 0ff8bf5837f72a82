from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from served import StepScorer, ask, client, make_service, running, until

from mmprm.cli.serve import ServeConfig
from mmprm.cli.serve import make_service as served_from
from mmprm.config import load
from mmprm.errors import CheckpointError, ConfigError
from mmprm.prm.info import PrmTokens
from mmprm.prm.model import initialize_prm, save_prm
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.http.wire import ServiceLimits
from mmprm.scoring.open import ClosableScorer, open_scorer
from mmprm.tiny.world import make_problems, solve
from mmprm.types import Solution

KEY = "sk-secret"
SMALL = ServiceLimits(body_mib=1, in_flight_mib=4, image_mib=1, pixels=1_000_000, images=3, solutions=8)


@dataclass
class Tiny:
    """A small model that is served, the solutions that it scores and their scores from the scorer itself."""

    url: str
    root: Path
    solutions: list[Solution]
    scores: list[tuple[float, ...]]

    def request(self, index: int, **values: Any) -> dict[str, Any]:
        solution = self.solutions[index]
        images = [{"data": encoded(Path(image.path or ""))} for image in solution.problem.images]
        return {"question": solution.problem.question, "steps": list(solution.steps), "images": images} | values


def encoded(file: Path | bytes) -> str:
    return base64.b64encode(file if isinstance(file, bytes) else file.read_bytes()).decode()


def bomb(width: int = 50_000, height: int = 50_000) -> bytes:
    """A PNG of a few bytes that says it has many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module")
def tiny(random_policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    folder = tmp_path_factory.mktemp("service")
    torch.manual_seed(0)
    prm = initialize_prm(str(random_policy_folder), PrmTokens(), add_missing_tokens=True)
    with torch.no_grad():
        for weight in prm.model.parameters():
            weight.mul_(3.0 if weight.dim() > 1 else 1.0)  # so that scores differ
    save_prm(folder / "prm", prm)
    root = folder / "root"
    root.mkdir()
    solutions = []
    for index, problem in enumerate(make_problems(4, 0, "train")):
        image = root / f"{index}.png"
        image.write_bytes(problem.problem.images[0].data or b"")
        named = type(problem.problem.images[0])(path=str(image))
        of_file = type(problem.problem)(f"p{index}", problem.problem.question, "", (named,))
        solutions.append(Solution(of_file, tuple(solve(problem))))
    (folder / "outside.png").write_bytes((root / "0.png").read_bytes())
    (root / "link.png").symlink_to(folder / "outside.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "inner.png").symlink_to(root / "0.png")
    os.mkfifo(root / "pipe.png")
    (root / "large.png").write_bytes(bytes(2**20 + 1))

    def scorer() -> ClosableScorer:
        torch.set_num_threads(1)
        return open_scorer(ScorerConfig(prm=str(folder / "prm")))

    local = scorer()
    scores = [item.scores for item in local.score(solutions)]
    local.close()
    with running(make_service(scorer, SMALL, image_root=root)) as url:
        yield Tiny(url, root, solutions, scores)


def test_a_solution_gets_the_scores_of_the_scorer(tiny: Tiny) -> None:
    assert max(map(max, tiny.scores)) - min(map(min, tiny.scores)) > 0.1
    with client(tiny.url) as http:
        answer = http.post("/v1/score", json=tiny.request(0))
        by_path = http.post("/v1/score", json=tiny.request(0, images=[{"path": "0.png"}]))
        by_link = http.post("/v1/score", json=tiny.request(0, images=[{"path": str(tiny.root / "inner.png")}]))
    assert answer.status_code == 200
    values = answer.json()
    assert values["scores"] == pytest.approx(tiny.scores[0], abs=1e-5)
    assert values["aggregate"] == min(values["scores"])
    assert (values["aggregator"], values["model"]) == ("min", "tiny")
    assert by_path.json() == by_link.json() == values


BAD: dict[str, tuple[Callable[[Tiny], Any], int, str, str | None, str]] = {
    "no steps": (lambda t: t.request(0, steps=[]), 422, "invalid_request", "steps", "at least one step"),
    "no question": (lambda t: t.request(0, question=" "), 422, "invalid_request", "question", "empty"),
    "question is missing": (lambda t: {"steps": ["1"]}, 422, "invalid_request", "question", "Field required"),
    "marker": (lambda t: t.request(0, steps=["1<prm>"]), 422, "unscorable", None, "contains '<prm>', which the format"),
    "image token": (lambda t: t.request(0, steps=["<|image_pad|>"]), 422, "unscorable", None, "contains"),
    "video token": (lambda t: t.request(0, steps=["<|video_pad|>"]), 422, "unscorable", None, "'<|video_pad|>'"),
    "long": (lambda t: t.request(0, steps=["a"] * 600), 422, "unscorable", None, "but the PRM reads at most 1024"),
    "10,000 steps": (
        lambda t: t.request(0, steps=["a"] * 10_000), 422, "too_large", "steps", "10,000 steps, but at most 1,000",
    ),
    "characters": (
        lambda t: t.request(0, steps=["a" * 400_000]), 422, "too_large", None, "characters, but at most 400,000",
    ),
    "step is a number": (lambda t: t.request(0, steps=["1", 2]), 422, "invalid_request", "steps[1]", "valid string"),
    "unknown field": (lambda t: t.request(0, marker="x"), 422, "invalid_request", "marker", "Extra inputs"),
    "surrogate": (
        lambda t: b'{"question": "\\ud800", "steps": ["1"]}', 422, "invalid_request", "question", "surrogate",
    ),
    "surrogate in a name": (lambda t: b'{"\\ud800": 1}', 422, "invalid_request", None, "valid string"),
    "bomb": (lambda t: t.request(0, images=[{"data": encoded(bomb())}]), 422, "invalid_request", "images[0]", "pixel"),
    "large image": (
        lambda t: t.request(0, images=[{"data": encoded(bomb(1001, 1000))}]), 422, "invalid_request", "images[0]",
        "1001×1000 pixels, but at most 1,000,000",
    ),
    "no image": (
        lambda t: t.request(0, images=[{"data": encoded(b"hello")}]), 422, "invalid_request", "images[0]",
        "cannot be read as an image",
    ),
    "torn image": (
        lambda t: t.request(0, images=[{"data": encoded(bomb(500, 500))}]), 422, "unscorable", None,
        "cannot be read as an image",
    ),
    "no base64": (lambda t: t.request(0, images=[{"data": "é!"}]), 422, "invalid_request", "images[0]", "base64"),
    "many bytes": (
        lambda t: t.request(0, images=[{"path": "large.png"}]), 422, "too_large", "images[0]", "larger than 1 MiB",
    ),
    "many images": (
        lambda t: t.request(0, images=[{"path": "0.png"}] * 4), 422, "too_large", "images", "4 images, but at most 3",
    ),
    "both": (
        lambda t: t.request(0, images=[{"path": "0.png", "data": ""}]), 422, "invalid_request", "images[0]", "either",
    ),
    "parent": (
        lambda t: t.request(0, images=[{"path": "../outside.png"}]), 422, "invalid_request", "images[0]",
        "leads out of image_root",
    ),
    "absolute": (
        lambda t: t.request(0, images=[{"path": "/etc/passwd"}]), 422, "invalid_request", "images[0]", "leads out",
    ),
    "link": (lambda t: t.request(0, images=[{"path": "link.png"}]), 422, "invalid_request", "images[0]", "leads out"),
    "loop": (lambda t: t.request(0, images=[{"path": "loop.png"}]), 422, "invalid_request", "images[0]", "be read"),
    "pipe": (lambda t: t.request(0, images=[{"path": "pipe.png"}]), 422, "invalid_request", "images[0]", "not a file"),
    "folder": (lambda t: t.request(0, images=[{"path": "."}]), 422, "invalid_request", "images[0]", "be read"),
    "missing": (lambda t: t.request(0, images=[{"path": "x.png"}]), 422, "invalid_request", "images[0]", "be read"),
    "null byte": (lambda t: t.request(0, images=[{"path": "\0"}]), 422, "invalid_request", "images[0]", "be read"),
    "no JSON": (lambda t: b"{", 422, "invalid_request", None, "not JSON"),
    "a list": (lambda t: b"[]", 422, "invalid_request", None, "valid dictionary"),
    "empty": (lambda t: b"", 422, "invalid_request", None, "required"),
    "no UTF-8": (lambda t: b'{"question": "\xff"}', 400, "invalid_request", None, "cannot be read as JSON"),
    "deep": (lambda t: b"[" * 200_000, 400, "invalid_request", None, "cannot be read as JSON"),
    "large body": (lambda t: b"[" + b"1," * 600_000, 413, "too_large", None, "larger than 1 MiB"),
    "large body in pieces": (lambda t: iter([b"x" * 65536] * 32), 413, "too_large", None, "larger than 1 MiB"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_and_the_service_stays(tiny: Tiny, name: str) -> None:
    make, status, kind, field, message = BAD[name]
    body = make(tiny)
    with client(tiny.url) as http:
        content = {"json": body} if isinstance(body, dict) else {"content": body}
        answer = http.post("/v1/score", headers={"Content-Type": "application/json"}, **content)
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert (error["type"], error["field"]) == (kind, field)
        assert message in error["message"]
        assert len(answer.text) < 1000, "what was sent is not repeated"
        good = http.post("/v1/score", json=tiny.request(1))
        assert good.json()["scores"] == pytest.approx(tiny.scores[1], abs=1e-5)


def test_a_bad_solution_does_not_spoil_the_others(tiny: Tiny) -> None:
    bad = [make(tiny) for name, (make, *_) in BAD.items() if name in ("long", "bomb", "marker", "step is a number")]
    with client(tiny.url) as http:
        answer = http.post("/v1/score/batch", json={"solutions": [tiny.request(2), *bad, 7, tiny.request(3)]})
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert results[0]["scores"] == pytest.approx(tiny.scores[2], abs=1e-5)
    assert results[-1]["scores"] == pytest.approx(tiny.scores[3], abs=1e-5)
    kinds = [result["error"]["type"] for result in results[1:-1]]
    assert kinds == ["unscorable", "unscorable", "invalid_request", "invalid_request", "invalid_request"]
    assert "solutions[1]: " in results[1]["error"]["message"], "the scorer's complaint names the solution"
    assert (answer.json()["aggregator"], answer.json()["model"]) == ("min", "tiny")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"solutions": [{}] * 9}, "9 solutions, but at most 8"),
        ({"solutions": {}}, "valid list"),
        ({}, "Field required"),
    ],
)
def test_a_bad_batch(tiny: Tiny, body: dict[str, Any], message: str) -> None:
    with client(tiny.url) as http:
        answer = http.post("/v1/score/batch", json=body)
        assert answer.status_code == 422
        assert answer.json()["error"]["field"] == "solutions"
        assert message in answer.json()["error"]["message"]
        assert http.post("/v1/score/batch", json={"solutions": []}).json()["results"] == []


def test_paths_are_not_taken_without_a_root() -> None:
    with running(make_service(StepScorer)) as url, client(url) as http:
        answer = http.post("/v1/score", json=ask("0.5", images=[{"path": "/etc/passwd"}]))
        assert answer.status_code == 422
        assert "image_root is not set" in answer.json()["error"]["message"]


def test_without_the_key_nothing_is_told(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
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


def test_a_page_of_another_name_gets_nothing_on_loopback() -> None:
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


def test_health_says_when_requests_are_taken() -> None:
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


def test_what_waits_is_scored_together_and_fails_alone() -> None:
    scorer = StepScorer()
    service = make_service(lambda: scorer)
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
        assert http.get("/health").status_code == 200, "the model itself works"
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


def test_the_bytes_in_work_are_bounded() -> None:
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


def test_closing_finishes_what_was_taken_and_refuses_what_is_new() -> None:
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
    """A byte now and then does not help; what is here as a whole may take as long as the model does."""
    scorer = StepScorer()
    service = make_service(lambda: scorer, ServiceLimits(body_mib=1, in_flight_mib=1, body_seconds=0.4))
    with running(service) as url, client(url) as http, ThreadPoolExecutor(1) as pool:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=20) as caller:
            head = f"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: {2**20}\r\n"
            caller.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n")
            assert http.post("/v1/score", json=ask("0.5")).status_code == 200
            begun = time.monotonic()
            with contextlib.suppress(OSError):
                while time.monotonic() < begun + 0.6:
                    caller.sendall(b" ")
                    time.sleep(0.05)
            assert service.traffic.bytes.total() == 0
            answer = b""
            while part := caller.recv(4096):  # until the service closes the connection
                answer += part
        assert time.monotonic() - begun < 5
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
import mmprm.cli.serve as serve
from served import make_service
serve.CLOSING_SECONDS = 0.2


async def tell():
    print("up", flush=True)  # the signal handlers are in place


server = serve.Server(make_service(lambda: threading.Event().wait()), shutdown_seconds=float(sys.argv[1]))
server.config.port = 0
server.config.callback_notify = tell
server.run()
"""


@pytest.mark.parametrize(("seconds", "signals"), [("60", 2), ("0.1", 1)])
def test_a_model_that_hangs_is_not_waited_for(seconds: str, signals: int) -> None:
    """A second SIGTERM ends the process at once, and so does the end of the time that it may take."""
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, seconds],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": paths},
    )
    try:
        assert process.stdout.readline() == b"up\n"
        for _ in range(signals):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        assert process.wait(10) == 1
    finally:
        process.kill()
        process.wait()


def test_what_nobody_waits_for_is_not_scored() -> None:
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
    """Sixteen images of nine million pixels: seven fit into a batch."""
    encoder = io.BytesIO()
    Image.new("1", (3000, 3000)).save(encoder, "PNG")
    images = [{"data": encoded(encoder.getvalue())}]
    scorer = StepScorer()
    with running(make_service(lambda: scorer, ServiceLimits(batch_pixels=64_000_000))) as url, client(url) as http:
        solutions = [ask(str(number / 16), images=images) for number in range(16)]
        answer = http.post("/v1/score/batch", json={"solutions": solutions})
    assert [result["aggregate"] for result in answer.json()["results"]] == [number / 16 for number in range(16)]
    assert [len(batch) for batch in scorer.batches] == [7, 7, 2]


def test_a_score_that_is_no_number_is_an_error() -> None:
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


def configured(*sets: str) -> ServeConfig:
    return load(ServeConfig, sets=["scorer.prm=p", *sets])


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "::", "gpu1"])
def test_other_machines_need_a_key(host: str) -> None:
    with pytest.raises(
        ConfigError, match=r"host=.* listens to other machines without an API key; set api_key_env or api_key_file"
    ):
        configured(f"host='{host}'")
    for way in ("api_key_env=K", "api_key_file=f", "without_key=true"):
        assert configured(f"host='{host}'", way).host == host


def test_this_machine_needs_none() -> None:
    assert {configured(f"host='{host}'").host for host in ("127.0.0.1", "::1", "localhost")}
    assert configured().scorer.backend == "vllm"
    with pytest.raises(ConfigError, match="are both set; remove one"):
        configured("api_key_env=K", "api_key_file=f")
    with pytest.raises(ConfigError, match="in_flight must be at least solutions"):
        configured("limits.in_flight=10")


def test_the_key_comes_from_a_variable_or_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "prm.json").write_text('{"format": "mm-prm", "aggregator": "min"}')
    prm = f"scorer.prm={tmp_path}"
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    assert served_from(configured(prm, "api_key_env=MY_KEY")).key == KEY
    (tmp_path / "key").write_text(KEY + "\n")
    service = served_from(configured(prm, f"api_key_file={tmp_path / 'key'}"))
    assert (service.key, service.local_only) == (KEY, False)
    service = served_from(configured(prm))
    assert (service.key, service.local_only) == (None, True)
    monkeypatch.setenv("MY_KEY", "")
    (tmp_path / "key").write_text("sk-ä")
    for way in ("api_key_env=MY_KEY", f"api_key_file={tmp_path / 'key'}", f"api_key_file={tmp_path / 'none'}"):
        with pytest.raises(ConfigError, match="api_key_") as caught:
            served_from(configured(prm, way))
        assert "sk-" not in str(caught.value)
    with pytest.raises(ConfigError, match="image_root"):
        served_from(configured(prm, f"image_root={tmp_path / 'none'}"))
    (tmp_path / "prm.json").write_text('{"format": "mm-prm"}')
    with pytest.raises(ConfigError, match=r"aggregator is not set and prm\.json names none"):
        served_from(configured(prm))
