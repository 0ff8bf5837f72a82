"""Define prompt presets, and build chat messages that let a policy continue the prefix of a response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import field_validator

from mmprm.config import Config
from mmprm.data.choices import asked_question
from mmprm.data.marks import MARKS, split_at_marks
from mmprm.types import Problem


@dataclass(frozen=True, slots=True)
class Preset:
    """Holds the system, user and prefill texts of a prompt preset.

    `user` contains {question}. `continuation`, if set, contains {prefix} and ends the user turn instead of a prefill.
    """

    user: str = "{question}"
    system: str = ""
    prefill: str = ""
    continuation: str | None = None


_STEPS = (
    "{question}\n\nSolve this step by step. Put each step between <step> and </step>. "
    "After the last step, give only the final answer between <answer> and </answer>."
)
_THINK = (
    "{question}\n\nFirst reason between <think> and </think>, "
    "then give only the final answer between <answer> and </answer>."
)

PRESETS = {
    "plain": Preset(),
    "steps": Preset(user=_STEPS),
    "think": Preset(user=_THINK),
    "previous_steps": Preset(
        user=_STEPS,
        continuation="\n\nPrevious steps:\n{prefix}\n\nGo on from there; do not repeat the previous steps.",
    ),
}


class PromptConfig(Config):
    """Configures how a problem becomes a prompt."""

    preset: Literal["plain", "steps", "think", "previous_steps"] = "steps"
    """Prompt preset. plain: the question alone; steps: asks for <step> tags and <answer>; think: asks for <think> and
    <answer>; previous_steps: like steps, but shows the prefix in the user turn, for policies trained to continue that
    way."""
    user: str | None = None
    """Text of the user turn, which replaces the preset's; must contain {question}."""
    system: str | None = None
    """Text of the system turn, which replaces the preset's. An empty text omits the system turn."""
    prefill: str | None = None
    """Text that starts every assistant turn, for example <think>, and replaces the preset's."""
    choices: bool | None = None
    """Whether to append a problem's options (A. …) to its question, unless the question already contains them all; null
    means true."""
    template: Literal["chat", "raw"] | None = None
    """How to format a prompt. chat (the default): with the model's chat template; raw: with none, for base models.
    A raw prompt is the system text, the user text and the prefill."""
    template_options: dict[str, Any] | None = None
    """Variables to pass to the chat template, such as {enable_thinking: false}."""
    chat_template: str | None = None
    """Text of a chat template that replaces the checkpoint's own; engine.chat_template reads it from a file."""

    @field_validator("template_options")
    @classmethod
    def _options_are_the_templates_own(cls, options: dict[str, Any] | None) -> dict[str, Any] | None:
        if taken := sorted(_NOT_OPTIONS & (options or {}).keys()):
            raise ValueError(
                f"{taken[0]} is set by mmprm; remove it and give only the template's own options, such as "
                "enable_thinking"
            )
        return options

    @field_validator("user")
    @classmethod
    def _holds_question(cls, user: str | None) -> str | None:
        if user is not None and "{question}" not in user:
            raise ValueError("must contain {question}; use, for example, '{question}\\nThink step by step.'")
        return user


_NOT_OPTIONS = {
    "messages",
    "conversation",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
}


def messages(problem: Problem, config: PromptConfig, prefix: str = "") -> list[dict[str, Any]]:
    """Build a problem's chat messages in transformers' format.

    They include the prefix only if the preset continues in the user turn.
    """
    preset = PRESETS[config.preset]
    system = preset.system if config.system is None else config.system
    before, _, after = (config.user or preset.user).partition("{question}")
    if prefix and preset.continuation:
        after += preset.continuation.replace("{prefix}", prefix)
    turns = [{"role": "system", "content": system}] if system else []
    question = asked_question(problem) if config.choices is not False else problem.question
    first = config.template != "raw"  # the text before a raw question may be a turn header
    return [*turns, {"role": "user", "content": _content(problem, question, before, after, first)}]


def assistant_beginning(config: PromptConfig, prefix: str) -> str:
    """Return the prefill and prefix with which the assistant turn begins, or "" if the user turn shows the prefix."""
    preset = PRESETS[config.preset]
    if prefix and preset.continuation:
        return ""
    return (preset.prefill if config.prefill is None else config.prefill) + prefix


def _content(problem: Problem, question: str, before: str, after: str, first: bool) -> str | list[dict[str, str]]:
    """Return the content of a user turn: plain text if the problem has no media, otherwise a list of parts.

    Text-only templates accept nothing but plain text. With `first`, media without placeholders in the question precede
    all text.
    """
    if not problem.media:
        return before + question + after
    kinds, pieces = _split(problem, question)
    pieces[-1] += after
    if before:
        position = 0 if pieces[0] or not first else next((i for i, piece in enumerate(pieces) if piece), -1)
        pieces[position] = before + pieces[position]
    parts: list[dict[str, str]] = []
    for kind, piece in zip(["", *kinds], pieces, strict=True):
        if kind:
            parts.append({"type": kind})
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _split(problem: Problem, question: str) -> tuple[list[str], list[str]]:
    """Return the kinds of the problem's n media in prompt order, and the n + 1 pieces of text around them.

    A kind with one placeholder per medium is placed there; the others come first, and their placeholders are text.
    """
    counts = {"image": len(problem.images), "video": len(problem.videos), "audio": len(problem.audios)}
    placed = [kind for kind, count in counts.items() if count and question.count(MARKS[kind]) == count]
    front = [kind for kind, count in counts.items() for _ in range(count) if kind not in placed]
    kinds, pieces = split_at_marks(question, placed)
    return front + kinds, [""] * len(front) + pieces
