"""Strip terminal escape sequences from printed text, which may come from servers, data sets and policies."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
"""Matches a complete escape sequence: color, cursor movement, title or link."""
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Matches control characters except tab and line feed, bidirectional overrides, and lone surrogates."""


def plain_text(text: str, keep: str = "") -> str:
    """Strip escape sequences from a text, and write other control characters as escapes, such as \\x1b."""
    return _UNPRINTABLE.sub(
        lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], _SEQUENCE.sub("", text)
    )


class PlainStream:
    """Wraps a stream and strips escape sequences from its output.

    `raw` is the wrapped stream, for code that controls the terminal on purpose.
    """

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw

    def write(self, text: str) -> int:
        """Write a text without its escape sequences."""
        self.raw.write(plain_text(text, keep="\r"))  # progress bars use carriage returns
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write lines without their escape sequences."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


@contextlib.contextmanager
def plain_output() -> Iterator[None]:
    """Strip escape sequences from everything that this process prints inside the `with` block."""
    with (
        contextlib.redirect_stdout(PlainStream(sys.stdout)),  # type: ignore[type-var]
        contextlib.redirect_stderr(PlainStream(sys.stderr)),  # type: ignore[type-var]
    ):
        yield


def raw(stream: TextIO) -> TextIO:
    """Return the stream that a PlainStream wraps, or any other stream unchanged."""
    return getattr(stream, "raw", stream) if isinstance(stream, PlainStream) else stream
