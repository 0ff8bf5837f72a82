"""Build the page for browsing the rollouts of an RL run: rollouts.html filled with the responses in samples.jsonl."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmprm.errors import DataError
from mmprm.files import logged_rows
from mmprm.report.browsing import data_element, media_data, write_browsing_page
from mmprm.types import AudioRef, ImageRef, MediaRef, VideoRef

SAMPLES_FILE, ROLLOUTS_FILE = "samples.jsonl", "rollouts.html"

DEFAULT_LIMIT = 400
"""Maximum number of rollouts on a page unless another is given; more of them make the page slow to load."""

CREDIT_QUANTILE = 0.9
"""Quantile of the steps' absolute credits that is shown with full color. Larger credits look the same."""

_REQUIRED = ("problem", "question", "gold", "verdict", "reward", "tokens", "steps", "text")


def write_rollouts(path: Path, folder: Path, limit: int = DEFAULT_LIMIT) -> tuple[int, int]:
    """Write a page with at most `limit` of the responses that the run in `folder` has logged.

    Returns the number of responses on the page and in the log. Raises DataError if the log cannot be read.
    """
    logged = read_samples(folder)
    shown = of_spread_steps(logged, limit)
    write_browsing_page(path, "rollouts.html", rollout_elements(shown, folder, len(logged)))
    return len(shown), len(logged)


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """Read the logged responses of an RL run. Damaged lines are skipped with a warning on stderr."""
    path = folder / SAMPLES_FILE
    try:
        return list(logged_rows(path, _REQUIRED))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); wait for the first step of the run, which writes it, or set "
            "monitor.samples above 0"
        ) from error


def of_spread_steps(rows: Sequence[Mapping[str, Any]], limit: int) -> list[Mapping[str, Any]]:
    """Return the responses of some training steps, spread evenly over the run, including the first and last ones.

    The number of steps is the largest for which `limit` is surely not exceeded.
    """
    by_step: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_step.setdefault(row["step"], []).append(row)
    steps = sorted(by_step)
    count = min(len(steps), max(1, limit // max(map(len, by_step.values()), default=1)))
    positions = sorted({round(index * (len(steps) - 1) / max(1, count - 1)) for index in range(count)})
    return [row for position in positions for row in by_step[steps[position]]][:limit]


def rollout_elements(shown: Sequence[Mapping[str, Any]], folder: Path, total: int) -> Iterator[str]:
    """Yield a script element with the list of responses, one element per response, and one per problem's media.

    The elements are separate so that a browser parses only the responses that are opened.
    """
    problems = list(dict.fromkeys(row["problem"] for row in shown))
    number_of = {problem: number for number, problem in enumerate(problems)}
    entries = [rollout_entry(row, number_of[row["problem"]]) for row in shown]
    run = {"run": folder.name, "total": total, "credit_scale": credit_scale(shown), "rollouts": entries}
    yield data_element("run", run)
    for position, row in enumerate(shown):
        yield data_element(f"rollout-{position}", rollout_data(row) | {"turns": turns_data(row, folder)})
    media_of = {row["problem"]: logged_media(row, folder) for row in shown}
    for number, problem in enumerate(problems):
        yield data_element(f"images-{number}", [media_data(ref) for ref in media_of[problem]])


def logged_media(row: Mapping[str, Any], folder: Path) -> tuple[MediaRef, ...]:
    """Return the images, videos and audio of a line of the log. Relative paths are below the run's folder."""
    return (
        *(ImageRef(path=str(folder / path)) for path in row.get("images", ())),
        *(VideoRef(path=str(folder / path), frames=frames) for path, frames in row.get("videos", ())),
        *(AudioRef(path=str(folder / path)) for path in row.get("audios", ())),
    )


def rollout_entry(row: Mapping[str, Any], images: int) -> dict[str, Any]:
    """Build the data by which the page lists, sorts and filters a response. `images` is its problem's number.

    `contradiction` is how much the lowest step score contradicts the verdict: the score itself for an incorrect
    response, 1 minus the score for a correct one, and null without scores or verdict.
    """
    scores = [score for _, score in row["steps"] if score is not None]
    lowest = min(scores, default=None)
    contradiction = None
    if lowest is not None and row["verdict"] in ("correct", "incorrect"):
        contradiction = lowest if row["verdict"] == "incorrect" else 1 - lowest
    return {
        "step": row["step"],
        "problem": row["problem"],
        "question": row["question"].strip(),
        "verdict": row["verdict"],
        "reward": row["reward"],
        "tokens": row["tokens"],
        "lowest": lowest,
        "contradiction": contradiction,
        "images": images,
    }


def rollout_data(row: Mapping[str, Any]) -> dict[str, Any]:
    """Build the data that the page needs, besides the list entry, to show one response.

    `steps` are triples (text, score, credit), with null for what is unknown.
    """
    credits = list(row.get("credits", ()))
    credits += [None] * (len(row["steps"]) - len(credits))
    steps = [
        [text, _rounded(score), _rounded(credit)] for (text, score), credit in zip(row["steps"], credits, strict=True)
    ]
    data = {"steps": steps, "text": "" if steps else row["text"]}
    names = ("gold", "extracted", "parts", "finish_reason", "unsplit", "advantage", "group")
    return data | {name: row.get(name) for name in names}


def turns_data(row: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Build what the page shows of an episode's turns: the observation before each step, its reward, and the truth.

    The list is empty for other responses. The question, with which the first observation may begin, is left out.
    """
    return [
        {
            "text": turn["text"].removeprefix(row["question"]).strip(),
            "images": [media_data(ref) for ref in logged_media(turn, folder)],
            "reward": _rounded(turn["reward"]),
            "truth": turn["truth"],
        }
        for turn in row.get("turns", ())
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def credit_scale(rows: Sequence[Mapping[str, Any]]) -> float:
    """Return the absolute credit that is shown with full color: the quantile CREDIT_QUANTILE over all steps, or 1."""
    sizes = [abs(credit) for row in rows for credit in row.get("credits", ()) if credit]
    return float(np.quantile(sizes, CREDIT_QUANTILE)) if sizes else 1.0
