"""Select and log responses for people to read, starting with those whose step scores most contradict their outcome."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprm.errors import TrainingError
from mmprm.files import logged_rows
from mmprm.steps import StepFormat
from policy_rl.graded import GradedGroup, GradedResponse
from policy_rl.rewards.cutter import plain_steps

JSON_FILE, TEXT_FILE = "samples.jsonl", "samples.md"


@dataclass(frozen=True, slots=True)
class Sample:
    """Represents a logged response with its problem, grade, rewards and step scores.

    `steps` are pairs (text, score or None). If there are none, `unsplit` is the reason, and the whole `text` is shown
    instead.
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

    def markdown(self) -> str:
        """Render the sample as Markdown."""
        reward = "none" if self.reward is None else f"{self.reward:.3g}"
        facts = [f"{self.verdict}", f"answer {self.extracted!r}, gold {self.gold!r}", f"reward {reward}"]
        facts += [f"{name} {value:.3g}" for name, value in self.parts.items() if value is not None]
        facts += [f"{self.tokens} tokens", f"ended by {self.finish_reason}"]
        lines = [f"## Step {self.step}, problem {self.problem}", "", _quoted(self.question), "", " · ".join(facts), ""]
        if self.unsplit:
            lines += [f"No steps: {self.unsplit}.", "", _quoted(self.text)]
        for number, (text, score) in enumerate(self.steps, start=1):
            shown = "not scored" if score is None else f"{score:.2f}"
            lines.append(f"{number}. **{shown}** {' '.join(text.split())}")
        return "\n".join(lines) + "\n\n"


def chosen(groups: Sequence[GradedGroup], count: int) -> list[tuple[GradedGroup, GradedResponse]]:
    """Select at most `count` responses to log.

    The first ones are those on which PRM and outcome disagree most: among incorrect responses the one whose lowest step
    score is highest, and among correct ones the one whose lowest step score is lowest. The others are the first
    responses to problems spread evenly over the batch.
    """
    every = [(group, each) for group in groups for each in group.responses]
    scored = [pair for pair in every if pair[1].process is not None]
    picked = []
    for correct, most in ((False, max), (True, min)):
        among = [pair for pair in scored if pair[1].correct is correct]
        if among:
            picked.append(most(among, key=lambda pair: min(pair[1].process.scores)))
    heads = [(group, group.responses[0]) for group in groups if group.responses]
    number = min(count, len(heads))
    picked += [heads[position * len(heads) // number] for position in range(number)]
    # Compare by identity, because two responses may be equal.
    distinct = {id(response): (group, response) for group, response in picked}
    return list(distinct.values())[:count]


def sample_of(
    step: int, group: GradedGroup, each: GradedResponse, step_format: StepFormat, prefill: str = ""
) -> Sample:
    """Create the log entry for a response."""
    found = plain_steps(each.response.text, step_format, prefill)
    scores: tuple[float | None, ...] = each.process.scores if each.process else ()
    scores += (None,) * (len(found.steps) - len(scores))
    return Sample(
        step=step,
        problem=group.problem.id,
        question=group.problem.question,
        gold=group.problem.answer,
        verdict=each.grading.verdict.name.lower(),
        extracted=each.grading.extracted,
        reward=each.reward.total,
        parts=each.reward.parts,
        tokens=len(each.response.token_ids),
        finish_reason=each.response.finish_reason,
        steps=tuple(zip(found.steps, scores, strict=True)),
        unsplit=found.reason,
        text=prefill + each.response.text,
    )


class SampleLog:
    """Appends samples to samples.jsonl and samples.md in the run folder.

    `done` is the step of the checkpoint from which the run is resumed; samples of later steps are removed.
    """

    def __init__(self, folder: Path, done: int) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            kept = [sample for sample in _read(folder / JSON_FILE) if sample.step <= done]
            self._json = (folder / JSON_FILE).open("w", encoding="utf-8")
            self._text = (folder / TEXT_FILE).open("w", encoding="utf-8")
        except OSError as error:
            raise TrainingError(f"{folder}: cannot be written ({error}); choose another output") from error
        self.write(kept)

    def write(self, samples: Sequence[Sample]) -> None:
        """Append samples to both log files."""
        for sample in samples:
            self._json.write(json.dumps(_as_dict(sample), ensure_ascii=True) + "\n")
            # A policy's bytes may decode to lone surrogates, which cannot be written as UTF-8.
            self._text.write(sample.markdown().encode("utf-8", "replace").decode("utf-8"))
        self._each(lambda file: file.flush())

    def close(self) -> None:
        """Close both log files."""
        self._each(lambda file: file.close())

    def _each(self, action: Any) -> None:
        for file in (self._json, self._text):
            action(file)


def _read(path: Path) -> Iterator[Sample]:
    """Yield the samples in a log file; skip corrupt lines, because the log is only for people to read."""
    for values in logged_rows(path, Sample.__slots__) if path.exists() else ():
        with contextlib.suppress(TypeError, ValueError):
            yield Sample(**{**values, "steps": tuple(tuple(step) for step in values["steps"])})


def _as_dict(sample: Sample) -> dict[str, Any]:
    return {name: getattr(sample, name) for name in Sample.__slots__}


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines())
