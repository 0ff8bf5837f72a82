"""Test episodes as token ids: actions as sampled, masks, images of recent observations, and training rows."""

from __future__ import annotations

import pytest

from mmprm.environments.episode import Action
from mmprm.environments.interface import Observation
from mmprm.prompts import PromptConfig
from mmprm.sampling.conversation import EpisodeEncoder
from mmprm.tiny.tokenizer import END, build_processor
from mmprm.types import ImageRef

PROCESSOR = build_processor()
PLAIN = PromptConfig(preset="plain")
IMAGES = [ImageRef(data=bytes([number])) for number in range(3)]
OBSERVATIONS = [Observation(("Go.", IMAGES[0])), Observation((IMAGES[1],)), Observation(("Again: ", IMAGES[2]))]
SEEN = "<|vision_start|><|image_pad|><|vision_end|>"
END_ID = PROCESSOR.tokenizer.convert_tokens_to_ids(END)


def ids(text: str) -> tuple[int, ...]:
    return tuple(PROCESSOR.tokenizer(text, add_special_tokens=False).input_ids)


def written(text: str, ended: bool = True) -> Action:
    return Action(text, (*ids(text), END_ID) if ended else ids(text))


def text_of(found: tuple[int, ...]) -> str:
    return PROCESSOR.tokenizer.decode(list(found))


def test_a_conversation_by_hand() -> None:
    tokens = EpisodeEncoder(PROCESSOR, PLAIN).prompt(OBSERVATIONS[:2], [written("up")])
    first = f"<|im_start|>user\nGo.{SEEN}<|im_end|>\n<|im_start|>assistant\n"
    second = f"\n<|im_start|>user\n{SEEN}<|im_end|>\n<|im_start|>assistant\n"
    assert text_of(tokens.ids) == f"{first}up<|im_end|>{second}"
    own = len(ids("up")) + 1
    assert tokens.sampled == (*[False] * len(ids(first)), *[True] * own, *[False] * len(ids(second)))
    assert tokens.images == tuple(IMAGES[:2])


def test_a_turn_that_was_cut_is_ended_by_the_template() -> None:
    encoder = EpisodeEncoder(PROCESSOR, PLAIN)
    cut, whole = (encoder.prompt(OBSERVATIONS[:2], [written("up", ended)]) for ended in (False, True))
    assert cut.ids == whole.ids
    assert sum(cut.sampled) == sum(whole.sampled) - 1, "the end of the turn was not sampled"


def test_each_prompt_begins_with_the_previous_one_and_its_action() -> None:
    encoder = EpisodeEncoder(PROCESSOR, PLAIN)
    odd = Action("<step>", (*ids("<"), *ids("s"), *ids("tep>"), END_ID))  # not how the tokenizer writes this text
    before = encoder.prompt(OBSERVATIONS[:2], [written("up")])
    after = encoder.prompt(OBSERVATIONS, [written("up"), odd])
    assert after.ids[: len(before.ids) + len(odd.ids)] == (*before.ids, *odd.ids)


def test_old_images_are_dropped_and_their_text_is_kept() -> None:
    tokens = EpisodeEncoder(PROCESSOR, PLAIN, images=1).prompt(OBSERVATIONS, [written("up"), written("up")])
    assert tokens.images == (IMAGES[2],)
    text = text_of(tokens.ids)
    assert text.count(SEEN) == 1
    assert "user\nGo.<|im_end|>" in text
    assert f"Again: {SEEN}" in text


def test_an_episode_is_one_row_and_one_per_turn_if_images_are_dropped() -> None:
    actions = [written("up"), written("no")]
    (row,) = EpisodeEncoder(PROCESSOR, PLAIN).rows(OBSERVATIONS[:2], actions)
    assert tuple(id for id, own in zip(row.ids, row.sampled, strict=True) if own) == actions[0].ids + actions[1].ids
    assert row.ids[-len(actions[1].ids) :] == actions[1].ids
    rows = EpisodeEncoder(PROCESSOR, PLAIN, images=1).rows(OBSERVATIONS[:2], actions)
    assert [each.images for each in rows] == [(IMAGES[0],), (IMAGES[1],)]
    for each, action in zip(rows, actions, strict=True):
        assert sum(each.sampled) == len(action.ids)
        assert each.ids[-len(action.ids) :] == action.ids


@pytest.mark.parametrize("actions", [[Action("up")], [Action("<think>up")]])
def test_an_action_without_ids_is_tokenized_without_the_prefill(actions: list[Action]) -> None:
    prompt = PromptConfig(preset="plain", prefill="<think>", user="{question}\nMove.", system="Play.")
    encoder = EpisodeEncoder(PROCESSOR, prompt)
    assert encoder.ids_of(actions[0]) == ids("up")
    text = text_of(encoder.prompt(OBSERVATIONS[:2], actions).ids)
    assert text.startswith(f"<|im_start|>system\nPlay.<|im_end|>\n<|im_start|>user\nGo.{SEEN}\nMove.<|im_end|>")
    assert text.count("<|im_start|>assistant\n<think>") == 2


def test_observations_without_images_are_plain_text() -> None:
    class TextOnly:
        chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content + '' }};{% endfor %}[assistant]"
        tokenizer = PROCESSOR.tokenizer

        def apply_chat_template(self, turns: list, **_: object) -> str:
            return "".join(f"[{turn['role']}]" + turn["content"] + ";" for turn in turns) + "[assistant]"

    found = EpisodeEncoder(TextOnly(), PLAIN).prompt([Observation(("a", "b")), Observation(("c",))], [written("up")])
    assert text_of(found.ids) == f"[user]ab;[assistant]up{END};[user]c;[assistant]"
