"""Test videos and audio: evenly spaced upright frames, mono at 16 kHz, and files that are refused by name."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from mmprm.data import media
from mmprm.data.media import SAMPLE_RATE, media_digest, open_audio, open_video, unreadable_media, write_media
from mmprm.errors import DataError
from mmprm.tiny.omni_clip import encode_clip
from mmprm.types import AudioRef, ImageRef, VideoRef

LEVELS = 10
"""Gray value added per frame in the clips of these tests, so that a pixel names its frame."""


def gray_frames(count: int = 20, height: int = 32, width: int = 48) -> np.ndarray:
    levels = np.arange(count, dtype=np.uint8) * LEVELS
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def tone(hertz: float, seconds: float = 1.0, rate: int = SAMPLE_RATE) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


CLIP = encode_clip(gray_frames(), tone(440))


@pytest.mark.parametrize(
    ("frames", "expected"), [(1, [0]), (2, [0, 19]), (5, [0, 4, 9, 14, 19]), (40, list(range(20)))]
)
def test_frames_are_evenly_spaced_from_the_first_to_the_last(frames: int, expected: list[int]) -> None:
    found = open_video(VideoRef(data=CLIP, frames=frames))
    assert found.shape == (len(expected), 32, 48, 3)
    assert found.dtype == np.uint8
    assert (found[:, 5, 7, 1] / LEVELS).tolist() == expected


def test_lossy_files_on_disk_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode_clip(gray_frames(), tone(440, rate=44_100), rate=44_100, form="mp4"))
    frames = open_video(VideoRef(path=str(path), frames=3))
    assert np.abs(frames[:, 5, 7, 0].astype(float) - [0, 90, 190]).max() < LEVELS / 2
    assert len(open_audio(AudioRef(path=str(path)))) == pytest.approx(SAMPLE_RATE, abs=2048)  # AAC pads its frames


@pytest.mark.parametrize(("rate", "hertz"), [(8_000, 440), (16_000, 1000), (44_100, 2500)])
def test_audio_becomes_16_khz_with_the_same_pitch(rate: int, hertz: int) -> None:
    samples = open_audio(AudioRef(data=encode_clip(None, tone(hertz, rate=rate), rate=rate)))
    assert samples.dtype == np.float32
    assert len(samples) == pytest.approx(SAMPLE_RATE, abs=64)
    spectrum = np.abs(np.fft.rfft(samples[:16_000] * np.hanning(len(samples[:16_000]))))
    assert spectrum.argmax() * SAMPLE_RATE / len(samples[:16_000]) == pytest.approx(hertz, abs=3)
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.02)


def test_the_audio_track_of_a_video_is_read_without_loss() -> None:
    np.testing.assert_allclose(open_audio(AudioRef(data=CLIP)), tone(440), atol=1e-4)


def test_a_stored_rotation_is_applied() -> None:
    """Phones store portrait videos in landscape, with a matrix that turns them clockwise by 90 degrees."""
    frames = gray_frames()
    frames[:, 0, :24] = 255  # the left half of the top row, which becomes the top of the right column
    data = bytearray(encode_clip(frames, None, form="mp4"))
    matrix = data.index(b"tkhd") + 4 + 4 + 36  # version and flags, then 36 bytes of times, layer and volume
    turned = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    assert data[matrix : matrix + 4] == struct.pack(">i", 1 << 16), "the matrix is where it was expected"
    data[matrix : matrix + 36] = turned
    upright = open_video(VideoRef(data=bytes(data), frames=2))
    assert upright.shape == (2, 48, 32, 3)
    assert upright[0, 5, 31, 0] > 150
    assert upright[0, 40, 31, 0] < 100


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read as a video"),
        (b"not a video" * 50, "cannot be read as a video"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/passwd\n#EXT-X-ENDLIST\n", "cannot be read as a video"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "cannot be read as a video"),
        (CLIP[:600], "cannot be read as a video|has no frames"),
        (encode_clip(None, tone(440)), "has no video track; give a video, or name an audio column"),
    ],
)
def test_what_is_no_video_is_refused_by_name(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"clip\.mp4: {message}"):
        open_video(VideoRef(path=str(path)))


def test_audio_that_the_models_cannot_hear_is_refused() -> None:
    with pytest.raises(DataError, match=r"video of|audio of \d+ bytes: has no audio track"):
        open_audio(AudioRef(data=encode_clip(gray_frames(), None)))
    with pytest.raises(DataError, match=r"its audio takes 0\.050 s, at least 0\.1 s are needed"):
        open_audio(AudioRef(data=encode_clip(None, tone(440, seconds=0.05))))


def float_wav(value: float) -> bytes:
    data = np.full(SAMPLE_RATE, value, np.float32).tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, SAMPLE_RATE, 4 * SAMPLE_RATE, 4, 32)
    body = b"WAVE" + form + struct.pack("<4sI", b"data", len(data)) + data
    return struct.pack("<4sI", b"RIFF", len(body)) + body


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e18, -1e7])
def test_samples_whose_spectrum_overflows_are_refused(value: float) -> None:
    """From 1e18 on, Whisper's feature extractor computes NaN, which would spread to the weights in training."""
    with pytest.raises(DataError, match=r"its audio has samples above 1e\+06 or not finite; save it again"):
        open_audio(AudioRef(data=float_wav(value)))
    assert open_audio(AudioRef(data=float_wav(32_768.0))).max() == 32_768


def test_long_and_large_media_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MAX_SECONDS", 2.0)
    with pytest.raises(DataError, match="takes 2 s, but at most 2 s are allowed; cut the part"):
        open_video(VideoRef(data=CLIP))  # 2.5 s
    with pytest.raises(DataError, match="takes 3 s, but at most 2 s"):
        open_audio(AudioRef(data=encode_clip(None, tone(440, seconds=3))))
    monkeypatch.setattr(media, "MAX_SECONDS", 600.0)
    monkeypatch.setattr(media, "MAX_FRAMES", 19)
    with pytest.raises(DataError, match="has more than 19 frames"):
        open_video(VideoRef(data=CLIP))
    monkeypatch.setattr(media, "MAX_FRAMES", 20)
    monkeypatch.setattr(media, "MAX_FRAME_PIXELS", 32 * 48 - 1)
    with pytest.raises(DataError, match="frames have 48×32 pixels, but must have 1 to 1,535; scale it down"):
        open_video(VideoRef(data=CLIP))


def test_endless_audio_without_a_declared_duration_stops_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A streamed file declares no duration, so only decoding shows how long it is."""
    monkeypatch.setattr(media, "MAX_SECONDS", 1.0)
    monkeypatch.setattr(media, "_check_duration", lambda *_: None)
    with pytest.raises(DataError, match="but at most 1 s are allowed"):
        open_audio(AudioRef(data=encode_clip(None, tone(440, seconds=5))))


def test_only_regular_files_of_bounded_size_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in ("/dev/zero", str(tmp_path / "pipe.mp4")):
        with pytest.raises(DataError, match="is not a regular file and cannot be read as a video"):
            open_video(VideoRef(path=path))
        assert media_digest(AudioRef(path=path)).startswith("audio/")
    (tmp_path / "a.wav").write_bytes(CLIP)
    monkeypatch.setattr(media, "MAX_MEDIA_BYTES", len(CLIP) - 1)
    with pytest.raises(DataError, match=r"a\.wav: .* bytes, at most .* too large to be read as an audio recording"):
        open_audio(AudioRef(path=str(tmp_path / "a.wav")))


def test_a_digest_tells_the_uses_of_a_file_apart() -> None:
    uses = [VideoRef(data=CLIP), VideoRef(data=CLIP, frames=4), AudioRef(data=CLIP), ImageRef(data=CLIP)]
    assert len({media_digest(each) for each in uses}) == 4
    assert media_digest(VideoRef(data=CLIP)) == media_digest(VideoRef(data=bytes(CLIP)))


def test_a_killed_writer_leaves_no_part_of_a_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run would take a part for the clip, because the name is that of the content."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_media(VideoRef(data=CLIP), tmp_path)
    monkeypatch.undo()
    assert list((tmp_path / "media").iterdir()) == []
    assert (tmp_path / write_media(VideoRef(data=CLIP), tmp_path)).read_bytes() == CLIP


def test_equal_clips_have_equal_bytes() -> None:
    for form in ("matroska", "mp4"):
        first, second = (encode_clip(gray_frames(), tone(440), form=form) for _ in range(2))
        assert first == second


def test_every_medium_is_decoded_to_find_the_broken_ones() -> None:
    good, broken = VideoRef(data=CLIP), AudioRef(data=b"RIFF")
    assert list(unreadable_media([("a", [good, AudioRef(data=CLIP)]), ("b", [good, broken]), ("c", [])])) == ["b"]
