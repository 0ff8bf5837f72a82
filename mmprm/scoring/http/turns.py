"""Share one scorer fairly among clients, no matter how much each has submitted."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(order=True)
class _Request(Generic[T]):
    """Holds one request of a client; requests are ordered by weight already served, remaining weight, and arrival."""

    served: float
    left: float
    number: int
    items: deque[tuple[T, float]] = field(compare=False)


class FairQueue(Generic[T]):
    """Implements a fair queue over clients: in each turn, one item of one client is served.

    Clients take turns, one item per turn. Among a client's requests, the one that has been served least is next; of
    equals, the smallest. A small request thus waits for at most one item of each earlier, larger request instead of for
    all of their items.
    """

    def __init__(self) -> None:
        self._callers: dict[str, list[_Request[T]]] = {}  # the first client is next; each list is a heap
        self._numbers = itertools.count()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, caller: str, items: Iterable[tuple[T, float]]) -> None:
        """Add a request, given as (item, weight) pairs in the order in which they must be served."""
        waiting = deque(items)
        if waiting:
            left = sum(weight for _, weight in waiting)
            heapq.heappush(self._callers.setdefault(caller, []), _Request(0.0, left, next(self._numbers), waiting))
            self._length += len(waiting)

    def peek(self) -> tuple[T, float]:
        """Return the next item and its weight."""
        return next(iter(self._callers.values()))[0].items[0]

    def pop(self, free: bool = False) -> T:
        """Remove and return the next item; with `free`, the client keeps its turn and the item's weight is not counted.

        `free` is meant for items whose results nobody waits for anymore.
        """
        caller, requests = next(iter(self._callers.items()))
        request = requests[0]
        item, weight = request.items.popleft()
        self._length -= 1
        if free:
            weight = 0.0
        request.served += weight
        request.left -= weight
        if request.items:
            heapq.heapreplace(requests, request)
        else:
            heapq.heappop(requests)
        if not free:
            del self._callers[caller]  # moves to the end
        if requests:
            self._callers[caller] = requests
        else:
            self._callers.pop(caller, None)
        return item
