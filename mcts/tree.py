"""Implement the mutable search tree of one problem.

It holds the states, the incorrect rollouts still to be searched for their first error, and the verdict counts of all
rollouts through each prefix.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from mcts.value import q, u
from mmprm.trees.evidence import VerdictTally, counts_of, tally_passing
from mmprm.trees.serialization import count_verdicts
from mmprm.types import Counts, Node, Rollout, Steps, Tree, Verdict


@dataclass(slots=True)
class State:
    """Represents a prefix and the rollouts sampled from it. `waiting` is a heap of (−Q, rollout index, rollout)."""

    number: int
    steps: Steps
    batches: tuple[Counts, ...]
    counts: Counts
    rollouts: tuple[Rollout, ...]
    visits: int = 0
    waiting: list[tuple[float, int, Rollout]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SearchCandidate:
    """Pairs a state with one of its incorrect rollouts, to be searched for its first error."""

    state: State
    rollout: Rollout
    priority: float


class SearchTree:
    """Holds the states of a search, and selects the candidate with the highest Q + U without comparing all candidates.

    A candidate is a (state, incorrect rollout) pair; see mcts.value for Q and U. U is equal for all states with
    the same visit count N(s), so among them the highest Q wins for any Σ N. The tree therefore has one heap of states
    by best Q for each visit count, and compares only the heads. A single heap by Q + U would become invalid whenever
    Σ N changes.
    """

    def __init__(self, alpha: float, beta: float, length_scale: float, c_puct: float) -> None:
        self._shape = (alpha, beta, length_scale)
        self._c_puct = c_puct
        self._heaps: dict[int, list[tuple[float, int]]] = {}
        self._numbered: list[State] = []
        self.states: dict[Steps, State] = {}
        self._through: dict[Steps, VerdictTally] = {}
        self._at_once: dict[Steps, int] = {}
        self.total_visits = 0
        self.total_rollouts = 0

    def add(self, steps: Steps, batches: Sequence[tuple[Rollout, ...]]) -> State:
        """Add a state with its rollouts. If its value is above 0, its incorrect rollouts become candidates.

        A rollout with a single step is not a candidate, because its error can only be in that step. Rollouts with equal
        steps are one candidate.
        """
        assert steps not in self.states, "identical step texts under one parent are one node"
        rollouts = tuple(rollout for batch in batches for rollout in batch)
        batch_counts = tuple(map(count_verdicts, batches))
        counts = sum(batch_counts, Counts())
        state = State(len(self._numbered), steps, batch_counts, counts, rollouts)
        for batch in batches:
            for prefix, tally in tally_passing(steps, batch).items():
                total = self._through.setdefault(prefix, [0, 0, 0])
                for verdict, count in enumerate(tally):
                    total[verdict] += count
                if batch is batches[0]:
                    self._at_once[prefix] = max(self._at_once.get(prefix, 0), counts_of(tally).known)
        self._numbered.append(state)
        self.states[steps] = state
        self.total_rollouts += len(rollouts)
        if counts.correct:
            incorrect = {r.steps: r for r in rollouts if r.verdict is Verdict.INCORRECT and len(r.steps) > 1}
            for position, rollout in enumerate(incorrect.values()):
                words = len("".join(rollout.steps).split())
                heapq.heappush(
                    state.waiting, (-q(counts.correct / counts.known, words, *self._shape), position, rollout)
                )
        self._queue(state)
        return state

    def through(self, steps: Steps) -> Counts:
        """Count the verdicts of other states' rollouts that pass through this prefix."""
        return counts_of(self._through.get(steps, [0, 0, 0]))

    def at_once(self, steps: Steps) -> int:
        """Return the largest number of graded rollouts in a single state's first batch that pass through the prefix
        `steps`.

        mmprm.trees.evidence may label the prefix from that batch.
        """
        return self._at_once.get(steps, 0)

    def select(self) -> SearchCandidate | None:
        """Remove and return the candidate with the highest Q + U, or None if none is left. Older states win ties."""
        best: tuple[float, int, int] | None = None
        for visits, heap in self._heaps.items():
            negative_q, number = heap[0]
            entry = (negative_q - u(self.total_visits, visits, self._c_puct), number, visits)
            best = entry if best is None else min(best, entry)
        if best is None:
            return None
        negative_priority, number, visits = best
        heapq.heappop(self._heaps[visits])
        if not self._heaps[visits]:
            del self._heaps[visits]
        state = self._numbered[number]
        rollout = heapq.heappop(state.waiting)[2]
        state.visits += 1
        self.total_visits += 1
        self._queue(state)
        return SearchCandidate(state, rollout, -negative_priority)

    def freeze(self, problem_id: str) -> Tree:
        """Return an immutable copy of the tree, with states in insertion order."""
        return Tree(problem_id, tuple(Node(s.steps, s.batches, s.rollouts) for s in self._numbered))

    def _queue(self, state: State) -> None:
        if state.waiting:
            heapq.heappush(self._heaps.setdefault(state.visits, []), (state.waiting[0][0], state.number))
