"""Score the steps of solutions: P(step is right) for each step, and their aggregate.

Each line of the file is an object with `question` and `steps` (a list of plain texts), and maybe `images` (a path or a
list of paths, relative to the file). Every line is written again with `scores`, `aggregator` and `aggregate` added.

example:
  echo '{"question": "What is 1 + 2?", "steps": ["1+2=3", "<answer>3</answer>"]}' > solutions.jsonl
  mmprm score solutions.jsonl --out scored.jsonl --set scorer.prm=runs/demo/train/prm
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from mmprm.cli.aggregator import settled
from mmprm.cli.jsonl import output, read_rows
from mmprm.cli.options import add_config_options, load_config
from mmprm.config import Config
from mmprm.errors import DataError
from mmprm.evaluation.aggregators import described
from mmprm.scoring.aggregate import aggregator
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.open import open_scorer, scorer_info
from mmprm.types import Picture, Problem, Solution

CHUNK = 2000
"""Solutions scored together: enough for batches of similar length, few enough for any file to fit in memory."""


class ScoreConfig(Config):
    scorer: ScorerConfig
    """The process reward model and how it runs."""
    aggregator: str | None = None
    """min, last, mean, max, product, sum_log, sum_log_odds or mean_odds; by default the one in the PRM's prm.json."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE.jsonl", type=Path, help="solutions, one a line")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write here instead of to standard output")
    add_config_options(parser, ScoreConfig)


def run(arguments: argparse.Namespace) -> None:
    config = load_config(arguments, ScoreConfig)
    info = scorer_info(config.scorer)
    name = settled(config.aggregator, info)
    aggregate = aggregator(name)
    rows = ((row, _solution(row, place, arguments.file.parent)) for place, row in read_rows(arguments.file))
    scorer = open_scorer(config.scorer)
    count = 0
    try:
        with output(arguments.out) as out:
            while chunk := list(itertools.islice(rows, CHUNK)):
                for (row, _), judged in zip(chunk, scorer.score([solution for _, solution in chunk]), strict=True):
                    result = {"scores": judged.scores, "aggregator": name, "aggregate": aggregate(judged.scores)}
                    out.write(json.dumps({**row, **result}, ensure_ascii=False) + "\n")
                count += len(chunk)
    finally:
        scorer.close()
    print(f"{count} solutions scored\naggregator {described(name, info)}", file=sys.stderr)


def _solution(row: dict[str, Any], place: str, root: Path) -> Solution:
    question, steps, images = row.get("question"), row.get("steps"), row.get("images") or []
    images = [images] if isinstance(images, str) else images
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"{place}: question must be text, got {question!r}; the line has {', '.join(row)}")
    if not isinstance(steps, list) or not steps or not all(isinstance(step, str) for step in steps):
        raise DataError(f"{place}: steps must be a list of at least one text, got {steps!r}")
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise DataError(f"{place}: images must be a path or a list of paths, got {images!r}")
    # The place serves as the id, so that a scorer's complaint names the line.
    pictures = tuple(Picture(path=str(root / image)) for image in images)
    return Solution(Problem(place, question, answer="", pictures=pictures), tuple(steps))
