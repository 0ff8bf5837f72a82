"""Normalize image placeholders in text to `<image>`, and reject special tokens and misplaced placeholders.

<image>                               marks the position of the next image
<video>, <audio>                      mark the position of the next video or audio recording, if the row has any
<|vision_start|><|image_pad|>…, <IMG_CONTEXT>, [IMG], …     image tokens of chat templates: become <image>
<image 1>, <image1>, <image_1>        positions of numbered images: become <image> if in order, else "picture 1"
<|video_pad|>, <|AUDIO|>, …           rendered placeholders of videos and audio: rejected
<|im_end|>, </s>, [INST], …           special tokens of chat templates: rejected, since they would end or begin a turn
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from mmprm.errors import DataError

IMAGE = "<image>"
"""Placeholder that marks an image's position in a question. Without marks, images come first."""
VIDEO, AUDIO = "<video>", "<audio>"
"""Placeholders that mark the positions of videos and audio. Without marks, they follow the images that come first."""
MARKS = {"image": IMAGE, "video": VIDEO, "audio": AUDIO}
"""Maps each kind of media to its placeholder, in the order in which media without placeholders come first."""

_MARK = re.compile("|".join(MARKS.values()))
_LEADING = re.compile(
    r"\A(?=\s*(?:" + _MARK.pattern + "))" + "".join(rf"(?:\s*{mark})*" for mark in MARKS.values()) + r"\s*"
)

_RENDERED = re.compile(
    r"""
    (?:<\|vision_start\|>)?(?:<\|image_pad\|>)+(?:<\|vision_end\|>)?    # Qwen-VL
    | <img>(?:<IMG_CONTEXT>)+</img> | (?:<IMG_CONTEXT>)+                  # InternVL
    | <start_of_image>(?:<image_soft_token>)*(?:<end_of_image>)?          # Gemma
    | (?:<image_soft_token>)+
    | <\|begin_of_image\|>(?:<\|image\|>)+<\|end_of_image\|> | <\|image\|>  # GLM, Llama
    | (?:(?:\[IMG\])+(?:\[IMG_BREAK\])?)+\[IMG_END\] | \[IMG\]           # Pixtral
    | \(<image>\./</image>\) | <image>\./</image>                         # MiniCPM-V
    | <image_placeholder> | <ImageHere> | <\|imageplaceholder\|>          # DeepSeek-VL, InternLM-XComposer
    | (?i:<image>)
    """,
    re.VERBOSE,
)
_NUMBERED = re.compile(r"<\s*(?:image|img|picture)[\s_:#-]*(\d{1,4})\s*/?>|<\|image_(\d{1,4})\|>", re.IGNORECASE)
_MEDIA = re.compile(
    r"<\|?(?:video|audio|speech|sound)(?:[\s_-]*(?:\d+|pad|bos|eos|start|end|placeholder|here|token|soft_token))?\|?>"
    r"|\[(?:VIDEO|AUDIO)\]",
    re.IGNORECASE,
)
_RESERVED = re.compile(
    r"""
    <[|｜][\w:./▁-]{3,64}[|｜]>                     # <|im_end|>, <|eot_id|>, <｜User｜>, …
    | </?s> | \[/?INST\] | <</?SYS>>                # Llama 2, Mistral
    | \[(?:/?SYSTEM_PROMPT|/?AVAILABLE_TOOLS|TOOL_CALLS)\]
    | <(?:start|end)_of_(?:turn|image|utterance)> | <\|turn> | <turn\|>   # Gemma, Idefics
    | <(?:bos|eos|pad|unk|mask|BOS_TOKEN|EOS_TOKEN|sop|eop)> | \[g?MASK\]
    | <fake_token_around_image> | <global-img> | <row_\d+_col_\d+>
    | </?img> | <IMG_CONTEXT> | <image_soft_token> | \[IMG_(?:BREAK|END)\]   # remains of rendered images
    """,
    re.VERBOSE,
)


def place_marks(
    texts: Sequence[str],
    images: int,
    location: str,
    fields: Sequence[str],
    otherwise: Literal["refuse", "front", "drop"] = "refuse",
    videos: int = 0,
    audios: int = 0,
) -> list[str]:
    """Normalize the placeholders in `texts` (a question and its options) of a row that has `images` images.

    Numbered marks become <image> if they name each image once, in order, across all texts. Otherwise they become words
    ("picture 2"), and the images come first. If all marks are at the very front, they are redundant and removed.
    `otherwise` applies if the numbers of marks and images differ: "refuse" raises DataError; "front" accepts fewer
    marks if all are at the very front (as in InternVL's conversations); "drop" removes the marks, and the images come
    first (published benchmarks are asked unchanged). The marks of `videos` and `audios` must be as many as these, or
    none. DataError names `location` and the field, and is also raised for other placeholders and special tokens.
    """
    if not images and not any(letter in text for text in texts for letter in "<["):
        return list(texts)  # every mark and token contains one of these characters
    found = [_RENDERED.sub(IMAGE, text) for text in texts]
    numbers = [int(match[1] or match[2]) for text in found for match in _NUMBERED.finditer(text)]
    if otherwise != "drop" and not all(1 <= number <= images for number in numbers):
        raise DataError(
            f"{location}: {fields[0]} names image {max(numbers)} and the row has {images} images, numbered from 1; add "
            "the image, or remove the mark"
        )
    word = IMAGE if numbers == list(range(1, images + 1)) else "picture {}"
    found = [_NUMBERED.sub(lambda match: word.replace("{}", match[1] or match[2]), text) for text in found]
    for mark, count, column in ((VIDEO, videos, "videos"), (AUDIO, audios, "audios")):
        found = [re.sub(mark, mark, text, flags=re.IGNORECASE) for text in found] if count else found
        _check_count(found, mark, count, column, fields[0], location)
    for text, field in zip(found, fields, strict=True):
        check_text(text.replace(VIDEO, "").replace(AUDIO, ""), field, location)
    marks = sum(text.count(IMAGE) for text in found)
    bare = without_leading_marks(found)
    if marks in (0, images) or (otherwise == "front" and marks < images and not any(map(_MARK.search, bare))):
        return bare
    if otherwise == "drop":
        return [strip_marks(text).strip() for text in found]
    raise DataError(
        f"{location}: {fields[0]} has {marks} {IMAGE} marks and the row {images} images; the numbers must be equal, or "
        "there must be no marks (the images then come first): add the images (columns.images), or remove the marks"
    )


def _check_count(texts: Sequence[str], mark: str, count: int, column: str, field: str, location: str) -> None:
    marks = sum(text.count(mark) for text in texts)
    if marks not in (0, count):
        raise DataError(
            f"{location}: {field} has {marks} {mark} marks and the row {count} {column}; the numbers must be equal, or "
            f"there must be no marks: add the {column} (columns.{column}), or remove the marks"
        )


def split_at_marks(text: str, kinds: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the kinds of the n normalized placeholders of these kinds in a text, and the n + 1 pieces around them.

    Whitespace around placeholders at the very beginning is dropped, because it is not part of the question.
    """
    if not kinds:
        return [], [text]
    any_mark = "|".join(MARKS[kind] for kind in kinds)
    text = re.sub(rf"\A((?:\s*(?:{any_mark}))+)\s*", lambda match: "".join(match[1].split()), text)
    parts = re.split(f"({any_mark})", text)
    return [mark.strip("<>") for mark in parts[1::2]], parts[::2]


def without_marks(text: str) -> str:
    """Remove the normalized placeholders of a text, and the whitespace around it."""
    return _MARK.sub("", text).strip()


def count_marks(text: str) -> int:
    """Count the image placeholders in a text, in any spelling."""
    return len(_RENDERED.findall(text)) + len(_NUMBERED.findall(text))


def strip_marks(text: str) -> str:
    """Replace each image placeholder in a text with a space."""
    return _NUMBERED.sub(" ", _RENDERED.sub(" ", text))


def without_leading_marks(texts: Sequence[str]) -> list[str]:
    """Strip the leading placeholders of the first text if they are in the order of MARKS, unless other placeholders
    follow or the text would become empty."""
    first, *rest = texts
    bare = _LEADING.sub("", first)
    return [bare, *rest] if bare and not any(map(_MARK.search, (bare, *rest))) else [first, *rest]


def check_text(text: str, field: str, location: str) -> None:
    """Raise DataError if the text contains a placeholder for video or audio, or a special token of a chat template."""
    if match := _MEDIA.search(text):
        raise DataError(
            f"{location}: {field} holds {match[0]!r}, but no video or audio belongs to it; name its column "
            "(columns.videos, columns.audios) and mark the position with <video> or <audio>, or remove the mark"
        )
    if match := _RESERVED.search(text):
        raise DataError(
            f"{location}: {field} holds {match[0]!r}, a special token of chat templates, which would end or begin a "
            "turn; remove it, or write it with a space inside"
        )
