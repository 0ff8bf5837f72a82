"""The uvicorn server of the scoring service: limits on connections, and how it shuts down."""

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
"""For answers that are still on their way to a slow reader when everything is computed."""


class Server(uvicorn.Server):
    """Goes on answering while it closes: what has been taken is finished, what is new gets 503.

    What the model's thread is at, a load or a batch, cannot be broken off: when it takes longer than it may, or this is
    asked a second time, the process ends with it. `limit` is the clock.
    """

    def __init__(self, service: Service, shutdown_seconds: float) -> None:
        super().__init__(
            uvicorn.Config(
                service.app,
                http=functools.partial(Connection, table=ConnectionTable(service.limits)),  # type: ignore[arg-type]
                loop="asyncio",
                ws="none",
                proxy_headers=False,  # a caller could take the address of another one
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
        self.limit = threading.Timer(shutdown_seconds + 2 * CLOSING_SECONDS, _end_at_once, ["it takes too long"])
        self.limit.daemon = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """The loop accepts a few connections in a row, so that those over the limit are closed before it accepts more;
        the system's queue of new ones is longer."""
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(BACKLOG)

    def handle_exit(self, sig: int, frame: object) -> None:
        if self._service.closing:
            _end_at_once("asked a second time")
        self._service.closing = True

    async def on_tick(self, counter: int) -> bool:
        service = self._service
        if (service.closing or service.failure is not None) and self._closes is None:
            logging.getLogger(__name__).info("closing; %d requests to finish", service.traffic.requests)
            self._closes = time.monotonic() + self._seconds
            self.limit.start()
        if self._closes is not None and (service.traffic.requests == 0 or time.monotonic() > self._closes):
            self.should_exit = True
        return await super().on_tick(counter)


def _end_at_once(why: str) -> None:
    """Threads and all; both backends compute in this process, so nothing is left behind."""
    logging.getLogger(__name__).warning("ends at once: %s", why)
    os._exit(1)
