"""Provide a Hugging Face Hub on loopback that creates repositories and accepts LFS and inline uploads and commits."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "x" * 34


class FakeHub:
    """Serves the fake Hub inside a `with` block. `repos` maps "models/owner/name" to the files of its last commit."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.cards: dict[str, dict[str, Any]] = {}
        self.stored: dict[str, bytes] = {}
        self.writable = {"me"}

    def __enter__(self) -> FakeHub:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub._get(self)

            def do_POST(self) -> None:
                hub._post(self)

            def do_PUT(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                assert hashlib.sha256(content).hexdigest() == self.path.split("/")[-1]
                hub.stored[self.path.split("/")[-1]] = content
                hub._answer(self, {})

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler, body: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(body).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def _get(self, request: BaseHTTPRequestHandler) -> None:
        model = request.path.removeprefix("/api/models/").partition("?")[0]
        known = model in self.cards
        body = {"id": model, "cardData": self.cards[model], "tags": [], "siblings": []} if known else {"error": "none"}
        self._answer(request, body, 200 if known else 404)

    def _post(self, request: BaseHTTPRequestHandler) -> None:
        text = request.rfile.read(int(request.headers["Content-Length"]))
        path = request.path.partition("?")[0]
        if request.headers["Authorization"] != f"Bearer {TOKEN}":
            self._answer(request, {"error": "Invalid credentials"}, 401)
        elif path == "/api/repos/create":
            self._answer(request, *self._create(json.loads(text)))
        elif path == "/api/validate-yaml":
            self._answer(request, {"warnings": [], "errors": []})
        elif path.endswith("/info/lfs/objects/batch"):
            self._answer(request, self._batch(json.loads(text)))
        else:
            repo, _, action = path.removeprefix("/api/").removesuffix("/main").rpartition("/")
            self._answer(request, *self._change(repo, action, text))

    def _create(self, asked: dict[str, Any]) -> tuple[dict[str, Any], int]:
        repo = f"{asked.get('type') or 'model'}s/{asked['organization']}/{asked['name']}"
        if asked["organization"] not in self.writable:
            return {"error": "You don't have the rights to create a repository there"}, 403
        if repo in self.repos:
            return {"error": "You already created this repository"}, 409
        self.repos[repo], self.private[repo] = {}, asked.get("visibility") == "private"
        return {"url": f"{self.url}/{repo.removeprefix('models/')}"}, 200

    def _batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        def upload(entry: dict[str, Any]) -> dict[str, Any]:
            return entry | {"actions": {"upload": {"href": f"{self.url}/storage/{entry['oid']}"}}}

        return {"transfer": "basic", "objects": [upload(entry) for entry in asked["objects"]]}

    def _change(self, repo: str, action: str, text: bytes) -> tuple[dict[str, Any], int]:
        if repo not in self.repos:
            return {"error": "Repository not found"}, 404
        if action == "preupload":
            big = (".safetensors", ".parquet")
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(big) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(text)["files"]
            ]
            return {"files": files}, 200
        for line in text.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.repos[repo][value["path"]] = self.stored[value["oid"]]
        return {"commitUrl": f"{self.url}/{repo}/commit/0", "commitOid": "0" * 40}, 200
