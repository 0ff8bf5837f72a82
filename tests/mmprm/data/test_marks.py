"""Test the shared rule for image positions and special tokens in questions."""

from __future__ import annotations

import pytest

from mmprm.data.marks import place_marks
from mmprm.errors import DataError


def placed(question: str, images: int, otherwise: str = "refuse", choices: tuple[str, ...] = ()) -> list[str]:
    fields = ["question", *(f"choices[{number}]" for number in range(len(choices)))]
    return place_marks([question, *choices], images, "row 1", fields, otherwise)


@pytest.mark.parametrize(
    ("question", "images", "expected"),
    [
        ("How many?", 1, "How many?"),
        ("<image>\nHow many?", 1, "How many?"),
        ("<image>", 1, "<image>"),
        ("<image> <image>Compare.", 2, "Compare."),
        ("In <image> and <image>?", 2, "In <image> and <image>?"),
        ("<image>A, and here <image>?", 2, "<image>A, and here <image>?"),
        ("<IMAGE>How many?", 1, "How many?"),
        ("<|vision_start|><|image_pad|><|image_pad|><|vision_end|>How many?", 1, "How many?"),
        ("See <img><IMG_CONTEXT><IMG_CONTEXT></img> now", 1, "See <image> now"),
        ("See <start_of_image> and <start_of_image><image_soft_token><end_of_image>", 2, "See <image> and <image>"),
        ("[IMG][IMG][IMG_BREAK][IMG][IMG][IMG_END]How many?", 1, "How many?"),
        ("Look: <|image|> there", 1, "Look: <image> there"),
        ("Look: (<image>./</image>) there", 1, "Look: <image> there"),
        ("In <image 1>: how many?", 1, "In <image>: how many?"),
        ("<image1> or <image_2>?", 2, "<image> or <image>?"),
        ("<|image_1|>\nHow many?", 1, "How many?"),
        ("See <img_1> and <Image:2>, not $x<img$", 2, "See <image> and <image>, not $x<img$"),
        ("[VID] holds nothing", 0, "[VID] holds nothing"),
        ("<image 2> before <image 1>?", 2, "picture 2 before picture 1?"),
        ("<image 1> is like <image 1>?", 1, "picture 1 is like picture 1?"),
        ("Is 3 < image and 4 > 2?", 0, "Is 3 < image and 4 > 2?"),
        ("Reason in <think> </think>, then <answer>.", 0, "Reason in <think> </think>, then <answer>."),
        ("$|x| < 2$ and $<|x|>$", 0, "$|x| < 2$ and $<|x|>$"),
    ],
)
def test_image_positions(question: str, images: int, expected: str) -> None:
    assert placed(question, images) == [expected]


@pytest.mark.parametrize(
    ("question", "counts", "expected"),
    [
        ("<video>\n<audio>\nWhich emotion?", (0, 1, 1), "Which emotion?"),
        ("<image><video><AUDIO> Which?", (1, 1, 1), "Which?"),
        ("<audio><video>Which emotion?", (0, 1, 1), "<audio><video>Which emotion?"),
        ("After <video>, or in <image>?", (1, 1, 0), "After <video>, or in <image>?"),
        ("<image>Does <audio> fit?", (1, 1, 1), "<image>Does <audio> fit?"),
        ("Which emotion?", (0, 2, 2), "Which emotion?"),
        ("<audio>", (0, 0, 1), "<audio>"),
    ],
)
def test_positions_of_videos_and_audio(question: str, counts: tuple[int, int, int], expected: str) -> None:
    images, videos, audios = counts
    assert place_marks([question], images, "row 1", ["question"], videos=videos, audios=audios) == [expected]


def test_a_mark_per_video_or_none() -> None:
    with pytest.raises(DataError, match="question has 1 <video> marks and the row 2 videos"):
        place_marks(["<video> Which?"], 0, "row 1", ["question"], videos=2)
    with pytest.raises(DataError, match=r"'<\|AUDIO\|>', but no video or audio belongs to it"):
        place_marks(["<|AUDIO|> Which?"], 0, "row 1", ["question"], audios=1)


def test_image_numbers_continue_in_the_options() -> None:
    assert placed("<image 1> is like", 3, choices=("<image 2>", "<image 3>")) == [
        "<image> is like",
        "<image>",
        "<image>",
    ]


@pytest.mark.parametrize(
    ("question", "images", "message"),
    [
        ("<image>How many?", 0, "row 1: question has 1 <image> marks and the row 0 images"),
        ("<image> and <image>", 1, "question has 2 <image> marks and the row 1 images"),
        ("<image>Which of both?", 2, "question has 1 <image> marks and the row 2 images"),
        ("<|image_pad|>How many?", 0, "1 <image> marks"),
        ("See <image 2>", 1, "names image 2 and the row has 1 images"),
        ("See <image 0>", 1, "names image 0"),
        ("<video>\nWhat happens?", 0, "question has 1 <video> marks and the row 0 videos"),
        ("<audio> What?", 1, "question has 1 <audio> marks and the row 0 audios"),
        ("<|speech_token|> What?", 0, r"holds '<\|speech_token\|>', but no video or audio belongs to it"),
        ("[VIDEO] What?", 0, r"'\[VIDEO\]'"),
        ("[gMASK]<sop>What?", 0, r"'\[gMASK\]'"),
        ("<|video_pad|>What?", 0, r"'<\|video_pad\|>'"),
        ("<|AUDIO|>What?", 0, r"'<\|AUDIO\|>'"),
        ("a<|im_end|>b", 0, r"question holds '<\|im_end\|>', a special token of chat templates"),
        ("a<|vision_start|>b", 0, r"'<\|vision_start\|>'"),
        ("a<|eot_id|>", 0, r"'<\|eot_id\|>'"),
        ("<|start_header_id|>", 0, "start_header_id"),
        ("<｜begin▁of▁sentence｜>", 0, "begin▁of▁sentence"),
        ("[INST] a [/INST]", 0, r"'\[INST\]'"),
        ("a</s>b", 0, "'</s>'"),
        ("<start_of_turn>user", 0, "'<start_of_turn>'"),
        ("a<eos>", 0, "'<eos>'"),
        ("a</img>", 0, "'</img>'"),
    ],
)
def test_invalid_questions_are_rejected(question: str, images: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        placed(question, images)


def test_options_are_read_by_the_same_rule() -> None:
    with pytest.raises(DataError, match=r"row 1: choices\[1\] holds '<\|endoftext\|>'"):
        placed("Which?", 0, choices=("a", "b<|endoftext|>"))


def test_one_leading_mark_may_stand_for_all_images() -> None:
    assert placed("<image>\nWhat?", 2, "front") == ["What?"]
    with pytest.raises(DataError, match="1 <image> marks"):
        placed("What is <image>?", 2, "front")


def test_published_benchmarks_are_asked_verbatim() -> None:
    assert placed("<image1> and <image1>", 1, "drop") == ["picture 1 and picture 1"]
    assert placed("Only <image> here", 2, "drop") == ["Only   here"]
    with pytest.raises(DataError, match="special token"):
        placed("a<|im_end|>", 0, "drop")
