"""Convert SIGTERM and Ctrl-C to requests to save a checkpoint and stop after the current step."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType

from mmprm.training.ranks import Ranks

_NUMBERS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Records SIGTERM and the first Ctrl-C inside the `with` block instead of ending the process.

    A second Ctrl-C has its usual effect. Signals are only received in the main thread.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks, self._noted = ranks, False
        self._listening = threading.current_thread() is threading.main_thread()
        self.interrupted = False
        """Whether this rank received Ctrl-C."""

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
        """Return whether any rank was asked to stop, with the same result on all ranks. Every rank must call it."""
        return self._ranks.sum(self._noted)[0] > 0

    @property
    def name(self) -> str:
        """Return the signal's name for messages."""
        return "Ctrl-C" if self.interrupted else "SIGTERM"

    def _note(self, number: int, frame: FrameType | None) -> None:
        before = self._before[signal.SIGINT]
        if number == signal.SIGINT and self.interrupted and callable(before):
            before(number, frame)
        elif number == signal.SIGINT and not self.interrupted:
            self.interrupted = True
            if self._ranks.is_main:
                print(
                    "stopping after the current step; press Ctrl-C again to stop immediately",
                    file=sys.stderr,
                    flush=True,
                )
        self._noted = True
