"""Score the steps of solutions: P(no error so far) for each step, and their aggregate.

Each line of the file is an object with `question` and `steps` (a list of plain texts), and optionally images and
options. The columns are named as for problems (`columns`), and paths are relative to the file. Every line is written
with `scores`, `aggregator` and `aggregate` added.

Instead of `steps`, a line may have a model's raw `response`, which is split into steps according to `step_format`, or
several `responses` to its question. With `responses`, `steps`, `scores` and `aggregate` are lists with one entry per
response, and `chosen` is the index of the best one. A response that cannot be split has no scores; `unsplit`
gives the reason.

With step_format=thoughts, each line also has `thoughts_aggregate` and `answer_aggregate`, the aggregates of the steps
up to `</think>` and of those after it. With a thinking judge (scorer.backend=judge), it has `tokens`, the number of
tokens that the judge generated, and `unknown`, the reason why a solution has no scores, or null.

The steps of an episode are its turns. `observations` then holds what the policy saw before each of them, and optionally
what followed the last one, as a list of texts and of images {"image": path}.

example:
  echo '{"question": "What is 1 + 2?", "steps": ["1+2=3", "<answer>3</answer>"]}' > solutions.jsonl
  mmprm score solutions.jsonl --output scored.jsonl --set scorer.prm=runs/demo/train/prm
  mmprm score responses.jsonl --output scored.jsonl --set scorer.prm=runs/demo/train/prm --set step_format=blank_lines
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from mmprm.cli.shared.aggregator import settled
from mmprm.cli.shared.jsonl import output, value_as_json
from mmprm.cli.shared.options import add_config_options, load_config
from mmprm.config import Config, PathText
from mmprm.data.cells import cut, names_of
from mmprm.data.columns import Columns, read_cell
from mmprm.data.media import MAX_FRAMES, unreadable_media
from mmprm.data.rows import read_file
from mmprm.errors import DataError, UnknownScoresError
from mmprm.evaluation.aggregators import described
from mmprm.halving import score_unless_unknown
from mmprm.preflight import check_output, check_prm
from mmprm.prm.info import JudgeInfo, PrmInfo
from mmprm.problems import VIDEO_FRAMES, ProblemReader
from mmprm.scoring.aggregate import Aggregator, aggregator
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.open import open_scorer, scorer_info
from mmprm.steps import StepFormat, StepSplit, plain_split, trace_length
from mmprm.types import Scorer, Solution, Steps, StepScores

OWN_COLUMNS = ("steps", "response", "responses", "observations")
Answer = StepScores | UnknownScoresError | None
Extra = Callable[[Answer, Steps, Aggregator], dict[str, Any]]
_CHUNK = 2000
"""Number of solutions scored at once: enough to form batches of similar length, few enough to bound memory."""


class ScoreConfig(Config):
    """Configures `mmprm score`."""

    scorer: ScorerConfig
    """Process reward model or thinking judge, and the settings for running it."""
    aggregator: str | None = None
    """Aggregator of step scores; by default the one in the PRM's prm.json. Choices: min, last, mean, max, product,
    sum_log, sum_log_odds or mean_odds."""
    columns: Columns = Columns()
    """Names of the columns that hold the question, images and options."""
    step_format: StepFormat = "tags"
    """How responses mark their steps: tags, blank_lines, numbered or thoughts. With thoughts, the steps up to
    `</think>` and those of the final answer are also aggregated separately."""
    image_root: PathText | None = None
    """Base folder for relative paths of images, videos and audio; by default the folder of the input file."""
    video_frames: int = Field(VIDEO_FRAMES, ge=1, le=MAX_FRAMES)
    """Number of frames that are sampled from each video; use the number with which the model was trained."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    parser.add_argument("file", metavar="FILE.jsonl", type=Path, help="JSON lines, one solution per line")
    parser.add_argument("--output", metavar="FILE", type=Path, help="file to write instead of standard output")
    add_config_options(parser, ScoreConfig)


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm score`."""
    config = load_config(arguments, ScoreConfig)
    info = scorer_info(config.scorer)
    name = settled(config.aggregator, info)
    aggregate = aggregator(name)
    reader = _reader(arguments, config)
    _check(arguments, config)
    lines = (read_line(row, location, reader, config) for location, row in read_file(arguments.file))
    scorer = open_scorer(config.scorer)
    counts: Counter[str] = Counter()
    try:
        with output(arguments.output) as out:
            while chunk := list(itertools.islice(lines, _CHUNK)):
                answers = iter(_scored(scorer, [solution for line in chunk for solution in line.solutions]))
                for line in chunk:
                    own = [next(answers) for _ in line.solutions]
                    row = line.row | line.result(own, aggregate, name, _extras(config, info))
                    out.write(json.dumps(row, ensure_ascii=False, default=value_as_json) + "\n")
                    counts["unknown"] += sum(isinstance(each, UnknownScoresError) for each in own)
                    counts["scored"] += sum(isinstance(each, StepScores) for each in own)
                    counts["tokens"] += sum(each.tokens or 0 for each in own)
                    counts["unsplit"] += sum(found.reason is not None for found in line.splits)
    finally:
        scorer.close()
    reader.tell()
    print(f"{counts['scored']} solutions scored\naggregator {described(name, info)}", file=sys.stderr)
    if isinstance(info, JudgeInfo):
        print(f"{counts['unknown']} solutions unknown, {counts['tokens']:,} tokens of the judge", file=sys.stderr)
    if counts["unsplit"]:
        print(
            f"note: {counts['unsplit']} responses could not be split into steps with step_format={config.step_format}",
            file=sys.stderr,
        )


def _reader(arguments: argparse.Namespace, config: ScoreConfig) -> ProblemReader:
    root = Path(config.image_root or arguments.file.parent).absolute()
    return ProblemReader(config.columns, root, video_frames=config.video_frames)


def _check(arguments: argparse.Namespace, config: ScoreConfig) -> None:
    """Validate the whole file before scoring starts, so that an invalid last line does not waste the work."""
    if arguments.output is not None:
        check_output(arguments.output, "--output", file=True)
    check_prm(config.scorer.prm)
    reader = _reader(arguments, config)
    for location, row in read_file(arguments.file):
        read_line(row, location, reader, config)


def _scored(scorer: Scorer, solutions: list[Solution]) -> list[StepScores | UnknownScoresError]:
    """Score the solutions of all lines. Raises DataError naming the line if an image cannot be read."""
    try:
        return score_unless_unknown(scorer, solutions)
    except DataError as error:
        broken = unreadable_media((solution.problem.id, solution.problem.media) for solution in solutions)
        if not broken:
            raise
        location, reason = next(iter(broken.items()))
        raise DataError(f"{location}: {reason}; correct or remove the image ({len(broken)} such lines)") from error


@dataclass(frozen=True, slots=True)
class Line:
    """Holds an input line and its solutions. A line has one solution given as `steps`, or one per response that can be
    split into steps."""

    row: dict[str, Any]
    solutions: tuple[Solution, ...]
    splits: tuple[StepSplit, ...] = ()
    """Result of splitting each response into steps, in order; empty if the line has `steps`."""

    def result(
        self,
        judged: Sequence[StepScores | UnknownScoresError],
        aggregate: Aggregator,
        name: str,
        extras: Sequence[Extra],
    ) -> dict[str, Any]:
        """Return the output fields to add to the line, including those that `extras` compute."""
        if not self.splits:
            return {**_fields(judged[0], self.solutions[0].steps, aggregate, extras), "aggregator": name}
        answers = iter(judged)
        fields = [
            _fields(next(answers) if found.steps else None, found.steps, aggregate, extras) for found in self.splits
        ]
        columns = {
            "steps": [found.steps for found in self.splits],
            "unsplit": [found.reason for found in self.splits],
            **{key: [each[key] for each in fields] for key in fields[0]},
        }
        if "responses" not in self.row:
            return {key: values[0] for key, values in columns.items()} | {"aggregator": name}
        totals = columns["aggregate"]
        known = [position for position, total in enumerate(totals) if total is not None]
        return {**columns, "aggregator": name, "chosen": max(known, key=totals.__getitem__, default=None)}


def _fields(answer: Answer, steps: Steps, aggregate: Aggregator, extras: Sequence[Extra]) -> dict[str, Any]:
    """Return the output fields of one solution, or of a response that could not be split."""
    scores = answer.scores if isinstance(answer, StepScores) else None
    fields = {"scores": scores, "aggregate": None if scores is None else aggregate(scores)}
    for extra in extras:
        fields |= extra(answer, steps, aggregate)
    return fields


def _extras(config: ScoreConfig, info: PrmInfo) -> list[Extra]:
    """Return the functions that compute the output fields of only some runs."""
    costs = [_costs] if isinstance(info, JudgeInfo) else []
    return [*costs, _parts] if config.step_format == "thoughts" else costs


def _costs(answer: Answer, steps: Steps, aggregate: Aggregator) -> dict[str, Any]:
    """Return the fields of a thinking judge."""
    unknown = str(answer) if isinstance(answer, UnknownScoresError) else None
    return {"tokens": 0 if answer is None else answer.tokens, "unknown": unknown}


def _parts(answer: Answer, steps: Steps, aggregate: Aggregator) -> dict[str, Any]:
    """Return the aggregates of the chain of thought and of the final answer; null for a part without scores.

    Without `</think>`, all steps are part of the chain of thought.
    """
    scores = answer.scores if isinstance(answer, StepScores) else ()
    length = trace_length(steps) or len(steps)
    parts = {"thoughts_aggregate": scores[:length], "answer_aggregate": scores[length:]}
    return {name: aggregate(part) if part else None for name, part in parts.items()}


def read_line(row: dict[str, Any], location: str, reader: ProblemReader, config: ScoreConfig) -> Line:
    """Parse an input line into its solutions. Raises DataError naming `location` if the line is invalid."""
    question = read_cell(row, config.columns, "question", location)
    if question is None and read_cell(row, config.columns, "chat", location) is None:
        given = row.get(config.columns.question or "question")
        raise DataError(
            f"{location}: question must be text, got {cut(given)!r}; the line has {names_of(row)}: name its column in "
            "columns.question"
        )
    asked = reader.asked({name: value for name, value in row.items() if name not in OWN_COLUMNS}, location)
    # The location serves as the problem id, so that scorer errors name the line.
    problem = asked.without_answer(location)
    if row.get("steps"):
        if "responses" in row:
            raise DataError(f"{location}: has both steps and responses; remove one of them")
        steps, seen = _texts(row, "steps", location), reader.observations(row, location)
        if seen and len(seen) - len(steps) not in (0, 1):
            raise DataError(
                f"{location}: has {len(seen)} observations for {len(steps)} steps; give one per step, and optionally "
                "one after the last step"
            )
        return Line(row, (Solution(problem, steps, seen),))
    if "responses" in row and "response" in row:
        raise DataError(f"{location}: has both response and responses; remove one of them")
    name = next((name for name in ("responses", "response") if name in row), "steps")
    if row.get("observations") and name != "steps":
        raise DataError(f"{location}: has observations, but no steps; give the turns of the episode in steps")
    splits = tuple(plain_split(text, config.step_format) for text in _texts(row, name, location))
    return Line(row, tuple(Solution(problem, found.steps) for found in splits if found.steps), splits)


def _texts(row: dict[str, Any], name: str, location: str) -> tuple[str, ...]:
    values = row.get(name)
    if name == "response" and isinstance(values, str):
        values = [values]
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        rule = "a text" if name == "response" else "a list of at least one text"
        raise DataError(f"{location}: {name} must be {rule}, got {cut(values)!r}; or give response, or responses")
    return tuple(values)
