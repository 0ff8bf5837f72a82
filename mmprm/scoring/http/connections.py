"""Limit the client connections of `mmprm serve`: their number, the size of headers, and the time to receive a request.

uvicorn's httptools protocol enforces none of these limits. Each connection here

- must send its headers within `header_seconds` and the body that follows within `body_seconds`;
- gets a 431 response if its headers exceed MAX_HEADER bytes;
- counts toward its address's share of all connections; the oldest one without a complete request is closed first;
- gets its response if the client has only stopped sending, and is aborted if the client has disconnected.
"""

from __future__ import annotations

import asyncio
import http
import json
import logging
import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mmprm.scoring.http.connection_table import ConnectionTable, address_of
from mmprm.scoring.http.limits import MAX_HEADER
from mmprm.scoring.http.refused import error_body

MAX_PIPELINED = 32
"""Maximum number of pipelined requests that may wait on one connection."""
LINGER_SECONDS = 2.0
LINGER_BYTES = 2**20
"""Maximum number of bytes to read and discard after a rejection, so that the client sees the response instead of a
reset."""
_PIECE = 2**14
_FIRST_PROBE, _NEXT_PROBE = 0.25, 1.0

_parser_logger = logging.getLogger(f"{__name__}.parser")
_parser_logger.setLevel(logging.ERROR)  # uvicorn warns about each malformed request without naming the cause


class Connection(HttpToolsProtocol):
    """Handles one client connection. `address` is the key for shares: an IPv6 client counts as its /64 network."""

    def __init__(self, *args: Any, table: ConnectionTable, **values: Any) -> None:
        super().__init__(*args, **values)
        self.logger = _parser_logger
        self.address = ""
        self._table, self._limits = table, table.limits
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._probe: asyncio.TimerHandle | None = None
        self._overhead = 0
        self._dropped: int | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # pause_writing is called once the client leaves bytes unread
        self.address = address_of(self.client[0] if self.client else "")
        if self._table.add(self):
            self._expect(self._limits.header_seconds)
        else:
            self._refuse(429, "busy", "too many connections from this address; close some, or try again later")
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._table.remove(self)
        for timer in (self._deadline, self._unread, self._probe):
            if timer is not None:
                timer.cancel()
        self._deadline = self._unread = self._probe = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._dropped is not None:
            self._dropped += len(data)
            if self._dropped > LINGER_BYTES:
                self.transport.abort()
            return
        if self._deadline is None and self._between_requests:
            self._expect(self._limits.header_seconds)
        start = 0
        while start < len(data):
            piece = data[start : start + min(_PIECE, MAX_HEADER + 1 - self._overhead)]
            start += len(piece)
            self._overhead += len(piece)
            super().data_received(piece)
            if self._dropped is not None or self.transport.is_closing():
                return
            if self._overhead > MAX_HEADER:
                self._refuse(
                    431, "too_large", f"the request's header is larger than {MAX_HEADER // 1024} KiB; shorten it"
                )
                return

    def eof_received(self) -> bool:
        """Keep the connection open for the response if a complete request is being answered."""
        cycle = self.cycle
        if self._dropped is not None or self.transport.is_closing():
            return False
        if cycle is None or cycle.response_complete or cycle.more_body:
            if self._overhead or (cycle is not None and cycle.more_body):
                self._refuse(400, "invalid_request", "the request ended before it was complete; send it again")
            return False
        cycle.keep_alive = False
        self._probe = self.loop.call_later(_FIRST_PROBE, self._probe_peer)
        return True

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests at once")  # the parser converts it to send_400_response
        self._overhead = 0
        super().on_headers_complete()
        self._expect(self._limits.body_seconds + LINGER_SECONDS)  # the application answers 408 before that

    def on_body(self, body: bytes) -> None:
        self._overhead = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._overhead = 0
        super().on_message_complete()
        self._expect(None)
        if not self.cycle.response_complete:
            self._table.answering(self)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:
            self._table.waiting(self)
            if self.cycle.more_body:  # rejected before the body had arrived
                self._expect(LINGER_SECONDS)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "invalid_request", "the request is not valid HTTP/1.1; correct it")

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(
                self._limits.answer_seconds, self._give_up, "does not read its response"
            )

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _unsupported_upgrade_warning(self) -> None:
        """Suppress uvicorn's warning about an unsupported protocol upgrade. The request is answered as if it did not
        ask for a protocol upgrade."""

    @property
    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect(self, seconds: float | None) -> None:
        """Set a timeout after which the connection is closed; None removes the timeout."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self._late)

    def _late(self) -> None:
        if self._overhead and self._dropped is None and self._between_requests:
            self._table.log("did not send a header in time", self.address)
            text = f"the header did not arrive within {self._limits.header_seconds:g} seconds; send it again"
            self._refuse(408, "too_slow", text)
        elif self._between_requests and self._dropped is None and self.cycle is None:
            self._give_up("sent nothing")
        else:
            self.transport.abort()

    def _give_up(self, why: str) -> None:
        self._table.log(why, self.address)
        self.transport.abort()

    def _refuse(self, status: int, kind: str, message: str) -> None:
        """Send an error response in place of the application, then briefly discard further data from the client."""
        if self.transport.is_closing():
            return
        answering = self.cycle is not None and not self.cycle.response_complete and self.cycle.response_started
        if answering or self.pipeline:
            self.transport.abort()  # this response could otherwise arrive in the middle of another one, or in its place
            return
        content = json.dumps(error_body(kind, message)).encode()
        head = (
            f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
        )
        self._dropped = 0
        self.transport.write(head.encode() + content)
        self._expect(LINGER_SECONDS)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _probe_peer(self) -> None:
        """Detect whether the client has disconnected or has only stopped sending.

        The two look alike until something is sent. Every HTTP/1.1 client skips an interim response, while the operating
        system of a disconnected client replies to it with a reset.
        """
        if self.transport.is_closing():
            return
        sock = self.transport.get_extra_info("socket")
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
            return
        if self.cycle.scope["http_version"] == "1.1" and not self.cycle.response_started:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._probe = self.loop.call_later(_NEXT_PROBE, self._probe_peer)
