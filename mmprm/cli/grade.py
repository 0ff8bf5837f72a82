"""Compare responses with gold answers: one verdict (correct, incorrect, unknown) a line.

Each line of the file is an object with `gold` and `response`, and maybe `question` and `choices` (a list). Every line
is written again with `verdict`, `extracted` and `reason` added; a summary goes to standard error.

example:
  echo '{"gold": "1/2", "response": "<answer>0.5</answer>"}' > answers.jsonl
  mmprm grade answers.jsonl --out graded.jsonl
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from mmprm.cli.jsonl import output, read_rows
from mmprm.cli.options import add_config_options, load_config
from mmprm.errors import DataError
from mmprm.grading.symbolic import GraderConfig, SymbolicGrader
from mmprm.types import Problem

CHUNK = 1000
"""Lines graded together: enough to keep the workers busy, few enough for any file to fit in memory."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE.jsonl", type=Path, help="responses with their gold answers")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write here instead of to standard output")
    add_config_options(parser, GraderConfig)


def run(arguments: argparse.Namespace) -> None:
    config = load_config(arguments, GraderConfig)
    verdicts: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    rows = itertools.starmap(_checked, read_rows(arguments.file))
    with output(arguments.out) as out, SymbolicGrader(config) as grader:
        while chunk := list(itertools.islice(rows, CHUNK)):
            gradings = grader.grade_many([(_problem(row), row["response"]) for row in chunk])
            for row, grading in zip(chunk, gradings, strict=True):
                verdict = grading.verdict.name.lower()
                verdicts[verdict] += 1
                reasons[grading.reason] += verdict == "unknown"
                result = {"verdict": verdict, "extracted": grading.extracted, "reason": grading.reason}
                out.write(json.dumps({**row, **result}, ensure_ascii=False) + "\n")
    print(_summary(verdicts, reasons), file=sys.stderr)


def _checked(place: str, row: dict[str, Any]) -> dict[str, Any]:
    for name in ("gold", "response"):
        if not isinstance(row.get(name), str):
            raise DataError(f"{place}: {name} must be text, got {row.get(name)!r}; the line has {', '.join(row)}")
    if not row["gold"].strip():
        raise DataError(f"{place}: gold is empty; give the answer to compare with")
    choices = row.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise DataError(f"{place}: choices must be a list of texts, got {choices!r}")
    return row


def _problem(row: dict[str, Any]) -> Problem:
    return Problem("", str(row.get("question") or ""), row["gold"], choices=tuple(row.get("choices") or ()))


def _summary(verdicts: collections.Counter[str], reasons: collections.Counter[str]) -> str:
    counts = ", ".join(f"{verdicts[name]} {name}" for name in ("correct", "incorrect", "unknown"))
    why = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common() if count)
    return f"{verdicts.total()} graded: {counts}" + (f" ({why})" if why else "")
