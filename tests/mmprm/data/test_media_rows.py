"""Test rows with videos and audio: columns, marks, ids, and problem files that are written and read again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmprm.data.media import open_audio
from mmprm.data.record_images import record_images
from mmprm.errors import DataError
from mmprm.problems import ProblemsConfig, load_problems, write_problems
from mmprm.prompts import PromptConfig, messages
from mmprm.tiny.omni_clip import encode_clip
from mmprm.types import AudioRef, ImageRef, Problem, VideoRef


def load(folder: Path, *rows: dict[str, Any]) -> list[Problem]:
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_problems(ProblemsConfig(path=str(folder / "p.jsonl")))


def test_videos_and_audio_are_read_written_and_part_of_the_id(tmp_path: Path) -> None:
    """Bytes are written next to the file, and files stay where they are."""
    clip = encode_clip(np.zeros((4, 16, 16, 3), np.uint8), np.zeros(16_000, np.float32))
    (tmp_path / "a.mkv").write_bytes(clip)
    rows = [{"question": "Which?", "answer": "fear", **more} for more in ({}, {"video": "a.mkv"}, {"audio": "a.mkv"})]
    plain, video, audio = load(tmp_path, *rows)
    assert video.videos == (VideoRef(path=str(tmp_path / "a.mkv"), frames=8),)
    assert audio.audios == (AudioRef(path=str(tmp_path / "a.mkv")),)
    assert len({plain.id, video.id, audio.id}) == 3
    assert len(plain.id) == 16
    both = replace(video, audios=(AudioRef(data=clip),))
    write_problems(tmp_path / "out" / "q.jsonl", [both])
    (again,) = load_problems(ProblemsConfig(path=str(tmp_path / "out" / "q.jsonl"), video_frames=2))
    assert again.videos == (VideoRef(path=str(tmp_path / "a.mkv"), frames=2),)
    assert len(open_audio(again.audios[0])) == 16_000
    assert Path(again.audios[0].path or "").parent == tmp_path / "out" / "media"


def test_an_answer_with_r1_omnis_marks_is_a_problem(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<video>\n<audio>\nWhich emotion?"}, {"from": "gpt", "value": "fear"}]
    (found,) = load(tmp_path, {"video": "a.mp4", "conversations": turns})
    assert (found.question, found.answer) == ("Which emotion?", "fear")
    assert [type(each).__name__ for each in found.media] == ["VideoRef", "AudioRef"]


def test_a_video_interleaved_with_its_audio_is_refused(tmp_path: Path) -> None:
    row = {"question": "<video><audio> Which?", "answer": "fear", "video": "a.mp4"}
    with pytest.raises(DataError, match=r"p.jsonl:1: use_audio_in_video asks .* mark the audio as a separate item"):
        load(tmp_path, row | {"use_audio_in_video": True})
    assert load(tmp_path, row | {"use_audio_in_video": False})[0].audios


def test_video_cells_that_are_no_file_are_refused(tmp_path: Path) -> None:
    for value, words in (
        ("https://h/a.mp4", "save the video as a file"),
        ({"array": [0.0], "sampling_rate": 16_000}, "decode=False"),
        (7, "must hold paths or bytes, got '7'"),
    ):
        with pytest.raises(DataError, match=rf"p\.jsonl:1: video .*{words}"):
            load(tmp_path, {"question": "Q", "answer": "3", "video": value})
    with pytest.raises(DataError, match=r"video and videos both hold video, but different ones; set columns\.videos"):
        load(tmp_path, {"question": "Q", "answer": "3", "video": "a.mp4", "videos": ["b.mp4"]})


def test_records_without_settings_of_columns_name_none(tmp_path: Path) -> None:
    """Labels and benchmarks of process reward models hold images only, and have no key for a column of videos."""
    words = r"r\.jsonl:1: column 'video' holds 'a\.mp4', a video or audio that is not read; remove such rows, or remove"
    with pytest.raises(DataError, match=words):
        record_images({"video": "a.mp4"}, "Q", tmp_path, "r.jsonl:1")


@pytest.mark.parametrize(
    ("question", "kinds"),
    [
        ("Which?", ["image", "video", "audio", "text"]),
        ("Does <audio> fit <video>?", ["image", "text", "audio", "text", "video", "text"]),
        ("<image>, then <video>?", ["audio", "image", "text", "video", "text"]),
    ],
)
def test_media_without_marks_come_first(question: str, kinds: list[str]) -> None:
    problem = Problem(
        "p", question, "3", (ImageRef("a.png"),), videos=(VideoRef("a.mp4"),), audios=(AudioRef("a.mp4"),)
    )
    (turn,) = messages(problem, PromptConfig(preset="plain"))
    assert [part["type"] for part in turn["content"]] == kinds
