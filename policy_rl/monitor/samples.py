"""Select and log responses for people to read, starting with those whose step scores most contradict their outcome.

samples.md is for reading in an editor, and mmprm.report.rollouts builds a page from samples.jsonl.

Shapes: S step of a response, T token.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmprm.data.media import write_media
from mmprm.environments.interface import Observation
from mmprm.errors import DataError, TrainingError
from mmprm.files import logged_rows, whole_file
from mmprm.problems import write_image
from mmprm.report.rollouts import SAMPLES_FILE, logged_media
from mmprm.steps import StepFormat
from mmprm.types import ImageRef, MediaRef, VideoRef
from policy_rl.graded import GradedGroup, GradedResponse
from policy_rl.rewards.cutter import steps_of
from policy_rl.types import Response, TrainingSample

TEXT_FILE = "samples.md"
_replaced = partial(whole_file, error=TrainingError, way_out="choose another output")


@dataclass(frozen=True, slots=True)
class LoggedTurn:
    """Holds what the policy saw before an action of an episode, and the environment's reward and truth after it."""

    text: str
    images: tuple[ImageRef, ...]
    reward: float
    truth: str | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """Represents a logged response with its problem, grade, rewards, step scores and advantages.

    `steps` are pairs (text, score or None). If there are none, `unsplit` is the reason, and the whole `text` is shown
    instead. `credits` are the mean advantages of the steps' tokens, and `advantage` is that of all tokens; both are
    empty or None if they are unknown, or if the response was not trained on. `group` holds the number of correct
    responses in its group, and the number of those with a known accuracy. `turns` are those of an episode, one per
    step.
    """

    step: int
    problem: str
    question: str
    gold: str
    verdict: str
    extracted: str | None
    reward: float | None
    parts: Mapping[str, float | None]
    tokens: int
    finish_reason: str
    steps: tuple[tuple[str, float | None], ...]
    unsplit: str | None
    text: str
    advantage: float | None = None
    credits: tuple[float | None, ...] = ()
    group: tuple[int, int] = (0, 0)
    media: tuple[MediaRef, ...] = ()
    turns: tuple[LoggedTurn, ...] = ()

    def markdown(self) -> str:
        """Render the sample as Markdown."""
        reward = "none" if self.reward is None else f"{self.reward:.3g}"
        facts = [f"{self.verdict}", f"answer {self.extracted!r}, gold {self.gold!r}", f"reward {reward}"]
        facts += [f"{name} {value:.3g}" for name, value in self.parts.items() if value is not None]
        facts += [] if self.advantage is None else [f"advantage {self.advantage:+.3g}"]
        facts += [f"{self.tokens} tokens", f"ended by {self.finish_reason}"]
        lines = [f"## Step {self.step}, problem {self.problem}", "", _quoted(self.question), "", " · ".join(facts), ""]
        if self.unsplit:
            lines += [f"No steps: {self.unsplit}.", "", _quoted(self.text)]
        for number, (text, score) in enumerate(self.steps, start=1):
            shown = "not scored" if score is None else f"{score:.2f}"
            lines.append(f"{number}. **{shown}** {' '.join(text.split())}")
        return "\n".join(lines) + "\n\n"


def chosen(groups: Sequence[GradedGroup], count: int) -> list[tuple[int, GradedResponse]]:
    """Select at most `count` responses to log; return each with the index of its group.

    The first ones are those on which PRM and outcome disagree most: among incorrect responses the one whose lowest step
    score is highest, and among correct ones the one whose lowest step score is lowest. The others are the first
    responses to problems spread evenly over the batch.
    """
    every = [(index, each) for index, group in enumerate(groups) for each in group.responses]
    known = [pair for pair in every if pair[1].reward.parts.get("accuracy") is not None]
    scored = [pair for pair in known if pair[1].process is not None]
    picked = []
    for correct, most in ((False, max), (True, min)):
        among = [pair for pair in scored if pair[1].correct is correct]
        if among:
            picked.append(most(among, key=lambda pair: min(pair[1].process.scores)))
    heads = [(index, group.responses[0]) for index, group in enumerate(groups) if group.responses]
    number = min(count, len(heads))
    picked += [heads[position * len(heads) // number] for position in range(number)]
    # Compare by identity, because two responses may be equal.
    distinct = {id(response): (index, response) for index, response in picked}
    return list(distinct.values())[:count]


def trained_sample(samples: Sequence[TrainingSample], index: int, each: GradedResponse) -> TrainingSample | None:
    """Return the training sample of a response of group number `index`, or None if it was not trained on.

    Responses come before their continuations in `samples`, and equal responses of a group have equal advantages.
    """
    ids_T = each.response.token_ids
    return next((one for one in samples if one.group == index and np.array_equal(one.token_ids, ids_T)), None)


def credit_of_steps(advantages_T: np.ndarray, step_of_token: np.ndarray, steps: int) -> tuple[float | None, ...]:
    """Return the mean advantage of each step's tokens, or None for a step without tokens in `step_of_token`."""
    tokens = [advantages_T[step_of_token == step] for step in range(steps)]
    return tuple(float(part.mean()) if len(part) else None for part in tokens)


def sample_of(
    step: int,
    group: GradedGroup,
    each: GradedResponse,
    step_format: StepFormat,
    prefill: str = "",
    trained: TrainingSample | None = None,
    step_of_token: np.ndarray | None = None,
    truths: Sequence[str] = (),
) -> Sample:
    """Create the log entry for a response. `trained` and `step_of_token` are needed only for its advantages.

    `truths` are what the environment says after each turn; see TurnTruths.
    """
    found = steps_of(each.response, step_format, prefill)
    scores: tuple[float | None, ...] = each.process.scores if each.process else ()
    scores += (None,) * (len(found.steps) - len(scores))
    credits: tuple[float | None, ...] = ()
    if trained is not None and step_of_token is not None and len(step_of_token) == len(trained.token_ids):
        credits = credit_of_steps(trained.advantages, step_of_token, len(found.steps))
    return Sample(
        step=step,
        problem=group.problem.id,
        question=group.problem.question,
        gold=group.problem.answer,
        verdict=each.grading.verdict.name.lower(),
        extracted=each.grading.extracted,
        reward=each.reward.total,
        parts=each.reward.parts,
        tokens=each.response.token_count,
        finish_reason=each.response.finish_reason,
        steps=tuple(zip(found.steps, scores, strict=True)),
        unsplit=found.reason,
        text=prefill + each.response.text,
        advantage=None if trained is None else float(trained.advantages[trained.counted].mean()),
        credits=credits,
        group=(int(sum(group.accuracies)), len(group.accuracies)),
        media=group.problem.media,
        turns=_turns(each.response, truths),
    )


def _turns(response: Response, truths: Sequence[str]) -> tuple[LoggedTurn, ...]:
    turns = () if response.played is None else response.played.turns
    seen = (Observation(turn.observation) for turn in turns)
    return tuple(
        LoggedTurn(observation.text, observation.images, turn.reward, truth)
        for observation, turn, truth in zip(seen, turns, truths or [None] * len(turns), strict=True)
    )


class SampleLog:
    """Appends samples to samples.jsonl and samples.md in the run folder.

    Files of images, videos and audio are referenced by path. Media without a file are written once each to `images/`
    and `media/` in the run folder. `done` is the step of the checkpoint from which the run is resumed; samples of later
    steps are removed.
    """

    def __init__(self, folder: Path, done: int) -> None:
        self._folder, rows, text = folder, folder / SAMPLES_FILE, folder / TEXT_FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            kept = [sample for sample in _read(rows) if sample.step <= done]
            # The files are replaced as a whole, so that a kill cannot lose the kept samples.
            with _replaced(rows) as self._json, _replaced(text) as self._text:
                self.write(kept)
            self._json, self._text = rows.open("a", encoding="utf-8"), text.open("a", encoding="utf-8")
        except OSError as error:
            raise TrainingError(f"{folder}: cannot be written ({error}); choose another output") from error

    def write(self, samples: Sequence[Sample]) -> None:
        """Append samples to both log files."""
        for sample in samples:
            self._json.write(json.dumps(self._as_dict(sample), ensure_ascii=True) + "\n")
            # A policy's bytes may decode to lone surrogates, which cannot be written as UTF-8.
            self._text.write(sample.markdown().encode("utf-8", "replace").decode("utf-8"))
        self._each(lambda file: file.flush())

    def _as_dict(self, sample: Sample) -> dict[str, Any]:
        names = (name for name in Sample.__slots__ if name not in ("media", "turns"))
        values = {name: getattr(sample, name) for name in names} | self._paths(sample.media)
        if sample.turns:
            values["turns"] = [
                {
                    "text": turn.text,
                    "images": self._paths(turn.images)["images"],
                    "reward": turn.reward,
                    "truth": turn.truth,
                }
                for turn in sample.turns
            ]
        return values

    def _paths(self, media: Sequence[MediaRef]) -> dict[str, list[Any]]:
        """Return the paths of media by kind, without those that cannot be written; see logged_media."""
        paths: dict[str, list[Any]] = {"images": [], "videos": [], "audios": []}
        for each in media:
            path = self._path_of(each)
            if path is not None and isinstance(each, VideoRef):
                paths["videos"].append((path, each.frames))
            elif path is not None:
                paths["images" if isinstance(each, ImageRef) else "audios"].append(path)
        return paths

    def _path_of(self, ref: MediaRef) -> str | None:
        """Return the path of a medium, relative if it is in the run folder, or None if it cannot be written."""
        folder = self._folder.absolute()
        try:
            if ref.path is not None:
                path = Path(ref.path).absolute()
            else:
                path = folder / (write_image(ref, folder) if isinstance(ref, ImageRef) else write_media(ref, folder))
        except (DataError, OSError):  # the log is only for people to read, and the engines report unreadable images
            return None
        return str(path.relative_to(folder) if path.is_relative_to(folder) else path)

    def close(self) -> None:
        """Close both log files."""
        self._each(lambda file: file.close())

    def _each(self, action: Any) -> None:
        for file in (self._json, self._text):
            action(file)


def _read(path: Path) -> Iterator[Sample]:
    """Yield the samples in a log file; skip corrupt lines, because the log is only for people to read."""
    for values in logged_rows(path, _REQUIRED) if path.exists() else ():
        with contextlib.suppress(TypeError, ValueError):
            steps, media = tuple(map(tuple, values["steps"])), logged_media(values, path.parent)
            turns = _read_turns(values, path.parent)
            kept = {name: value for name, value in values.items() if name not in ("images", "videos", "audios")}
            yield Sample(**(kept | {"steps": steps, "media": media, "turns": turns}))


def _read_turns(row: Mapping[str, Any], folder: Path) -> tuple[LoggedTurn, ...]:
    turns = row.get("turns", ())
    return tuple(LoggedTurn(turn["text"], logged_media(turn, folder), turn["reward"], turn["truth"]) for turn in turns)


_REQUIRED = [field.name for field in fields(Sample) if field.default is MISSING]
"""Fields that a line must have. Runs of earlier versions lack the others."""


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines())
