"""Estimate the cost of an annotation campaign from a pilot run on a few dozen of its problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmprm.errors import DataError
from mmprm.metrics import Interval, bootstrap_mean
from mmprm.trees.tallies import ProblemTally


@dataclass(frozen=True, slots=True)
class CampaignEstimate:
    """Describes a campaign's expected totals, with 95% bootstrap intervals over the pilot's problems.

    `tokens_per_engine_second` and `engine_hours` are None if the pilot recorded no engine time. `pilot_open` counts the
    pilot's unfinished problems, which are excluded.
    """

    problems: int
    pilot_problems: int
    pilot_open: int
    labels: Interval
    rollouts: Interval
    tokens: Interval
    store_bytes: Interval
    tokens_per_engine_second: float | None
    engine_hours: Interval | None

    def wall_hours(self, engines: int) -> Interval | None:
        """Return the wall-clock hours with `engines` engines, assuming that all stay busy until the end."""
        return _scaled(self.engine_hours, 1 / engines) if self.engine_hours else None


def estimate_campaign(
    pilot: Sequence[ProblemTally],
    engine_seconds: float,
    store_bytes: int,
    problems: int,
    seed: int = 0,
    resamples: int = 2000,
) -> CampaignEstimate:
    """Estimate each total of a campaign: its mean over the pilot's finished problems, multiplied by `problems`.

    Engine time is tokens divided by the pilot's rate, Σ tokens / `engine_seconds`. The store's file size
    (`store_bytes`) is divided among problems in proportion to their compressed bytes. Raises DataError if fewer than
    two problems are finished.
    """
    ended = [tally for tally in pilot if tally.status != "open"]
    if len(ended) < 2:
        raise DataError(
            f"{len(ended)} problems of the pilot have ended, must be at least 2; annotate a few dozen problems to the "
            "end"
        )

    def total(amounts: Sequence[int]) -> Interval:
        return _scaled(bootstrap_mean(amounts, seed, resamples), problems)

    tokens = total([tally.tokens for tally in ended])
    rate = sum(tally.tokens for tally in pilot) / engine_seconds if engine_seconds > 0 else None
    overhead = store_bytes / sum(tally.bytes for tally in pilot)
    return CampaignEstimate(
        problems=problems,
        pilot_problems=len(ended),
        pilot_open=len(pilot) - len(ended),
        labels=total([tally.labels for tally in ended]),
        rollouts=total([tally.rollouts for tally in ended]),
        tokens=tokens,
        store_bytes=_scaled(total([tally.bytes for tally in ended]), overhead),
        tokens_per_engine_second=rate,
        engine_hours=_scaled(tokens, 1 / rate / 3600) if rate else None,
    )


def plan_text(plan: CampaignEstimate, pilot: str, engines: int | None) -> str:
    """Format the estimate as a table with a note on its intervals."""
    rows = [
        ("labels", plan.labels, ",.0f"),
        ("rollouts", plan.rollouts, ",.0f"),
        ("tokens", plan.tokens, ",.0f"),
        ("engine-hours", plan.engine_hours, ",.2f"),
        (f"hours, {engines} engines", plan.wall_hours(engines) if engines else None, ",.2f"),
        ("store, GiB", _scaled(plan.store_bytes, 2**-30), ",.3f"),
    ]
    lines = [f"Estimate for {plan.problems:,} problems from {plan.pilot_problems:,} problems of {pilot}"]
    lines += [
        f"{name:<20}{interval.value:>16{style}}   ({interval.low:{style}} to {interval.high:{style}})"
        for name, interval, style in rows
        if interval is not None
    ]
    if plan.tokens_per_engine_second:
        lines.append(
            "Ranges are 95 % bootstrap intervals over problems.\nThe range of engine-hours treats the pilot's rate of "
            f"{plan.tokens_per_engine_second:,.0f} tokens per second per engine as exact and is therefore too narrow.\n"
            "A short pilot keeps its engines less busy than a long run."
        )
    else:
        lines.append("Ranges are 95 % bootstrap intervals over problems. The pilot recorded no engine time.")
    if plan.pilot_open:
        lines.append(
            f"{plan.pilot_open:,} problems of the pilot are still open. Short searches end first, so let the pilot "
            "finish for an unbiased estimate."
        )
    return "\n".join(lines)


def _scaled(interval: Interval, factor: float) -> Interval:
    return Interval(interval.value * factor, interval.low * factor, interval.high * factor)
