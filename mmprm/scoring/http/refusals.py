"""Convert exceptions to the error responses of `mmprm serve`."""

from __future__ import annotations

from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from mmprm.scoring.http.refused import Refused
from mmprm.scoring.http.wire import ErrorOut, invalid

_KINDS = {401: "unauthorized", 403: "unauthorized", 404: "not_found", 408: "too_slow", 413: "too_large"}
"""Error types by HTTP status; every other status maps to invalid_request."""
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorOut, "description": text}
    for status, text in {
        401: "without the API key",
        408: "the body did not arrive in time",
        413: "the body is too large",
        422: "cannot be read, exceeds a limit, or cannot be scored",
        429: "too many requests are waiting; see Retry-After",
        431: "the header is too large",
        500: "the model failed on this solution",
        503: "the model is loading, the service is closing, or the model has failed",
    }.items()
}


def refused_for(error: Exception) -> Refused:
    """Convert an exception to the error response to send."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, RequestValidationError):
        return invalid(error.errors())
    if isinstance(error, HTTPException):
        # FastAPI raises 400 for an incomplete body.
        text = "the body cannot be read; send it again" if error.status_code == 400 else str(error.detail)
        refused = Refused(error.status_code, _KINDS.get(error.status_code, "invalid_request"), text)
        refused.headers = error.headers
        return refused
    return Refused(500, "internal", f"the service failed ({type(error).__name__}); see its log")
