"""Evaluate k samples per question: unbiased pass@k and majority voting.

Shapes: n samples of one question, c of them correct.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from mmprm.types import Verdict


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the unbiased estimate of P(at least one of k samples is correct), given c correct among n ≥ k samples.

    pass@k = 1 - C(n - c, k) / C(n, k). Source: Chen et al., Evaluating Large Language Models Trained on Code,
    equation 1.
    """
    if not 1 <= k <= n:
        raise ValueError(f"k={k} must be between 1 and n={n}; choose a smaller k")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def majority_share(answers: Sequence[str | None], verdicts: Sequence[Verdict]) -> float:
    """Return 1 if the most frequent answer is correct, else 0; on a tie, the fraction of tied answers that are correct.

    Samples with no answer do not vote. If there are no votes, the result is 0.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    correct = {answer for answer, verdict in zip(answers, verdicts, strict=True) if verdict is Verdict.CORRECT}
    most = max(votes.values())
    # Random tie-breaking would add noise; the fraction of correct winners is its expectation.
    winners = [answer for answer, count in votes.items() if count == most]
    return sum(answer in correct for answer in winners) / len(winners)


def sizes(samples: int) -> list[int]:
    """Return the sample counts to report: 1, 2, 4, … up to the number of samples, and that number itself."""
    return sorted({*(2**power for power in range(samples.bit_length()) if 2**power <= samples), samples})
