"""Prompt presets and chat rendering: what a policy is asked, and how a prefix of its answer is continued."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import field_validator

from mmprm.config import Config
from mmprm.data.choices import with_choices
from mmprm.data.marks import IMAGE
from mmprm.errors import CheckpointError
from mmprm.types import Problem


@dataclass(frozen=True, slots=True)
class Preset:
    """`user` holds {question}; `continuation`, if any, holds {prefix} and ends the user turn in place of a prefill."""

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
    preset: Literal["plain", "steps", "think", "previous_steps"] = "steps"
    """plain: the question alone; steps: asks for <step> tags and <answer>; think: asks for <think> and <answer>;
    previous_steps: like steps, but a prefix is shown in the user turn, for policies trained to continue that way."""
    user: str | None = None
    """Text of the user turn in place of the preset's; must hold {question}."""
    system: str | None = None
    """Text of the system turn in place of the preset's; empty means no system turn."""
    prefill: str | None = None
    """Text with which every assistant turn begins, for example <think>, in place of the preset's."""
    choices: bool = True
    """Append a problem's options to its question (A. …), unless all stand in it already."""

    @field_validator("user")
    @classmethod
    def _holds_question(cls, user: str | None) -> str | None:
        if user is not None and "{question}" not in user:
            raise ValueError("must hold {question}, for example '{question}\\nThink step by step.'")
        return user


def messages(problem: Problem, config: PromptConfig, prefix: str = "") -> list[dict[str, Any]]:
    """Chat messages in transformers' format. A prefix appears only with a preset that continues from the user turn."""
    preset = PRESETS[config.preset]
    system = preset.system if config.system is None else config.system
    before, _, after = (config.user or preset.user).partition("{question}")
    if prefix and preset.continuation:
        after += preset.continuation.replace("{prefix}", prefix)
    turns = [{"role": "system", "content": system}] if system else []
    return [*turns, {"role": "user", "content": _content(problem, asked_question(problem, config), before, after)}]


def render(template_owner: Any, problem: Problem, prefix: str, config: PromptConfig) -> str:
    """The prompt as text: chat template, generation prompt, then the prefix as the beginning of the assistant turn.

    `template_owner` is a transformers tokenizer or processor. Raises CheckpointError when it has no chat template.
    """
    if not getattr(template_owner, "chat_template", None):
        name = getattr(template_owner, "name_or_path", "") or type(template_owner).__name__
        raise CheckpointError(f"{name}: has no chat template; add chat_template.jinja to the model folder")
    text = template_owner.apply_chat_template(
        messages(problem, config, prefix), tokenize=False, add_generation_prompt=True
    )
    return text + assistant_beginning(config, prefix)


def assistant_beginning(config: PromptConfig, prefix: str) -> str:
    """What the assistant turn already holds: the prefill and the prefix, unless the user turn shows the prefix."""
    preset = PRESETS[config.preset]
    if prefix and preset.continuation:
        return ""
    return (preset.prefill if config.prefill is None else config.prefill) + prefix


def asked_question(problem: Problem, config: PromptConfig) -> str:
    """Return the question with its options, where `config` shows these."""
    return with_choices(problem.question, problem.choices, problem.answer) if config.choices else problem.question


def _content(problem: Problem, question: str, before: str, after: str) -> str | list[dict[str, str]]:
    """Plain text without pictures (text-only templates take nothing else), otherwise parts in order."""
    if not problem.pictures:
        return before + question + after
    pieces = question.split(IMAGE)
    if len(pieces) != len(problem.pictures) + 1:  # as where the options are not shown that hold the marks
        pieces = [""] * len(problem.pictures) + [question.replace(IMAGE, "").strip()]
    pieces[-1] += after
    if before:
        # The pictures of a question without marks come before all text.
        place = 0 if pieces[0] else next((i for i, piece in enumerate(pieces) if piece), -1)
        pieces[place] = before + pieces[place]
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(pieces):
        if number:
            parts.append({"type": "image"})
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts
