"""Test near-duplicate problems: which ones are found, and that images are opened only for similar questions."""

from __future__ import annotations

import io
import itertools
import random

import pytest
from PIL import Image, ImageDraw

from mmprm.errors import DataError
from mmprm.labels.duplicates import CLOSE, SIMILAR, image_hash, near_duplicates, text_of
from mmprm.types import AudioRef, ImageRef, Problem, VideoRef

LONG = (
    "A ship leaves the harbour in the early morning and sails to the north with a steady wind for three days. On each "
    "day it passes two islands and a lighthouse before the crew stops to rest in a small bay on the eastern shore, "
    "where they count the birds. How many islands does the ship pass on the whole journey to the far north of the sea?"
)


def asked(*questions: str) -> dict[int, int]:
    return near_duplicates([Problem(str(number), question, "1") for number, question in enumerate(questions)])


def triangle(apex: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Return a drawing of thin lines, as in geometry problems."""
    image = Image.new("RGB", size, "white")
    x, y = size
    corners = [(apex * x // 320, y // 8), (x // 10, 7 * y // 8), (9 * x // 10, 7 * y // 8)]
    ImageDraw.Draw(image).polygon(corners, outline="black", width=2)
    return image


def encoded(image: Image.Image, form: str = "PNG", **options: int) -> ImageRef:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return ImageRef(data=buffer.getvalue())


@pytest.mark.parametrize(
    "other",
    [
        "What is $2 + 3$?",
        "what is 2+3",
        "<image>\nWhat is 2 + 3 ?",
        "What is ２+3?",  # full-width digit
    ],
)
def test_formatting_does_not_distinguish_questions(other: str) -> None:
    assert asked("What is 2 + 3?", other) == {1: 0}


@pytest.mark.parametrize(
    "other",
    ["What is 2 + 4?", "What is 2 - 3?", "What is 3 + 2?", "What was 2 + 3?", "What is 2.3?", "What is 2 + 3 + 3?"],
)
def test_numbers_operators_and_short_words_distinguish_questions(other: str) -> None:
    assert asked("What is 2 + 3?", other) == {}


def test_long_duplicates_may_differ_in_a_word_but_not_in_a_number() -> None:
    assert asked(LONG, LONG.replace("steady", "strong")) == {1: 0}
    assert asked(LONG + " It has 12 sails.", LONG + " It has 13 sails.") == {}
    assert asked(LONG, " ".join(reversed(LONG.split()))) == {}


def test_a_problem_similar_only_to_a_dropped_one_is_kept() -> None:
    """Similarity is not transitive: a ~ b and b ~ c do not imply a ~ c."""
    b = LONG.replace("steady", "strong")
    c = b.replace("birds", "seals")
    assert asked(LONG, c) == {}
    assert asked(b, c) == {1: 0}
    assert asked(LONG, b, c) == {1: 0}, "c is similar only to b"
    assert asked(b, LONG, c) == {1: 0, 2: 0}


def test_images_decide_where_there_are_any() -> None:
    question = "Find the area of the triangle in the image."
    images = [
        encoded(triangle(160)),
        encoded(triangle(160), "JPEG", quality=60),
        encoded(triangle(160, (200, 150))),
        encoded(triangle(60)),
        encoded(triangle(260)),
    ]
    problems = [Problem(str(n), question, "1", (image,)) for n, image in enumerate(images)]
    assert near_duplicates(problems) == {1: 0, 2: 0}
    assert near_duplicates([problems[0], Problem("none", question, "1")]) == {}
    both = Problem("both", question, "1", (images[0], images[3]))
    turned = Problem("turned", question, "1", (images[3], images[0]))
    assert near_duplicates([both, problems[0], turned, Problem("again", question, "1", both.images)]) == {3: 0}
    other_question = Problem("other", "Find the longest side of the triangle.", "1", (images[0],))
    assert near_duplicates([problems[0], other_question]) == {}


def test_the_hash_separates_similar_diagrams() -> None:
    def distance(first: Image.Image, second: Image.Image) -> int:
        return (image_hash(first) ^ image_hash(second)).bit_count()

    assert distance(triangle(160), triangle(160, (640, 480))) <= CLOSE < distance(triangle(160), triangle(120))
    mirrored = triangle(60).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert distance(triangle(60), mirrored) > CLOSE


def test_a_broken_image_is_named_only_where_it_matters() -> None:
    broken = ImageRef(path="no/such.png")
    alone = [Problem("a", "What is shown?", "1", (broken,)), Problem("b", "How long is the side?", "1", (broken,))]
    assert near_duplicates(alone) == {}
    with pytest.raises(DataError, match=r"no/such\.png"):
        near_duplicates([alone[0], Problem("c", "What is shown ?", "1", (broken,))])


def test_the_shortcut_equals_comparing_all_pairs() -> None:
    chance = random.Random(0)
    words = LONG.split()
    questions = []
    for _ in range(60):
        changed = list(words)
        for _ in range(chance.randrange(4)):
            changed[chance.randrange(len(words))] = chance.choice(["sun", "tide", "gull"])
        questions.append(" ".join(changed))

    def agree(first: str, second: str) -> bool:
        one, other = text_of(first), text_of(second)
        union = one.triples | other.triples
        return one.exact == other.exact and len(one.triples & other.triples) >= SIMILAR * len(union)

    pairs = {
        pair for pair in itertools.combinations(range(60), 2) if agree(*(questions[position] for position in pair))
    }
    assert 0 < len(pairs) < 60 * 59 // 2
    found = {
        pair for pair in itertools.combinations(range(60), 2) if asked(*(questions[position] for position in pair))
    }
    assert found == pairs


def test_equal_questions_about_different_clips_are_different_problems() -> None:
    clips = [VideoRef(data=b"a"), VideoRef(data=b"b"), VideoRef(data=b"a")]
    problems = [
        Problem(str(n), "Which emotion does the clip convey?", "joy", videos=(clip,)) for n, clip in enumerate(clips)
    ]
    assert near_duplicates(problems) == {2: 0}
    heard = [
        Problem("v", "Which emotion?", "joy", videos=(clips[0],)),
        Problem("a", "Which emotion?", "joy", audios=(AudioRef(data=b"a"),)),
    ]
    assert near_duplicates(heard) == {}
