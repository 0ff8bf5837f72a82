"""Parse the JSON body of a request in bounded memory."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from mmprm.scoring.http.refused import Refused

_MAX_KEYS = 16
_TOKEN = re.compile(rb'"[^"]*+"?|[\[{,]')
"""Matches a string without escapes, or a character that begins or separates JSON values."""


def bounded_route(parse: Callable[[bytes], Awaitable[Any]]) -> type[APIRoute]:
    """Create a FastAPI route class that parses request bodies with `parse`, outside the event loop."""

    class BoundedRequest(Request):
        async def json(self) -> Any:
            return await parse(await self.body())

    class BoundedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def bounded(request: Request) -> Response:
                return await handle(BoundedRequest(request.scope, request.receive))

            return bounded

    return BoundedRoute


def parse_body(body: bytes, max_values: int) -> Any:
    """Parse a JSON body in bounded memory; numbers become 0, because no request field is numeric.

    Raises Refused for more than `max_values` values and separators, before any object is created. Also raises it for a
    body that is not UTF-8 or not JSON (which excludes NaN), and for a duplicate key.
    """
    if _too_many(body, max_values):
        text = f"the body holds more than {max_values:,} JSON values and separators; send fewer solutions at once"
        raise Refused(422, "too_large", text)
    try:
        text = body.decode()
        return json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_number, parse_float=_number
        )
    except json.JSONDecodeError as error:
        raise Refused(
            422,
            "invalid_request",
            f"the body is not JSON: {error.msg} (character {error.pos:,}); send the JSON of one request",
        ) from None
    except (UnicodeDecodeError, RecursionError) as error:
        is_text = not isinstance(error, UnicodeDecodeError)
        why = (
            "it is nested too deeply; send the objects that /docs shows"
            if is_text
            else "it is not UTF-8; encode it in UTF-8"
        )
        raise Refused(400, "invalid_request", f"the body cannot be read as JSON: {why}") from None


def _too_many(body: bytes, most: int) -> bool:
    if sum(map(body.count, (b"[", b"{", b",", b'"'))) <= most:  # includes those within strings
        return False
    unescaped = body.replace(rb"\\", b"").replace(rb"\"", b"")
    return any(number >= most for number, _ in enumerate(_TOKEN.finditer(unescaped)))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(pairs) > _MAX_KEYS:
        raise Refused(
            422,
            "invalid_request",
            f"an object has {len(pairs):,} keys, but at most {_MAX_KEYS} are accepted; remove unknown ones",
        )
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Refused(422, "invalid_request", f"the key {twice[:50]!a} occurs twice in one object; remove one of them")
    return values


def _constant(name: str) -> Any:
    raise Refused(422, "invalid_request", f"the body is not JSON: {name} is not a JSON number; send a finite one")


def _number(_: str) -> int:
    return 0
