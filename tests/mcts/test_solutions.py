"""Test how given solutions are read: their problems, steps and ids, and errors with file and line."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from mcts.config import CampaignConfig
from mcts.difficulty import question_only
from mcts.solutions import load_solutions
from mmprm.config import build
from mmprm.errors import ConfigError, DataError
from mmprm.tiny.sokoban import parse_level
from mmprm.tiny.sokoban_image import draw_state
from mmprm.types import Problem

ROW = {"question": "1+1+1?", "answer": "3", "steps": ["1+1=2", "2+1=3", "<answer>3</answer>"]}
TEXT = "<step>1+1=2</step>\n<step>2+1=3</step>\n<answer>3</answer>\n"


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def configured(path: str, **values: Any) -> CampaignConfig:
    solutions = {"path": path} | values.pop("solutions", {})
    return build(CampaignConfig, {"engine": {"model": "x"}, "solutions": solutions, **values})


def load(path: str, **values: Any) -> list[Problem]:
    config = configured(path, **values)
    assert config.solutions is not None
    return load_solutions(config.solutions, config.problems, config.step_format)


def test_a_row_with_its_problem(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", ROW | {"author": "weak", "solution_id": "s1"}, ROW | {"steps": ["3"] * 2})
    first, second = load(path, solutions={"author": "other"})
    assert (first.id, first.question, first.answer) == ("s1", "1+1+1?", "3")
    assert first.given is not None
    assert second.given is not None
    assert (first.given.author, second.given.author) == ("weak", "other")
    assert "".join(first.given.steps) == TEXT
    assert first.given.problem_id == second.given.problem_id
    assert second.id.startswith(f"{second.given.problem_id}-")


@pytest.mark.parametrize(
    ("step_format", "steps", "written"),
    [
        ("tags", ["a", "<answer>3</answer>"], ("<step>a</step>\n", "<answer>3</answer>\n")),
        ("tags", ["<step>a</step>", "<answer>3</answer>"], ("<step>a</step>", "<answer>3</answer>")),
        ("blank_lines", ["a", "so \\boxed{3}"], ("a\n\n", "so \\boxed{3}")),
        ("numbered", ["a", "b", "Answer: 3"], ("Step 1: a\n", "Step 2: b\n", "Answer: 3\n")),
    ],
)
def test_plain_steps_are_written_in_the_step_format(
    tmp_path: Path, step_format: str, steps: list[str], written: tuple[str, ...]
) -> None:
    (found,) = load(write(tmp_path / "s.jsonl", ROW | {"steps": steps}), step_format=step_format)
    assert found.given is not None
    assert found.given.steps == written


def test_a_response_is_split_and_comes_before_steps(tmp_path: Path) -> None:
    (found,) = load(write(tmp_path / "s.jsonl", ROW | {"response": "<step>a</step> <answer>3</answer>"}))
    assert found.given is not None
    assert found.given.steps == ("<step>a</step>", " <answer>3</answer>")


def test_an_id_joins_the_problem_file(tmp_path: Path) -> None:
    problems = write(tmp_path / "p.jsonl", {"id": "p7", "question": "1+1+1?", "answer": "3"})
    rows = [{"problem_id": "p7", "id": "s1", "steps": ROW["steps"]}, {"id": "p7", "steps": ["a", "b"]}]
    first, second = load(write(tmp_path / "s.jsonl", *rows), problems={"path": problems})
    assert (first.id, first.answer, second.answer) == ("s1", "3", "3")
    assert [each.given.problem_id for each in (first, second) if each.given] == ["p7", "p7"]


def test_duplicates_are_read_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "s.jsonl", ROW, ROW)
    assert len(load(path)) == 1
    assert f"1 duplicate solutions are left out; {path}:2 is {path}:1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?", "answer": "1"}, "must have a text in response or a list of texts in steps"),
        ({**ROW, "steps": ["a", ""]}, "must have a text in response or a list of texts in steps"),
        ({**ROW, "response": "<step>a"}, r"response cannot be split into steps \(unclosed step\)"),
        ({**ROW, "steps": ["a<step>"]}, r"steps cannot be split into steps \(nested step\)"),
        ({**ROW, "author": 7}, "author must be text, got '7'"),
        ({"question": "?", "steps": ["a"]}, "answer"),
    ],
)
def test_an_invalid_row_names_its_line(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "s.jsonl", ROW, row)
    with pytest.raises(DataError, match=rf"s\.jsonl:2: .*{message}"):
        load(path)
    assert len(load(path, solutions={"invalid": "drop"})) == 1


def test_an_unknown_problem_names_its_line(tmp_path: Path) -> None:
    problems = write(tmp_path / "p.jsonl", {"id": "p7", "question": "1+1+1?", "answer": "3"})
    path = write(tmp_path / "s.jsonl", {"problem_id": "p8", "steps": ["a", "b"]})
    with pytest.raises(DataError, match=r"s\.jsonl:1: problem_id='p8' must be the id of a problem in .*p\.jsonl"):
        load(path, problems={"path": problems})


def test_an_id_of_two_problems_or_solutions_is_an_error(tmp_path: Path) -> None:
    rows = [ROW | {"id": "1"}, ROW | {"id": "1", "question": "1+2?"}]
    with pytest.raises(DataError, match=r"s\.jsonl:2: id '1' belongs to another problem already, at .*s\.jsonl:1"):
        load(write(tmp_path / "s.jsonl", *rows))
    rows = [ROW | {"solution_id": "1"}, ROW | {"solution_id": "1", "steps": ["b"]}]
    with pytest.raises(DataError, match=r"s\.jsonl:2: solution_id '1' belongs to another solution already"):
        load(write(tmp_path / "s.jsonl", *rows))


def test_the_solutions_of_a_problem_share_its_images(tmp_path: Path) -> None:
    data = draw_state(parse_level("#####\n#@$.#\n#####")).data
    row = ROW | {"image": base64.b64encode(data or b"").decode()}
    first, second = load(write(tmp_path / "s.jsonl", row, row | {"steps": ["3", "3"]}))
    assert (first.images[0].data, first.given == second.given) == (data, False)
    assert first.images[0] is second.images[0]


def test_problems_of_the_wrong_type_are_named() -> None:
    with pytest.raises(ConfigError, match=r"problems='p\.jsonl'"):
        configured("s.jsonl", problems="p.jsonl")


def test_only_the_mode_determines_the_batches(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", ROW)
    assert configured(path).resume_key()["solutions"] == {"mode": "first_error"}
    assert configured(path, solutions={"author": "x"}).resume_key() == configured(path).resume_key()


def test_filter_refuses_solutions(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="solutions is a key of mmprm annotate"):
        question_only(configured(write(tmp_path / "s.jsonl", ROW)), 8)
