"""Test how pages show videos and audio: frames as one image, a short recording, and reasons why there is none."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from browser import texts_of_scenes
from PIL import Image

from mmprm.data.media import SAMPLE_RATE, open_audio
from mmprm.report import clips
from mmprm.report.browsing import media_data
from mmprm.report.clips import arranged
from mmprm.report.rollouts import logged_media
from mmprm.report.view import write_view
from mmprm.tiny.omni_clip import encode_clip
from mmprm.trees.serialization import pack_batch
from mmprm.trees.stopping import StoppingRule
from mmprm.trees.store import Store
from mmprm.types import AudioRef, Batch, ImageRef, Problem, Rollout, Verdict, VideoRef
from tests.mmprm.data.test_media import gray_frames, tone

CLIP = encode_clip(gray_frames(4, 28, 28), tone(440, 1.0))


def file_of(url: str, kind: str) -> bytes:
    prefix = f"data:{kind};base64,"
    assert url.startswith(prefix)
    return base64.b64decode(url.removeprefix(prefix))


def test_frames_are_in_rows_of_two() -> None:
    frames = np.stack([np.full((2, 3, 3), shade, np.uint8) for shade in (10, 20, 30)])
    sheet = np.asarray(arranged(frames))
    assert sheet.shape == (2 + 2 + 2, 3 + 2 + 3, 3)
    assert (sheet[:2, :3] == 10).all()
    assert (sheet[:2, 5:] == 20).all()
    assert (sheet[4:, :3] == 30).all()
    assert (sheet[2:4] == 255).all()
    assert (sheet[4:, 3:] == 255).all()


def test_the_frames_of_a_video_are_those_that_the_model_sees() -> None:
    found = media_data(VideoRef(data=CLIP, frames=2))
    assert (found["frames"], found["small"]) == (True, True)
    image = Image.open(io.BytesIO(file_of(found["url"], "image/png")))
    assert image.size == (28 + 2 + 28, 28)


def test_audio_is_a_short_recording_of_the_same_tone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "MAX_SECONDS_EMBEDDED", 2)
    long = encode_clip(None, tone(440, 3.0))
    data = file_of(media_data(AudioRef(data=long))["audio"], "audio/webm")
    samples = open_audio(AudioRef(data=data))
    assert len(samples) / SAMPLE_RATE == pytest.approx(2.0, abs=0.05)
    peak = np.abs(np.fft.rfft(samples)).argmax() * SAMPLE_RATE / len(samples)
    assert peak == pytest.approx(440, abs=2)
    assert len(data) < 2 * 2 * SAMPLE_RATE / 4, "a quarter of what the samples take"


def test_media_that_cannot_be_read_give_the_reason() -> None:
    assert "cannot be read as a video" in media_data(VideoRef(data=b"x"))["error"]
    assert "cannot be read as an audio recording" in media_data(AudioRef(path="gone.wav"))["error"]


def test_media_of_the_log_are_below_the_run(tmp_path: Path) -> None:
    row = {"images": ["images/a.png"], "videos": [["media/a.mkv", 4]], "audios": ["/b.wav"]}
    assert logged_media(row, tmp_path) == (
        ImageRef(path=str(tmp_path / "images/a.png")),
        VideoRef(path=str(tmp_path / "media/a.mkv"), frames=4),
        AudioRef(path="/b.wav"),
    )
    assert logged_media({}, tmp_path) == (), "lines of earlier versions have none"


def test_the_page_of_trees_has_the_clips_of_a_problem(tmp_path: Path) -> None:
    problem = Problem("p", "Which?", "joy", videos=(VideoRef(data=CLIP, frames=2),), audios=(AudioRef(data=b"x"),))
    store = Store.create_or_open(
        tmp_path / "trees.sqlite", {"search": StoppingRule().model_dump(), "step_format": "tags"}
    )
    store.add_problems([problem])
    rollout = Rollout(("<step>joy</step>",), Verdict.CORRECT, 1, "joy", None, "exact")
    store.append([pack_batch(Batch("p", (), 0, (rollout,)))], [])
    write_view(tmp_path / "view.html", store, 1)
    store.close()
    page = (tmp_path / "view.html").read_text()
    assert "media-src data:" in page
    assert media_data(problem.videos[0])["url"] in page
    shown = texts_of_scenes(tmp_path / "view.html", {"first": [""]})["first"]
    assert "cannot be read as an audio recording" in shown
