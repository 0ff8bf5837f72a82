"""Test problems played in an environment: they need no answer, and rows that differ in any column are different
problems.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmprm.api.inputs import read_problems
from mmprm.errors import DataError
from mmprm.problems import ProblemsConfig, load_problems
from mmprm.types import Problem


def load(folder: Path, *rows: dict[str, Any], episodes: bool = True) -> list[Problem]:
    path = folder / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_problems(ProblemsConfig(path=str(path)), episodes)


def test_levels_of_the_same_question_are_different_problems(tmp_path: Path) -> None:
    one, two = load(tmp_path, *({"question": "Solve it.", "level": level} for level in ("a", "b")))
    assert one.id != two.id
    assert (one.answer, one.extra, two.extra) == ("", {"level": "a"}, {"level": "b"})
    assert load(tmp_path, {"question": "Solve it.", "level": "a"})[0].id == one.id, "ids depend only on content"


def test_rows_of_the_python_api_need_no_answer_either(tmp_path: Path) -> None:
    row = {"question": "Solve it.", "level": "a"}
    (problem,) = read_problems([row], ProblemsConfig(path="p.jsonl"), episodes=True)
    assert (problem.id, problem.extra) == (load(tmp_path, row)[0].id, {"level": "a"})


def test_an_id_of_two_levels_is_refused(tmp_path: Path) -> None:
    rows = [{"id": "1", "question": "Solve it.", "level": level} for level in ("a", "b")]
    with pytest.raises(DataError, match=r"p\.jsonl:2: id '1' belongs to another problem already, at .*p\.jsonl:1"):
        load(tmp_path, *rows)
    assert len(load(tmp_path, rows[0], rows[0])) == 1


def test_other_problems_still_need_an_answer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="answer"):
        load(tmp_path, {"question": "Solve it.", "level": "a"}, episodes=False)
