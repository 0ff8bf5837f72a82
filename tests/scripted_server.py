"""Provide an OpenAI-compatible server on loopback that follows a script: each request gets the script's next act."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Act:
    """Describes the response to one request: wait, then drop the connection or answer."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    wait: float = 0.0
    drop: bool = False


def says(*texts: str, **extra: Any) -> Act:
    """Return a chat completion with these texts. Keywords are added to each choice; `top` holds top-level fields."""
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        | extra.get("choice", {})
        for i, text in enumerate(texts)
    ]
    return Act(body=json.dumps({"choices": choices} | extra.get("top", {})).encode())


def error(status: int, message: str = "no", **headers: str) -> Act:
    return Act(status, json.dumps({"error": {"message": message}}).encode(), headers)


class ScriptedServer:
    """Serves inside a `with` block. The last act repeats; a function computes the answer from the request."""

    def __init__(self, *script: Act | Callable[[dict[str, Any]], Act]) -> None:
        self._script: Sequence[Act | Callable[[dict[str, Any]], Act]] = script
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.requests: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        self.times: list[float] = []
        self.open = self.open_max = 0

    def __enter__(self) -> ScriptedServer:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer._answer(self)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            assert handler.path == "/v1/chat/completions"
            act = self._script[min(len(self.requests), len(self._script) - 1)]
            self.requests.append(request)
            self.authorizations.append(handler.headers["Authorization"])
            self.times.append(time.monotonic())
            self.open += 1
            self.open_max = max(self.open_max, self.open)
        act = act if isinstance(act, Act) else act(request)
        self._over.wait(act.wait)
        with self._lock:
            self.open -= 1
        handler.close_connection = act.drop
        if not act.drop and not self._over.is_set():
            handler.send_response(act.status)
            for name, value in act.headers.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.send_header("Content-Length", str(len(act.body)))
            handler.end_headers()
            handler.wfile.write(act.body)
