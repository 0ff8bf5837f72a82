"""Test that an argument of the wrong type is an error that names function, argument and value."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mmprm


class Scores:
    """Stands in for a scorer that must not be called."""

    def score(self, solutions: Any) -> list[Any]:
        raise AssertionError


RESPONSE = "<step>1</step><answer>1</answer>"
CALLS: dict[str, Callable[[Path], Any]] = {
    r"score_steps: scorer=None is of type NoneType; pass the folder": lambda _: mmprm.score_steps(None, "q", ["a"]),
    r"score_steps: scorer=5 is of type int; pass the folder": lambda _: mmprm.score_steps(5, "q", ["a"]),
    r"rerank: scorer=None is of type NoneType; pass the folder": lambda _: mmprm.rerank(None, "q", [RESPONSE]),
    r"score_steps: choices=5 is of type int; pass a list": lambda _: mmprm.score_steps(Scores(), "q", ["a"], choices=5),
    r"score_steps: choices='ab' is of type str; pass a list": lambda _: mmprm.score_steps(
        Scores(), "q", ["a"], choices="ab"
    ),
    r"rerank: choices\[1\]=2 is of type int; pass the text": lambda _: mmprm.rerank(
        Scores(), "q", [RESPONSE], choices=["1", 2]
    ),
    r"annotate: problems=5 is of type int; pass a file": lambda folder: mmprm.annotate(5, folder),
    r"annotate: problems=None is of type NoneType; pass": lambda folder: mmprm.annotate(None, folder),
    r"annotate: problems=\{'question': 'a'\} is of type dict; pass .* a list": lambda folder: mmprm.annotate(
        {"question": "a"}, folder
    ),
    r"annotate: output=None is of type NoneType; pass a path": lambda _: mmprm.annotate([], None),
    r"annotate: config=5 is of type int; pass a path": lambda folder: mmprm.annotate("p.jsonl", folder, config=5),
    r"read_trees: run=5 is of type int; pass a path": lambda _: mmprm.read_trees(5),
    r"load_labels: path=None is of type NoneType; pass a path": lambda _: mmprm.load_labels(None),
    r"load_scorer: prm=5": lambda _: mmprm.load_scorer(5),
    r"write_labels: store=5": lambda _: mmprm.write_labels(5, "x"),
    r"rerank: aggregator=\['min'\] is of type list; pass the name": lambda _: mmprm.rerank(
        Scores(), "q", [RESPONSE], aggregator=["min"]
    ),
    r"score_steps: images: the image has 0 × 3 pixels; give": lambda _: mmprm.score_steps(
        Scores(), "q", ["a"], images=[Image.new("RGB", (0, 3))]
    ),
    r"score_steps: images: an array of shape \(2, 3, 3\) is not an image; convert": lambda _: mmprm.score_steps(
        Scores(), "q", ["a"], images=[np.zeros((2, 3, 3))]
    ),
    r"score_steps: images must be a path, .* got '3'; correct it$": lambda _: mmprm.score_steps(
        Scores(), "q", ["a"], images=[3]
    ),
    r"score_steps: question has 1 <image> marks and the row 0 .* add the images \(images\), or": lambda _: (
        mmprm.score_steps(Scores(), "<image>", ["a"])
    ),
    r"load_scorer: bogus does not exist; help\(mmprm\.load_scorer\) names": lambda _: mmprm.load_scorer("p", bogus=1),
    r"LoadedScorer\.score: solutions='ab' is of type str; pass a list": lambda _: mmprm.LoadedScorer(
        Scores(), None
    ).score("ab"),
    r"LoadedScorer\.score: solutions\[0\]='a' is of type str; pass an mmprm": lambda _: mmprm.LoadedScorer(
        Scores(), None
    ).score(["a"]),
}


@pytest.mark.parametrize("message", CALLS)
def test_a_wrong_type_is_named(message: str, tmp_path: Path) -> None:
    with pytest.raises(mmprm.MmprmError, match=rf"^mmprm\.{message}"):
        CALLS[message](tmp_path)


def test_any_iterable_of_problems_is_accepted(tmp_path: Path) -> None:
    """The call proceeds to the missing engine."""
    with pytest.raises(mmprm.MmprmError, match="engine is required"):
        mmprm.annotate(iter([]), tmp_path)


class Fixed:
    """Returns the same results for any solutions, and keeps the images that it saw."""

    def __init__(self, *results: tuple[float, ...]) -> None:
        self.results, self.images = results, []

    def score(self, solutions: Any) -> list[mmprm.StepScores]:
        self.images += [image.data for solution in solutions for image in solution.problem.images]
        return [mmprm.StepScores(scores) for scores in self.results]


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ((), "returned 0 results for 1 solutions; return"),
        (((),), r"returned 0 scores for \d steps; return one per step"),
    ],
)
def test_a_scorer_with_too_few_results_is_an_error(results: tuple[tuple[float, ...], ...], message: str) -> None:
    with pytest.raises(mmprm.MmprmError, match=message):
        mmprm.score_steps(Fixed(*results), "q", ["a"])
    with pytest.raises(mmprm.MmprmError, match=message):
        mmprm.rerank(Fixed(*results), "q", [RESPONSE], aggregator="min")


@pytest.mark.parametrize("mode", ["CMYK", "F", "YCbCr", "LA", "I;16"])
def test_an_image_of_any_mode_of_pillow_is_taken(mode: str) -> None:
    scorer = Fixed((0.5,))
    assert mmprm.score_steps(scorer, "q", ["a"], images=Image.new(mode, (30, 20))) == (0.5,)
    (data,) = scorer.images
    assert Image.open(io.BytesIO(data)).size == (30, 20)
