"""Encode episodes as token ids: observations through the chat template, actions exactly as they were sampled.

[system, observation 1] action 1 [end of turn, observation 2] action 2 …

Each observation is a user turn. The text in brackets is rendered by the chat template and tokenized on its own, so the
tokens of an action never change, and each prompt begins with the whole previous one, which the engine has cached.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mmprm.environments.episode import Action
from mmprm.environments.interface import Observation
from mmprm.prompts import PRESETS, PromptConfig, assistant_beginning
from mmprm.rendering import opening, render_turns
from mmprm.types import ImageRef

_ACTION = "\ue002"
"""Private-use character that stands for an action in a rendered conversation."""

_Content = tuple[str | None, ...]
"""Text parts of an observation in order, with None for each image."""


@dataclass(frozen=True, slots=True)
class EpisodeTokens:
    """Holds the token ids of a conversation, with one placeholder per image, and its images in order.

    `sampled` is True for the tokens that the policy generated and that a training step may use, False for all others.
    """

    ids: tuple[int, ...]
    sampled: tuple[bool, ...]
    images: tuple[ImageRef, ...]


class EpisodeEncoder:
    """Encodes the observations and actions of episodes for one model.

    `template_owner` is a transformers tokenizer or processor. `images` is the number of most recent observations whose
    images are kept, or "all". `prompt.user` surrounds the first observation.
    """

    def __init__(self, template_owner: Any, prompt: PromptConfig, images: int | Literal["all"] = "all") -> None:
        self._owner, self._prompt, self._images = template_owner, prompt, images
        self._tokenizer = getattr(template_owner, "tokenizer", template_owner)
        self.given = opening(template_owner, prompt) + assistant_beginning(prompt, "")
        """Text with which the prompt begins each action."""
        self._segment = functools.lru_cache(maxsize=4096)(self._encode_segment)

    def prompt(self, observations: Sequence[Observation], actions: Sequence[Action]) -> EpisodeTokens:
        """Encode a conversation up to the policy's next action."""
        assert len(observations) == len(actions) + 1, "the policy answers the last observation"
        ids: list[int] = []
        sampled: list[bool] = []
        images: list[ImageRef] = []
        for number, observation in enumerate(observations):
            shown = self._images == "all" or len(observations) - number <= self._images
            segment = self._segment(_content(observation, shown), number == 0)
            if ids and segment[:1] == (ids[-1],):  # the policy ended its turn itself
                segment = segment[1:]
            own = self.ids_of(actions[number]) if number < len(actions) else ()
            ids += [*segment, *own]
            sampled += [False] * len(segment) + [True] * len(own)
            images += observation.images if shown else ()
        return EpisodeTokens(tuple(ids), tuple(sampled), tuple(images))

    def rows(self, observations: Sequence[Observation], actions: Sequence[Action]) -> tuple[EpisodeTokens, ...]:
        """Encode a played episode for training, with one observation per action.

        The result is one row if all images are kept. Otherwise earlier images are missing from later prompts, so each
        action has a row of its own, in which it is the only sampled text.
        """
        assert len(observations) == len(actions), "the last observation, which no action answers, is left out"
        if self._images == "all":
            whole = self.prompt(observations, actions[:-1])
            return (_extended(whole, self.ids_of(actions[-1])),)
        prompts = (self.prompt(observations[: turn + 1], actions[:turn]) for turn in range(len(actions)))
        masked = (EpisodeTokens(each.ids, (False,) * len(each.ids), each.images) for each in prompts)
        return tuple(_extended(each, self.ids_of(action)) for each, action in zip(masked, actions, strict=True))

    def ids_of(self, action: Action) -> tuple[int, ...]:
        """Return the token ids of an action as sampled or, if these are unknown, the token ids of its text."""
        if action.ids is not None:
            return action.ids
        return tuple(self._tokenizer(action.text.removeprefix(self.given), add_special_tokens=False).input_ids)

    def _encode_segment(self, content: _Content, first: bool) -> tuple[int, ...]:
        turns = self._first_turns(content) if first else _later_turns(content)
        text = render_turns(self._owner, turns, self._prompt, True) + assistant_beginning(self._prompt, "")
        if not first:
            text = text.partition(_ACTION)[2]
        return tuple(self._tokenizer(text, add_special_tokens=False).input_ids)

    def _first_turns(self, content: _Content) -> list[dict[str, Any]]:
        preset = PRESETS[self._prompt.preset]
        before, _, after = (self._prompt.user or preset.user).partition("{question}")
        system = preset.system if self._prompt.system is None else self._prompt.system
        turns = [{"role": "system", "content": system}] if system else []
        return [*turns, {"role": "user", "content": _message((before, *content, after))}]


def _extended(tokens: EpisodeTokens, own: tuple[int, ...]) -> EpisodeTokens:
    return EpisodeTokens((*tokens.ids, *own), (*tokens.sampled, *[True] * len(own)), tokens.images)


def _later_turns(content: _Content) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": "."},
        {"role": "assistant", "content": _ACTION},
        {"role": "user", "content": _message(content)},
    ]


def _content(observation: Observation, shown: bool) -> _Content:
    parts = (part if isinstance(part, str) else None for part in observation.parts)
    return tuple(part for part in parts if shown or part is not None)


def _message(content: _Content) -> str | list[dict[str, str]]:
    """Return the content of a user turn: plain text if there is no image, because text-only templates accept nothing
    else."""
    if None not in content:
        return "".join(part for part in content if part)
    parts: list[dict[str, str]] = []
    for is_image, group in itertools.groupby(content, lambda part: part is None):
        members = list(group)
        text = "".join(part for part in members if part)
        parts += [{"type": "image"}] * len(members) if is_image else [{"type": "text", "text": text}] if text else []
    return parts
