"""Send HTTP requests and read their responses in bounded memory."""

from __future__ import annotations

import email.utils
import json
import time
from dataclasses import dataclass
from typing import Any

import httpx

LONGEST_RETRY_AFTER = 300.0
_MAX_OBJECTS = 4_000_000
_MIB = 2**20


class Failure(Exception):  # noqa: N818 - the cause of an error, which callers see as SamplingError
    """Raised when an attempt to send a request fails. Failures are counted by `kind`, a short description without
    details."""

    def __init__(self, kind: str, detail: str = "", busy: bool = False, retry_after: float = 0.0) -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind, self.detail = kind, detail
        self.busy = busy
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """Holds the status, headers and body of an HTTP response."""

    status: int
    headers: httpx.Headers
    content: bytes

    @property
    def text(self) -> str:
        """Decode the body as text, replacing undecodable bytes."""
        return self.content.decode(errors="replace")

    def json(self) -> Any:
        """Parse the body as JSON.

        Raises ValueError if it is not JSON or has more objects than any valid response: each object takes about 60
        times its size in memory.
        """
        if self.content.count(b"{") + self.content.count(b"[") > _MAX_OBJECTS:
            raise ValueError("too many objects")
        return json.loads(self.content)

    @property
    def message(self) -> str:
        """Return the error message from a body in OpenAI's format, {"error": {"message": …}}, or else the whole
        body."""
        try:
            return str(self.json()["error"]["message"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return self.text

    @property
    def retry_after(self) -> float:
        """Return the delay in seconds from the Retry-After header (a number or a date), or 0 if there is none."""
        value = self.headers.get("Retry-After", "")
        try:
            seconds = float(value)
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
            except ValueError:
                return 0.0
        return min(max(seconds, 0.0), LONGEST_RETRY_AFTER) if seconds == seconds else 0.0


async def read_response(http: httpx.AsyncClient, request: httpx.Request, max_answer_mib: int) -> HttpResponse:
    """Send a request and read its response.

    Raises Failure if the body exceeds `max_answer_mib` or is compressed, because a few bytes can decompress to
    gigabytes.
    """
    response = await http.send(request, stream=True)
    try:
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            if response.status_code != 200:
                return HttpResponse(response.status_code, response.headers, b"(compressed)")
            raise Failure("answer is compressed", "unasked; switch it off at the server or its proxy")
        content = bytearray()
        async for part in response.aiter_raw():
            content += part
            if len(content) > max_answer_mib * _MIB:
                raise Failure("answer is too large", f"more than {max_answer_mib=}")
    finally:
        await response.aclose()
    return HttpResponse(response.status_code, response.headers, bytes(content))
