"""Queue the requests of a RolloutPool and dispatch each to the least loaded engine."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from mmprm.errors import EngineStoppedError

INTERRUPT_SECONDS = 0.5
"""Interval between interrupts of the requests in flight. One may not reach a request that is about to start."""


@dataclass(slots=True, eq=False)
class Slot:
    """Tracks one engine of the pool and its load. `actor` is None while no engine is running."""

    name: str
    actor: Any = None
    responses: int = 0
    """Number of responses in flight."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    n: int
    version: int | None
    slot: asyncio.Future[Slot]


class Slots:
    """Assigns rollout requests to engines.

    Each engine takes up to `capacity` responses in flight; `version` is the weights version of all engines.
    """

    def __init__(self, slots: Sequence[Slot], capacity: int, version: int) -> None:
        self.all, self.version = tuple(slots), version
        self.failure: str | None = None
        """Reason why requests can no longer be assigned, or None if they can."""
        self._capacity = capacity
        self._waiting: deque[_Waiting] = deque()
        self._next: int | None = None
        self._changing = False
        self._idle = asyncio.Event()

    async def take(self, n: int, version: int | None, first: bool = False) -> Slot:
        """Wait until an engine has capacity for `n` responses, and return the least loaded one.

        Without a version, any version will do, and a change to the next one does not wait for this request.

        Groups wait here instead of in an engine, so that the first engine with free capacity can take them. `first`
        puts the request at the front of the queue, for groups whose engine died and for interrupted responses.
        """
        waiting = _Waiting(n, version, asyncio.get_running_loop().create_future())
        (self._waiting.appendleft if first else self._waiting.append)(waiting)
        self.fill()
        try:
            return await waiting.slot
        except asyncio.CancelledError:
            if waiting.slot.done() and not waiting.slot.cancelled():
                self.give_back(waiting.slot.result(), n)
            raise

    def give_back(self, slot: Slot, n: int) -> None:
        """Release the capacity for `n` responses."""
        slot.responses -= n
        self.fill()

    def fail(self, reason: str) -> None:
        """Fail all waiting and future requests with EngineStoppedError(reason)."""
        self.failure = reason
        self.fill()

    def fill(self) -> None:
        """Assign engines to waiting requests in order. Requests that must wait for the next version do not block the
        others."""
        for waiting in () if self._changing else tuple(self._waiting):
            if waiting.slot.done():
                pass
            elif self.failure is not None:
                waiting.slot.set_exception(EngineStoppedError(self.failure))
            elif self._next is not None and waiting.version in (None, self._next):
                continue
            elif waiting.version not in (None, self.version):
                message = f"version {waiting.version} was requested, but the engines have {self.version}"
                waiting.slot.set_exception(AssertionError(message))
            elif (slot := self._least_loaded(waiting.n)) is not None:
                slot.responses += waiting.n
                waiting.slot.set_result(slot)
            else:
                break
            self._waiting.remove(waiting)
        if self._is_idle():
            self._idle.set()

    @asynccontextmanager
    async def change_to(
        self, version: int, interrupt: Callable[[], Awaitable[None]] | None = None
    ) -> AsyncIterator[None]:
        """Wait until all requests for the current version are complete, then run the `with` block.

        Requests for `version`, or for any version, wait until the block ends. `interrupt` is called repeatedly while
        requests are in flight.
        """
        assert self._next is None, "one change at a time"
        self._next = version
        try:
            while not self._is_idle():
                self._idle.clear()
                if interrupt is not None:
                    await interrupt()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._idle.wait(), None if interrupt is None else INTERRUPT_SECONDS)
            self._changing = True
            yield
            self.version = version
        finally:
            self._next, self._changing = None, False
            self.fill()

    def _is_idle(self) -> bool:
        """Return True if no request for the current version is waiting or in flight."""
        present = self.version if self.version != self._next else None
        waiting = any(each.version == present and not each.slot.done() for each in self._waiting)
        return not waiting and not any(slot.responses for slot in self.all)

    def _least_loaded(self, n: int) -> Slot | None:
        """Return the least loaded engine if it has capacity for `n` responses.

        An idle engine takes a group of any size.
        """
        occupied = [slot for slot in self.all if slot.actor is not None]
        slot = min(occupied, key=lambda slot: slot.responses, default=None)
        return slot if slot and slot.responses + n <= max(n, self._capacity) else None
