"""Test the service with a small model: it returns the scorer's scores and explains invalid requests."""

from __future__ import annotations

import base64
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from served import client, make_service, running

from mmprm.prm.info import PrmTokens
from mmprm.prm.model import initialize_prm, save_prm
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.http.wire import ServiceLimits
from mmprm.scoring.open import ClosableScorer, open_scorer
from mmprm.tiny.world import make_problems, solve
from mmprm.types import Solution

SMALL = ServiceLimits(body_mib=1, in_flight_mib=4, image_mib=1, pixels=1_000_000, images=3, solutions=8)


@dataclass
class Tiny:
    """Holds a small served model, the solutions to score, and the scorer's own scores for them."""

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
    """Return a PNG of a few bytes that declares many pixels."""

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
    "pipe": (lambda t: t.request(0, images=[{"path": "pipe.png"}]), 422, "invalid_request", "images[0]", "regular"),
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
def test_invalid_input_is_named_and_the_service_keeps_running(tiny: Tiny, name: str) -> None:
    make, status, kind, field, message = BAD[name]
    body = make(tiny)
    with client(tiny.url) as http:
        content = {"json": body} if isinstance(body, dict) else {"content": body}
        answer = http.post("/v1/score", headers={"Content-Type": "application/json"}, **content)
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert (error["type"], error["field"]) == (kind, field)
        assert message in error["message"]
        assert len(answer.text) < 1000, "the error does not echo the input"
        good = http.post("/v1/score", json=tiny.request(1))
        assert good.json()["scores"] == pytest.approx(tiny.scores[1], abs=1e-5)


def test_an_invalid_solution_does_not_affect_the_others(tiny: Tiny) -> None:
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
