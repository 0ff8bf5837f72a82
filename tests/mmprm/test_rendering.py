"""Test rendered prompts: templates that open the turn, options, no template, and prompts rejected at the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment

from mmprm.config import build
from mmprm.errors import CheckpointError, ConfigError
from mmprm.prompts import PromptConfig
from mmprm.rendering import check_rendering, end_of_turn, opening, render, render_turns, turn_beginning
from mmprm.sampling.policy import PolicyConfig
from mmprm.sampling.turn import TurnBeginning, with_given
from mmprm.types import Completion, ImageRef, Problem, SampleRequest, Tokens

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{{ '<|image_pad|>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
)
HEADER = "{% if add_generation_prompt %}<|im_start|>assistant\n"
CHATML = TURNS + HEADER + "{% endif %}"
OPENS_STEP = TURNS + HEADER + "<step>{% endif %}"
OPENS_THINK = (
    "{{ '<s>' }}{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}"
    "{% else %}<|Assistant|>{{ m.content.split('</think>')[-1] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
SWITCH = (
    TURNS
    + HEADER
    + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
THINKS_IN_THE_LAST = (  # as in Qwen3: the last turn of a conversation has a thinking section
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}" + HEADER + "{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
EMPTY_FOR_PARTS = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% endif %}{% endfor %}"
    + HEADER
    + ("{% endif %}")
)


class Owner:
    """Stands in for a processor."""

    name_or_path = "model"
    image_token = "<|image_pad|>"
    bos_token, bos_token_id, eos_token = None, None, "<|im_end|>"

    def __init__(self, template: str | None = CHATML) -> None:
        self.chat_template = template

    def apply_chat_template(
        self,
        turns: list[dict],
        tokenize: bool,
        add_generation_prompt: bool,
        chat_template: str | None = None,
        **options: Any,
    ) -> str:
        def refuse(message: str) -> None:
            raise ValueError(message)

        template = Environment().from_string(chat_template or self.chat_template)
        values = {"messages": turns, "add_generation_prompt": add_generation_prompt, "raise_exception": refuse}
        return template.render(**values, **options)

    def get_vocab(self) -> dict[str, int]:
        return {"<|vision_start|>": 0, "<|vision_end|>": 1}


def problem(question: str = "How many?", images: int = 0) -> Problem:
    return Problem("p", question, "3", images=(ImageRef(data=b"x"),) * images)


@pytest.mark.parametrize(
    ("template", "options", "expected"),
    [
        (CHATML, None, ""),
        (OPENS_STEP, None, "<step>"),
        (OPENS_THINK, None, "<think>\n"),
        (SWITCH, None, ""),
        (SWITCH, {"enable_thinking": True}, ""),
        (SWITCH, {"enable_thinking": False}, "<think>\n\n</think>\n\n"),
        (THINKS_IN_THE_LAST, None, ""),
        (TURNS.replace("\n<", "<") + "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}", None, ""),
    ],
)
def test_template_text_after_the_header_opens_the_turn(template: str, options: dict | None, expected: str) -> None:
    config = PromptConfig(preset="plain", prefill="P", template_options=options)
    assert opening(Owner(template), config) == expected
    assert turn_beginning(Owner(template), config) == expected + "P"


def test_an_opened_turn_continues_with_the_prefill_and_the_prefix() -> None:
    text = render(Owner(OPENS_STEP), problem(), "b</step>", PromptConfig(preset="plain", prefill="a"))
    assert text == "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n<step>ab</step>"


def test_without_a_template_the_prompt_is_system_user_and_prefill() -> None:
    config = PromptConfig(
        preset="plain", template="raw", system="Answer.\n", user="Q: {question}\nA:", prefill=" <think>"
    )
    assert render(Owner(None), problem(), "", config) == "Answer.\nQ: How many?\nA: <think>"
    marked = render(Owner(None), problem("A <image>?", images=1), "x", config)
    assert marked == "Answer.\nQ: A <|vision_start|><|image_pad|><|vision_end|>?\nA: <think>x"
    assert opening(Owner(OPENS_STEP), config) == ""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert render_turns(Owner(None), turns, config, False) == "ab" + end_of_turn(Owner(None), config) == "ab<|im_end|>"


def test_the_configured_template_overrides_the_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "other.jinja").write_text(OPENS_STEP)
    values = {"problems": {"path": "x"}, "engine": {"model": "m", "chat_template": str(tmp_path / "other.jinja")}}
    config = build(PolicyConfig, values | {"prompt": {"preset": "plain"}})
    assert opening(Owner(CHATML), config.prompt) == "<step>"
    assert config.resume_key()["prompt"]["chat_template"] == OPENS_STEP
    assert config.prompt.preset == "plain"
    with pytest.raises(ConfigError, match=r"engine\.chat_template=.*none\.jinja: cannot be read"):
        build(PolicyConfig, values | {"engine": {"model": "m", "chat_template": str(tmp_path / "none.jinja")}})


@pytest.mark.parametrize(
    ("template", "given", "images", "error", "message"),
    [
        (None, {}, 0, CheckpointError, "has no chat template; .* or set prompt.template=raw"),
        (NO_SYSTEM, {"system": "Be brief."}, 0, ConfigError, "it has no system turn; .* put its text into prompt.user"),
        (
            EMPTY_FOR_PARTS,
            {},
            1,
            ConfigError,
            "leaves the question out: 'How many.' of problem p .*prompt.template=raw",
        ),
        (
            CHATML.replace("<|image_pad|>", ""),
            {},
            2,
            ConfigError,
            "writes 0 placeholders for the 2 images of problem p",
        ),
        (
            SWITCH,
            {"template_options": {"enable_thinkin": 1}},
            0,
            ConfigError,
            r"does not read it; remove it, or use one of its options \(enable_thinking",
        ),
        ("{{ messages[0].x.y }}", {}, 0, ConfigError, r"its chat template rejects the prompt \(UndefinedError"),
    ],
)
def test_an_impossible_prompt_is_rejected_at_the_start(
    template: str | None, given: dict, images: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_rendering(Owner(template), [problem(), problem(images=images)], PromptConfig(preset="plain", **given))


@pytest.mark.parametrize(
    ("template", "given"),
    [
        (CHATML, {"preset": "plain"}),
        (EMPTY_FOR_PARTS, {"preset": "plain", "template": "raw"}),
        (SWITCH, {"template_options": {"enable_thinking": False}}),
    ],
)
def test_a_prompt_that_contains_its_question_is_accepted(template: str, given: dict) -> None:
    problems, prompt = [problem(" How\nmany? "), problem("A <image>, B <image>", images=2)], PromptConfig(**given)
    check_rendering(Owner(template), problems, prompt)
    assert all("many?" in render(Owner(template), each, "", prompt) for each in problems[:1])


def test_options_set_by_mmprm_are_rejected() -> None:
    with pytest.raises(ConfigError, match="add_generation_prompt is set by mmprm"):
        build(PromptConfig, {"template_options": {"add_generation_prompt": False}})


def test_completions_hold_the_beginning_of_the_turn() -> None:
    turn = TurnBeginning("<step>", PromptConfig(preset="plain", prefill="a"))
    first, given = turn.own(SampleRequest(problem(), "", 1, 0))
    assert (first.prefix, given) == ("", "<step>a")
    whole = with_given(Completion("b</step>c", 3, "stop", Tokens((1, 2, 3), (1, 8, 9))), given)
    assert (whole.text, whole.tokens) == ("<step>ab</step>c", Tokens((1, 2, 3), (8, 15, 16)))
    later, given = turn.own(SampleRequest(problem(), "<step>ab</step>", 1, 0))
    assert (later.prefix, given) == ("b</step>", "")
    shown = TurnBeginning("<step>", PromptConfig(preset="previous_steps"))
    assert shown.own(SampleRequest(problem(), "<step>a</step>", 1, 0))[0].prefix == "<step>a</step>"
    assert shown.own(SampleRequest(problem(), "<step>a</step>", 1, 0))[1] == "<step>"


def test_a_prefix_within_the_beginning_is_continued() -> None:
    turn = TurnBeginning("<think>\n\n</think>\n\n", PromptConfig(preset="plain"))
    own, given = turn.own(SampleRequest(problem(), "<think>\n\n", 1, 0, prefix_ids=()))
    assert (own.prefix, own.prefix_ids, given) == ("", None, "</think>\n\n")
