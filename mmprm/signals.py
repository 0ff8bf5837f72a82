"""How a command ends on SIGTERM and Ctrl-C: as an exception that unwinds it, so that what it holds is given back."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_NUMBERS = (signal.SIGTERM, signal.SIGINT)


class SigtermAsInterrupt:
    """While it is open, the first SIGTERM acts as Ctrl-C, which asyncio turns into a cancelled task and everything else
    sees as KeyboardInterrupt; `came` tells the two apart. Later ones are ignored, as the end is under way: a supervisor
    that loses patience sends SIGKILL. Only a main thread can receive signals."""

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
    """Put the handlers of SIGTERM and SIGINT back at the end of the block: Ray and vLLM install their own, which end
    the process in the middle of whatever it does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
