"""Decode videos to evenly spaced frames and audio to 16 kHz mono, with PyAV.

Only regular files of bounded size, in common container formats, of bounded duration and frame size are decoded. A
playlist, which could name other files, is not opened.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mmprm.data.cells import cut
from mmprm.data.images import image_digest, open_image
from mmprm.data.streams import open_stream
from mmprm.errors import DataError, SetupError
from mmprm.files import write_new
from mmprm.types import AudioRef, ImageRef, MediaRef, VideoRef

if TYPE_CHECKING:
    from av.container import InputContainer

SAMPLE_RATE = 16_000
"""Samples per second of decoded audio, the rate of Whisper's feature extractor, which all supported models use."""
MAX_SECONDS = 600.0
"""Maximum duration of a video or audio recording in seconds."""
MAX_FRAMES = 36_000
"""Maximum number of frames of a video: MAX_SECONDS at 60 frames per second. All frames up to the last sampled one are
decoded."""
MAX_FRAME_PIXELS = 4096 * 2304
"""Maximum number of pixels per frame; a small file could otherwise unpack to gigabytes."""
MAX_MEDIA_BYTES = 2**30
"""Maximum size of a video or audio file in bytes."""
MIN_AUDIO_SECONDS = 0.1
"""Minimum duration of audio in seconds, for which the models still have a token."""
MAX_AMPLITUDE = 1e6
"""Maximum absolute value of an audio sample, normally at most 1; the spectrum of far larger ones overflows to NaN."""
DECODING_THREADS = 8

_FORMATS = "mov,mp4,m4a,matroska,webm,avi,mpegts,mpeg,flv,asf,gif,wav,mp3,flac,ogg,aac,aiff,w64,amr"
_NOUNS = {VideoRef: "a video", AudioRef: "an audio recording"}

T = TypeVar("T")


def open_media(ref: MediaRef) -> Any:
    """Decode an image, a video or an audio recording; see open_image, open_video and open_audio."""
    if isinstance(ref, ImageRef):
        return open_image(ref)
    return open_video(ref) if isinstance(ref, VideoRef) else open_audio(ref)


def open_video(ref: VideoRef) -> NDArray[np.uint8]:
    """Return `ref.frames` evenly spaced frames, from the first to the last, as upright RGB of shape (T, H, W, 3).

    A shorter video gives all of its frames. Raises DataError, naming the path, if the video cannot be decoded or
    exceeds a limit of this module.
    """
    with _opened(ref) as container:
        count = _frame_count(container, _name(ref))
    with _opened(ref) as container:
        wanted = np.linspace(0, count - 1, min(ref.frames, count)).astype(int).tolist()
        frames = _frames_at(container, wanted, _name(ref))
    return np.stack(frames)


def open_audio(ref: AudioRef) -> NDArray[np.float32]:
    """Return the audio track as mono samples at SAMPLE_RATE. Raises DataError in the same cases as open_video."""
    from av import AudioResampler

    name = _name(ref)
    with _opened(ref) as container:
        if not container.streams.audio:
            raise DataError(f"{name}: has no audio track; give a file with sound, or remove the row's audio")
        stream = container.streams.audio[0]
        _check_duration(container, stream, name)
        resampler = AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        parts: list[NDArray[np.float32]] = []
        total = 0
        # None flushes the resampler, which holds back a few samples.
        for frame in itertools.chain(container.decode(stream), [None]):
            for part in resampler.resample(frame) if frame is not None or parts else ():
                parts.append(part.to_ndarray()[0])
                total += part.samples
            if total > MAX_SECONDS * SAMPLE_RATE:
                raise _too_long(name, total / SAMPLE_RATE)
    if total < MIN_AUDIO_SECONDS * SAMPLE_RATE:
        raise DataError(
            f"{name}: its audio takes {total / SAMPLE_RATE:.3f} s, at least {MIN_AUDIO_SECONDS} s are needed; remove "
            "the row"
        )
    samples = np.concatenate(parts)
    if not (np.abs(samples) <= MAX_AMPLITUDE).all():  # also refuses NaN
        raise DataError(f"{name}: its audio has samples above {MAX_AMPLITUDE:.0e} or not finite; save it again")
    return samples


def unreadable_media(items: Iterable[tuple[T, Iterable[MediaRef]]]) -> dict[T, str]:
    """Decode the media of all items in threads, and return the error message of each item with an unreadable one."""

    def checked(item: tuple[T, Iterable[MediaRef]]) -> tuple[T, str | None]:
        key, media = item
        try:
            for each in media:
                open_media(each)
        except DataError as error:
            return key, str(error)
        return key, None

    # Pillow and PyAV release the GIL while they decode.
    with ThreadPoolExecutor(DECODING_THREADS) as threads:
        return {key: why for key, why in threads.map(checked, items) if why is not None}


def media_digest(ref: MediaRef) -> str:
    """Return a digest of the encoded medium, or of its path if the file cannot be read.

    It differs between a video, the same video with another number of frames, and its audio track.
    """
    if isinstance(ref, ImageRef):
        return image_digest(ref)
    return clip_digest(ref) or _named(ref, hashlib.sha256((ref.path or "").encode()).hexdigest())


def clip_digest(ref: VideoRef | AudioRef) -> str | None:
    """Return the digest of a video or audio recording, or None if its file cannot be read; see media_digest."""
    try:
        with open_stream(ref, MAX_MEDIA_BYTES, _NOUNS[type(ref)]) as stream:
            return _named(ref, hashlib.file_digest(stream, "sha256").hexdigest())
    except (OSError, ValueError, DataError):
        return None


def _named(ref: VideoRef | AudioRef, digest: str) -> str:
    return f"video/{ref.frames}/{digest}" if isinstance(ref, VideoRef) else f"audio/{digest}"


def write_media(ref: VideoRef | AudioRef, folder: Path) -> str:
    """Return the absolute path of a video or audio file, or write its bytes to the subfolder `media/` of `folder`,
    named by a content hash, and return the path relative to `folder`."""
    if ref.path is not None:
        return os.path.abspath(ref.path)
    with _opened(ref) as container:
        suffix = container.format.name.partition(",")[0]
    data = ref.data or b""
    target = folder / "media" / f"{hashlib.sha256(data).hexdigest()[:16]}.{suffix}"
    if not target.exists():
        write_new(target, data)
    return str(target.relative_to(folder))


@contextmanager
def _opened(ref: VideoRef | AudioRef) -> Iterator[InputContainer]:
    try:
        import av
    except ImportError as error:
        raise SetupError("videos and audio need PyAV; install 'mmprm[omni]' with pip") from error

    name, noun = _name(ref), _NOUNS[type(ref)]
    try:
        with (
            open_stream(ref, MAX_MEDIA_BYTES, noun) as stream,
            av.open(stream, metadata_errors="ignore", options={"format_whitelist": _FORMATS}) as container,
        ):
            yield container
    except (DataError, SetupError):
        raise
    except Exception as error:  # FFmpeg's decoders raise many exceptions for damaged files
        why = cut(str(error).partition(": '")[0], 200)
        raise DataError(
            f"{name}: cannot be read as {noun} ({type(error).__name__}: {why}); save it again, for example as MP4 or "
            "WAV"
        ) from error


def _frame_count(container: InputContainer, name: str) -> int:
    """Count the frames of a video without decoding them, and check its limits."""
    stream = _video_stream(container, name)
    _check_duration(container, stream, name)
    _check_size(stream.codec_context.width, stream.codec_context.height, name)
    count = 0
    for packet in container.demux(stream):
        count += packet.size > 0
        if count > MAX_FRAMES:
            raise DataError(f"{name}: has more than {MAX_FRAMES:,} frames; cut the part that the question is about")
    if not count:
        raise DataError(f"{name}: has no frames; save it again, or remove the row")
    return count


def _frames_at(container: InputContainer, wanted: list[int], name: str) -> list[NDArray[np.uint8]]:
    """Decode the frames at the given ascending indices. A damaged end repeats the last frame."""
    found: list[NDArray[np.uint8]] = []
    size, frame = None, None
    for index, frame in enumerate(container.decode(_video_stream(container, name))):
        _check_size(frame.width, frame.height, name)
        size = size or (frame.width, frame.height)
        while len(found) < len(wanted) and wanted[len(found)] == index:
            found.append(_upright(frame, size))
        if len(found) == len(wanted) or index >= MAX_FRAMES:
            break
    if frame is None:
        raise DataError(f"{name}: no frame can be decoded; save it again, or remove the row")
    return found + [_upright(frame, size)] * (len(wanted) - len(found))


def _upright(frame: Any, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Convert a frame to RGB in the size of the first one, and apply the rotation that phones store with a video."""
    pixels = frame.reformat(width=size[0], height=size[1], format="rgb24").to_ndarray()
    return np.ascontiguousarray(np.rot90(pixels, k=round(frame.rotation / 90) % 4))


def _video_stream(container: InputContainer, name: str) -> Any:
    for stream in container.streams.video:
        if not stream.disposition & type(stream.disposition).attached_pic:  # the cover image of a song
            return stream
    raise DataError(f"{name}: has no video track; give a video, or name an audio column with columns.audios")


def _check_duration(container: InputContainer, stream: Any, name: str) -> None:
    declared = [container.duration / 1e6] if container.duration else []
    if stream.duration and stream.time_base:
        declared.append(float(stream.duration * stream.time_base))
    if declared and max(declared) > MAX_SECONDS:
        raise _too_long(name, max(declared))


def _check_size(width: int, height: int, name: str) -> None:
    if not 0 < width * height <= MAX_FRAME_PIXELS:
        raise DataError(
            f"{name}: its frames have {width}×{height} pixels, but must have 1 to {MAX_FRAME_PIXELS:,}; scale it down"
        )


def _too_long(name: str, seconds: float) -> DataError:
    return DataError(
        f"{name}: takes {seconds:,.0f} s, but at most {MAX_SECONDS:,.0f} s are allowed; cut the part that the question "
        "is about"
    )


def _name(ref: VideoRef | AudioRef) -> str:
    return ref.path or f"{_NOUNS[type(ref)].split()[1]} of {len(ref.data or b'')} bytes"
