"""A request, or one of its solutions, that gets an error for an answer."""

from __future__ import annotations

import re
from typing import Any

from starlette.exceptions import HTTPException

_OBJECT = re.compile(r"<([\w.]+) object at 0x[0-9a-fA-F]+>")


class Refused(HTTPException):
    """`kind` is the error's type on the wire. As an HTTPException it passes through FastAPI's reading of a body."""

    def __init__(self, status: int, kind: str, message: str, field: str | None = None) -> None:
        super().__init__(status, message)
        self.status, self.kind, self.field = status, kind, field

    def __str__(self) -> str:
        return self.detail

    def body(self) -> dict[str, Any]:
        return error_body(self.kind, self.detail, self.field)


def error_body(kind: str, message: str, field: str | None = None) -> dict[str, Any]:
    """Addresses of objects in this process, which libraries put into their messages, are left out."""
    return {"error": {"type": kind, "message": _OBJECT.sub(r"\1", message), "field": field}}
