"""Track the bytes and solutions in flight per IP address, and the Prometheus metrics of the scoring service."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mmprm.scoring.http.limits import MIB, ServiceLimits
from mmprm.scoring.http.refused import Refused


@dataclass
class Traffic:
    """Counts the requests, bytes and solutions that the service has received but not yet answered.

    `requests` counts only scoring requests that have arrived completely; `bytes` also counts those still arriving.
    """

    limits: ServiceLimits
    requests: int = 0
    bytes: Tally[str] = field(default_factory=Tally)
    solutions: Tally[str] = field(default_factory=Tally)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Count a request as in flight inside the `with` block."""
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    def check_bytes(self, address: str, more: int) -> None:
        """Raise Refused (429) if `more` bytes would exceed the limit of the whole service or of this address."""
        limits = self.limits
        most = limits.in_flight_mib * MIB
        self._check(self.bytes, address, more, most, limits.per_address(most, limits.body_mib * MIB), "bytes")

    @contextmanager
    def holding(self, address: str, solutions: int) -> Iterator[None]:
        """Count solutions as in flight inside the `with` block; raise Refused (429) if they would exceed a limit."""
        limits = self.limits
        most = limits.per_address(limits.in_flight, limits.solutions)
        self._check(self.solutions, address, solutions, limits.in_flight, most, "solutions")
        self.solutions[address] += solutions
        try:
            yield
        finally:
            self.release(self.solutions, address, solutions)

    def release(self, held: Tally[str], address: str, count: int) -> None:
        """Subtract `count` from the entry of an address in `held`, and delete the entry when it reaches 0."""
        held[address] -= count
        if not held[address]:
            del held[address]

    def _check(self, held: Tally[str], address: str, more: int, most: int, share: int, name: str) -> None:
        for whose, count, bound in (("", held.total(), most), ("of this address ", held[address], share)):
            if count + more > bound:
                text = (
                    f"{count:,} {name} {whose}are not answered yet, but at most {bound:,} are accepted; try again later"
                )
                raise Refused(429, "busy", text)


class Metrics:
    """Holds the service's Prometheus metrics in a separate registry."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        one = {"registry": self._registry}
        self.requests = Counter("mmprm_requests", "Answered requests", ["path", "status"], **one)
        self.errors = Counter("mmprm_errors", "Rejected requests and solutions", ["type"], **one)
        self.seconds = Histogram("mmprm_request_seconds", "Latency of requests", ["path"], **one)
        self.queue = Gauge("mmprm_queue_solutions", "Solutions that wait for the model", **one)
        self.in_flight = Gauge("mmprm_in_flight_requests", "Requests for scoring that are not answered yet", **one)
        self.solutions = Counter("mmprm_solutions_scored", "Solutions that got scores", **one)
        self.steps = Counter("mmprm_steps_scored", "Steps that got a score", **one)
        sizes = [2**power for power in range(11)]
        self.batches = Histogram("mmprm_batch_solutions", "Solutions scored together", buckets=sizes, **one)
        self.ready = Gauge("mmprm_ready", "1 while requests are accepted", **one)

    def text(self) -> bytes:
        """Format all metrics in the Prometheus text format."""
        return generate_latest(self._registry)
