"""Where the final answer stands in a response."""

from __future__ import annotations

import re

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_PHRASE = re.compile(r"final answer is\s*:?\s*(.+?)(?=\.(?:\s|$)|\n|$)", re.IGNORECASE)
_BOX = re.compile(r"\\f?box(?:ed)?\s*\{")
_WORD = re.compile(r"(?<!\\)\b[^\W\d_]{2,}")


LONGEST = 20_000
DEEPEST_BOXES = 20


def extract(response: str) -> str | None:
    """The last `<answer>…</answer>`, else the last balanced `\\boxed{…}`, else what follows "final answer is".

    Boxes are opened: `<answer>$\\boxed{24}$</answer>` gives `$24$`. None when there is no answer or it is empty. Only
    the end of a very long response is read.
    """
    response = response[-LONGEST:]
    if tagged := _ANSWER.findall(response):
        answer = open_boxes(tagged[-1])
    elif boxes := boxed(response):
        answer = open_boxes(boxes[-1])
    elif phrases := _PHRASE.findall(response):
        answer = phrases[-1].strip(" *")
    else:
        return None
    return answer.strip() or None


def boxed(text: str) -> list[str]:
    """Contents of the balanced outermost `\\boxed{…}`, in order."""
    return [text[start:end] for _, start, end in _boxes(text)]


def open_boxes(text: str, depth: int = 0) -> str:
    """Without box commands; among words, the last box alone is the answer."""
    boxes = _boxes(text) if depth < DEEPEST_BOXES else []
    if not boxes:
        return text
    outside, pieces, last = "", "", 0
    for begin, start, end in boxes:
        outside += text[last:begin]
        pieces += text[last:begin] + text[start:end]
        last = end + 1
    outside, pieces = outside + text[last:], pieces + text[last:]
    return open_boxes(text[boxes[-1][1] : boxes[-1][2]] if _WORD.search(outside) else pieces, depth + 1)


def _boxes(text: str) -> list[tuple[int, int, int]]:
    """(begin of the command, start and end of its content) of each balanced outermost box."""
    found: list[tuple[int, int, int]] = []
    position = 0
    while match := _BOX.search(text, position):
        end = closing_brace(text, match.end())
        if end is None:
            position = match.end()
        else:
            found.append((match.start(), match.end(), end))
            position = end + 1
    return found


def closing_brace(text: str, start: int) -> int | None:
    """Index of the brace that closes the one before `start`; escaped braces do not count."""
    depth, position = 1, start
    while position < len(text):
        if text[position] == "\\":
            position += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return position
        position += 1
    return None
