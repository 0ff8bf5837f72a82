r"""Find the final answer in a response.

These candidates are tried in order:

1. the last `<answer>…</answer>`;
2. the last `\boxed{…}` (or boxes joined by "and");
3. the text after an announcing phrase ("the answer is", "Answer:", "#### ", "答案是", …);
4. a response or last line that is only an answer.

Thoughts are ignored, and an unfinished last answer means that there is no answer.
"""

from __future__ import annotations

import re

from mmprm.grading.labels import is_refusal

MAX_LENGTH = 20_000
"""Maximum number of characters to search, counted from the end of the response."""
MAX_BOX_DEPTH = 20
MAX_LINE = 300
"""Maximum number of characters in a line that counts as an answer by itself."""

_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL | re.IGNORECASE)
_BEGIN, _END = re.compile(r"<answer>", re.IGNORECASE), re.compile(r"</answer>", re.IGNORECASE)
_BOX = re.compile(r"\\f?box(?:ed)?\s*\{")
_WORD = re.compile(r"(?<!\\)\b(?!(?:and|or)\b)[^\W\d_]{2,}")
_BOX_JOINT = re.compile(
    r"[\s$,;.\\()\[\]、，]*(?:\\text\{\s*)?(?:\band\b|\bor\b|和|或|及)?\s*\}?(?:\s*\(\d\))?[\s$,;\\()\[\]]*(?:[a-z]\w*\s*=\s*)?"
)

_RUN = re.compile(r"([\s*_]{8})[\s*_]+")
"""Matches long runs of whitespace and emphasis marks, which have no meaning and would slow down the patterns below."""
_NOUN = r"(?:answer|solution|option|choice|result)s?"
_ANNOUNCEMENTS = re.compile(
    rf"""(?:
    \#\#\#\#(?!\#)\s*
    |\b(?:the|my|our)?\s*(?:final|correct|right|best)?\s*{_NOUN}\**\s*
        (?:(?:is|are|would\ be|must\ be)\s*(?:therefore|thus|option|choice)?\b\**\s*[::]?|[::])
    |\#+\s*(?:the\s+)?(?:final\s+)?answer\b[ ]*(?=\n)
    |(?:最终)?(?:答案\s*(?:是|为|应为|选)?\s*[::]?|结果\s*(?:[::]|是|为|应为))
    |(?:故|应|因此|所以)?选\s*(?:择|项)?\s*[::]?\s*(?=[\s(\($]*[A-J])
    )[\s*_]*""",
    re.IGNORECASE | re.VERBOSE,
)
_SENTENCE_END = re.compile(r"[.!](?:\s|\*|$)|。|\n")
_CONCLUSION = re.compile(r"(?:so|thus|hence|therefore|consequently|in conclusion|所以|因此|故)\b", re.IGNORECASE)
_PROSE_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}|[\u3040-\u9fff]{2,}")


def extract(response: str) -> str | None:
    """Return the final answer of a response with boxes removed, or None if the answer is missing or empty."""
    text = _RUN.sub(r"\1", without_thoughts(response[-MAX_LENGTH:]))
    for find in (_tagged, _boxed, _announced, _alone):
        found, answer = find(text)
        if found:
            return answer.strip() or None if answer else None
    return None


def open_gold(gold: str) -> str:
    """Remove the wrapper of a gold answer: tags, a box, `####` or "the answer is"."""
    text = without_thoughts(gold) if "</think>" in gold.lower() else gold
    for find in (_tagged, _boxed, _announced):
        found, answer = find(text)
        if found and answer and answer.strip():
            return answer.strip()
    return text.strip() or gold


def without_thoughts(text: str) -> str:
    """Remove each `<think>…</think>`, text up to a lone `</think>`, and text from a lone `<think>` on.

    A lone `<think>` stays if the text ends with `</answer>`. Some prompts end with `<think>`, so responses may lack it.
    """
    text = _THOUGHT.sub("", text)
    _, closed, tail = text.rpartition("</think>")
    text = tail if closed else text
    begin = text.lower().find("<think>")
    if begin >= 0 and not text.rstrip().lower().endswith("</answer>"):
        return text[:begin]
    return text


Found = tuple[bool, str]
"""A (found, text) pair: whether a response contains this kind of answer, and the answer's text. An empty text means
that the response has no answer."""


def _tagged(text: str) -> Found:
    begins = [match.end() for match in _BEGIN.finditer(text)]
    ends = [match.start() for match in _END.finditer(text)]
    if not begins:
        return False, ""
    if not ends or ends[-1] < begins[-1]:
        return True, ""
    last_end = next(end for end in ends if end >= begins[-1])
    return True, open_boxes(text[begins[-1] : last_end])


def _boxed(text: str) -> Found:
    boxes, unfinished = _boxes(text)
    if unfinished:
        return True, ""
    if not boxes:
        return False, ""
    joined = _joined(text, boxes)
    answers = [open_boxes(text[start:end]).strip() for _, start, end in joined]
    return True, ", ".join(answers) if len(set(answers)) > 1 else answers[-1]


def _announced(text: str) -> Found:
    """Return the text after the last announcing phrase, up to the end of the sentence or displayed formula."""
    for match in reversed(list(_ANNOUNCEMENTS.finditer(text))):
        rest = text[match.end() :].lstrip()
        if rest.startswith(("$$", r"\[")):
            answer = re.split(r"\$\$|\\\]", rest[2:], maxsplit=1)[0]
        else:
            answer = _SENTENCE_END.split(rest, maxsplit=1)[0]
        answer = answer.strip().strip("*_").strip()
        if answer:
            return True, answer
        if not rest:  # announced, but not finished
            return True, ""
    return False, ""


def _alone(text: str) -> Found:
    """Return the only line of a response, or its last line if that is a bare value or begins like a conclusion."""
    lines = [line.strip().strip("*_#").strip() for line in text.strip().splitlines()]
    lines = [line for line in lines if line]
    if not lines or len(lines[-1]) > MAX_LINE or is_refusal(lines[-1]):
        return False, ""
    last = lines[-1]
    bare = not _PROSE_WORD.search(last) or _CONCLUSION.match(last)
    return (True, last.rstrip(".。")) if len(lines) == 1 or bare else (False, "")


def boxed(text: str) -> list[str]:
    r"""Return the contents of the outermost balanced `\boxed{…}` commands, in order."""
    return [text[start:end] for _, start, end in _boxes(text)[0]]


def open_boxes(text: str, depth: int = 0) -> str:
    """Remove the box commands from a text. If the text contains words, return only its last box (or boxes joined by
    "and")."""
    boxes, _ = _boxes(text) if depth < MAX_BOX_DEPTH else ([], False)
    if not boxes:
        return text
    outside, pieces, last = "", "", 0
    for begin, start, end in boxes:
        outside += text[last:begin]
        pieces += text[last:begin] + text[start:end]
        last = end + 1
    outside, pieces = outside + text[last:], pieces + text[last:]
    if _WORD.search(outside):
        pieces = ", ".join(text[start:end] for _, start, end in _joined(text, boxes))
    return open_boxes(pieces, depth + 1)


Box = tuple[int, int, int]
"""Character offsets of a box: the start of its command, and the start and end of its content."""


def _joined(text: str, boxes: list[Box]) -> list[Box]:
    """Return the last box, along with any boxes that are joined to it only by commas or "and"."""
    first = len(boxes) - 1
    while first and _BOX_JOINT.fullmatch(text[boxes[first - 1][2] + 1 : boxes[first][0]]):
        first -= 1
    return boxes[first:]


def _boxes(text: str) -> tuple[list[Box], bool]:
    """Return the outermost balanced boxes, and whether the last box is unclosed."""
    commands = list(_BOX.finditer(text))
    if not commands:
        return [], False
    closing = closing_braces(text)
    found: list[Box] = []
    unfinished = False
    for match in commands:
        if found and match.start() < found[-1][2]:
            continue
        end = closing.get(match.end() - 1)
        unfinished = end is None
        if end is not None:
            found.append((match.start(), match.end(), end))
    return found, unfinished


def closing_braces(text: str) -> dict[int, int]:
    """Map the index of each opening brace to that of its closing brace, ignoring escaped braces."""
    pairs: dict[int, int] = {}
    opened: list[int] = []
    for match in _BRACE.finditer(text):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            pairs[opened.pop()] = match.start()
    return pairs


_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
