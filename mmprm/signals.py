"""Convert SIGTERM and Ctrl-C into an exception, so that the command releases its resources."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_NUMBERS = (signal.SIGTERM, signal.SIGINT)


class SigtermAsInterrupt:
    """Handles the first SIGTERM like Ctrl-C: asyncio cancels the main task, and any other code gets a
    KeyboardInterrupt.

    `came` is True if a SIGTERM arrived, so callers can tell the two apart. Later SIGTERMs are ignored during the
    shutdown; an impatient supervisor can send SIGKILL. Only the main thread can receive signals.
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
    """Restore the current SIGTERM and SIGINT handlers at the end of the `with` block.

    Ray and vLLM install their own handlers, which kill the process mid-work.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
