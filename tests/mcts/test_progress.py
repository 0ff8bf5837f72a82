"""Test the progress line and the summary of a campaign."""

from __future__ import annotations

from mcts.progress import Progress
from mmprm.trees.serialization import pack_batch
from mmprm.trees.store import Finished
from mmprm.trees.summary import StoreSummary
from mmprm.types import Batch, Counts, Rollout, Verdict

STORED = StoreSummary(
    problems={"open": 3, "done": 1, "failed": 0},
    ended={"too easy": 1},
    states=1,
    labels=5,
    shared_labels=0,
    counts=Counts(correct=1000, incorrect=24),
    tokens=1,
    unknown_reasons={"time-out": 1},
    unsplit_reasons={},
)


def batch(steps: tuple[str, ...], *verdicts: Verdict) -> Batch:
    rollouts = tuple(Rollout((), verdict, 50, "", "no step", "time-out") for verdict in verdicts)
    return Batch("p", steps, 0, rollouts)


def test_line_by_hand() -> None:
    progress = Progress(STORED, workers=2)
    known = batch(("a",), Verdict.CORRECT, Verdict.UNKNOWN)
    progress.started("p", [known])
    progress.started("q", [])
    new = batch(("b",), Verdict.INCORRECT, Verdict.UNKNOWN)
    # Only b is a new label so far: a already was one, the root never is, and c has no known verdict. p will have four.
    reported = [known, new, batch((), Verdict.CORRECT), batch(("c",), Verdict.UNKNOWN)]
    progress.reported(list(map(pack_batch, reported)), [])
    progress.reported([], [Finished("p", "done", "search budget", 4), Finished("q", "failed", "no image")])
    assert progress.first_start is not None
    assert progress.line(now=progress.first_start + 100) == (
        "problems 2/4 (1 failed) · trees in flight 0 · rollouts 1,030 · 3 tokens/s · labels 8 · "
        "unknown 4 (time-out 4) · unsplittable 6 (no step 6) · left 0:50"
    )
    assert progress.in_flight_max == 2


def test_time_left_takes_a_tree_in_flight_as_half_done() -> None:
    progress = Progress(STORED)
    assert progress.line().endswith("left unknown")
    progress.started("p", [])
    progress.started("q", [])
    assert progress.first_start is not None
    assert progress.line(now=progress.first_start + 60).endswith("left unknown")
    progress.reported([pack_batch(batch(("a",), Verdict.CORRECT))], [])
    # Two half trees took 60 s; two half trees and one whole tree remain.
    assert progress.line(now=progress.first_start + 60).endswith("left 2:00")
