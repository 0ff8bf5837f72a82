"""Split responses into steps, marked by tags, blank lines or numbers. All code specific to these formats is in this
module."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mmprm.step_regions import outside, regions
from mmprm.types import Steps

StepFormat = Literal["tags", "blank_lines", "numbered", "thoughts"]
"""Step format of a response. tags: `<step>…</step>` (also `<step_3>…</step_3>`, `<Step 3>`, `<step id="3">`);
blank_lines: paragraphs, in which code blocks, LaTeX environments and display math stay whole; numbered: `Step 1:`, `###
Step 1`, `步骤1：`, `第一步`, `1.`, `1)`, `(1)` at the start of a line, with consecutive numbers; thoughts: parts of a
long chain of thought. They are paragraphs, joined until a step has MIN_THOUGHT_CHARACTERS; a paragraph such as
`Wait, …` or `Alternatively, …` and the answer after `</think>` always begin a step."""
MIN_THOUGHT_CHARACTERS = 200
"""Number of characters, without surrounding whitespace, from which a step of a chain of thought is long enough."""

_TAG = re.compile(r"<[^\S\n]*(/?)[^\S\n]*step(?:[\s_-]?\d{1,4}|\s+\w+=[^<>\n]{1,40})?[^\S\n]*>", re.IGNORECASE)
_PARTIAL_TAG = re.compile(r"<(?:/?[a-z][^<>\n]{0,45}|/)?\Z", re.IGNORECASE)
_LINE_BREAKS = re.compile(r"(?:\s*[\r\n])?")
_BLANK_LINES = re.compile(r"\n[^\S\n]*\n(?:\s*[\r\n])?")
_NOTHING = re.compile(r"\s*(?:[-*_=]{3,}\s*)?")
_THINK_START = re.compile(r"<think(?:ing)?>")
_THINK_END = re.compile(r"</think(?:ing)?>(?:\s*[\r\n])?")
_TURN_OF_THOUGHT = re.compile(
    r"\s*(?:(?:but|oh|ok(?:ay)?|so|no|hmm+|well)\b[\s,.…]*)?"
    r"(?:wait|alternatively|hmm+|hold on|actually|on second thought|another (?:approach|method|way)"
    r"|let(?:'s| me| us) (?:(?:double|re)-?check|check|verify|reconsider|rethink|try))\b",
    re.IGNORECASE,
)
"""Matches the beginning of a paragraph that questions what came before it, or that takes another approach."""
_SPACE = r"[^\S\n]*"
_ENGLISH = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_ROMAN = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x")
_WORDS = {word: number for words in (_ENGLISH, _ROMAN) for number, word in enumerate(words, start=1)}
_HAN = {name: number for number, name in enumerate("一二三四五六七八九十", start=1)}
_HAN_COUNT = rf"[{''.join(_HAN)}]{{1,3}}"
_COUNT = rf"\d{{1,3}}|{'|'.join(sorted(_WORDS, key=len, reverse=True))}|{_HAN_COUNT}"
_AFTER = r"(?=[\s\\$*\"'“(（【《<]|[^\W\d_]|$)"
"""Lookahead for text that may follow a step number; digits (3.5, 1:30) and operators may not."""
_STEP = r"step|步[骤驟]|ステップ|手順|단계|шаг|étape|etape|schritt|paso|passo|bước"
_OPEN = r"\*{1,3}|__?|</?(?:b|strong)>|\\(?:textbf|paragraph|(?:sub)*section)\*?\{"
_CLOSE = r"\*{1,3}|__?|</?(?:b|strong)>|\}"
_NUMBER = re.compile(
    rf"^(?P<indent>{_SPACE})(?P<think><think(?:ing)?>{_SPACE})?(?:[-*+•>][^\S\n]+)?(?:\#+{_SPACE})?(?P<bold>{_OPEN})?(?:"
    rf"(?P<open>[\[(（【]{_SPACE})?"
    rf"(?P<word>(?:{_STEP}){_SPACE}[-_\#]?(?P<count>{_COUNT})(?:{_SPACE}(?:/|of){_SPACE}\d+)?"
    rf"|第{_SPACE}(?P<nth>{_COUNT}){_SPACE}步|(?P<before>\d{{1,3}}){_SPACE}단계)"
    rf"(?(open){_SPACE}[\])）】](?P<closed_open>{_CLOSE})?[.:：]?|(?P<closed>{_CLOSE})?"
    rf"(?:{_SPACE}(?:[.:](?!\d)|[)：、，。．])|[^\S\n]+[-–—](?!\d)|[-–—](?=\s)|—(?!\d)|(?={_SPACE}(?:[(（]|$))|(?<=步)))"
    rf"|(?P<other>[(（](?P<inner>\d{{1,3}}|{_HAN_COUNT})[)）][.:：]?|[①-⑳]){_AFTER}"
    rf"|(?:(?P<digits>\d{{1,3}}){_SPACE}[.:)：）、．]{_AFTER}|(?P<han>{_HAN_COUNT})[、．])"
    rf")(?P<closed_after>{_CLOSE})?{_SPACE}",
    re.IGNORECASE | re.MULTILINE,
)
_ANSWER_LINE = re.compile(
    rf"^{_SPACE}(?:<answer>|\#{{4}}[^\S\n]+[-+\d$\\(\[]"
    rf"|(?:\#+{_SPACE}(?:\*\*)?|\*\*)(?:conclusion|final[^\S\n]+result|结论){_SPACE}(?:\*\*)?{_SPACE}(?:[:：]|$)"
    rf"|(?:[-*+•][^\S\n]+)?(?:"
    rf"(?:\#+{_SPACE}(?:\*\*)?|\*\*)(?:the[^\S\n]+)?(?:final[^\S\n]+)?answer\b(?![^\S\n]+(?:is|to|of|choices?)\b)"
    rf"|(?:final[^\S\n]+)?answer{_SPACE}(?::|$)"
    rf"|(?:\#+{_SPACE})?(?:\*\*)?(?:最终)?答案{_SPACE}(?:\*\*)?{_SPACE}(?:[:：]|$)))",
    re.IGNORECASE | re.MULTILINE,
)
_ANSWER_SENTENCE = re.compile(
    rf"^{_SPACE}(?:(?:so|thus|hence|therefore),?[^\S\n]+)?(?:the[^\S\n]+)?(?:(?:final|correct)[^\S\n]+)?answer[^\S\n]+is"
    r"\b[^\n]*\s*\Z",
    re.IGNORECASE | re.MULTILINE,
)
"""Matches a last line such as `The answer is 5.`, with which many language models end a numbered solution."""


@dataclass(frozen=True, slots=True)
class StepSplit:
    """Holds the steps of a text, or the reason why the text cannot be split.

    Either `"".join(steps)` is the text and `reason` is None, or `steps` is empty and `reason` is set.
    """

    steps: Steps
    reason: str | None = None


def split(text: str, step_format: StepFormat, *, truncated: bool = False) -> StepSplit:
    """Split a response, or a continuation that begins at a step boundary, into steps that concatenate to the same text.

    With tags, text before a step's tag belongs to that step, and the text after the last step (the answer) is a
    separate step. Line breaks after a step stay with it, and indentation starts the next step. Any other boundary would
    cut tokens of byte-level vocabularies, for example `>\\n` and ` -`. Reasons: "empty", "no step", "unclosed step",
    "nested step", "stray end of step", "unclosed answer".

    If the text is `truncated` by a token limit, its last step may lack its end, as in formats without tags.
    """
    if not text.strip():
        return StepSplit((), "empty")
    if step_format == "tags":
        return _split_tags(text, truncated)
    return _SPLITTERS[step_format](text)


def plain(step: str, step_format: StepFormat, *, truncated: bool = False) -> str:
    """Remove the step markup and surrounding whitespace from a step, but keep its answer tags.

    If the step is `truncated`, the beginning of a tag at its end is removed, too.
    """
    if step_format == "tags":
        step = _TAG.sub("", _PARTIAL_TAG.sub("", step) if truncated else step)
    elif step_format == "numbered" and not _ANSWER_LINE.match(step):
        step = _NUMBER.sub(_left_of_mark, step, count=1)
    return step.strip()


def plain_split(text: str, step_format: StepFormat) -> StepSplit:
    """Split a response into plain steps, or return the reason why it cannot be split."""
    found = split(text, step_format)
    steps = tuple(plain(step, step_format) for step in found.steps)
    return StepSplit(steps, found.reason) if all(steps) else StepSplit((), "empty step")


def write_steps(steps: Iterable[str], step_format: StepFormat) -> StepSplit:
    """Write plain steps in a step format, so that the text splits into these steps. Steps in the format are kept.

    A last step with an answer tag or an answer line gets no markup. If the text would split otherwise, for example
    because a step contains a blank line, the reason is "other steps".
    """
    steps = tuple(steps)
    found = split("".join(steps), step_format)
    if found.steps == steps:
        return found
    found = split(_WRITERS[step_format]([step.strip() for step in steps]), step_format)
    same = [plain(step, step_format) for step in found.steps] == [step.strip() for step in steps]
    return found if same else StepSplit((), found.reason or "other steps")


def _write_tags(steps: list[str]) -> str:
    return "".join(f"{step}\n" if "<answer>" in step else f"<step>{step}</step>\n" for step in steps)


def _write_numbers(steps: list[str]) -> str:
    numbered = enumerate(steps, start=1)
    return "".join(f"{step}\n" if _ANSWER_LINE.match(step) else f"Step {n}: {step}\n" for n, step in numbered)


def _left_of_mark(mark: re.Match[str]) -> str:
    """Return the parts of a step marker that a plain step keeps: <think>, and ** if the bold text ends after the
    marker."""
    opens_bold = mark["bold"] and not (mark["closed"] or mark["closed_open"] or mark["closed_after"])
    return (mark["think"] or "") + (mark["bold"] if opens_bold else "")


def _split_tags(text: str, truncated: bool) -> StepSplit:
    boundaries, inside = [], False
    for tag in _TAG.finditer(text):
        closes = tag[1] == "/"
        if closes != inside:
            return StepSplit((), "stray end of step" if closes else "nested step")
        inside = not closes
        if closes:
            boundaries.append(_LINE_BREAKS.match(text, tag.end()).end())
    if inside and not truncated:
        return StepSplit((), "unclosed step")
    tail = text[boundaries[-1] :] if boundaries else text
    if "<answer>" in tail and "</answer>" not in tail and not truncated:
        return StepSplit((), "unclosed answer")
    if not boundaries and not inside and "<answer>" not in text:
        return StepSplit((), "no step")
    if truncated and not plain(tail, "tags", truncated=True).removeprefix("<answer>"):
        boundaries = boundaries[:-1]  # the limit was reached in or right after a tag
    return StepSplit(_cut(text, boundaries))


def ends_with_step_tag(text: str) -> bool:
    """Return whether the text ends with a closing step tag."""
    tag = _TAG.fullmatch(text, max(text.rfind("<"), 0))
    return tag is not None and bool(tag[1])


def ends_within(text: str) -> bool:
    """Return whether the text ends inside a code block, a LaTeX environment or display math, so that no step can end
    there."""
    return regions(text)[1]


def _split_blank_lines(text: str) -> StepSplit:
    """Split at blank lines, except inside a code block, a LaTeX environment or display math."""
    return StepSplit(_cut(text, (match.end() for match in outside(_BLANK_LINES.finditer(text), text))))


def _split_thoughts(text: str) -> StepSplit:
    """Split a chain of thought at those blank lines where the step before is long enough or the thought takes a turn,
    and at the end of the thoughts.

    Whether a boundary ends a step depends only on the text since the last boundary and on the paragraph after it, so a
    continuation of the same text splits into the remaining steps. A code block that the thoughts leave open ends with
    them.
    """
    ends_of_thoughts = [match.end() for match in _THINK_END.finditer(text)]
    boundaries, start = [], 0
    for part_start, part_end in itertools.pairwise((0, *ends_of_thoughts, len(text))):
        part = text[part_start:part_end]
        blank_lines = {part_start + match.end() for match in outside(_BLANK_LINES.finditer(part), part)}
        for end in sorted({*blank_lines, part_end}):
            step = text[start:end].strip()
            if not step or _THINK_START.fullmatch(step) or text.startswith("</think", end):
                continue  # a tag alone is no step
            if len(step) >= MIN_THOUGHT_CHARACTERS or end == part_end or _TURN_OF_THOUGHT.match(text, end):
                boundaries.append(end)
                start = end
    return StepSplit(_cut(text, boundaries))


def trace_length(steps: Sequence[str]) -> int | None:
    """Return the number of steps up to the end of the chain of thought (`</think>`), or None if it does not end."""
    return next((n for n, step in reversed(list(enumerate(steps, start=1))) if _THINK_END.search(step)), None)


def _split_numbered(text: str) -> StepSplit:
    """Split the text at step numbers.

    A number that breaks the sequence, or is not formatted like the first one, belongs to a list within a step.
    """
    starts, last = [], None
    for match in _alike(outside(_NUMBER.finditer(text), text)):
        number = _value(match)
        if last is None or number == last + 1:
            starts.append(match.start())
            last = number
    answers = [match.start() for match in outside(_ANSWER_LINE.finditer(text), text)[-1:]]
    answers = [answer for answer in answers if not starts or answer > starts[-1]]
    sentence = None if answers or not starts else _ANSWER_SENTENCE.search(text, starts[-1])
    if sentence is not None:
        answers = [match.start() for match in outside([sentence], text) if match.start() > starts[-1]]
    if not starts and not answers:
        return StepSplit((), "no step")
    # Text before the first number belongs to the first step.
    return StepSplit(_cut(text, sorted({*starts[1:], *answers})))


def _alike(marks: list[re.Match[str]]) -> list[re.Match[str]]:
    """Return the markers with the word "Step" or, if there are none, the markers formatted like the first one.

    They have the same brackets as the first marker and are not indented further.
    """
    if words := [mark for mark in marks if mark["word"]]:
        return words
    return [
        mark
        for mark in marks
        if (mark["other"] is None) == (marks[0]["other"] is None) and len(mark["indent"]) <= len(marks[0]["indent"])
    ]


def _value(mark: re.Match[str]) -> int:
    written = mark["count"] or mark["nth"] or mark["before"] or mark["inner"] or mark["digits"] or mark["han"]
    if written is None:  # a circled digit
        return int(unicodedata.numeric(mark["other"]))
    if written.isdecimal():
        return int(written)
    if written.lower() in _WORDS:
        return _WORDS[written.lower()]
    tens, ten, ones = written.rpartition("十")
    return (_HAN.get(tens, 1) * 10 if ten else 0) + _HAN.get(ones, 0)


def _cut(text: str, boundaries: Iterable[int]) -> Steps:
    """Split the text at the given offsets, which must be in ascending order.

    A piece with only whitespace or a horizontal rule is merged into the previous step; at the start of the text, into
    the first step.
    """
    pieces: list[str] = []
    start = 0
    for end in (*boundaries, len(text)):
        piece, start = text[start:end], end
        if pieces and (_NOTHING.fullmatch(piece) or _NOTHING.fullmatch(pieces[-1])):
            pieces[-1] += piece
        else:
            pieces.append(piece)
    return tuple(pieces)


_SPLITTERS = {
    "blank_lines": _split_blank_lines,
    "numbered": _split_numbered,
    "thoughts": _split_thoughts,
}
_WRITERS = {"tags": _write_tags, "blank_lines": "\n\n".join, "numbered": _write_numbers, "thoughts": "\n\n".join}
