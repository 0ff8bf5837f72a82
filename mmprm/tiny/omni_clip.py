"""Encode short clips with PyAV: frames and a waveform become a Matroska file without loss, or an MP4 file."""

from __future__ import annotations

import io
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmprm.data.media import SAMPLE_RATE

ClipForm = Literal["matroska", "mp4"]
_CODECS: dict[ClipForm, tuple[str, str, str, str]] = {
    "matroska": ("ffv1", "bgr0", "pcm_s16le", "s16"),
    "mp4": ("mpeg4", "yuv420p", "aac", "fltp"),
}
"""Maps each container format to a video codec with its pixel format, and an audio codec with its sample format."""


def encode_clip(
    frames_THWC: NDArray[np.uint8] | None,
    samples: NDArray[np.float32] | None,
    fps: int = 8,
    rate: int = SAMPLE_RATE,
    form: ClipForm = "matroska",
) -> bytes:
    """Encode RGB frames, a mono waveform in [-1, 1] with `rate` samples per second, or both."""
    import av

    video_codec, pixel_format, audio_codec, sample_format = _CODECS[form]
    buffer = io.BytesIO()
    # FFmpeg otherwise writes its version and a random id into the file, so equal clips would have different bytes.
    with av.open(buffer, "w", format=form, options={"fflags": "+bitexact"}) as container:
        video = audio = None
        if frames_THWC is not None:
            video = container.add_stream(video_codec, rate=fps, options={"flags": "+bitexact"})
            video.height, video.width = frames_THWC.shape[1:3]
            video.pix_fmt = pixel_format
        if samples is not None:
            audio = container.add_stream(audio_codec, rate=rate, layout="mono", options={"flags": "+bitexact"})
        for pixels in () if frames_THWC is None else frames_THWC:
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format=pixel_format)))
        if video is not None:
            container.mux(video.encode())
        if samples is not None:
            _mux_audio(container, audio, samples, sample_format, rate)
    return buffer.getvalue()


def _mux_audio(container: Any, stream: Any, samples: NDArray[np.float32], sample_format: str, rate: int) -> None:
    import av

    frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), "fltp", "mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format=sample_format, layout="mono", rate=rate, frame_size=1024)
    for part in (*resampler.resample(frame), *resampler.resample(None)):
        container.mux(stream.encode(part))
    container.mux(stream.encode())
