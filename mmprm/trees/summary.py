"""Compute the totals of a run store: problems, states, labels, rollouts, tokens and reasons."""

from __future__ import annotations

from dataclasses import dataclass

from mmprm.trees.database import Database
from mmprm.types import Counts


@dataclass(frozen=True, slots=True)
class StoreSummary:
    """Holds the totals of a run store.

    `labels` counts the distinct non-terminal labels of finished problems and, for other problems, the states with a
    known verdict so far. `shared_labels` is a lower bound on the number of labels that come from rollouts of other
    states: it omits the prefixes that became states after they had been labeled. The reason tables map each reason to
    its count.
    """

    problems: dict[str, int]
    ended: dict[str, int]
    states: int
    labels: int
    shared_labels: int
    counts: Counts
    tokens: int
    unknown_reasons: dict[str, int]
    unsplit_reasons: dict[str, int]

    @property
    def rollouts(self) -> int:
        """Return the total number of rollouts."""
        return self.counts.known + self.counts.unknown


def summarize(database: Database) -> StoreSummary:
    """Compute the totals of a run store from its database."""
    states, labels_so_far, own_labels = database.rows(
        "SELECT COUNT(*), TOTAL(known > 0 AND depth > 0 AND status != 'done'), "
        "TOTAL(known > 0 AND depth > 0 AND status = 'done') FROM "
        "(SELECT problem, depth, SUM(correct + incorrect) AS known FROM batches GROUP BY problem, state) "
        "JOIN problems ON problems.number = problem"
    )[0]
    labels_of_finished = database.rows("SELECT TOTAL(labels) FROM problems WHERE status = 'done'")[0][0]
    correct, incorrect, unknown, tokens = database.rows(
        "SELECT TOTAL(correct), TOTAL(incorrect), TOTAL(unknown), TOTAL(tokens) FROM batches"
    )[0]
    reasons = database.rows("SELECT kind, reason, count FROM reasons ORDER BY count DESC")
    return StoreSummary(
        problems={"open": 0, "done": 0, "failed": 0}
        | dict(database.rows("SELECT status, COUNT(*) FROM problems GROUP BY status")),
        ended=dict(database.rows("SELECT reason, COUNT(*) FROM problems WHERE status = 'done' GROUP BY reason")),
        states=states,
        labels=int(labels_of_finished + labels_so_far),
        shared_labels=max(0, int(labels_of_finished - own_labels)),
        counts=Counts(int(correct), int(incorrect), int(unknown)),
        tokens=int(tokens),
        unknown_reasons={reason: count for kind, reason, count in reasons if kind == "unknown"},
        unsplit_reasons={reason: count for kind, reason, count in reasons if kind == "unsplit"},
    )
