from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmprm.cli.main import main


def write(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_grades_each_line_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(
        tmp_path / "r.jsonl",
        '{"gold": "1/2", "response": "<answer>0.5</answer>", "id": 7}',
        '{"gold": "24", "response": "no idea"}',
        '{"gold": "the wind", "response": "<answer>a storm</answer>"}',
        '{"gold": "B", "response": "<answer>30</answer>", "question": "Q", "choices": ["25", "30"]}',
    )
    assert main(["grade", file]) == 0
    output = capsys.readouterr()
    rows = [json.loads(line) for line in output.out.splitlines()]
    assert [row["verdict"] for row in rows] == ["correct", "incorrect", "unknown", "correct"]
    assert rows[0]["id"] == 7
    assert (rows[0]["extracted"], rows[0]["reason"]) == ("0.5", "same value")
    assert (rows[1]["extracted"], rows[1]["reason"]) == (None, "no answer")
    assert output.err == "4 graded: 2 correct, 1 incorrect, 1 unknown (1 symbols cannot decide)\n"


def test_writes_the_output_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "r.jsonl", '{"gold": "1", "response": "<answer>1</answer>"}')
    assert main(["grade", file, "--output", str(tmp_path / "sub" / "out.jsonl")]) == 0
    assert json.loads((tmp_path / "sub" / "out.jsonl").read_text())["verdict"] == "correct"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "r.jsonl:2: is not JSON"),
        ("[]", "r.jsonl:2: must be an object"),
        ('{"gold": "1"}', "r.jsonl:2: response must be text, got None among the fields gold"),
        ('{"response": "1"}', "r.jsonl:2: gold must be text"),
        ('{"gold": " ", "response": "1"}', "r.jsonl:2: gold is empty"),
        ('{"gold": "1", "response": "1", "choices": "A"}', "r.jsonl:2: choices must be a list"),
    ],
)
def test_bad_line_is_named_and_leaves_no_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    file = write(tmp_path / "r.jsonl", '{"gold": "1", "response": "<answer>1</answer>"}', line)
    out = tmp_path / "out.jsonl"
    assert main(["grade", file, "--output", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "r.jsonl"]


def test_missing_file_and_unknown_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["grade", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl: cannot be read" in capsys.readouterr().err
    file = write(tmp_path / "r.jsonl", '{"gold": "1", "response": "1"}')
    assert main(["grade", file, "--set", "timeout_second=3"]) == 2
    assert "timeout_second does not exist; did you mean timeout_seconds?" in capsys.readouterr().err
