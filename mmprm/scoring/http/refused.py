"""Define the exception that rejects a request or one of its solutions."""

from __future__ import annotations

import re
from typing import Any

from starlette.exceptions import HTTPException

_OBJECT = re.compile(r"<([\w.]+) object at 0x[0-9a-fA-F]+>")


class Refused(HTTPException):
    """Raised to reject a request or one of its solutions.

    `kind` is the error type in the response. The class derives from HTTPException to pass through FastAPI's body
    parsing.
    """

    def __init__(
        self, status: int, kind: str, message: str, field: str | None = None, tokens: int | None = None
    ) -> None:
        super().__init__(status, message)
        self.status, self.kind, self.field, self.tokens = status, kind, field, tokens

    def __str__(self) -> str:
        return self.detail

    def body(self) -> dict[str, Any]:
        """Return the error as a JSON object."""
        body = error_body(self.kind, self.detail, self.field)
        if self.tokens is not None:
            body["error"]["tokens"] = self.tokens
        return body


def error_body(kind: str, message: str, field: str | None = None) -> dict[str, Any]:
    """Format an error as a JSON object, without the object addresses in libraries' messages."""
    return {"error": {"type": kind, "message": _OBJECT.sub(r"\1", message), "field": field}}
