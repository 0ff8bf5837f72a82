"""Compare responses with gold answers: one verdict (correct, incorrect, unknown) per line.

Each line of the file is an object with `gold` and `response`, and optionally `question` and `choices` (a list). Every
line is written with `verdict`, `extracted` and `reason` added; a summary goes to standard error. With --calibrate, the
lines also hold `correct` (true or false), and the judge is measured on those that symbolic comparison cannot decide.

examples:
  echo '{"gold": "1/2", "response": "<answer>0.5</answer>"}' > answers.jsonl
  mmprm grade answers.jsonl --output graded.jsonl
  mmprm grade --calibrate labeled.jsonl --set judge.model=qwen3 --set 'judge.client.urls=[http://localhost:8000/v1]'
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import hashlib
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmprm.cli.shared.jsonl import output
from mmprm.cli.shared.options import add_config_options, load_config
from mmprm.data.rows import read_file
from mmprm.errors import ConfigError, DataError
from mmprm.grading.calibration import (
    SHARES,
    Calibration,
    VerdictCounts,
    check_judge,
    interval_text,
    tally,
    write_calibration,
)
from mmprm.grading.extract import extract
from mmprm.grading.judge import PROMPT_HASH, TALKED
from mmprm.grading.open import open_grader
from mmprm.grading.symbolic import GraderConfig
from mmprm.types import Grader, Grading, Problem, Verdict

_CHUNK = 1000
"""Number of lines graded at once: enough to keep the workers busy, few enough to bound memory."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    parser.add_argument(
        "file", metavar="FILE.jsonl", type=Path, nargs="?", help="file of responses with their gold answers"
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="file to write instead of standard output")
    parser.add_argument("--calibrate", metavar="LABELED.jsonl", type=Path, help="measure the judge on this file")
    add_config_options(parser, GraderConfig)


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm grade`."""
    config = load_config(arguments, GraderConfig)
    if (arguments.file is None) == (arguments.calibrate is None):
        raise ConfigError("FILE.jsonl or --calibrate LABELED.jsonl: exactly one of them is required; give one")
    if arguments.calibrate is not None:
        asyncio.run(_calibrate(config, arguments.calibrate))
        return
    check_judge(config.judge)
    asyncio.run(_grade_file(config, arguments.file, arguments.output))


async def _grade_file(config: GraderConfig, file: Path, out_file: Path | None) -> None:
    verdicts: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    rows = itertools.starmap(_checked, read_file(file))
    with output(out_file) as out:
        async with open_grader(config) as grader:
            while chunk := list(itertools.islice(rows, _CHUNK)):
                for row, grading in zip(chunk, await _grade(grader, chunk), strict=True):
                    verdict = grading.verdict.name.lower()
                    verdicts[verdict] += 1
                    reasons[grading.reason] += verdict == "unknown"
                    result = {"verdict": verdict, "extracted": grading.extracted, "reason": grading.reason}
                    out.write(json.dumps({**row, **result}, ensure_ascii=False) + "\n")
    print(_summary(verdicts, reasons), file=sys.stderr)


async def _calibrate(config: GraderConfig, file: Path) -> None:
    """Measure the judge's accuracy on labeled responses, save it, and raise an error if it is too low."""
    judge = config.judge
    if judge is None:
        raise ConfigError("judge is not set, but --calibrate measures one; set judge.model and judge.client.urls")
    rows = list({_asked(row): row for row in itertools.starmap(_labeled, read_file(file))}.values())
    async with open_grader(config.model_copy(update={"judge": None})) as symbolic:
        by_symbols = await _grade(symbolic, rows)
    left = [(row, g) for row, g in zip(rows, by_symbols, strict=True) if g.verdict is Verdict.UNKNOWN]
    if not left:
        raise DataError(
            f"{file}: symbolic comparison decides all {len(rows)} distinct lines, so none is left to measure the judge "
            "on; add lines whose gold answers are words or sentences"
        )
    async with open_grader(config) as grader:
        by_judge = await _grade(grader, [row for row, _ in left])
    failed = collections.Counter(grading.reason for grading in by_judge if grading.reason.startswith("judge failed"))
    if failed:
        raise DataError(
            f"{file}: {_counted(failed)}; resolve this and run the command again, which reuses the other replies"
        )
    decided = [(row, g) for row, g in zip(rows, by_symbols, strict=True) if g.verdict is not Verdict.UNKNOWN]
    calibration = Calibration(
        model=judge.model,
        prompt=PROMPT_HASH,
        labeled=hashlib.sha256(file.read_bytes()).hexdigest()[:16],
        symbols=tally([g.verdict for _, g in decided], [row["correct"] for row, _ in decided]),
        judge=tally([g.verdict for g in by_judge], [row["correct"] for row, _ in left]),
    )
    write_calibration(judge.calibration, calibration)
    print(f"symbolic comparison decides {len(decided)} of {len(rows)} distinct lines\n{_report(calibration.symbols)}")
    print(f"{judge.model} was asked about the other {len(left)}\n{_report(calibration.judge)}")
    print(f"{sum(grading.reason == TALKED for grading in by_judge)} replies were neither Yes nor No")
    print(f"see {judge.calibration}")
    check_judge(judge)


async def _grade(grader: Grader, rows: Sequence[dict[str, Any]]) -> list[Grading]:
    return await asyncio.gather(*(grader.grade(_problem(row), row["response"]) for row in rows))


def _report(counts: VerdictCounts) -> str:
    head = (
        f"  correct: {counts.true_accepts} accepted, {counts.false_rejects} rejected; incorrect: "
        f"{counts.true_rejects} rejected, {counts.false_accepts} accepted; unknown: {counts.unknown}"
    )
    return "\n".join([head, *(f"  {name.replace('_', ' ')} {interval_text(getattr(counts, name))}" for name in SHARES)])


def _asked(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return the values that two lines must share to count as duplicates.

    Duplicates are counted only once, because they would make the confidence intervals too narrow.
    """
    problem = _problem(row)
    return problem.question, problem.choices, problem.answer, extract(row["response"]), row["correct"]


def _labeled(location: str, row: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(row.get("correct"), bool):
        raise DataError(f"{location}: correct must be true or false, got {row.get('correct')!r}; label the line")
    return _checked(location, row)


def _checked(location: str, row: dict[str, Any]) -> dict[str, Any]:
    for name in ("gold", "response"):
        if not isinstance(row.get(name), str):
            raise DataError(
                f"{location}: {name} must be text, got {row.get(name)!r} among the fields {', '.join(row)}; rename or "
                "add the field"
            )
    if not row["gold"].strip():
        raise DataError(f"{location}: gold is empty; give the answer to compare with")
    choices = row.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise DataError(f"{location}: choices must be a list of texts, got {choices!r}; correct or remove them")
    return row


def _problem(row: dict[str, Any]) -> Problem:
    return Problem("", str(row.get("question") or ""), row["gold"], choices=tuple(row.get("choices") or ()))


def _summary(verdicts: collections.Counter[str], reasons: collections.Counter[str]) -> str:
    counts = ", ".join(f"{verdicts[name]} {name}" for name in ("correct", "incorrect", "unknown"))
    why = _counted(reasons)
    return f"{verdicts.total()} graded: {counts}" + (f" ({why})" if why else "")


def _counted(reasons: collections.Counter[str]) -> str:
    return "; ".join(f"{count} {reason}" for reason, count in reasons.most_common() if count)
