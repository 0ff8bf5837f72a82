"""Test the error for a model name that is not a folder: a single one, without retries."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from mmprm import hub_models
from mmprm.errors import CheckpointError
from mmprm.hub_models import check_hub_model
from mmprm.preflight import check_model, check_prm
from mmprm.weights import model_errors

NAME = "owner/no-such-model"


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Provide an empty cache, an endpoint that refuses connections, and a check that has not run yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub_models, "TIMEOUT_SECONDS", 2.0)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    check_hub_model.cache_clear()
    yield
    check_hub_model.cache_clear()


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, object]]:
    """Return a Hub that responds to every request with this status and error code."""
    given: dict[str, object] = {"status": 404, "code": "RepoNotFound", "asked": []}

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given["asked"].append(self.path)
            self.send_response(given["status"])
            self.send_header("X-Error-Code", given["code"])
            self.end_headers()
            self.wfile.write(given.get("body", b"{}"))

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield given
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("check", [check_model, check_prm, check_hub_model])
def test_without_a_network_one_error_names_the_model(check, capfd: pytest.CaptureFixture[str]) -> None:
    reason = rf"^{NAME}: is neither a folder on this machine nor in the Hub's cache \(.*cache\), and the Hub cannot be"
    with pytest.raises(
        CheckpointError, match=rf"{reason} reached \(\w+: .*\); give the folder .* `hf download {NAME}`"
    ):
        check(NAME)
    assert "Retrying" not in capfd.readouterr().err


def test_a_model_is_checked_before_it_is_loaded() -> None:
    with pytest.raises(CheckpointError, match="is neither a folder"), model_errors(NAME):
        raise AssertionError("nothing is loaded")


def test_a_cached_model_is_used_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache/models--owner--cached"
    (folder / "snapshots/abc").mkdir(parents=True)
    (folder / "snapshots/abc/config.json").write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("abc")
    monkeypatch.setenv("HF_HUB_OFFLINE", "")  # restored after the test
    check_hub_model("owner/cached")
    assert constants.is_offline_mode()
    assert os.environ["HF_HUB_OFFLINE"] == "1", "engines in other processes use the cache too"


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (
            404,
            "RepoNotFound",
            "is neither a folder on this machine nor a model on the Hub; correct the name, or, for a",
        ),
        (403, "GatedRepo", "its owner grants access on request"),
    ],
)
def test_hub_errors_are_explained(answer: dict[str, object], status: int, code: str, said: str) -> None:
    answer |= {"status": status, "code": code}
    with pytest.raises(CheckpointError, match=f"^{NAME}: {said}"):
        check_hub_model(NAME)


@pytest.mark.parametrize(("status", "body"), [(500, b"{}"), (200, b"<html>"), (200, b"{}")])
def test_other_answers_are_left_to_the_loader(answer: dict[str, object], status: int, body: bytes) -> None:
    answer |= {"status": status, "code": "", "body": body}
    check_hub_model(NAME)
    assert answer["asked"], "the Hub was asked, and its answer rejects nothing"
    assert not constants.is_offline_mode()


@pytest.mark.parametrize("name", ["a-folder", "/no/such/folder", "one/two/three", ""])
def test_paths_are_not_looked_up(answer: dict[str, object], name: str, tmp_path: Path) -> None:
    (tmp_path / "a-folder").mkdir()
    check_hub_model(name)
    assert answer["asked"] == []
