"""Test the aggregate scores of benchmarks against values by hand on small files of responses."""

from __future__ import annotations

import pytest

from mmprm.evaluation import official
from mmprm.evaluation.benchmarks import aggregate_scores
from mmprm.evaluation.entries import Item
from mmprm.types import Problem


def items(rows: str, *names: str) -> tuple[list[Item], list[bool]]:
    """Return one item per word FAMILY:PART:VALUE…=R or =W; the values belong to the groups `names`."""
    found, correct = [], []
    for number, row in enumerate(rows.split()):
        keys, verdict = row.split("=")
        family, part, *values = keys.split(":")
        groups = {name: (value,) for name, value in zip(names, values, strict=True)}
        found.append(Item(Problem(str(number), "Q", "A"), groups, family, part))
        correct.append(verdict == "R")
    return found, correct


def test_cv_bench() -> None:
    """The 2D score is (1/2 + 1/4) / 2 = 3/8 and the 3D score 2/3; their mean is 25/48, while accuracy is 4/9."""
    rows = "a::ADE20K=R a::ADE20K=W b::COCO=R b::COCO=W b::COCO=W b::COCO=W c::Omni3D=R c::Omni3D=R c::Omni3D=W"
    found = official.cv_bench(*items(rows, "source"))
    assert found == pytest.approx({"2D": 3 / 8, "3D": 2 / 3, "mean of 2D and 3D": 25 / 48})
    assert official.cv_bench(*items("c::Omni3D=R", "source")) == {"3D": 1}
    assert official.cv_bench(*items("a::ADE20K=R", "source")) == {}


def test_the_mean_by_a_group_weights_its_values_equally() -> None:
    rows = "a::count=R a::count=R a::count=R b::depth=W"
    assert official.mean_by("task")(*items(rows, "task")) == {"mean by task": 0.5}
    assert aggregate_scores("blink", items(rows, "task")[0], [[True] * 3 + [False]]) == {"mean by task": 0.5}


def test_mme() -> None:
    """existence has accuracy 3/4 and accuracy+ 1/2 (125 points), count 50 + 0, and code_reasoning 100 + 100. OCR lacks
    a question.
    """
    rows = (
        "1::existence=R 1::existence=R 2::existence=R 2::existence=W 3::count=R 3::count=W "
        "4::code_reasoning=R 4::code_reasoning=R 5::OCR=R"
    )
    found = official.mme(*items(rows, "category"))
    assert found == pytest.approx({"perception": 175, "cognition": 200, "total": 375})


def test_hallusionbench() -> None:
    """In set s, two questions are asked about figures 0 and 1, and only figure 0 has both correct. In set v, VS figure
    0 is not a figure.
    """
    rows = "s:0/0:VD=R s:1/0:VD=W s:0/1:VD=R s:1/1:VD=R v:0/0:VS=R v:1/0:VS=R"
    found = official.hallusionbench(*items(rows, "category"))
    assert found == pytest.approx({"question pairs (qAcc)": 2 / 3, "figures (fAcc)": 2 / 3})
    wrong = rows.replace("v:0/0:VS=R", "v:0/0:VS=W")
    found = official.hallusionbench(*items(wrong, "category"))
    assert found == pytest.approx({"question pairs (qAcc)": 1 / 3, "figures (fAcc)": 2 / 3})


def test_dynamath() -> None:
    """Of three questions with three variants, one has all correct, one has an error, one has none: worst case 1/3."""
    rows = "1:=R 1:=R 1:=R 2:=R 2:=R 2:=W 3:=W 3:=W 3:=W"
    assert official.dynamath(*items(rows)) == {"worst case": pytest.approx(1 / 3)}


def test_aggregates_are_averaged_over_samples() -> None:
    """In the first samples, both variants are correct; in the second samples, one is incorrect."""
    found = items("1:=R 1:=R")[0]
    assert aggregate_scores("dynamath", found, [[True, True], [True, False]]) == {"worst case": 0.5}
    assert aggregate_scores("math-500", found, [[True, True]]) == {}
    assert aggregate_scores("problems", found, [[True, True]]) == {}
