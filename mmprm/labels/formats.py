"""Write and read labeled solutions in the formats of other training projects. Each format has a writer and a reader.

A writer creates one JSON record per solution, and the reader returns its question, steps and labels. A record that does
not round-trip, because its text contains strings reserved by the format, is not exported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from mmprm.data.choices import asked_question
from mmprm.data.marks import IMAGE
from mmprm.errors import DataError
from mmprm.types import Counts, LabeledPath, Problem, Steps

LabelKind = Literal["soft", "hard"]
Label = float | bool | None
Record = dict[str, Any]

SHEPHERD_MARK = " ки"
PRM_MARK = "<prm>"
VISUALPRM_SYSTEM = """\
You are an advanced AI assistant, designed to serve as a process supervision model. In this task, I will provide a \
problem statement followed by the first step of the solution process. For each subsequent turn, I will give you a new \
step in the solution. Your role is to assess whether the solution process is correct up to the current step.

- In the **first round**, I will input the problem and the first step of the solution process.
- In **each subsequent round**, I will provide the next step in the solution.

For each step, you should:

- Respond with **"+"** if you believe the solution process is correct up to this step.
- Respond with **"-"** if you detect any issues or errors in the process up to this step.

Please note:
- Only respond with **"+"** or **"-"**. Do not provide any additional explanations, comments, or justifications.

Your task is to verify the accuracy and correctness of each step in the given solution process."""
"""VisualPRM's published system prompt, used for exports and for scoring."""


class Content(NamedTuple):
    """Holds a labeled solution in the form that all formats share: question, steps and labels.

    Hard labels are bool, soft labels numbers, and None means no label.
    """

    question: str
    steps: Steps
    labels: tuple[Label, ...]


def numbered(steps: Sequence[str]) -> list[str]:
    """Remove whitespace around each step, and prefix it with its number as in Math-Shepherd ("Step 1: ") unless it has
    one."""
    return [f"Step {number}: {step}" for number, step in enumerate(unnumbered(steps), start=1)]


def unnumbered(steps: Sequence[str]) -> list[str]:
    """Remove whitespace around each step, and its own number, such as a leading "Step 3: " in step 3."""
    return [step.strip().removeprefix(f"Step {number}: ") for number, step in enumerate(steps, start=1)]


class OutputRow(NamedTuple):
    """Holds a solution to write; `images` are image paths relative to the output file."""

    content: Content
    problem: Problem
    complete: bool
    images: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LabelFormat:
    """Describes a label format: its writer, its reader and its capabilities."""

    kinds: tuple[LabelKind, ...]
    """Supported kinds of labels; the first is the default."""
    write: Callable[[OutputRow], Record]
    read: Callable[[Record], Content]
    join: str | None = None
    """Separator with which an unlabeled step is joined to the next one; None if the format supports unlabeled steps."""
    images: bool = False
    numbered: bool = False
    """Whether steps are written with numbers and without surrounding whitespace."""


def repeat_shared(paths: Sequence[LabeledPath]) -> list[LabeledPath]:
    """Copy the label of a shared prefix to every path with that prefix, for formats that cannot mask labels."""
    known = {
        (path.problem_id, path.steps[:depth]): counts
        for path in paths
        for depth, counts in enumerate(path.counts, start=1)
        if counts is not None
    }
    return [
        replace(
            path,
            counts=tuple(known.get((path.problem_id, path.steps[:depth])) for depth in range(1, len(path.steps) + 1)),
        )
        for path in paths
    ]


def content_of(
    path: LabeledPath, problem: Problem, form: LabelFormat, kind: LabelKind, threshold: float
) -> Content | None:
    """Convert a labeled path, cut after its last label, to the format's content, or return None if it has no labels."""
    labels = [_label(counts, kind, threshold) for counts in path.counts]
    steps = list(path.steps)
    # Steps after the last label have no target, and some formats cannot represent unlabeled steps.
    while labels and labels[-1] is None:
        labels.pop(), steps.pop()
    if not labels:
        return None
    question = asked_question(problem)
    # Writers put the image placeholders first, and formats with no images have no marks.
    if problem.images:
        question = question.replace(IMAGE, "").strip()
    if form.numbered:
        steps = unnumbered(steps)
    if form.join is not None:
        steps, labels = _merge(steps, labels, form.join)
    return Content(question, tuple(steps), tuple(labels))


def record_of(row: OutputRow, form: LabelFormat) -> Record | None:
    """Convert the row to a record, or return None if the record would not round-trip."""
    record = form.write(row)
    try:
        return record if form.read(record) == row.content else None
    except DataError:
        return None


def _label(counts: Counts | None, kind: LabelKind, threshold: float) -> Label:
    if counts is None or counts.value is None:
        return None
    return counts.value if kind == "soft" else counts.value > threshold


def _merge(steps: list[str], labels: list[Label], join: str) -> tuple[list[str], list[Label]]:
    merged, waiting = [], []
    for step, label in zip(steps, labels, strict=True):
        waiting.append(step)
        if label is not None:
            merged.append(join.join(waiting))
            waiting = []
    return merged, [label for label in labels if label is not None]


def _write_trl(row: OutputRow) -> Record:
    question, steps, labels = row.content
    return {"prompt": question, "completions": list(steps), "labels": list(labels)}


def _read_trl(record: Record) -> Content:
    return Content(record["prompt"], tuple(record["completions"]), tuple(record["labels"]))


def _write_shepherd(row: OutputRow) -> Record:
    question, steps, labels = row.content
    marks = ["" if label is None else SHEPHERD_MARK for label in labels]
    signs = ["" if label is None else " +" if label else " -" for label in labels]
    return {"input": _numbered(question, steps, marks), "label": _numbered(question, steps, signs), "task": "mmprm"}


def _read_shepherd(record: Record) -> Content:
    question, steps, marked = _read_numbered(record["input"])
    signed = _split_numbered(record["label"])[1]
    if len(signed) != len(steps):
        raise DataError(
            f"input has {len(steps)} steps but label has {len(signed)}; both must be the same text: correct the record"
        )
    labels = (_sign(piece.strip()[-1:]) if mark else None for piece, mark in zip(signed, marked, strict=True))
    return Content(question, steps, tuple(labels))


def _write_openrlhf(row: OutputRow) -> Record:
    question, steps, labels = row.content
    marks = ["" if label is None else SHEPHERD_MARK for label in labels]
    known = [label for label in labels if label is not None]
    values = [("+" if label else "-") if isinstance(label, bool) else label for label in known]
    return {"input": _numbered(question, steps, marks), "label": values}


def _read_openrlhf(record: Record) -> Content:
    """Read an OpenRLHF record. Some of its data sets, such as zhuzilin/Math-Shepherd, name the labels `value`."""
    question, steps, marked = _read_numbered(record["input"])
    labels = record["value"] if "label" not in record and "value" in record else record["label"]
    if sum(marked) != len(labels):
        raise DataError(f"input has {sum(marked)} marks but label has {len(labels)} values; correct the record")
    values = iter(_sign(value) if isinstance(value, str) else value for value in labels)
    return Content(question, steps, tuple(next(values) if mark else None for mark in marked))


def _sign(sign: str) -> bool:
    """Return whether the sign is + rather than -; raise DataError for any other text, which is not a label."""
    if sign.strip() not in ("+", "-"):
        raise DataError(f"label {sign!r} must be + or -; correct the record")
    return sign.strip() == "+"


def _numbered(question: str, steps: Steps, ends: list[str]) -> str:
    lines = [f"Step {number}: {step}{end}" for number, (step, end) in enumerate(zip(steps, ends, strict=True), start=1)]
    return f"{question} " + "\n".join(lines)


def _split_numbered(text: str) -> tuple[str, list[str]]:
    question, *pieces = re.split(r"[ \n]Step \d+: ", text)
    return question, pieces


def _read_numbered(text: str) -> tuple[str, Steps, list[bool]]:
    """Split the text into the question, the steps, and one flag per step: whether it ends with SHEPHERD_MARK.

    Raises DataError if the mark occurs inside a step, which would shift the labels.
    """
    question, pieces = _split_numbered(text)
    marked = [piece.endswith(SHEPHERD_MARK) for piece in pieces]
    if text.count(SHEPHERD_MARK.strip()) != sum(marked):
        raise DataError(f"{SHEPHERD_MARK.strip()} occurs inside a step; it must end a step: correct the record")
    return question, tuple(piece.removesuffix(SHEPHERD_MARK) for piece in pieces), marked


def _write_prm800k(row: OutputRow) -> Record:
    question, steps, labels = row.content
    ratings = [None if label is None else 1 if label else -1 for label in labels]
    # PRM800K's finish reasons: an error was found, the solution was complete, or the annotator gave up.
    reason = "found_error" if -1 in ratings else "solution" if row.complete else "give_up"
    return {
        "labeler": "mmprm",
        "timestamp": None,
        "generation": None,
        "is_quality_control_question": False,
        "is_initial_screening_question": False,
        "question": {
            "problem": question,
            "ground_truth_solution": row.problem.solution,
            "ground_truth_answer": row.problem.answer,
            "pre_generated_steps": list(steps),
            "pre_generated_answer": None,
            "pre_generated_verifier_score": None,
        },
        "label": {
            "steps": [
                {
                    "completions": [{"text": step, "rating": rating, "flagged": None}],
                    "human_completion": None,
                    "chosen_completion": 0,
                }
                for step, rating in zip(steps, ratings, strict=True)
            ],
            "total_time": None,
            "finish_reason": reason,
        },
    }


def _read_prm800k(record: Record) -> Content:
    """Read a PRM800K record. A neutral rating (0) counts as correct because the step is not an error."""
    chosen = [_chosen(step) for step in record["label"]["steps"]]
    labels = (None if completion["rating"] is None else completion["rating"] >= 0 for completion in chosen)
    return Content(record["question"]["problem"], tuple(completion["text"] for completion in chosen), tuple(labels))


def _chosen(step: Record) -> Record:
    """Return the completion that the solution continues with: the chosen one, the labeler's own, or else the first."""
    if step["chosen_completion"] is None and (human := step.get("human_completion")) is not None:
        return {"text": human["text"] if isinstance(human, dict) else human, "rating": 1}
    return step["completions"][step["chosen_completion"] or 0]


def _write_visualprm(row: OutputRow) -> Record:
    question, (first, *rest), labels = row.content
    marks = f"{IMAGE}\n" * len(row.images)
    turns = [f"### Question:\n{marks}{question}\n\n### Solution Process:\n{first}", *rest]
    conversations = [{"from": "system", "value": VISUALPRM_SYSTEM}]
    for turn, label in zip(turns, labels, strict=True):
        conversations += [{"from": "human", "value": turn}, {"from": "gpt", "value": "+" if label else "-"}]
    return {"id": row.problem.id, **_image(row), "conversations": conversations}


def _read_visualprm(record: Record) -> Content:
    turns = [turn["value"] for turn in record["conversations"] if turn["from"] == "human"]
    signs = [turn["value"] for turn in record["conversations"] if turn["from"] == "gpt"]
    opening = _unmarked(turns[0]).removeprefix("### Question:\n")
    question, _, first = opening.partition("\n\n### Solution Process:\n")
    return Content(_unmarked(question), (first, *turns[1:]), tuple(map(_sign, signs)))


def _write_mm_prm(row: OutputRow) -> Record:
    question, steps, labels = row.content
    process = "".join(step + PRM_MARK for step in steps)
    marks = IMAGE * len(row.images) + "\n" if row.images else ""
    human = {"from": "human", "value": f"{marks}Question: {question}\nProcess: {process}"}
    gpt = {"from": "gpt", "value": [float(label) for label in labels if label is not None]}
    return {"id": row.problem.id, **_image(row), "conversations": [human, gpt]}


def _read_mm_prm(record: Record) -> Content:
    human, gpt = (turn["value"] for turn in record["conversations"])
    question, _, process = _unmarked(human).removeprefix("Question: ").partition("\nProcess: ")
    *steps, tail = process.split(PRM_MARK)
    if tail.strip() or len(steps) != len(gpt):
        raise DataError(f"{len(steps)} steps end in {PRM_MARK} but there are {len(gpt)} labels; correct the record")
    return Content(question, tuple(steps), tuple(gpt))


def _unmarked(text: str) -> str:
    return re.sub(rf"\A(?:{IMAGE}\n?)*{IMAGE}\n", "", text)


def _image(row: OutputRow) -> Record:
    """Return the record's `image` field with the path of one image or a list of paths, or {} if there are no images."""
    if not row.images:
        return {}
    return {"image": row.images[0] if len(row.images) == 1 else list(row.images)}


LABEL_FORMATS = {
    "trl": LabelFormat(("hard",), _write_trl, _read_trl, join="\n"),
    "math-shepherd": LabelFormat(("hard",), _write_shepherd, _read_shepherd, numbered=True),
    "prm800k": LabelFormat(("hard",), _write_prm800k, _read_prm800k),
    "visualprm": LabelFormat(("hard",), _write_visualprm, _read_visualprm, join="\n\n", images=True),
    "mm-prm": LabelFormat(("soft", "hard"), _write_mm_prm, _read_mm_prm, join="\n\n", images=True),
    "openrlhf": LabelFormat(("soft", "hard"), _write_openrlhf, _read_openrlhf, numbered=True),
}
