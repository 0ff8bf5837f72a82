"""Report the status of a running or finished campaign, using only its store."""

from __future__ import annotations

import sys
import textwrap
import time
from collections import Counter
from dataclasses import dataclass

from mcts.progress import duration, reasons
from mmprm.trees.store import Store
from mmprm.trees.tallies import begun, is_being_written, sampled_after, sessions

FAILURES_SHOWN = 10
NAMES = 14


@dataclass(frozen=True, slots=True)
class CampaignStatus:
    """Describes a campaign's status as recorded in its store.

    Rollout and token rates cover the latest session and are None before its first commit. Label rates cover all
    sessions, because most labels are counted only when their problem is done. Shares are fractions of the problems that
    are done. `shared_labels` is defined as in StoreSummary. Times are seconds since 1970.
    """

    running: bool
    engines: int
    sessions: int
    last_commit: float | None
    problems: dict[str, int]
    begun: int
    ended: dict[str, int]
    share_too_easy: float | None
    share_too_hard: float | None
    failures: dict[str, str]
    states: int
    labels: int
    shared_labels: int
    rollouts: int
    verdicts: dict[str, int]
    tokens: int
    unknown_reasons: dict[str, int]
    unsplit_reasons: dict[str, int]
    rollouts_per_second: float | None
    tokens_per_second: float | None
    labels_per_second: float | None
    engine_hours: float
    labels_per_engine_hour: float | None
    seconds_left: float | None
    projected_end: float | None


def read_status(store: Store) -> CampaignStatus:
    """Compute the status of a campaign from its store."""
    summary = store.summary()
    runs = sessions(store)
    last = runs[-1] if runs else None
    sampled = sampled_after(store, last.batches_before) if last and last.seconds > 0 else None
    engine_seconds = sum(session.engine_seconds for session in runs)
    open_begun = begun(store)
    running = is_being_written(store)
    done = summary.problems["done"]
    # As in the driver's progress line, a problem that has begun counts as half done.
    completed = done + summary.problems["failed"] + open_begun / 2
    remaining = summary.problems["open"] - open_begun / 2
    seconds_left = None
    if last and last.engines and completed and engine_seconds:
        seconds_left = remaining * engine_seconds / completed / last.engines

    def rate(amount: int) -> float:
        assert last is not None
        return amount / last.seconds

    return CampaignStatus(
        running=running,
        engines=last.engines if last else 0,
        sessions=len(runs),
        last_commit=last.last if last else None,
        problems=summary.problems,
        begun=open_begun,
        ended=summary.ended,
        share_too_easy=summary.ended.get("too easy", 0) / done if done else None,
        share_too_hard=summary.ended.get("too hard", 0) / done if done else None,
        failures=store.failures(),
        states=summary.states,
        labels=summary.labels,
        shared_labels=summary.shared_labels,
        rollouts=summary.rollouts,
        verdicts={
            "correct": summary.counts.correct,
            "incorrect": summary.counts.incorrect,
            "unknown": summary.counts.unknown,
        },
        tokens=summary.tokens,
        unknown_reasons=summary.unknown_reasons,
        unsplit_reasons=summary.unsplit_reasons,
        rollouts_per_second=rate(sampled.rollouts) if sampled else None,
        tokens_per_second=rate(sampled.tokens) if sampled else None,
        labels_per_second=summary.labels / engine_seconds * last.engines if last and engine_seconds else None,
        engine_hours=engine_seconds / 3600,
        labels_per_engine_hour=summary.labels / (engine_seconds / 3600) if engine_seconds else None,
        seconds_left=seconds_left,
        projected_end=time.time() + seconds_left if seconds_left is not None and running else None,
    )


def status_text(status: CampaignStatus, run: str, now: float | None = None, width: int | None = None) -> str:
    """Format the status as text, wrapped to `width` columns if a width is given."""
    now = time.time() if now is None else now
    rows = [
        ("", f"{run}: {_state(status, now)}"),
        ("problems", _problems(status)),
        ("ended", _shares(status.ended)),
        ("labels", _labels(status)),
        ("rollouts", _rollouts(status)),
        ("unsplittable", reasons(Counter(status.unsplit_reasons))),
        ("rate", _rate(status)),
        ("left", _left(status)),
        ("failed", _failures(status, run)),
    ]
    lines = []
    for name, text in rows:
        for position, line in enumerate(text.splitlines()):
            margin = " " * (NAMES if name else 0)
            head = f"{'' if position else name:<{len(margin)}}"
            lines += textwrap.wrap(
                line, width or sys.maxsize, initial_indent=head, subsequent_indent=margin, break_on_hyphens=False
            )
    return "\n".join(lines)


def _state(status: CampaignStatus, now: float) -> str:
    if status.last_commit is None:
        return "engines are starting" if status.running else "no engine has committed anything yet"
    ago = f"last commit {duration(max(now - status.last_commit, 0))} ago"
    if status.running:
        return f"running on {status.engines} engine{'s' * (status.engines != 1)}, {ago}"
    return f"{'stopped' if status.problems['open'] else 'complete'}, {ago}"


def _problems(status: CampaignStatus) -> str:
    counts = status.problems
    parts = [f"{counts['done']:,} done", f"{counts['failed']:,} failed", f"{counts['open']:,} open"]
    return f"{', '.join(parts)} ({status.begun:,} begun) of {sum(counts.values()):,}"


def _shares(ended: dict[str, int]) -> str:
    total = sum(ended.values())
    most_first = sorted(ended.items(), key=lambda item: -item[1])
    return ", ".join(f"{reason} {count:,} ({count / total:.1%})" for reason, count in most_first)


def _labels(status: CampaignStatus) -> str:
    hourly = status.labels_per_engine_hour
    rate = f", {hourly:,.0f} per engine-hour ({status.engine_hours:,.2f} engine-hours)" if hourly is not None else ""
    shared = (
        f", at least {status.shared_labels:,} of them from rollouts of other states" if status.shared_labels else ""
    )
    return f"{status.labels:,} in {status.states:,} states{shared}{rate}"


def _rollouts(status: CampaignStatus) -> str:
    verdicts = status.verdicts
    unknown = reasons(Counter(status.unknown_reasons))
    return (
        f"{status.rollouts:,}: {verdicts['correct']:,} correct, {verdicts['incorrect']:,} incorrect, unknown {unknown}"
    )


def _rate(status: CampaignStatus) -> str:
    if status.rollouts_per_second is None:
        return ""
    return (
        f"{status.rollouts_per_second:,.1f} rollouts/s · {status.labels_per_second:,.2f} labels/s · "
        f"{status.tokens_per_second:,.0f} tokens/s"
    )


def _left(status: CampaignStatus) -> str:
    if not status.problems["open"] or status.seconds_left is None:
        return ""
    end = status.projected_end
    until = time.strftime(", until %d %B %H:%M", time.localtime(end)) if end else f" with {status.engines} engines"
    return duration(status.seconds_left) + until


def _failures(status: CampaignStatus, run: str) -> str:
    lines = [f"{problem_id}: {reason}" for problem_id, reason in status.failures.items()]
    more = f"… and {len(lines) - FAILURES_SHOWN} more (--json has all)" if len(lines) > FAILURES_SHOWN else ""
    again = f"run mmprm retry {run} to reopen them" if lines else ""
    return "\n".join(line for line in (*lines[:FAILURES_SHOWN], more, again) if line)
