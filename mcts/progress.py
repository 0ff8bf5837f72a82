"""Report the progress of a running campaign and summarize it at the end."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mcts.config import CampaignConfig
from mmprm.files import whole_file
from mmprm.terminal import raw
from mmprm.trackers import Tracker
from mmprm.trees.serialization import StoredBatch, count_verdicts, state_key
from mmprm.trees.store import Finished
from mmprm.trees.summary import StoreSummary
from mmprm.types import Batch

PLAIN_LINE_SECONDS = 10.0
"""Seconds between two progress lines if the output is not a terminal."""


@dataclass(frozen=True, slots=True)
class CampaignSummary:
    """Summarizes a campaign: totals over the whole store, and counts and rates of the current run (`new_rollouts`, …).

    Rates are per second of `seconds`, which begin when the first engine is ready and exclude `startup_seconds`.
    """

    problems: dict[str, int]
    ended: dict[str, int]
    failures: dict[str, str]
    states: int
    labels: int
    rollouts: int
    rollouts_correct: int
    rollouts_incorrect: int
    rollouts_unknown: int
    tokens: int
    unknown_reasons: dict[str, int]
    unsplit_reasons: dict[str, int]
    new_rollouts: int
    new_tokens: int
    seconds: float
    startup_seconds: float
    tokens_per_second: float
    rollouts_per_second: float
    trees_in_flight_max: int
    workers: int
    workers_replaced: int

    def write(self, path: Path) -> None:
        """Write the summary as JSON, atomically."""
        with whole_file(path) as file:
            file.write(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")


@dataclass(slots=True)
class Progress:
    """Accumulates a campaign's totals from the workers' reports, to report progress without querying the store."""

    stored: StoreSummary
    workers: int = 0
    """Largest number of workers whose engines ran concurrently."""
    began: float = field(default_factory=time.monotonic)
    first_start: float | None = None
    in_flight: int = 0
    in_flight_max: int = 0
    workers_replaced: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    rollouts: int = 0
    tokens: int = 0
    labels: int = 0
    unknown: Counter[str] = field(default_factory=Counter)
    unsplit: Counter[str] = field(default_factory=Counter)
    _labeled: dict[str, set[bytes]] = field(default_factory=dict)
    """Maps each problem in flight to the states that are already counted as labels."""

    def started(self, problem_id: str, stored: Sequence[Batch]) -> None:
        """Record that a problem has started. `stored` contains its batches that are already in the store."""
        self.first_start = self.first_start or time.monotonic()
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        self._labeled[problem_id] = {
            state_key(batch.steps) for batch in stored if batch.steps and count_verdicts(batch.rollouts).known
        }

    def abandoned(self, problem_ids: Sequence[str]) -> None:
        """Record that the worker that was searching these problems died. The problems will be started again."""
        self.in_flight -= len(problem_ids)

    def reported(self, batches: Sequence[StoredBatch], finished: Sequence[Finished]) -> None:
        """Add the new batches and finished problems of a worker's report to the totals."""
        for batch in batches:
            self.rollouts += batch.counts.known + batch.counts.unknown
            self.tokens += batch.token_count
            for kind, reason in batch.reasons:
                (self.unknown if kind == "unknown" else self.unsplit)[reason] += 1
            known = self._labeled[batch.problem_id]
            if batch.depth and batch.counts.known and batch.state not in known:
                known.add(batch.state)
                self.labels += 1
        for end in finished:
            self.ended[end.status] += 1
            self.in_flight -= 1
            states = self._labeled.pop(end.problem_id)
            self.labels += end.labels - len(states) if end.status == "done" else 0

    def line(self, now: float | None = None) -> str:
        """Format the progress line: counts, tokens per second and the estimated time left."""
        seconds = self._seconds(now)
        done = self.stored.problems["done"] + self.ended["done"]
        failed = self.stored.problems["failed"] + self.ended["failed"]
        # A tree in flight counts as half done: true on average in a long campaign, and a small error at its start.
        completed = self.ended.total() + self.in_flight / 2
        remaining = sum(self.stored.problems.values()) - done - failed - self.in_flight / 2
        parts = [
            f"problems {done}/{sum(self.stored.problems.values())}" + (f" ({failed} failed)" if failed else ""),
            f"trees in flight {self.in_flight}",
            f"rollouts {self.stored.rollouts + self.rollouts:,}",
            f"{self.tokens / seconds:,.0f} tokens/s",
            f"labels {self.stored.labels + self.labels:,}",
            f"unknown {reasons(Counter(self.stored.unknown_reasons) + self.unknown)}",
            f"unsplittable {reasons(Counter(self.stored.unsplit_reasons) + self.unsplit)}",
            f"left {duration(remaining * seconds / completed) if completed and self.rollouts else 'unknown'}",
        ]
        return " · ".join(parts)

    def metrics(self) -> dict[str, float]:
        """Return the metrics to log: the campaign's totals and the current tokens per second."""
        return {
            "problems_done": self.stored.problems["done"] + self.ended["done"],
            "problems_failed": self.stored.problems["failed"] + self.ended["failed"],
            "rollouts": self.stored.rollouts + self.rollouts,
            "labels": self.stored.labels + self.labels,
            "rollouts_unknown": sum(self.stored.unknown_reasons.values()) + self.unknown.total(),
            "trees_in_flight": self.in_flight,
            "tokens_per_second": self.tokens / self._seconds(),
        }

    def summary(self, store: StoreSummary, failures: dict[str, str]) -> CampaignSummary:
        """Combine the store's totals and this run's totals into the campaign's summary."""
        seconds = self._seconds()
        return CampaignSummary(
            problems=store.problems,
            ended=store.ended,
            failures=failures,
            states=store.states,
            labels=store.labels,
            rollouts=store.rollouts,
            rollouts_correct=store.counts.correct,
            rollouts_incorrect=store.counts.incorrect,
            rollouts_unknown=store.counts.unknown,
            tokens=store.tokens,
            unknown_reasons=store.unknown_reasons,
            unsplit_reasons=store.unsplit_reasons,
            new_rollouts=self.rollouts,
            new_tokens=self.tokens,
            seconds=round(seconds, 2),
            startup_seconds=round((self.first_start or self.began) - self.began, 2),
            tokens_per_second=round(self.tokens / seconds, 1),
            rollouts_per_second=round(self.rollouts / seconds, 1),
            trees_in_flight_max=self.in_flight_max,
            workers=self.workers,
            workers_replaced=self.workers_replaced,
        )

    def _seconds(self, now: float | None = None) -> float:
        now = time.monotonic() if now is None else now
        return max(now - (self.first_start or now), 1e-3)


@contextmanager
def track_progress(progress: Progress, config: CampaignConfig) -> Iterator[None]:
    """Log the campaign's progress to the configured tracker, if any, while the `with` block runs."""
    if config.tracker is None:
        yield
        return
    resumes = progress.stored.rollouts > 0
    with (
        closing(Tracker(config.tracker, Path(config.output), config.resume_key(), resumes)) as tracker,
        _logged(progress, tracker),
    ):
        yield


@contextmanager
def _logged(progress: Progress, tracker: Tracker) -> Iterator[None]:
    """Log the campaign's metrics every 10 s in the `with` block and once at its end, using the rollout count as the
    step."""
    over = threading.Event()

    def log() -> None:
        metrics = progress.metrics()
        tracker.log({f"annotate/{name}": value for name, value in metrics.items()}, int(metrics["rollouts"]))

    def repeat() -> None:
        while not over.wait(PLAIN_LINE_SECONDS):
            log()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        log()


async def show_progress(progress: Progress) -> None:
    """Print the progress line until cancelled: updated in place on a terminal, otherwise a new line every 10 s."""
    if not sys.stderr.isatty():
        while True:
            await asyncio.sleep(PLAIN_LINE_SECONDS)
            if progress.in_flight:
                print(progress.line(), file=sys.stderr, flush=True)
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(file=raw(sys.stderr), stderr=True), auto_refresh=False) as live:
        while True:
            live.update(progress.line(), refresh=True)
            await asyncio.sleep(0.5)


def reasons(counts: Counter[str]) -> str:
    """Format counts as a total with its three most frequent reasons, for example `7 (time-out 5, no answer 2)`."""
    if not counts:
        return "0"
    commonest = ", ".join(f"{reason} {count:,}" for reason, count in counts.most_common(3))
    return f"{counts.total():,} ({commonest})"


def duration(seconds: float) -> str:
    """Format seconds as M:SS, or as H:MM:SS if they are an hour or more."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
