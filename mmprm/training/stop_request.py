"""SIGTERM as a wish: the run ends after the step at hand, with everything saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

from mmprm.training.ranks import Ranks


class StopRequest:
    """While it is open, SIGTERM is noted instead of ending the process; only a main thread can receive it."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks, self._noted = ranks, False
        self._listening = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> StopRequest:
        if self._listening:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._listening:
            signal.signal(signal.SIGTERM, self._before)

    def came(self) -> bool:
        """Whether any rank was asked; the same on all of them. Every rank must call it."""
        return self._ranks.sum(self._noted)[0] > 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = True
