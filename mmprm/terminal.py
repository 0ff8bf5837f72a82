"""Remove terminal commands from printed text: texts of servers, data sets and policies may hold escape sequences."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
"""Matches a complete command: color, cursor, title or link."""
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Matches control characters except tab and line feed, characters that reverse the text direction, and lone
surrogates."""


def plain_text(text: str, keep: str = "") -> str:
    """Return the text without terminal commands; other control characters are written out, such as \\x1b."""
    return _UNPRINTABLE.sub(
        lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], _SEQUENCE.sub("", text)
    )


class PlainStream:
    """Writes plain text to a stream. `raw` is the wrapped stream, for code that controls the terminal on purpose."""

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw

    def write(self, text: str) -> int:
        """Write the text without terminal commands."""
        self.raw.write(plain_text(text, keep="\r"))  # progress bars return to the start of their line
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write the lines without terminal commands."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


@contextlib.contextmanager
def plain_output() -> Iterator[None]:
    """Make everything that this process prints plain text for the duration of the block."""
    with (
        contextlib.redirect_stdout(PlainStream(sys.stdout)),  # type: ignore[type-var]
        contextlib.redirect_stderr(PlainStream(sys.stderr)),  # type: ignore[type-var]
    ):
        yield


def raw(stream: TextIO) -> TextIO:
    """Return the stream that a PlainStream wraps; any other stream is returned unchanged."""
    return getattr(stream, "raw", stream) if isinstance(stream, PlainStream) else stream
