"""Define how a thinking judge is asked about the steps of a solution, and read the verdicts that it writes.

plain      one line per step at the end: "Step 3: incorrect"
thinkprm   \\boxed{correct} or \\boxed{incorrect} for each step, in order, as written by the models of ThinkPRM
           (Khalifa et al., Process Reward Models That Think, 2025)
genprm     an <output> block with \\boxed{Yes} or \\boxed{No} for each paragraph, in order, as written by the models of
           GenPRM (Zhao et al., GenPRM: Scaling Test-Time Compute of Process Reward Models, 2025)

Only the layouts of the verdicts are those of the publications; the wording of the requests is our own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

FormatOfVerdicts = Literal["plain", "thinkprm", "genprm"]
AfterError = Literal["incorrect", "as_judged"]
Verdicts = tuple[bool, ...]
"""One verdict per step: True means correct."""
FoundVerdict = tuple[int | None, bool]
"""Number of a step, or None if the layout has none, and the verdict on it."""

_ASKED = """\
Below are a problem and a solution to it, which may be unfinished. The solution consists of numbered {unit}s.

Problem:
{{question}}

Solution:
{{steps}}

Check the {unit}s one after another: what each of them reads from the problem and its images, its calculations, and \
its conclusions. A {unit} is incorrect if it contains an error or relies on one. """

_LINE = re.compile(r"step ([0-9]{1,6})[*_` ]*:[*_` ]*(correct|incorrect)")
_BOX = re.compile(r"\\boxed\{(?:\\text\{)?([a-z ]{1,20})\}")
_HEADING = re.compile(r"^[ \t*_`#>-]{0,8}step ([0-9]{1,6})\b", re.MULTILINE)
_DECORATION = " \t*_`#>.-"
_STEP_WORDS = ("correct", "incorrect")
_WORDS = {"correct": True, "incorrect": False, "yes": True, "no": False}


@dataclass(frozen=True, slots=True)
class VerdictFormat:
    """Describes a layout of verdicts.

    `request` contains {question} and {steps}; each step is written as `unit`, its number and its text. `find` returns
    the verdicts in a text, or the reason why they cannot be read. If `in_thoughts`, the verdicts may be part of the
    chain of thought; otherwise they are read after it.
    """

    unit: str
    request: str
    find: Callable[[str], list[FoundVerdict] | str]
    in_thoughts: bool

    def steps_text(self, steps: Sequence[str]) -> str:
        """Return the numbered steps as one text."""
        return "\n\n".join(f"{self.unit.capitalize()} {number}: {step}" for number, step in enumerate(steps, start=1))


def read_verdicts(text: str, steps: int, form: VerdictFormat, after_error: AfterError) -> Verdicts | str:
    """Return the verdicts on all `steps` steps that a judge wrote, or the reason why they cannot be read.

    With after_error="incorrect", every step after the first incorrect one is incorrect too, and needs no verdict. A
    missing verdict, a verdict on a step that does not exist, and two different verdicts on one step are never resolved
    by a guess.
    """
    thoughts, reply = _parts(text)
    reason = "no reply"
    for part in (reply, thoughts) if form.in_thoughts else (reply,):
        if not part.strip():
            continue
        found = form.find(part)
        verdicts = _complete(found, steps, after_error)
        # A box without a step's number may be about the whole solution. Any other verdict makes this part decisive.
        if not isinstance(verdicts, str) or isinstance(found, str) or any(number is not None for number, _ in found):
            return verdicts
        reason = verdicts
    return reason


def _complete(found: Sequence[FoundVerdict] | str, steps: int, after_error: AfterError) -> Verdicts | str:
    """Return one verdict per step, or the reason why the verdicts found do not determine them."""
    if isinstance(found, str):
        return found
    if not found:
        return "no verdicts"
    if any(number is None for number, _ in found):
        if len(found) != steps:
            return "another number of verdicts than steps"
        found = [(position, correct) for position, (_, correct) in enumerate(found, start=1)]
    verdicts: dict[int | None, bool] = {}
    for number, correct in found:
        if number not in range(1, steps + 1):
            return "a verdict on a step that does not exist"
        if verdicts.setdefault(number, correct) is not correct:
            return "contradictory verdicts"
    settled: list[bool] = []
    for number in range(1, steps + 1):
        if number not in verdicts:
            return "a step without a verdict"
        settled.append(verdicts[number])
        if not verdicts[number] and after_error == "incorrect":
            return (*settled, *[False] * (steps - number))
    return tuple(settled)


def _parts(text: str) -> tuple[str, str]:
    """Return (chain of thought, reply). A text whose chain of thought does not end has no reply."""
    thoughts, end, reply = text.rpartition("</think>")
    if not end:
        thoughts, reply = (text, "") if "<think>" in text else ("", text)
    return thoughts.replace("<think>", "\n"), reply


def _lines(text: str) -> list[FoundVerdict]:
    """Find the lines that consist of a step's number and its verdict."""
    lines = (line.strip().strip(_DECORATION).lower() for line in text.splitlines())
    matches = (_LINE.fullmatch(line) for line in lines)
    return [(int(match[1]), _WORDS[match[2]]) for match in matches if match]


def _boxes_by_step(text: str) -> list[FoundVerdict] | str:
    """Find the boxed verdicts under each heading "Step 3: …", or all of them in order if there are no headings."""
    before, *rest = _HEADING.split(text.lower())
    sections = list(zip(map(int, rest[::2]), rest[1::2], strict=True))
    found: list[FoundVerdict] = [
        (number, correct) for number, section in sections for correct in _boxes(section, _STEP_WORDS)
    ]
    first = _boxes(before, _STEP_WORDS)
    if first and found:
        return "a verdict before the first step"
    return found or [(None, correct) for correct in first]


def _outputs(text: str) -> list[FoundVerdict] | str:
    """Find the verdict in each <output> block."""
    found: list[FoundVerdict] = []
    for block in text.split("<output>")[1:]:
        content, end, _ = block.partition("</output>")
        boxes = _boxes(content.lower(), ("yes", "no"))
        if not end or len(boxes) != 1:
            return "an <output> block without exactly one verdict"
        found.append((None, boxes[0]))
    return found


def _boxes(text: str, words: tuple[str, str]) -> list[bool]:
    boxed = (content.strip() for content in _BOX.findall(text))
    return [_WORDS[word] for word in boxed if word in words]


VERDICT_FORMATS: dict[FormatOfVerdicts, VerdictFormat] = {
    "plain": VerdictFormat(
        "step",
        _ASKED.format(unit="step")
        + 'End your reply with one line per step, such as "Step 1: correct" or "Step 1: incorrect".',
        _lines,
        in_thoughts=False,
    ),
    "thinkprm": VerdictFormat(
        "step",
        _ASKED.format(unit="step")
        + 'Begin the examination of each step with its number, as in "Step 1:", and close it with \\boxed{correct} or '
        "\\boxed{incorrect}; write neither anywhere else.",
        _boxes_by_step,
        in_thoughts=True,
    ),
    "genprm": VerdictFormat(
        "paragraph",
        _ASKED.format(unit="paragraph")
        + "For each paragraph, in order, write your analysis between <analyze> and </analyze>, and then its verdict "
        "as\n<output>\n**Judgement**: $\\boxed{Yes}$\n</output>\nif it is correct, and with No if it is not.",
        _outputs,
        in_thoughts=True,
    ),
}
