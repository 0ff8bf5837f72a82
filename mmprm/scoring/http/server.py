"""Run the scoring service under uvicorn, with connection limits and graceful shutdown."""

from __future__ import annotations

import functools
import logging
import os
import socket
import threading
import time

import uvicorn

from mmprm.scoring.http.connection_table import ConnectionTable
from mmprm.scoring.http.connections import Connection
from mmprm.scoring.http.service import Service

ACCEPTED_AT_ONCE = 16


BACKLOG = 2048


CLOSING_SECONDS = 5
"""Maximum time in seconds for slow clients to receive their responses after all responses have been computed."""


class Server(uvicorn.Server):
    """Runs uvicorn with a graceful shutdown: accepted requests are finished, and new ones get 503.

    The model's thread cannot be interrupted while it loads or scores. If that exceeds the time limit, or if a second
    signal arrives, the process exits immediately. `limit` is the timer.
    """

    def __init__(self, service: Service, shutdown_seconds: float) -> None:
        super().__init__(
            uvicorn.Config(
                service.app,
                http=functools.partial(Connection, table=ConnectionTable(service.limits)),  # type: ignore[arg-type]
                loop="asyncio",
                ws="none",
                proxy_headers=False,  # a client could otherwise impersonate another address
                backlog=ACCEPTED_AT_ONCE,
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=CLOSING_SECONDS,
            )
        )
        self._service = service
        self._seconds = shutdown_seconds
        self._closes: float | None = None
        self.limit = threading.Timer(
            shutdown_seconds + 2 * CLOSING_SECONDS, _end_at_once, ["the time limit has passed"]
        )
        self.limit.daemon = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening, with a kernel backlog longer than the number of connections that the event loop accepts at
        once.

        The loop accepts few connections in a row, so that those over the limit are closed before it accepts more.
        """
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(BACKLOG)

    def handle_exit(self, sig: int, frame: object) -> None:
        """Begin the shutdown, or exit immediately on the second signal."""
        if self._service.closing:
            _end_at_once("second signal")
        self._service.closing = True

    async def on_tick(self, counter: int) -> bool:
        """Exit during shutdown once every accepted request is answered or the time limit has passed."""
        service = self._service
        if (service.closing or service.failure is not None) and self._closes is None:
            logging.getLogger(__name__).info("closing; %d requests remain", service.traffic.requests)
            self._closes = time.monotonic() + self._seconds
            self.limit.start()
        if self._closes is not None and (service.traffic.requests == 0 or time.monotonic() > self._closes):
            self.should_exit = True
        return await super().on_tick(counter)


def _end_at_once(why: str) -> None:
    """Exit the process without waiting for threads. Both backends run in this process, so no other process remains."""
    logging.getLogger(__name__).warning("exits without waiting: %s", why)
    os._exit(1)
