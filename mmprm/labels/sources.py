"""Read step labels from other projects, with one reader per published layout.

A reader converts a record to labeled solutions. It raises KeyError, IndexError, TypeError, ValueError or DataError if
the record has a different layout, and DroppedRecordError if the layout marks the record as unusable.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mmprm.errors import DataError
from mmprm.files import parse_json
from mmprm.labels.formats import LABEL_FORMATS, Record
from mmprm.labels.soft_labels import CORRECT, INCORRECT
from mmprm.types import Counts

NeutralAs = Literal["correct", "incorrect", "none"]


class DroppedRecordError(Exception):
    """Raised for a well-formed record without usable labels. The message is the reason to count."""


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """Holds the readers' options; see ImportConfig for their meaning."""

    rollouts: int | None = None
    neutral: NeutralAs = "correct"
    alternatives: bool = True
    quality_control: bool = False


@dataclass(frozen=True, slots=True)
class SourceSolution:
    """Holds a solution read from another project's record, with a label or None for each step.

    `complete` solutions end in a final answer, and the last label is its verdict.
    """

    question: str
    steps: Sequence[str]
    labels: Sequence[Counts | None]
    complete: bool = False
    answer: str = ""


@dataclass(frozen=True, slots=True)
class LabelSource:
    """Describes a data set layout: how to read it, and how neutral ratings count by default."""

    read: Callable[[Record, SourceOptions], Sequence[SourceSolution]]
    neutral: NeutralAs = "correct"


def label_counts(label: Any, rollouts: int | None) -> Counts | None:
    """Convert a label (a boolean, + or -, a number in [0, 1], or counts) to Counts; None means no label.

    A number v stands for `rollouts` rollouts (1 by default), of which round(v * rollouts) were correct. v is stored as
    the estimate if the quotient differs from it. Counts are {correct, incorrect} or {correct, total}, with an optional
    `unknown`. Raises ValueError for anything else.
    """
    if label is None:
        return None
    if isinstance(label, str):
        label = {"+": True, "-": False}.get(label.strip(), label)
    if isinstance(label, bool):
        return CORRECT if label else INCORRECT
    if isinstance(label, Mapping):
        return _from_mapping(label)
    if isinstance(label, int | float) and 0 <= label <= 1:
        total = rollouts or 1
        correct = round(label * total)
        exact = abs(correct / total - label) < 1e-9
        return Counts(correct, total - correct, estimate=None if exact else float(label))
    raise ValueError(
        f"label {label!r} must be true, false, +, -, a number in [0, 1], {{correct, incorrect}}, {{correct, total}} or "
        "null"
    )


def _from_mapping(label: Mapping[str, Any]) -> Counts | None:
    correct, unknown = label["correct"], label.get("unknown") or 0
    incorrect = label["incorrect"] if "incorrect" in label else label["total"] - correct - unknown
    if not all(type(count) is int and count >= 0 for count in (correct, incorrect, unknown)):
        raise ValueError(
            f"counts {dict(label)!r} must be whole numbers that are not negative, with total at least correct + unknown"
        )
    return Counts(correct, incorrect, unknown) if correct + incorrect else None


def _rating(rating: int | None, neutral: NeutralAs) -> Counts | None:
    """Convert a human rating to counts: 1 is correct, -1 is incorrect, and `neutral` gives the meaning of 0; None
    remains None."""
    if rating is None:
        return None
    if rating not in (-1, 0, 1) or isinstance(rating, bool):
        raise ValueError(f"rating {rating!r} must be 1, 0, -1 or null")
    neutral_counts = {"correct": CORRECT, "incorrect": INCORRECT, "none": None}[neutral]
    return neutral_counts if rating == 0 else CORRECT if rating == 1 else INCORRECT


def _read_exported(name: str) -> Callable[[Record, SourceOptions], list[SourceSolution]]:
    """Return a reader for a layout that mmprm labels export also writes."""

    def read(record: Record, options: SourceOptions) -> list[SourceSolution]:
        question, steps, labels = LABEL_FORMATS[name].read(record)
        return [SourceSolution(question, steps, [label_counts(label, options.rollouts) for label in labels])]

    return read


def _read_shepherd(record: Record, options: SourceOptions) -> list[SourceSolution]:
    """Read a Math-Shepherd record. The label of a final step that states the answer is the solution's verdict."""
    (solution,) = _read_exported("math-shepherd")(record, options)
    stated = "the answer is" in solution.steps[-1].lower() and solution.labels[-1] is not None
    return [replace(solution, complete=stated)]


def _read_prm800k(record: Record, options: SourceOptions) -> list[SourceSolution]:
    """Read a PRM800K record: the chosen trajectory, and one more path per alternative completion of a step."""
    if not options.quality_control and (
        record.get("is_quality_control_question") or record.get("is_initial_screening_question")
    ):
        raise DroppedRecordError("quality control or screening question")
    reason = record["label"]["finish_reason"]
    if reason == "bad_problem":
        raise DroppedRecordError("problem reported as broken")
    question, answer = record["question"]["problem"], record["question"].get("ground_truth_answer") or ""
    steps: list[str] = []
    labels: list[Counts | None] = []
    paths: list[SourceSolution] = []
    for step in record["label"]["steps"]:
        completions = step["completions"] or []
        chosen, human = step["chosen_completion"], step.get("human_completion")
        if chosen is None and human is None and len(completions) == 1:
            chosen = 0  # the error with which the only solution ends
        for index, completion in enumerate(completions):
            label = _rating(completion["rating"], options.neutral)
            if index != chosen and label is not None and options.alternatives:
                paths.append(
                    SourceSolution(question, [*steps, completion["text"]], [None] * len(steps) + [label], answer=answer)
                )
        if chosen is not None:
            steps.append(completions[chosen]["text"])
            labels.append(_rating(completions[chosen]["rating"], options.neutral))
        elif human is not None:
            # Labelers could write a step of their own, rated +1, where every completion was rated -1.
            steps.append(human["text"] if isinstance(human, Mapping) else human)
            labels.append(CORRECT)
        else:
            break  # nothing was chosen, so the trajectory ends before this step
    complete = reason == "solution" and bool(labels) and labels[-1] == CORRECT
    return [SourceSolution(question, steps, labels, complete, answer), *paths] if steps else paths


def _read_visualprm_raw(record: Record, options: SourceOptions) -> list[SourceSolution]:
    """Read a VisualPRM400K raw record, which has Monte Carlo counts per step.

    Its pipeline stops at the first value of 0 and writes score 0 with a total of 0 for later steps. These steps were
    not sampled, so they get no label.
    """
    question = record.get("question_orig") or record["question"]
    steps = record["steps_with_score"]
    labels = []
    for step in steps:
        total = step.get("num_mc_total")
        if total is None:
            labels.append(label_counts(step["score"], options.rollouts or record.get("num_mc_sequences")))
        else:
            labels.append(label_counts({"correct": step["num_mc_correct"], "total": total}, None))
    texts = [step["step"] for step in steps]
    return [SourceSolution(question, texts, labels, answer=str(record.get("answer") or ""))]


def _read_processbench(record: Record, options: SourceOptions) -> list[SourceSolution]:
    """Read a ProcessBench record. `label` is the index of the first incorrect step, or -1; later steps get no label."""
    steps, error = record["steps"], record["label"]
    if type(error) is not int or not -1 <= error < len(steps):
        raise ValueError(f"label must be -1 or the index of one of the {len(steps)} steps, got {error!r}")
    if error == -1:
        return [SourceSolution(record["problem"], steps, [CORRECT] * len(steps))]
    labels = [CORRECT] * error + [INCORRECT] + [None] * (len(steps) - error - 1)
    return [SourceSolution(record["problem"], steps, labels)]


def _read_visualprocessbench(record: Record, options: SourceOptions) -> list[SourceSolution]:
    """Read a VisualProcessBench record with ratings 1, 0 and -1 per step."""
    response = record["response"]
    response = parse_json(response, "response") if isinstance(response, str) else response
    labels = [_rating(rating, options.neutral) for rating in response["process_correctness"]]
    return [SourceSolution(record["question"], response["steps"], labels, answer=str(record.get("answer") or ""))]


_DUAL_TAG = re.compile(r"<(pos|neg)>")
_DUAL_ANSWER = re.compile(r"\s*†Answer:\s*(.*)\Z", re.DOTALL)


def _read_dualmath(record: Record, options: SourceOptions) -> list[SourceSolution]:
    """Read a DualMath-1.1M record of URSA: each step of `output` ends in <pos> or <neg>."""
    question = record["instruction"].partition("Question:")[2].strip() or record["instruction"].strip()
    pieces = _DUAL_TAG.split(record["output"])
    steps, tags, tail = pieces[:-1:2], pieces[1::2], pieces[-1]
    if not tags:
        raise ValueError("output has no <pos> or <neg>")
    stated = _DUAL_ANSWER.search(tail) or _DUAL_ANSWER.search(steps[-1])
    if tail.strip() and stated is None:
        raise ValueError(f"output continues after its last tag: {tail.strip()[:40]!r}")
    # A final answer after the last tag belongs to the last step.
    texts = [*steps[:-1], steps[-1] + tail]
    return [
        SourceSolution(question, [text.strip() for text in texts], [label_counts(tag == "pos", None) for tag in tags])
    ]


_GENPRM_VERDICT = re.compile(r"<output>(?:(?!</output>).)*?\\boxed\{(Yes|No)\}.*?</output>", re.DOTALL | re.IGNORECASE)


def _read_genprm(record: Record, options: SourceOptions) -> list[SourceSolution]:
    """Read a GenPRM-MATH-Data record: each user turn holds a paragraph, and each assistant turn a critique with its
    verdict."""
    turns = [turn for turn in record["conversations"] if turn["role"] != "system"]
    asked, critiques = turns[::2], turns[1::2]
    if [turn["role"] for turn in turns] != ["user", "assistant"] * len(critiques) or not critiques:
        raise ValueError("conversations must alternate between user and assistant")
    # The first paragraph follows the problem after an empty line, and has no empty line of its own.
    opening = asked[0]["content"].removeprefix("Question:").strip()
    question, separator, first = opening.rpartition("\n\n")
    if not separator:
        raise ValueError("the first user turn must hold the problem, an empty line, and the first paragraph")
    labels = []
    for critique in critiques:
        verdicts = _GENPRM_VERDICT.findall(critique["content"])
        labels.append(label_counts(verdicts[-1].lower() == "yes", None) if verdicts else None)
    return [SourceSolution(question, [first, *(turn["content"] for turn in asked[1:])], labels)]


def _read_plain(record: Record, options: SourceOptions) -> list[SourceSolution]:
    """Read a plain record: question, steps, one label per step, and optionally answer, complete and images."""
    question = record["question"] if "question" in record else record["problem"]
    labels = [label_counts(label, options.rollouts) for label in record["labels"]]
    complete = record.get("complete") or False
    if not isinstance(complete, bool):
        raise ValueError(f"complete={complete!r} must be true or false")
    return [SourceSolution(question, record["steps"], labels, complete, str(record.get("answer") or ""))]


LABEL_SOURCES: dict[str, LabelSource] = {
    "steps": LabelSource(_read_plain),
    "prm800k": LabelSource(_read_prm800k),
    "math-shepherd": LabelSource(_read_shepherd),
    "visualprm": LabelSource(_read_exported("visualprm")),
    "visualprm-raw": LabelSource(_read_visualprm_raw),
    "mm-prm": LabelSource(_read_exported("mm-prm")),
    "trl": LabelSource(_read_exported("trl")),
    "openrlhf": LabelSource(_read_exported("openrlhf")),
    "processbench": LabelSource(_read_processbench),
    "visualprocessbench": LabelSource(_read_visualprocessbench, neutral="none"),
    "dualmath": LabelSource(_read_dualmath),
    "genprm": LabelSource(_read_genprm),
}


def read_source(name: str, record: Record, options: SourceOptions) -> Iterator[SourceSolution]:
    """Yield the labeled solutions of a record, checking that each has a question, steps, and one label per step.

    Raises DataError with what is wrong, without a location, and DroppedRecordError if the record is unusable.
    """
    try:
        found = LABEL_SOURCES[name].read(record, options)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, DataError) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"is not a record of {name}: {what}; it has the fields {', '.join(record)}") from error
    for solution in found:
        if not isinstance(solution.question, str) or not solution.question.strip():
            raise DataError(f"question must be text, got {solution.question!r}")
        if not solution.steps or not all(isinstance(step, str) and step.strip() for step in solution.steps):
            raise DataError("steps must be a list of at least one text, none of them empty")
        if len(solution.steps) != len(solution.labels):
            raise DataError(f"has {len(solution.steps)} steps but {len(solution.labels)} labels")
        yield solution
