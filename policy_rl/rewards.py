"""Outcome rewards of one response: accuracy, format, length, functions of the user. None drops the sample, never 0."""

from __future__ import annotations

import asyncio
import importlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Literal

from pebble import asynchronous
from pydantic import Field, model_validator

from mmprm.config import Config
from mmprm.errors import ConfigError, TrainingError
from mmprm.types import Grading, Problem, Verdict

UserFunction = Callable[[Problem, str, Grading], float | None]


class LengthLimits(Config):
    least: int = Field(0, ge=0)
    """Tokens below which a response is penalised."""
    most: int | None = Field(None, gt=0)
    """Tokens above which a response is penalised."""
    margin: int = Field(0, ge=0)
    """Tokens beyond a limit over which the penalty grows linearly from 0 to 1; 0: full penalty at once."""
    weight: float = Field(1.0, ge=0)
    """Weight of the penalty, which lies in [−1, 0]."""

    @model_validator(mode="after")
    def _in_order(self) -> LengthLimits:
        if self.most is not None and self.least > self.most:
            raise ValueError(f"least={self.least} must not exceed most={self.most}")
        return self


class UserReward(Config):
    path: str
    """package.module:function, called with (problem, response, grading), in a thread and one call at a time; returns a
    finite number, or None to drop the sample. The response begins with what the prompt prefilled."""
    weight: float = 1.0


class RewardConfig(Config):
    accuracy: Literal["verdict", "exact_label"] = "verdict"
    """verdict: the grader's; exact_label: the extracted answer is the gold's text, but for case and outer space."""
    accuracy_weight: float = Field(1.0, ge=0)
    format: Literal["think", "steps"] | None = None
    """think: one <think>, then one <answer>; steps: one or more <step>, then one <answer>; unset: no format reward."""
    format_weight: float = Field(0.5, ge=0)
    """MM-Eureka: 0.5 for instruct models, 1.0 for base models."""
    combination: Literal["sum", "gate"] = "sum"
    """sum: weighted sum of accuracy and format; gate: 1 where both are 1, else 0 (Vision-R1). Length penalty and user
    functions are added to either."""
    length: LengthLimits = LengthLimits()
    functions: tuple[UserReward, ...] = ()
    """Further rewards by import path."""
    timeout_s: float = Field(600, gt=0)
    """Longest time that the functions together may take for a response."""

    @property
    def is_empty(self) -> bool:
        """Every reward is 0."""
        limited = self.length.weight and (self.length.least or self.length.most is not None)
        formed = self.format is not None and self.format_weight
        return self.combination == "sum" and not (self.accuracy_weight or formed or limited or self.functions)

    @model_validator(mode="after")
    def _gate_has_a_format(self) -> RewardConfig:
        if self.combination == "gate" and self.format is None:
            raise ValueError("combination=gate needs a format to gate by: format=think or format=steps")
        for key in ("accuracy_weight", "format_weight"):
            if self.combination == "gate" and key in self.model_fields_set and getattr(self, key) != 1:
                raise ValueError(f"{key}={getattr(self, key)} does nothing with combination=gate: leave it out")
        return self


@dataclass(frozen=True, slots=True)
class Reward:
    """`total` is None where a part that counts is unknown: the sample is dropped and counted. `parts` are unweighted,
    for the log."""

    total: float | None
    parts: dict[str, float | None]


class OutcomeReward:
    """(problem, response, grading, token_count) → Reward. `prefill` is the text with which the prompt already began the
    response, for example <think>.

    Raises ConfigError for a user function that cannot be imported, and on call TrainingError for one that raises or
    returns neither None nor a finite number.
    """

    def __init__(self, config: RewardConfig, prefill: str = "") -> None:
        self.config = config
        self.prefill = prefill
        self.functions = [(entry, load_function(entry.path)) for entry in config.functions]
        self._one_at_a_time = asyncio.Lock()

    async def beside(self, problem: Problem, response: str, grading: Grading, token_count: int) -> Reward:
        """The same, while the event loop goes on, whatever time the user's functions take."""
        if not self.functions:
            return self(problem, response, grading, token_count)
        async with self._one_at_a_time:
            # A thread that the end of the process does not wait for.
            call = asynchronous.thread(self.__call__)(problem, response, grading, token_count)
            try:
                return await asyncio.wait_for(asyncio.shield(call), self.config.timeout_s)
            except TimeoutError:
                call.add_done_callback(lambda late: late.exception())  # it comes too late to be told
                paths = ", ".join(entry.path for entry, _ in self.functions)
                raise TrainingError(
                    f"{paths}: no answer on problem {problem.id} within rewards.timeout_s={self.config.timeout_s:g}; "
                    "mend the function, or give it more time"
                ) from None

    def __call__(self, problem: Problem, response: str, grading: Grading, token_count: int) -> Reward:
        config, response = self.config, self.prefill + response
        parts: dict[str, float | None] = {"accuracy": ACCURACIES[config.accuracy](problem, grading)}
        if config.format:
            parts["format"] = format_reward(response, config.format)
        parts["length"] = length_penalty(token_count, config.length)
        terms = [COMBINATIONS[config.combination](parts["accuracy"], parts.get("format", 0.0), config)]
        terms.append(config.length.weight * parts["length"])
        for entry, function in self.functions:
            parts[entry.path] = value = _call(entry.path, function, problem, response, grading)
            terms.append(None if value is None else entry.weight * value)
        return Reward(None if None in terms else sum(terms), parts)


def verdict_accuracy(problem: Problem, grading: Grading) -> float | None:
    """1 correct, 0 incorrect, None unknown."""
    return None if grading.verdict is Verdict.UNKNOWN else float(grading.verdict is Verdict.CORRECT)


def exact_label(problem: Problem, grading: Grading) -> float | None:
    """1 where the extracted answer is the gold but for case and outer white space, else 0; None where the grader failed
    before it extracted one."""
    if grading.extracted is None:
        return None if grading.verdict is Verdict.UNKNOWN else 0.0
    return float(grading.extracted.strip().casefold() == problem.answer.strip().casefold())


ACCURACIES = {"verdict": verdict_accuracy, "exact_label": exact_label}


def _sum(accuracy: float | None, form: float, config: RewardConfig) -> float | None:
    """w_acc·accuracy + w_fmt·format; an accuracy of weight 0 may be unknown."""
    if config.accuracy_weight == 0:
        return config.format_weight * form
    return None if accuracy is None else config.accuracy_weight * accuracy + config.format_weight * form


def _gate(accuracy: float | None, form: float, config: RewardConfig) -> float | None:
    """1 where accuracy and format are 1, else 0."""
    return None if accuracy is None else float(accuracy == 1 and form == 1)


COMBINATIONS = {"sum": _sum, "gate": _gate}


@dataclass(frozen=True, slots=True)
class Tag:
    """`name` is a pattern."""

    name: str
    repeats: bool = False


def _compile(tags: tuple[Tag, ...]) -> re.Pattern[str]:
    """Whole text: each element in order, none inside another, only white space between and around them."""
    names = "|".join(tag.name for tag in tags)
    content = rf"[^<]*(?:<(?!/?(?:{names})>)[^<]*)*"
    elements = [rf"(?:<(?:{tag.name})>{content}</(?:{tag.name})>\s*){'+' if tag.repeats else ''}" for tag in tags]
    return re.compile(r"\s*" + "".join(elements))


FORMATS = {
    "think": _compile((Tag("think"), Tag("answer"))),
    "steps": _compile((Tag(r"step(?:_\d+)?", repeats=True), Tag("answer"))),
}


def format_reward(text: str, name: str) -> float:
    """1 where the text is exactly one of each tag of the preset, in order, and nothing outside them, else 0; `text`
    begins with what the prompt prefilled."""
    return float(FORMATS[name].fullmatch(text) is not None)


def length_penalty(token_count: int, limits: LengthLimits) -> float:
    """−min(1, d/margin) for d > 0 tokens outside [least, most], 0 inside (the overlong part: DAPO)."""
    most = math.inf if limits.most is None else limits.most
    outside = max(limits.least - token_count, token_count - most, 0)
    return -min(1.0, outside / limits.margin if limits.margin else float(outside > 0)) if outside else 0.0


def load_function(path: str) -> UserFunction:
    """The function at package.module:function; ConfigError names what is missing."""
    module, _, name = path.partition(":")
    if not module or not name:
        raise ConfigError(f"functions.path={path!r} must be module:function, for example my_rewards:brevity")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"functions.path={path!r}: {error}; put its folder on PYTHONPATH") from error
    except Exception as error:  # whatever the module does where it is read
        raise ConfigError(f"functions.path={path!r}: {type(error).__name__} on import: {error}") from error
    if not callable(function):
        raise ConfigError(f"functions.path={path!r} is a {type(function).__name__}, which is not callable")
    return function


def _call(path: str, function: UserFunction, problem: Problem, response: str, grading: Grading) -> float | None:
    try:
        value = function(problem, response, grading)
    except Exception as error:
        raise TrainingError(
            f"{path}: raised {type(error).__name__}: {error} on problem {problem.id}; "
            "mend it, or return None to drop a sample"
        ) from error
    if value is None:
        return None
    if not isinstance(value, Real) or not math.isfinite(value):
        raise TrainingError(
            f"{path}: returned {value!r} on problem {problem.id}; return a finite number, or None to drop the sample"
        )
    return float(value)
