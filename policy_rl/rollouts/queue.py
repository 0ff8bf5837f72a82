"""Decide which engine gets which request, and when: the queue in front of the engines of a RolloutPool."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from mmprm.errors import EngineStoppedError


@dataclass(slots=True, eq=False)
class Seat:
    """Describe the slot of one engine. `actor` is None while the slot has no engine."""

    name: str
    actor: Any = None
    responses: int = 0
    """Number of responses in flight."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    n: int
    version: int
    seat: asyncio.Future[Seat]


class Seats:
    """Assign requests to engines.

    Each engine has a capacity of `room` responses in flight; `version` is that of the weights that all engines have.
    """

    def __init__(self, seats: Sequence[Seat], room: int, version: int) -> None:
        self.all, self.version = tuple(seats), version
        self.failure: str | None = None
        """Reason why requests can no longer be assigned, if so."""
        self._room = room
        self._waiting: deque[_Waiting] = deque()
        self._next: int | None = None
        self._changing = False
        self._idle = asyncio.Event()

    async def take(self, n: int, version: int, first: bool = False) -> Seat:
        """Return the least loaded engine as soon as one has capacity for `n` responses.

        Groups wait here instead of in an engine, so that the first engine with free capacity can take them. `first`
        puts a request whose engine died at the front of the queue.
        """
        waiting = _Waiting(n, version, asyncio.get_running_loop().create_future())
        (self._waiting.appendleft if first else self._waiting.append)(waiting)
        self.fill()
        try:
            return await waiting.seat
        except asyncio.CancelledError:
            if waiting.seat.done() and not waiting.seat.cancelled():
                self.give_back(waiting.seat.result(), n)
            raise

    def give_back(self, seat: Seat, n: int) -> None:
        """Release the capacity for `n` responses."""
        seat.responses -= n
        self.fill()

    def fail(self, reason: str) -> None:
        """Let all waiting and future requests fail with EngineStoppedError(reason)."""
        self.failure = reason
        self.fill()

    def fill(self) -> None:
        """Assign engines to the waiting requests in order; requests for the next version do not block the others."""
        for waiting in () if self._changing else tuple(self._waiting):
            if waiting.seat.done():
                pass
            elif self.failure is not None:
                waiting.seat.set_exception(EngineStoppedError(self.failure))
            elif waiting.version == self._next:
                continue
            elif waiting.version != self.version:
                message = f"version {waiting.version} is asked for, and the engines have {self.version}"
                waiting.seat.set_exception(AssertionError(message))
            elif (seat := self._roomiest(waiting.n)) is not None:
                seat.responses += waiting.n
                waiting.seat.set_result(seat)
            else:
                break
            self._waiting.remove(waiting)
        if self._is_idle():
            self._idle.set()

    @asynccontextmanager
    async def change_to(self, version: int) -> AsyncIterator[None]:
        """Run the block once all requests for the current version are complete.

        Requests for `version` wait until the block ends.
        """
        assert self._next is None, "one change at a time"
        self._next = version
        try:
            while not self._is_idle():
                self._idle.clear()
                await self._idle.wait()
            self._changing = True
            yield
            self.version = version
        finally:
            self._next, self._changing = None, False
            self.fill()

    def _is_idle(self) -> bool:
        """Return whether no request for the current version is waiting or in flight."""
        present = self.version if self.version != self._next else None
        waiting = any(each.version == present and not each.seat.done() for each in self._waiting)
        return not waiting and not any(seat.responses for seat in self.all)

    def _roomiest(self, n: int) -> Seat | None:
        """Return the least loaded engine if it has capacity for `n` responses.

        An idle engine takes a group of any size.
        """
        occupied = [seat for seat in self.all if seat.actor is not None]
        seat = min(occupied, key=lambda seat: seat.responses, default=None)
        return seat if seat and seat.responses + n <= max(n, self._room) else None
