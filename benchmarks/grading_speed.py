"""Compare the grader's speed with Math-Verify's `parse` and `verify` on the same pairs in the same process.

easy       integers, fractions, decimals, a named value, a unit; half of them incorrect
symbolic   like easy, but one pair in five is an expression: a polynomial, a root or a multiple of pi
"""

from __future__ import annotations

import random
import statistics
import time

from math_verify import parse, verify

from mmprm.grading.symbolic import SymbolicGrader
from mmprm.types import Problem

SHARES = {"easy": 0.0, "symbolic": 0.2}
"""Fraction of answer pairs that are symbolic expressions, for each kind of test."""
RUNS = 5

Texts = tuple[str, str]
"""Pairs a gold answer with an answer to grade."""


def easy(rng: random.Random) -> Texts:
    n, off = rng.randint(1, 9999), rng.randint(0, 1)
    return rng.choice(
        [
            (str(n), str(n + off)),
            (rf"\frac{{{n}}}{{7}}", f"{n + off}/7"),
            (f"{n}.5", f"{2 * n + 1 + off}/2"),
            (f"x={n}", str(n + off)),
            (rf"{n}\text{{ cm}}", f"{n + off} cm"),
        ]
    )


def symbolic(rng: random.Random) -> Texts:
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    return rng.choice(
        [
            (f"{a}x^2+{b}x", f"x({a}x+{b})"),
            (rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{a * a * b}}}"),
            (rf"\frac{{{a}\pi}}{{{b}}}", rf"\frac{{{a}}}{{{b}}}\pi"),
            (f"(x+{a})(x-{b})", f"x^2+{a - b}x-{a * b}"),
        ]
    )


def pairs(count: int, share: float, seed: int) -> list[Texts]:
    rng = random.Random(seed)
    return [symbolic(rng) if rng.random() < share else easy(rng) for _ in range(count)]


def seconds_here(texts: list[Texts]) -> float:
    with SymbolicGrader() as grader:
        begun = time.perf_counter()
        grader.grade_many([(Problem("p", "", gold), f"<answer>{answer}</answer>") for gold, answer in texts])
        return time.perf_counter() - begun


def seconds_there(texts: list[Texts]) -> float:
    begun = time.perf_counter()
    for gold, answer in texts:
        values = [parse(f"${text}$", parsing_timeout=None) for text in (gold, answer)]
        verify(*values, timeout_seconds=None)
    return time.perf_counter() - begun


def speed_ups(count: int) -> dict[str, float]:
    """Return the grader's median speedup over Math-Verify for each kind of test."""
    ratios: dict[str, float] = {}
    for name, share in SHARES.items():
        runs = []
        for seed in range(RUNS):
            texts = pairs(count, share, seed)
            runs.append(seconds_there(texts) / seconds_here(texts))
        ratios[name] = round(statistics.median(runs), 2)
    return ratios
