"""Find near-duplicate problems: almost the same words, and the same numbers and images."""

from __future__ import annotations

import functools
import itertools
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from mmprm.data.marks import IMAGE
from mmprm.data.media import media_digest
from mmprm.problems import open_image
from mmprm.types import Problem

if TYPE_CHECKING:
    from PIL import Image

SIMILAR = Fraction(9, 10)
"""Minimum Jaccard index (intersection over union) of two questions' sets of word triples for them to count as similar.
One changed word changes three triples, so short questions must match word for word, while long ones may differ
slightly."""
SIDE = 16
"""Side length of the grid for an image hash, which has SIDE × SIDE bits for each of two directions."""
CLOSE = 25
"""Maximum number of hash bits that may differ over all images of a problem. Re-encoding or rescaling changes fewer."""

_WORD = re.compile(r"\d+(?:\.\d+)?|[\u4e00-\u9fff]|[^\W\d_]+|[^\w\s]")
_HYPHEN = re.compile(r"(?<=[^\W\d_]{2})-(?=[^\W\d_]{2})")
_PUNCTUATION = frozenset(".,;:!?'\"()[]{}$\\`´‘’“”…、。，；：？！（）")
_CONTRAST = 2


@dataclass(frozen=True, slots=True)
class Text:
    """Holds a question's normalized words, for comparison with other questions.

    Two duplicates have the same `exact` parts (numbers, operators) and nearly the same word `triples`.
    """

    exact: tuple[str, ...]
    triples: frozenset[tuple[str, ...]]


def near_duplicates(problems: Sequence[Problem]) -> dict[int, int]:
    """Map the index of each near-duplicate to the index of the first problem that it resembles.

    A problem counts as the first if it resembles no earlier one.

    The questions and all images must match, and videos and audio must be equal. Questions are compared without case,
    punctuation and image positions, but with numbers and operators, so "2+3" and "2+4" differ. Only images
    of problems with similar questions are opened. Raises DataError if an image cannot be read.
    """

    numbers: dict[Text, int] = {}
    texts = [numbers.setdefault(text_of(problem.question), len(numbers)) for problem in problems]
    similar, times = _similar(list(numbers)), Counter(texts)
    kept: dict[tuple[int, Hashable], list[tuple[int, int]]] = defaultdict(list)
    resembled: dict[int, int] = {}
    for position, (text, problem) in enumerate(zip(texts, problems, strict=True)):
        # Most questions resemble no other question, so their images need not be opened.
        alone = times[text] == 1 and similar[text] == [text]
        mine = 0 if alone else _hashes(problem)
        clips = () if alone else tuple(map(media_digest, (*problem.videos, *problem.audios)))
        media = (len(problem.images), clips)
        first = min(
            (
                index
                for other in similar[text]
                for hashes, index in kept[other, media]
                if (mine ^ hashes).bit_count() <= CLOSE
            ),
            default=None,
        )
        if first is None:
            kept[text, media].append((mine, position))
        else:
            resembled[position] = first
    return resembled


def text_of(question: str) -> Text:
    """Normalize a question and extract its word triples and the parts, such as numbers, that must match exactly."""
    folded = unicodedata.normalize("NFKC", question.replace(IMAGE, " ")).casefold()
    words = [word for word in _WORD.findall(_HYPHEN.sub(" ", folded)) if word not in _PUNCTUATION]
    # A question with fewer than three words has a single, shorter "triple".
    triples = [tuple(words[start : start + 3]) for start in range(max(1, len(words) - 2))]
    return Text(tuple(word for word in words if not word.isalpha()), frozenset(triples))


def _hashes(problem: Problem) -> int:
    """Concatenate the hash bits of all images. The result is 0 if there are none."""
    return functools.reduce(lambda bits, image: bits << 2 * SIDE**2 | image_hash(open_image(image)), problem.images, 0)


def image_hash(image: Image.Image) -> int:
    """Compute a difference hash of a small gray copy: its bits mark pixels with a lighter right or lower neighbor."""
    from PIL import Image

    def gray(width: int, height: int) -> np.ndarray[Any, Any]:
        return np.asarray(image.convert("L").resize((width, height), Image.Resampling.LANCZOS), dtype=np.int16)

    right, down = np.diff(gray(SIDE + 1, SIDE), axis=1), np.diff(gray(SIDE, SIDE + 1), axis=0)
    lighter = np.concatenate([right.ravel(), down.ravel()]) > _CONTRAST
    return int.from_bytes(np.packbits(lighter).tobytes(), "big")


def _similar(texts: Sequence[Text]) -> list[list[int]]:
    """Return, for each text, the indices of all similar texts, including itself.

    Not all pairs are compared. Two sets with a Jaccard index of at least t share at least ceil(t·n) of the n elements
    of one of them. They therefore share one of their n − ceil(t·n) + 1 rarest elements, and only such pairs are
    compared.
    """
    frequency = Counter(itertools.chain.from_iterable(text.triples for text in texts))
    similar = [[number] for number in range(len(texts))]
    index: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for number, text in enumerate(texts):
        size = len(text.triples)
        rarest = sorted(text.triples, key=lambda triple: (frequency[triple], triple))
        keys = [(text.exact, triple) for triple in rarest[: size - math.ceil(SIMILAR * size) + 1]]
        for other in {other for key in keys for other in index[key]}:
            common = len(text.triples & texts[other].triples)
            # common / (size + other size − common) is the Jaccard index; fractions keep the comparison exact.
            if common >= SIMILAR * (size + len(texts[other].triples) - common):
                similar[number].append(other)
                similar[other].append(number)
        for key in keys:
            index[key].append(number)
    return similar
