"""What k samples of a question are worth: pass@k without bias, and the vote of the majority.

Shapes: n samples of one question, c of them correct.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from mmprm.types import Verdict


def pass_at_k(n: int, c: int, k: int) -> float:
    """pass@k = 1 - C(n - c, k) / C(n, k): P(at least one of k samples is correct), estimated without bias from n ≥ k
    samples of which c are correct (Chen et al., Evaluating Large Language Models Trained on Code, equation 1)."""
    if not 1 <= k <= n:
        raise ValueError(f"k={k} must be from 1 to n={n}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def majority_share(answers: Sequence[str | None], verdicts: Sequence[Verdict]) -> float:
    """Return whether the most frequent answer is correct: 1 or 0, or where several are equally frequent, the share of
    them that are. Samples without an answer do not vote; without any vote it is 0."""
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    correct = {answer for answer, verdict in zip(answers, verdicts, strict=True) if verdict is Verdict.CORRECT}
    most = max(votes.values())
    winners = [answer for answer, count in votes.items() if count == most]
    return sum(answer in correct for answer in winners) / len(winners)


def sizes(samples: int) -> list[int]:
    """1, 2, 4, … and the number of samples itself."""
    return sorted({*(2**power for power in range(samples.bit_length()) if 2**power <= samples), samples})
