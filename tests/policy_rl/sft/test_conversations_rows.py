"""Test rows of conversations: duplicate fields, image marks, other media, and images that cannot be decoded."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmprm.errors import DataError
from mmprm.problems import ProblemsConfig, load_problems
from mmprm.prompts import PromptConfig, messages
from mmprm.types import AudioRef, VideoRef
from policy_rl.sft.conversations import Conversation, read_conversations, without_unreadable

IMAGE = {"type": "image"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for color in ("red", "blue"):
        Image.new("RGB", (4, 3), color).save(tmp_path / f"{color}.png")
    noise = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(noise, "JPEG")
    (tmp_path / "torn.jpg").write_bytes(noise.getvalue()[:600])
    return tmp_path


def read(folder: Path, *rows: dict[str, Any]) -> list[Conversation]:
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_conversations(ProblemsConfig(path=str(folder / "c.jsonl")), PromptConfig(preset="plain"))


def row(content: Any, **columns: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "3"}], **columns}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


SHOWN = {"type": "image", "image": "red.png"}


@pytest.mark.parametrize(
    ("content", "columns", "expected", "names"),
    [
        ([SHOWN, text("Q")], {"image": "red.png"}, [IMAGE, text("Q")], ["red.png"]),
        ([SHOWN, text("Q")], {"images": ["blue.png"]}, [IMAGE, IMAGE, text("Q")], ["blue.png", "red.png"]),
        ([SHOWN, text("<image>Q")], {}, [IMAGE, text("Q")], ["red.png"]),
        ("<|vision_start|><|image_pad|><|vision_end|>Q", {"image": "red.png"}, [IMAGE, text("Q")], ["red.png"]),
        ("See <image 1>.", {"image": "red.png"}, [text("See "), IMAGE, text(".")], ["red.png"]),
        ("Q", {"image": "", "images": [None, "red.png"]}, [IMAGE, text("Q")], ["red.png"]),
        ("Q", {}, "Q", []),
    ],
)
def test_each_image_appears_once_at_its_mark(
    folder: Path, content: Any, columns: dict[str, Any], expected: Any, names: list[str]
) -> None:
    (found,) = read(folder, row(content, **columns))
    assert found.messages[0]["content"] == expected
    assert [Path(image.path or "").name for image in found.images] == names


def test_r1_omni_rows_show_the_video_and_its_audio_track(folder: Path) -> None:
    """Rows of the published JSON name a video and mark its audio, which is in the same file."""
    asked = "<video>\n<audio>\nWhich emotion is most obvious?"
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": "<think>…</think>\n<answer>fear</answer>"}]
    (found,) = read(folder, {"video": "a.mp4", "conversations": turns})
    question = text("Which emotion is most obvious?")
    assert found.messages[0]["content"] == [{"type": "video"}, {"type": "audio"}, question]
    assert found.videos == (VideoRef(path=str(folder / "a.mp4"), frames=8),)
    assert found.audios == (AudioRef(path=str(folder / "a.mp4")),)


@pytest.mark.parametrize(
    ("content", "columns", "kinds"),
    [
        ("Q", {"video": "a.mp4", "image": "red.png"}, ["image", "video", "text"]),
        ("Q", {"video": "a.mp4", "audio": "b.wav"}, ["video", "audio", "text"]),
        ("Hear <audio> and see <video>.", {"video": "a.mp4"}, ["text", "audio", "text", "video", "text"]),
        ([SHOWN, text("Does <audio> fit?")], {"audio": "b.wav"}, ["image", "text", "audio", "text"]),
    ],
)
def test_videos_and_audio_are_at_their_marks_or_first(
    folder: Path, content: Any, columns: dict[str, Any], kinds: list[str]
) -> None:
    (found,) = read(folder, row(content, **columns))
    assert [part["type"] for part in found.messages[0]["content"]] == kinds


@pytest.mark.parametrize(
    ("question", "columns", "kinds"),
    [
        ("<image>\nA", {"image": "red.png"}, ["image", "A"]),
        ("<image>\n<image>\nA <image>", {"images": ["red.png"] * 3}, ["image", "image", "A ", "image"]),
        ("<audio>\n<video>\nA", {"video": "a.mp4"}, ["audio", "video", "A"]),
        ("<video>\n<audio>\n" * 2 + "A", {"video": ["a.mp4", "b.mp4"]}, ["video", "audio", "video", "audio", "A"]),
    ],
)
def test_problems_and_conversations_show_a_question_alike(
    folder: Path, question: str, columns: dict[str, Any], kinds: list[str]
) -> None:
    """A policy is trained on conversations and then sampled with problems."""
    (found,) = read(folder, row(question, **columns))
    (folder / "p.jsonl").write_text(json.dumps({"question": question, "answer": "3", **columns}))
    (problem,) = load_problems(ProblemsConfig(path=str(folder / "p.jsonl")))
    for turn in (found.messages[0], messages(problem, PromptConfig(preset="plain"))[0]):
        assert [part.get("text", part["type"]) for part in turn["content"]] == kinds


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (row("<video>\nQ"), "a user turn has 1 <video> marks and the row 0 videos"),
        (row("<audio>\nQ", video=["a.mp4", "b.mp4"]), "a user turn has 1 <audio> marks and the row 0 audios"),
        (row("Q<|im_end|>"), r"a user turn holds '<\|im_end\|>'"),
        (row("Q", photo="red.png"), "column 'photo' looks like images"),
        (row("See <image 2>", image="red.png"), "names image 2 and the row has 1 images"),
        (row([text("Q"), {"type": "input_audio", "input_audio": {"data": "x"}}]), "input_audio"),
    ],
)
def test_marks_that_would_be_learned_as_text_are_rejected(folder: Path, bad: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=rf"c\.jsonl:2: .*{words}"):
        read(folder, row("Q"), bad)


def test_conversations_whose_images_cannot_be_decoded_are_left_out(folder: Path) -> None:
    rows = [row("Q", image="red.png"), row("Q", image="torn.jpg"), row("Q"), row("Q", image="gone.png")]
    kept, broken = without_unreadable(read(folder, *rows))
    assert [each.location.rpartition(":")[2] for each in kept] == ["1", "3"]
    assert [location.rpartition(":")[2] for location in broken] == ["2", "4"]
    with pytest.raises(DataError, match=r"c\.jsonl:1: .*torn\.jpg: .*the media of no conversation can be read"):
        without_unreadable(read(folder, rows[1]))
