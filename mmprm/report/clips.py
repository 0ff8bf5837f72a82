"""Embed videos and audio in an HTML page: the frames that the model sees as one image, and a short Opus recording.

The files themselves are not embedded, because they are large, and browsers do not play all of their codecs.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmprm.data.media import SAMPLE_RATE, open_audio, open_video
from mmprm.report.images import data_url, inlined_pixels
from mmprm.types import AudioRef, VideoRef

COLUMNS = 2
"""Number of frames next to each other."""
GAP = 2
"""Distance of frames in pixels."""
MAX_SECONDS_EMBEDDED = 30
"""Maximum length of embedded audio in seconds; the rest is cut off."""
BITS_PER_SECOND = 24_000


def inlined_frames(ref: VideoRef) -> tuple[str, bool]:
    """Return the frames that the model sees as the data URL of one image, and whether the image is small.

    The frames are in rows from left to right. Raises DataError if the video cannot be read.
    """
    return inlined_pixels(arranged(open_video(ref)))


def arranged(frames_THWC: NDArray[np.uint8]) -> Image.Image:
    """Arrange frames in rows of COLUMNS frames, on white."""
    count, height, width, _ = frames_THWC.shape
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for number, frame in enumerate(frames_THWC):
        row, column = divmod(number, columns)
        sheet.paste(Image.fromarray(frame), (column * (width + GAP), row * (height + GAP)))
    return sheet


def inlined_audio(ref: AudioRef) -> str:
    """Return the beginning of a recording as a data URL (Opus in WebM), at most MAX_SECONDS_EMBEDDED long.

    Raises DataError if the recording cannot be read.
    """
    import av

    samples = open_audio(ref)[: MAX_SECONDS_EMBEDDED * SAMPLE_RATE]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libopus", rate=SAMPLE_RATE, layout="mono")
        stream.bit_rate = BITS_PER_SECOND
        frame = av.AudioFrame.from_ndarray(samples[None], "flt", "mono")
        frame.sample_rate = SAMPLE_RATE
        for part in (frame, None):  # None encodes what the encoder still holds back
            container.mux(stream.encode(part))
    return data_url("audio/webm", buffer.getvalue())
