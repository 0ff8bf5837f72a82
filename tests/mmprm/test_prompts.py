from __future__ import annotations

import pytest

from mmprm.config import build
from mmprm.errors import CheckpointError, ConfigError
from mmprm.prompts import PromptConfig, messages
from mmprm.rendering import render
from mmprm.types import ImageRef, Problem

PLAIN = PromptConfig(preset="plain")
IMAGE = ImageRef(data=b"x")


class Template:
    """Stands in for a tokenizer: ChatML, with `[image]` for an image."""

    chat_template = "chatml"

    def apply_chat_template(self, messages: list[dict], tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize
        assert add_generation_prompt
        turns = "".join(f"<|im_start|>{turn['role']}\n{self.flat(turn['content'])}<|im_end|>\n" for turn in messages)
        return turns + "<|im_start|>assistant\n"

    @staticmethod
    def flat(content: str | list[dict]) -> str:
        if isinstance(content, str):
            return content
        return "".join("[image]" if part["type"] == "image" else part["text"] for part in content)


def problem(question: str = "How many?", images: int = 0) -> Problem:
    return Problem("p", question, "3", images=(IMAGE,) * images)


def test_plain_preset_is_image_then_question_then_prefix() -> None:
    text = render(Template(), problem(images=1), "<step>a</step>", PLAIN)
    assert text == "<|im_start|>user\n[image]How many?<|im_end|>\n<|im_start|>assistant\n<step>a</step>"


def test_text_only_question_is_a_string() -> None:
    assert messages(problem(), PLAIN) == [{"role": "user", "content": "How many?"}]


@pytest.mark.parametrize(
    ("question", "flat"),
    [
        ("A <image> and B <image>?", "Look. A [image] and B [image]?"),
        ("Compare them.", "[image][image]Look. Compare them."),
        ("Only <image> here.", "[image][image]Look. Only <image> here."),
        ("<image><image>", "[image][image]Look. "),
    ],
)
def test_images_are_at_their_marks_or_first(question: str, flat: str) -> None:
    config = PromptConfig(preset="plain", user="Look. {question}")
    assert Template.flat(messages(problem(question, images=2), config)[0]["content"]) == flat


def test_without_a_template_images_precede_the_question() -> None:
    config = PromptConfig(preset="plain", template="raw", user="<user>\n{question}")
    assert Template.flat(messages(problem("Compare.", 2), config)[0]["content"]) == "<user>\n[image][image]Compare."
    assert Template.flat(messages(problem("A <image>?", 1), config)[0]["content"]) == "<user>\nA [image]?"


def test_overrides_replace_system_user_and_prefill() -> None:
    config = PromptConfig(preset="think", system="Be brief.", user="Q: {question} {x}", prefill="<think>")
    text = render(Template(), problem("Is {question} a brace?"), "so", config)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nQ: Is {question} a brace? {x}<|im_end|>\n"
        "<|im_start|>assistant\n<think>so"
    )


def test_previous_steps_are_shown_in_the_user_turn() -> None:
    config = PromptConfig(preset="previous_steps")
    text = render(Template(), problem(), "<step>a</step>", config)
    assert text.endswith("<|im_start|>assistant\n")
    assert "Previous steps:\n<step>a</step>" in text
    assert "Previous steps" not in render(Template(), problem(), "", config)


def test_steps_and_think_presets_name_their_tags() -> None:
    assert "<step>" in render(Template(), problem(), "", PromptConfig())
    assert "<think>" in render(Template(), problem(), "", PromptConfig(preset="think"))


def test_user_text_without_the_question_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"user='no place': must contain \{question\}"):
        build(PromptConfig, {"user": "no place"})


def test_missing_chat_template_is_named() -> None:
    class Bare:
        chat_template = None
        name_or_path = "some/model"

    with pytest.raises(CheckpointError, match="some/model: has no chat template"):
        render(Bare(), problem(), "", PLAIN)
