"""Open media for a model's processor, as arguments of transformers or of vLLM.

`processor` is a transformers processor, or the tokenizer of a text-only model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmprm.data.images import open_image
from mmprm.data.media import SAMPLE_RATE, media_digest, open_media
from mmprm.data.recent import RecentImages
from mmprm.errors import DataError
from mmprm.types import AudioRef, ImageRef, MediaRef, VideoRef

MEDIA_KINDS: dict[type[MediaRef], str] = {ImageRef: "image", VideoRef: "video", AudioRef: "audio"}
"""Maps each type of media to its kind, as chat templates and vLLM name it."""
_ARGUMENTS = {"image": "images", "video": "videos", "audio": "audio"}
"""Maps each kind of media to the argument of a transformers processor."""
_RECENT = RecentImages(open_image)


def reads_clips(processor: Any) -> bool:
    """Return whether a processor accepts videos and audio, as Qwen2.5-Omni's does."""
    return hasattr(processor, "feature_extractor") and hasattr(processor, "video_processor")


def why_unread(processor: Any, media: Sequence[MediaRef]) -> str | None:
    """Return why a model cannot read some of the media, or None if it reads them all."""
    if not media or reads_clips(processor):
        return None
    if any(not isinstance(each, ImageRef) for each in media):
        return "has videos or audio, but the model reads none; use a Qwen2.5-Omni model, or remove the problem"
    if not hasattr(processor, "image_processor"):
        return "has images, but the model reads text only; use a vision-language model, or remove the problem"
    return None


def open_by_kind(processor: Any, media: Sequence[MediaRef]) -> dict[str, list[Any]]:
    """Decode media and return them by kind, in order.

    Raises DataError for a medium that cannot be decoded, and for audio that the processor would cut.
    """
    found: dict[str, list[Any]] = {}
    for each in media:
        opened = _RECENT.open(each) if isinstance(each, ImageRef) else open_media(each)
        if isinstance(each, AudioRef):
            _check_length(processor, each, len(opened))
        found.setdefault(MEDIA_KINDS[type(each)], []).append(opened)
    return found


def processor_arguments(processor: Any, media: Sequence[MediaRef], pixel_limits: Mapping[str, int]) -> dict[str, Any]:
    """Return the arguments with which a transformers processor reads media, decoded and in order.

    The limits (min_pixels, max_pixels) apply to images and to video frames.
    """
    return opened_arguments(processor, open_by_kind(processor, media), pixel_limits)


def opened_arguments(processor: Any, found: Mapping[str, list[Any]], pixel_limits: Mapping[str, int]) -> dict[str, Any]:
    """Return the arguments for media that are already decoded, by kind; see processor_arguments."""
    arguments: dict[str, Any] = {_ARGUMENTS[kind]: opened for kind, opened in found.items()}
    if pixel_limits and reads_clips(processor):
        # As vLLM does: Qwen2.5-Omni's own limits of frames, which replace the checkpoint's, apply only without these.
        size = dict(processor.video_processor.size)
        size |= {_EDGES[name]: value for name, value in pixel_limits.items()}
        return arguments | {"images_kwargs": dict(pixel_limits), "videos_kwargs": {"size": size}}
    return arguments | (dict(pixel_limits) if "image" in found else {})


_EDGES = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}


def vllm_media(processor: Any, media: Sequence[MediaRef]) -> dict[str, Any]:
    """Return the fields of a vLLM prompt that hold its media, decoded, with ids under which vLLM caches them."""
    uuids: dict[str, list[str]] = {}
    for each in media:
        uuids.setdefault(MEDIA_KINDS[type(each)], []).append(_cache_id(each))
    return {"multi_modal_data": open_by_kind(processor, media), "multi_modal_uuids": uuids} if media else {}


def _cache_id(ref: MediaRef) -> str:
    if ref.path is None:
        return media_digest(ref)
    return f"{ref.frames} frames of {ref.path}" if isinstance(ref, VideoRef) else ref.path


def _check_length(processor: Any, ref: AudioRef, samples: int) -> None:
    limit = getattr(getattr(processor, "feature_extractor", None), "n_samples", samples)
    if samples > limit:
        raise DataError(
            f"{ref.path or 'audio'}: takes {samples / SAMPLE_RATE:.1f} s, but the model hears at most "
            f"{limit / SAMPLE_RATE:.0f} s; cut the part that the question is about"
        )
