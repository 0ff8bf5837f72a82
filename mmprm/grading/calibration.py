"""Calibrate a judge by comparing its verdicts with known labels on answers that symbolic comparison cannot decide."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mmprm.errors import ConfigError, DataError, GradingError
from mmprm.files import parse_json, whole_file
from mmprm.grading.judge import PROMPT_HASH, AnswerJudgeConfig
from mmprm.metrics import Interval, wilson
from mmprm.types import Verdict


@dataclass(frozen=True, slots=True)
class VerdictCounts:
    """Counts a judge's verdicts by true label; `unknown` counts undecided answers. A rate over zero answers is None."""

    true_accepts: int = 0
    false_accepts: int = 0
    true_rejects: int = 0
    false_rejects: int = 0
    unknown: int = 0

    @property
    def precision(self) -> Interval | None:
        """Return the fraction of accepted answers that are correct, with its Wilson interval."""
        return wilson(self.true_accepts, self.true_accepts + self.false_accepts)

    @property
    def agreement(self) -> Interval | None:
        """Return the fraction of decided answers whose verdict is correct, with its Wilson interval."""
        correct = self.true_accepts + self.true_rejects
        return wilson(correct, correct + self.false_accepts + self.false_rejects)

    @property
    def false_accept_rate(self) -> Interval | None:
        """Return the fraction of decided incorrect answers that are accepted, with its Wilson interval."""
        return wilson(self.false_accepts, self.false_accepts + self.true_rejects)

    @property
    def false_reject_rate(self) -> Interval | None:
        """Return the fraction of decided correct answers that are rejected, with its Wilson interval."""
        return wilson(self.false_rejects, self.false_rejects + self.true_accepts)

    @property
    def unknown_rate(self) -> Interval | None:
        """Return the fraction of answers left undecided, with its Wilson interval."""
        return wilson(self.unknown, sum(asdict(self).values()))


SHARES = ("agreement", "precision", "false_accept_rate", "false_reject_rate", "unknown_rate")


def tally(verdicts: Sequence[Verdict], truths: Sequence[bool]) -> VerdictCounts:
    """Count verdicts by true label; `verdicts[i]` and `truths[i]` belong to the same answer."""

    def count(verdict: Verdict, truth: bool) -> int:
        return sum(pair == (verdict, truth) for pair in zip(verdicts, truths, strict=True))

    return VerdictCounts(
        true_accepts=count(Verdict.CORRECT, True),
        false_accepts=count(Verdict.CORRECT, False),
        true_rejects=count(Verdict.INCORRECT, False),
        false_rejects=count(Verdict.INCORRECT, True),
        unknown=sum(verdict is Verdict.UNKNOWN for verdict in verdicts),
    )


@dataclass(frozen=True, slots=True)
class Calibration:
    """Holds the result of calibrating a judge.

    `symbols` counts the answers that the symbolic grader decides; `judge` counts the remaining ones, left to the judge.
    """

    model: str
    prompt: str
    labeled: str
    symbols: VerdictCounts
    judge: VerdictCounts


def write_calibration(path: str | Path, calibration: Calibration) -> None:
    """Write a calibration as JSON: the counts, plus the rates and their intervals for human readers."""
    values = asdict(calibration)
    for name in ("symbols", "judge"):
        shares = {share: getattr(getattr(calibration, name), share) for share in SHARES}
        values[name] |= {share: asdict(interval) for share, interval in shares.items() if interval is not None}
    with whole_file(path, way_out="set judge.calibration elsewhere") as file:
        file.write(json.dumps(values, indent=2) + "\n")


def read_calibration(path: str | Path) -> Calibration:
    """Read a calibration file. Raises GradingError if it cannot be read or is not a calibration."""
    try:
        values = parse_json(Path(path).read_bytes(), "it")
        return Calibration(
            values["model"], values["prompt"], values["labeled"], _tally(values["symbols"]), _tally(values["judge"])
        )
    except OSError as error:
        raise GradingError(f"{path}: cannot be read ({error.strerror}); {_CALIBRATE}") from error
    except (DataError, ValueError, KeyError, TypeError) as error:
        raise GradingError(f"{path}: is not the calibration of a judge ({error}); {_CALIBRATE}") from error


def check_judge(config: AnswerJudgeConfig | None) -> None:
    """Raise ConfigError unless a configured judge has a matching calibration that meets the configured minimums.

    Raises GradingError if the calibration cannot be read.
    """
    if config is None:
        return
    location, calibration = f"judge.calibration={config.calibration}", read_calibration(config.calibration)
    for name, found, used in (
        ("model", calibration.model, config.model),
        ("prompt", calibration.prompt, PROMPT_HASH),
    ):
        if found != used:
            raise ConfigError(f"{location}: was made with the {name} {found}, but this judge has {used}; {_CALIBRATE}")
    for name, interval, bar in (
        ("precision", calibration.judge.precision, config.min_precision),
        ("agreement", calibration.judge.agreement, config.min_agreement),
    ):
        if interval is None or interval.low <= bar:
            raise ConfigError(
                f"{location}: the judge's {name} is {interval_text(interval)}, judge.min_{name}={bar:g} must lie below "
                "the interval; use a better judge, calibrate on more labeled answers that symbolic comparison cannot "
                f"decide, lower judge.min_{name}, or set judge=null to leave such answers unknown"
            )


def interval_text(interval: Interval | None) -> str:
    """Format an interval for an error message."""
    return "unknown" if interval is None else f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


_CALIBRATE = "calibrate it with mmprm grade --calibrate LABELED.jsonl, or set judge=null to run without a judge"


def _tally(values: dict[str, Any]) -> VerdictCounts:
    counts = {field.name: values[field.name] for field in fields(VerdictCounts)}
    if not all(isinstance(count, int) and count >= 0 for count in counts.values()):
        raise ValueError(f"counts must be non-negative integers, got {counts}")
    return VerdictCounts(**counts)
