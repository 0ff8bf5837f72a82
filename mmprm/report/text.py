"""Text of policies and data sets, made fit to be shown."""

from __future__ import annotations

import re

_UNPRINTABLE = re.compile(r"[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def printable(text: str) -> str:
    """Control characters, which no page may hold and which would command a terminal, and lone surrogates, which cannot
    be written, become the replacement character."""
    return _UNPRINTABLE.sub("\ufffd", text)
