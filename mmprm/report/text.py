"""Make text from policies and data sets safe to display."""

from __future__ import annotations

import re

_UNPRINTABLE = re.compile(r"[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def printable(text: str) -> str:
    """Replace control characters and lone surrogates with the replacement character U+FFFD.

    Control characters are invalid in a page, and a terminal would execute them. Lone surrogates cannot be encoded.
    """
    return _UNPRINTABLE.sub("\ufffd", text)
