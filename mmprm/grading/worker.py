"""What runs in the grader's worker processes; importing it loads no symbolic library."""

from __future__ import annotations

import logging
import resource
import signal

from mmprm.grading.comparison import Outcome, compare

KILLED_BY_TIMER = -signal.SIGPROF
"""Exit code of a worker that used up its time."""


def prepare(memory_bytes: int) -> None:
    """Set up a worker: bounded memory, math-verify quiet about time limits (this module has its own), tables warm."""
    from mmprm.grading.symbols import same

    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    same("2x", "x+x")


def compare_symbolically(gold: str, answer: str, seconds: float) -> Outcome:
    """Compare two answers within `seconds` of processor time, or die.

    Processor time makes the verdict independent of what else the machine does. The signal is not handled, since a
    handler in Python would wait for the very call that hangs.
    """
    from mmprm.grading.symbols import same

    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        return compare(gold, answer, same)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
