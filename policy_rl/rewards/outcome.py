"""Compute the outcome reward of a response: accuracy, format, length, truncation, user functions.

A reward of None drops the sample instead of counting as 0.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from pebble import asynchronous
from pydantic import Field, model_validator

from mmprm.config import Config
from mmprm.errors import TrainingError
from mmprm.grading.extract import open_gold
from mmprm.types import Grading, Problem, Verdict
from mmprm.user_function import load_function
from policy_rl.types import Response, Reward

UserFunction = Callable[..., float | None]


class LengthLimits(Config):
    """Configures the length penalty for responses that are too short or too long."""

    min: int = Field(0, ge=0)
    """Minimum number of tokens per response. Shorter responses are penalized."""
    max: int | None = Field(None, gt=0)
    """Maximum number of tokens per response. Longer responses are penalized. There is no maximum by default."""
    margin: int = Field(0, ge=0)
    """Number of tokens beyond a limit over which the penalty grows linearly; 0 applies the full penalty at once."""
    weight: float = Field(1.0, ge=0)
    """Weight of the penalty, which ranges from −1 to 0."""

    @model_validator(mode="after")
    def _in_order(self) -> LengthLimits:
        if self.max is not None and self.min > self.max:
            raise ValueError(f"min={self.min} must not exceed max={self.max}; lower min or raise max")
        return self


class UserReward(Config):
    """Configures a user-defined reward function."""

    path: str
    """Import path of the function, as package.module:function. The function is called with (problem, response,
    grading), and with finish_reason ("stop", "length" or "abort"), token_count, token_ids (a NumPy array) and, in
    an environment, turns (a tuple of policy_rl.types.PlayedTurn) if it has parameters with these names. Calls run in a
    thread, one at a time. It returns a finite number, or None to drop the sample. The other columns of the
    problem's row are in problem.extra; the response includes the prompt's prefill."""
    weight: float = 1.0
    """Weight of the function's return value."""


class RewardConfig(Config):
    """Configures the outcome reward of a response."""

    accuracy: Literal["verdict", "exact_label"] = "verdict"
    """Criterion for a correct answer. verdict: the grader decides; exact_label: the extracted answer equals the gold
    answer, ignoring case and surrounding whitespace."""
    accuracy_weight: float = Field(1.0, ge=0)
    """Weight of accuracy with combination=sum."""
    format: Literal["think", "steps"] | None = None
    """Required tags. think: one <think>, then one <answer>; steps: one or more <step>, then one <answer>. There is no
    format reward by default."""
    format_weight: float = Field(0.5, ge=0)
    """Weight of the format reward with combination=sum. MM-Eureka uses 0.5 for instruct and 1 for base models."""
    text_outside: bool = False
    """Allow text before the first tag and after the last one, as MM-Eureka does for instruct models."""
    min_thought_characters: int = Field(0, ge=0)
    """Minimum number of characters in <think>, without surrounding whitespace, for a format reward of 1. MM-Eureka-Zero
    uses 300. Requires format=think."""
    combination: Literal["sum", "gate"] = "sum"
    """Combination of accuracy and format. sum: weighted sum; gate: 1 if both are 1, else 0 (Vision-R1). The length
    penalty and user functions are added in both cases."""
    length: LengthLimits = LengthLimits()
    """Length penalty for responses that are too short or too long."""
    truncated: Literal["keep", "mask", "penalize"] = "keep"
    """Treatment of truncated responses, which reached the token limit. keep: treat them like other responses; mask:
    include them in the baselines of their group, but do not train on them (DAPO's overlong filtering); penalize:
    subtract truncation_penalty from their reward."""
    truncation_penalty: float = Field(1.0, gt=0)
    """Amount that truncated=penalize subtracts from the reward of a truncated response."""
    functions: tuple[UserReward, ...] = ()
    """User-defined reward functions, whose weighted values are added to the reward."""
    environment_weight: float = Field(0.0, ge=0)
    """Weight of the environment's rewards: their sum over the turns of an episode is added to its reward. Needs
    `environment`."""
    timeout_seconds: float = Field(600, gt=0)
    """Timeout in seconds for all user functions together, per response."""

    @property
    def is_empty(self) -> bool:
        """Return whether the configuration rewards nothing, so that every reward would be 0."""
        limited = self.length.weight and (self.length.min or self.length.max is not None)
        limited = limited or self.truncated == "penalize"
        formed = self.format is not None and self.format_weight
        return self.combination == "sum" and not (
            self.accuracy_weight or formed or limited or self.functions or self.environment_weight
        )

    @model_validator(mode="after")
    def _format_keys_have_a_format(self) -> RewardConfig:
        if self.text_outside and self.format is None:
            raise ValueError("text_outside=true needs a format; set format=think or format=steps, or leave it out")
        if self.min_thought_characters and self.format != "think":
            raise ValueError(
                f"min_thought_characters={self.min_thought_characters} requires thoughts; set format=think, "
                "or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _penalty_is_used(self) -> RewardConfig:
        if self.truncation_penalty != 1 and self.truncated != "penalize":
            raise ValueError(
                f"truncation_penalty={self.truncation_penalty:g} has no effect with truncated={self.truncated}; set "
                "truncated=penalize, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _gate_has_a_format(self) -> RewardConfig:
        if self.combination == "gate" and self.format is None:
            raise ValueError("combination=gate needs a format to gate by; set format=think or format=steps")
        for key in ("accuracy_weight", "format_weight"):
            if self.combination == "gate" and key in self.model_fields_set and getattr(self, key) != 1:
                raise ValueError(
                    f"{key}={getattr(self, key)} has no effect with combination=gate; leave it out, or use "
                    "combination=sum"
                )
        return self


class OutcomeReward:
    """Computes the outcome reward of a response: accuracy, format, length, truncation and user functions.

    `prefill` is the beginning of the response that is part of the prompt, for example <think>.

    Raises ConfigError if a user function cannot be imported. A call raises TrainingError if a function raises, or
    returns neither None nor a finite number.
    """

    def __init__(self, config: RewardConfig, prefill: str = "") -> None:
        self.config = config
        self.prefill = prefill
        self.functions = [
            (entry, function_with_facts(load_function(entry.path, "functions.path"))) for entry in config.functions
        ]
        self._one_at_a_time = asyncio.Lock()

    async def compute_async(self, problem: Problem, response: Response, grading: Grading) -> Reward:
        """Compute the reward like `__call__`, but run user functions in a thread to keep the event loop free.

        Raises TrainingError if the functions take longer than rewards.timeout_seconds.
        """
        if not self.functions:
            return self(problem, response, grading)
        async with self._one_at_a_time:
            # pebble's thread is a daemon, so a function that never returns does not keep the process alive.
            call = asynchronous.thread(self.__call__)(problem, response, grading)
            try:
                return await asyncio.wait_for(asyncio.shield(call), self.config.timeout_seconds)
            except TimeoutError:
                # Retrieve a later exception, because asyncio would otherwise log it as never retrieved.
                call.add_done_callback(lambda late: late.exception())
                paths = ", ".join(entry.path for entry, _ in self.functions)
                raise TrainingError(
                    f"{paths}: no answer for problem {problem.id} within "
                    f"rewards.timeout_seconds={self.config.timeout_seconds:g}; fix the function, or raise the timeout"
                ) from None

    def __call__(self, problem: Problem, response: Response, grading: Grading) -> Reward:
        """Compute a response's reward: its weighted total and its unweighted parts.

        The total is None if a contributing part is unknown.
        """
        config, played = self.config, response.played
        text = self.prefill + response.text if played is None else response.text  # actions include the prefill
        token_count = response.token_count
        facts = {"finish_reason": response.finish_reason, "token_count": token_count, "token_ids": response.token_ids}
        if played is not None:
            facts["turns"] = played.turns
        parts: dict[str, float | None] = {"accuracy": ACCURACIES[config.accuracy](problem, grading)}
        if config.format:
            parts["format"] = format_reward(text, config.format, config.text_outside, config.min_thought_characters)
        parts["length"] = length_penalty(token_count, config.length)
        terms = [COMBINATIONS[config.combination](parts["accuracy"], parts.get("format", 0.0), config)]
        terms.append(config.length.weight * parts["length"])
        if config.truncated == "penalize":
            parts["truncated"] = -float(response.finish_reason == "length")
            terms.append(config.truncation_penalty * parts["truncated"])
        if played is not None and config.environment_weight:
            parts["environment"] = sum(turn.reward for turn in played.turns)
            terms.append(config.environment_weight * parts["environment"])
        for entry, function in self.functions:
            parts[entry.path] = value = _call(entry.path, function, problem, text, grading, facts)
            terms.append(None if value is None else entry.weight * value)
        return Reward(None if None in terms else sum(terms), parts)


def verdict_accuracy(problem: Problem, grading: Grading) -> float | None:
    """Return 1 for a correct answer, 0 for an incorrect one, or None if the verdict is unknown."""
    return None if grading.verdict is Verdict.UNKNOWN else float(grading.verdict is Verdict.CORRECT)


def exact_label(problem: Problem, grading: Grading) -> float | None:
    """Return 1 if the extracted answer equals the gold answer, ignoring case and surrounding whitespace, else 0.

    The gold answer may be wrapped in `<answer>` tags. Returns None if the grader failed before it extracted an answer.
    """
    if grading.extracted is None:
        return None if grading.verdict is Verdict.UNKNOWN else 0.0
    return float(grading.extracted.strip().casefold() == open_gold(problem.answer).casefold())


ACCURACIES = {"verdict": verdict_accuracy, "exact_label": exact_label}
"""Accuracy functions keyed by rewards.accuracy."""


def _sum(accuracy: float | None, form: float, config: RewardConfig) -> float | None:
    """Return w_acc·accuracy + w_fmt·format, or None if accuracy is unknown and its weight is not 0."""
    if config.accuracy_weight == 0:
        return config.format_weight * form
    return None if accuracy is None else config.accuracy_weight * accuracy + config.format_weight * form


def _gate(accuracy: float | None, form: float, config: RewardConfig) -> float | None:
    """Return 1 if accuracy and format are both 1, else 0, or None if accuracy is unknown."""
    return None if accuracy is None else float(accuracy == 1 and form == 1)


COMBINATIONS = {"sum": _sum, "gate": _gate}


@dataclass(frozen=True, slots=True)
class Tag:
    """Describes a required tag of a format. `name` is a regular expression."""

    name: str
    repeats: bool = False


def _compile(tags: tuple[Tag, ...], text_outside: bool) -> re.Pattern[str]:
    """Compile a pattern for a whole response: the tagged elements in order, unnested, separated only by whitespace.

    Before the first and after the last element, it matches whitespace or, with `text_outside`, any text without these
    tags.
    """
    names = "|".join(tag.name for tag in tags)
    content = rf"[^<]*(?:<(?!/?(?:{names})>)[^<]*)*"
    elements = [rf"(?:<(?:{tag.name})>{content}</(?:{tag.name})>\s*){'+' if tag.repeats else ''}" for tag in tags]
    around = content if text_outside else r"\s*"
    return re.compile(around + "".join(elements) + around)


FORMATS = {
    "think": (Tag("think"), Tag("answer")),
    "steps": (Tag(r"step(?:_\d+)?", repeats=True), Tag("answer")),
}
"""Tags required by each value of rewards.format, in order."""
_PATTERNS = {(name, outside): _compile(tags, outside) for name, tags in FORMATS.items() for outside in (False, True)}


def format_reward(text: str, name: str, text_outside: bool = False, min_thought_characters: int = 0) -> float:
    """Return 1 if the text has the required tags in order, each once unless it may repeat, otherwise 0.

    `text` includes the prompt's prefill. The reward is also 0 if there is text outside the tags, unless `text_outside`
    is set, or if the thoughts have fewer than `min_thought_characters` characters without surrounding whitespace.
    """
    if _PATTERNS[name, text_outside].fullmatch(text) is None:
        return 0.0
    thoughts = text.partition("<think>")[2].partition("</think>")[0].strip()
    return float(len(thoughts) >= min_thought_characters)


def length_penalty(token_count: int, limits: LengthLimits) -> float:
    """Return −min(1, d/margin) if the length is d > 0 tokens outside [min, max], else 0 (DAPO's overlong penalty)."""
    longest = math.inf if limits.max is None else limits.max
    outside = max(limits.min - token_count, token_count - longest, 0)
    return -min(1.0, outside / limits.margin if limits.margin else float(outside > 0)) if outside else 0.0


def function_with_facts(function: UserFunction) -> UserFunction:
    """Wrap a reward function so that it gets only those optional arguments, such as token_count, that it accepts.

    The result is called with (problem, response, grading, facts), where `facts` maps the names of the optional
    arguments to their values.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # builtins written in C may have no signature
        parameters = ()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    names = {parameter.name for parameter in parameters}

    def call(problem: Problem, response: str, grading: Grading, facts: Mapping[str, Any]) -> float | None:
        asked = {name: value for name, value in facts.items() if takes_all or name in names}
        return function(problem, response, grading, **asked)

    return call


def _call(
    path: str, function: UserFunction, problem: Problem, response: str, grading: Grading, facts: Mapping[str, Any]
) -> float | None:
    try:
        value = function(problem, response, grading, facts)
    except (Exception, SystemExit) as error:  # sys.exit() would end the event loop and leave its other tasks running
        raise TrainingError(
            f"{path}: raised {type(error).__name__}: {error} on problem {problem.id}; "
            "fix it, or return None to drop a sample"
        ) from error
    if value is None:
        return None
    if not isinstance(value, Real) or not math.isfinite(value):
        raise TrainingError(
            f"{path}: returned {value!r} on problem {problem.id}; return a finite number, or None to drop the sample"
        )
    return float(value)
