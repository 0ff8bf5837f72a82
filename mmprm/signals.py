"""Convert SIGTERM and Ctrl-C to an exception that unwinds the command, so that it releases its resources."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_NUMBERS = (signal.SIGTERM, signal.SIGINT)


class SigtermAsInterrupt:
    """Treats the first SIGTERM as Ctrl-C, which asyncio turns into a cancelled task and all other code sees as
    KeyboardInterrupt.

    `came` tells the two apart. Later signals are ignored, because the shutdown is in progress: an impatient supervisor
    sends SIGKILL. Only the main thread can receive signals.
    """

    came = False

    def __enter__(self) -> SigtermAsInterrupt:
        self._listening = threading.current_thread() is threading.main_thread()
        if self._listening:
            self._before = signal.signal(signal.SIGTERM, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        if self._listening:
            signal.signal(signal.SIGTERM, self._before)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if not self.came:
            self.came = True
            signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def kept_handlers() -> Iterator[None]:
    """Restore the handlers of SIGTERM and SIGINT at the end of the block: Ray and vLLM install their own, which end
    the process in the middle of its work."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
