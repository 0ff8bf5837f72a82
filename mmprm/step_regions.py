"""Find the parts of a text that no step boundary may cut: code blocks, LaTeX environments, and display math."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable

_OPENINGS = re.compile(
    r"^[^\S\n]*(?P<fence>`{3,}(?![^\n]*`)|~{3,})|\\begin\{(?P<name>[^{}\n]+)\}|(?P<bracket>\\\[)|<(?P<html>pre|code)>"
    r"|^[^\S\n]*(?P<dollars>\$\$)|(?P<last_dollars>\$\$)[^\S\n]*$",
    re.MULTILINE,
)
_CLOSINGS = {"bracket": "\\]", "dollars": "$$", "last_dollars": "$$"}
_FENCE_END = r"^[^\S\n]*{0}{{{1},}}[^\S\n]*$"
_ENVIRONMENT = re.compile(r"\\(begin|end)\{([^{}\n]+)\}")


def regions(text: str) -> tuple[list[tuple[int, int]], bool]:
    """Return the sorted (start, end) spans that must not be split, and whether the text ends inside one.

    Unclosed code blocks extend to the end of the text; unclosed LaTeX environments and display math are treated as
    text.
    """
    environments = _environments(text)
    spans: list[tuple[int, int]] = []
    position, open_kinds = 0, set()
    while opening := _OPENINGS.search(text, position):
        kind, start = opening.lastgroup, opening.end()
        if kind == "last_dollars" and _closes(text, opening.start()):
            position = start
            continue
        if kind == "name":
            end = environments.get(opening.start("name"))
        elif kind == "fence":
            closing = re.compile(_FENCE_END.format(opening["fence"][0], len(opening["fence"])), re.MULTILINE)
            found = closing.search(text, start)
            end = found.end() if found else len(text)
            open_kinds |= set() if found else {kind}
        else:
            mark = f"</{opening['html']}>" if kind == "html" else _CLOSINGS[kind]
            found = -1 if kind in open_kinds else text.find(mark, start)
            end = None if found < 0 else found + len(mark)
        if end is None:
            open_kinds.add(kind)
        else:
            spans.append((opening.start(), end))
        position = start if end is None else end
    return spans, bool(open_kinds)


def _closes(text: str, position: int) -> bool:
    """Return whether the `$$` at the end of a line closes math that was opened earlier on the line."""
    return text.count("$$", text.rfind("\n", 0, position) + 1, position) % 2 == 1


def _environments(text: str) -> dict[int, int]:
    """For each closed LaTeX environment, map the offset of its name to the offset of its end."""
    ends: dict[int, int] = {}
    begun: dict[str, list[int]] = {}
    for mark in _ENVIRONMENT.finditer(text):
        if mark[1] == "begin":
            begun.setdefault(mark[2], []).append(mark.start(2))
        elif begun.get(mark[2]):
            ends[begun[mark[2]].pop()] = mark.end()
    return ends


def outside(matches: Iterable[re.Match[str]], text: str) -> list[re.Match[str]]:
    """Return the matches that start outside all code blocks, LaTeX environments and display math."""
    spans = regions(text)[0]
    starts = [start for start, _ in spans]

    def is_outside(match: re.Match[str]) -> bool:
        span = bisect.bisect_left(starts, match.start()) - 1
        return span < 0 or match.start() >= spans[span][1]

    return [match for match in matches if is_outside(match)]
