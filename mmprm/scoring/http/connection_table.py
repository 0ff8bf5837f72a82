"""Limit connections to `mmprm serve` per IP address and in total, closing the oldest ones without a complete
request."""

from __future__ import annotations

import ipaddress
import logging
import os
import resource
import time
from collections import defaultdict
from typing import TYPE_CHECKING

from mmprm.scoring.http.limits import ServiceLimits

if TYPE_CHECKING:
    from mmprm.scoring.http.connections import Connection

RESERVED_FILES = 96
"""File descriptors reserved for images, logs, and connections that are accepted but not yet counted."""
LOG_SECONDS = 10.0

logger = logging.getLogger(__name__)


class ConnectionTable:
    """Tracks open connections per IP address. Those without a complete request may be closed to make room."""

    def __init__(self, limits: ServiceLimits) -> None:
        free = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _open_files() - RESERVED_FILES
        self.limits = limits
        self.max_total = max(8, min(limits.connections, free))
        self.max_per_address = max(4, min(limits.connections_per_address, self.max_total // 2))
        self._open: defaultdict[str, set[Connection]] = defaultdict(set)
        self._waiting: defaultdict[str, dict[Connection, None]] = defaultdict(dict)  # oldest first
        self._total = 0
        self._logged: dict[str, tuple[float, int]] = {}

    def add(self, connection: Connection) -> bool:
        """Register a new connection, closing an older one if the table is full.

        Returns False if none may be closed, because all others have a complete request.
        """
        address = connection.address
        full = len(self._open[address]) >= self.max_per_address
        if (full or self._total >= self.max_total) and not self._make_way(address if full else self._largest()):
            self._drop_empty(address)
            return False
        self._open[address].add(connection)
        self._waiting[address][connection] = None
        self._total += 1
        return True

    def remove(self, connection: Connection) -> None:
        """Remove a closed connection."""
        address = connection.address
        if connection in self._open.get(address, ()):
            self._open[address].remove(connection)
            self._waiting[address].pop(connection, None)
            self._total -= 1
            self._drop_empty(address)

    def answering(self, connection: Connection) -> None:
        """Protect a connection from being closed to make room, because its request is complete."""
        self._waiting[connection.address].pop(connection, None)

    def waiting(self, connection: Connection) -> None:
        """Allow an idle connection to be closed to make room; connections that have waited longer are closed first."""
        if connection in self._open.get(connection.address, ()):
            self._waiting[connection.address][connection] = None

    def log(self, event: str, address: str) -> None:
        """Log a kind of event at most once per LOG_SECONDS. The next line reports how many were suppressed."""
        at, count = self._logged.get(event, (float("-inf"), 0))
        now = time.monotonic()
        if now - at < LOG_SECONDS:
            self._logged[event] = (at, count + 1)
            return
        more = f"; {count:,} more of this kind since the last line" if count else ""
        logger.warning("%s: %s%s", address, event, more)
        self._logged[event] = (now, 0)

    def _make_way(self, address: str) -> bool:
        oldest = next(iter(self._waiting[address]), None)
        self.log(
            f"holds {len(self._open[address])} of {self.max_total} connections, its share; "
            + ("the oldest one without a complete request is closed" if oldest else "further ones are rejected"),
            address,
        )
        if oldest is None:
            return False
        self.remove(oldest)
        oldest.transport.abort()
        return True

    def _largest(self) -> str:
        return max(self._open, key=lambda address: len(self._open[address]))

    def _drop_empty(self, address: str) -> None:
        if not self._open[address]:
            del self._open[address]
            self._waiting.pop(address, None)


def address_of(host: str) -> str:
    """Return the IP address or IPv6 /64 network to which a client's connections are attributed."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 6 and address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)


def _open_files() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 64
