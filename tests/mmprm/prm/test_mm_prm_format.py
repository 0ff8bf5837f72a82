"""Test the MM-PRM format token by token."""

from __future__ import annotations

import io

import pytest
from PIL import Image
from transformers import AddedToken

from mmprm.errors import CheckpointError, DataError
from mmprm.prm.info import PrmTokens
from mmprm.prm.mm_prm_format import Renderer
from mmprm.tiny.tokenizer import build_processor, build_tokenizer
from mmprm.types import ImageRef, Problem, Solution

QUESTION = "Left to right: blue + red = ?"
STEPS = ("blue=5", "red=3", "5+3=8", "<answer>8</answer>")


def image(width: int = 56, height: int = 56) -> ImageRef:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "white").save(buffer, "PNG")
    return ImageRef(data=buffer.getvalue())


IMAGE = image()


def with_marker(processor):
    tokenizer = getattr(processor, "tokenizer", processor)
    tokenizer.add_tokens([AddedToken("<prm>", normalized=False)], special_tokens=True)
    return processor


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(with_marker(build_processor()), PrmTokens())


@pytest.fixture(scope="module")
def text_renderer() -> Renderer:
    return Renderer(with_marker(build_tokenizer()), PrmTokens())


def solution(steps=STEPS, question=QUESTION, images=(IMAGE,)) -> Solution:
    return Solution(Problem("p", question, "8", tuple(images)), steps)


def test_text(renderer: Renderer) -> None:
    assert renderer.render(solution()) == (
        "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n<|vision_start|><|image_pad|><|vision_end|>\n"
        "Question: Left to right: blue + red = ?\nProcess: blue=5<prm>red=3<prm>5+3=8<prm><answer>8</answer><prm>"
        "<|im_end|>\n"
    )


def test_tokens(renderer: Renderer) -> None:
    """A 56 × 56 image has 2 × 2 merged patches. The marker is one token at every position."""
    (ids,) = renderer.encode([solution()])["input_ids"].tolist()
    start = ["<|im_start|>", "user", "\n", "<|im_end|>", "\n", "<|im_start|>", "assistant", "\n"]
    image = ["<|vision_start|>", *["<|image_pad|>"] * 4, "<|vision_end|>", "\n"]
    question = ["Question:", " ", "Left to right: ", "blue", " + ", "red", " = ?", "\n"]
    process = ["Process:", " ", "blue=", "5", "<prm>", "red=", "3", "<prm>", "5", "+", "3", "=", "8", "<prm>"]
    answer = ["<answer>", "8", "</answer>", "<prm>", "<|im_end|>", "\n"]
    tokenizer = renderer.processor.tokenizer
    assert tokenizer.convert_ids_to_tokens(ids) == [*start, *image, *question, *process, *answer]
    assert ids[:8] == [1, 8 + 1, ids[2], 2, ids[2], 1, 8 + 2, ids[2]]
    positions = [position for position, token in enumerate(ids) if token == renderer.marker_id]
    assert positions == [27, 30, 36, 40]


def test_text_only(text_renderer: Renderer) -> None:
    inputs = text_renderer.encode([solution(images=())])
    assert text_renderer.render(solution(images=())).startswith(
        "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\nQuestion: Left"
    )
    assert (inputs["input_ids"] == text_renderer.marker_id).sum() == 4
    with pytest.raises(DataError, match="problem p: has images"):
        text_renderer.render(solution())


def test_marks_in_the_question_do_not_count_as_images(renderer: Renderer) -> None:
    marked = renderer.render(solution(question="<image>\nLeft of <image>?", images=(IMAGE, IMAGE)))
    assert "<image>" not in marked
    assert marked.count("<|image_pad|>") == 2
    assert "<|vision_end|><|vision_start|><|image_pad|><|vision_end|>\nQuestion: Left of" in marked


def test_padding_is_on_the_right_whatever_the_tokenizer_says(renderer: Renderer) -> None:
    renderer.processor.tokenizer.padding_side = "left"
    short, long = solution(STEPS[:1]), solution()
    inputs = renderer.encode([short, long])
    alone = renderer.encode([short])["input_ids"][0].tolist()
    padded = inputs["input_ids"][0].tolist()
    assert padded[: len(alone)] == alone
    assert set(padded[len(alone) :]) == {0}
    assert inputs["attention_mask"].sum(dim=1).tolist() == [len(alone), len(padded)]


def test_a_template_with_a_line_break_after_an_image() -> None:
    """InternVL's template adds a line break after the placeholder; the format has exactly one there."""
    processor = with_marker(build_processor())
    processor.chat_template = processor.chat_template.replace(
        "<|vision_start|><|image_pad|><|vision_end|>", "<|image_pad|>\n"
    )
    renderer = Renderer(processor, PrmTokens())
    assert renderer.image == "<|image_pad|>"
    assert "assistant\n<|image_pad|>\nQuestion:" in renderer.render(solution())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (solution(steps=()), "problem p: a solution must have at least one step"),
        (solution(steps=("a", "b<prm>")), "problem p: step 2 contains '<prm>'"),
        (solution(question="what is <prm>?"), "problem p: question contains '<prm>'"),
        (solution(steps=("<|image_pad|>",)), r"problem p: step 1 contains '<\|image_pad\|>'"),
        (solution(steps=("a", "<|video_pad|>")), r"problem p: step 2 contains '<\|video_pad\|>'"),
        (solution(steps=("so <|vision_start|>",)), r"problem p: step 1 contains '<\|vision_start\|>'"),
        (solution(question="<|vision_end|>?", images=()), r"problem p: question contains '<\|vision_end\|>'"),
        (solution(images=(ImageRef(path="/no/such.png"),)), "/no/such.png: cannot be read"),
    ],
)
def test_solutions_that_cannot_be_scored(renderer: Renderer, bad: Solution, message: str) -> None:
    with pytest.raises(DataError, match=message):
        renderer.encode([bad])


def test_marker_and_judgments_must_be_single_tokens() -> None:
    with pytest.raises(CheckpointError, match="'Maybe' must be one token"):
        Renderer(with_marker(build_processor()), PrmTokens(yes="Maybe"))
    with pytest.raises(CheckpointError, match="'<prm>' must be one token"):
        Renderer(build_processor(), PrmTokens())
    bare = build_tokenizer()
    bare.chat_template = None
    with pytest.raises(CheckpointError, match="chat template"):
        Renderer(bare, PrmTokens())
