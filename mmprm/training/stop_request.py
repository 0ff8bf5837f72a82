"""SIGTERM and Ctrl-C as wishes: the run ends after the step at hand, with everything saved."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType

from mmprm.training.ranks import Ranks

_NUMBERS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """While it is open, SIGTERM and the first Ctrl-C are noted instead of ending the process; a second Ctrl-C does what
    it did before. Only a main thread can receive signals."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks, self._noted = ranks, False
        self._listening = threading.current_thread() is threading.main_thread()
        self.interrupted = False
        """Whether Ctrl-C came to this rank."""

    def __enter__(self) -> StopRequest:
        if self._listening:
            self._before = {number: signal.signal(number, self._note) for number in _NUMBERS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._listening:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def came(self) -> bool:
        """Whether any rank was asked; the same on all of them. Every rank must call it."""
        return self._ranks.sum(self._noted)[0] > 0

    @property
    def name(self) -> str:
        return "Ctrl-C" if self.interrupted else "SIGTERM"

    def _note(self, number: int, frame: FrameType | None) -> None:
        before = self._before[signal.SIGINT]
        if number == signal.SIGINT and self.interrupted and callable(before):
            before(number, frame)
        elif number == signal.SIGINT and not self.interrupted:
            self.interrupted = True
            if self._ranks.is_main:
                print("stopping after the step at hand; Ctrl-C again stops at once", file=sys.stderr, flush=True)
        self._noted = True
