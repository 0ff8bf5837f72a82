"""Run a grading worker process, which reads comparisons as JSON lines and answers each with one line.

Run as `python -m mmprm.grading.worker SECONDS MEMORY_BYTES`; importing this module loads no symbolic library.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from typing import Any, TextIO

READY = "ready"
KILLED_BY_TIMER = -signal.SIGPROF
"""Exit code of a worker that exceeded its CPU time limit."""


def main() -> None:
    """Answer comparisons from standard input until end of file."""
    seconds, memory_bytes = float(sys.argv[1]), int(sys.argv[2])
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output that a library prints must not be mistaken for a reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C, the command stops its workers itself
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    _prepare()
    _write(replies, READY)
    for line in sys.stdin:
        _write(replies, _answer(json.loads(line), seconds))


def _prepare() -> None:
    """Load and warm up the symbolic library, and silence its timeout warnings, because this module enforces its own
    limit."""
    from mmprm.grading.symbols import same_value

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    same_value(r"\int_0^1 x dx", r"\frac{1}{2}")


def _answer(request: dict[str, Any], seconds: float) -> dict[str, str]:
    """Compare two answers; a timer kills the process after `seconds` of CPU time.

    CPU time makes the verdict independent of other load on the machine. The signal is not handled, because a Python
    handler would wait for the very call that hangs.
    """
    from mmprm.grading.comparison import compare
    from mmprm.grading.symbols import same_value

    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        outcome = compare(request["gold"], request["answer"], same_value, request["labels"])
        return {"outcome": outcome.name}
    except Exception as error:
        return {"error": type(error).__name__}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _write(replies: TextIO, reply: Any) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
