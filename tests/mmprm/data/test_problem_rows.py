"""Test problems from rows in other projects' formats: structs, duplicate fields, unread columns, other types."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmprm.data.choices import with_choices
from mmprm.errors import DataError
from mmprm.problems import Columns, ProblemsConfig, load_problems, write_problems
from mmprm.prompts import PromptConfig, messages
from mmprm.types import Problem

Row = dict[str, Any]


def png(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), color).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for color in ("red", "blue"):
        (tmp_path / f"{color}.png").write_bytes(png(color))
    (tmp_path / "again.png").write_bytes(png("red"))
    return tmp_path


def load(folder: Path, *rows: Row, **columns: Any) -> list[Problem]:
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_problems(ProblemsConfig(path=str(folder / "p.jsonl"), columns=Columns(**columns)))


def names(problem: Problem) -> list[str]:
    return [Path(image.path or "bytes").name for image in problem.images]


def message(*parts: Any) -> str:
    """Return LMM-R1's column, which holds chat messages as JSON text."""
    content = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in parts]
    return json.dumps([{"role": "user", "content": content}])


def shown(name: str) -> Row:
    return {"type": "image", "image": name}


@pytest.mark.parametrize(
    ("row", "question", "images"),
    [
        ({"question": "How many?", "message": message(shown("red.png"), "How many?")}, "How many?", ["red.png"]),
        (
            {"question": "See here: how many?", "message": message("See ", shown("red.png"), "here: how many?")},
            "See <image>here: how many?",
            ["red.png"],
        ),
        ({"question": "How many?", "message": message(shown("red.png"), "How many? Think.")}, "How many?", ["red.png"]),
        ({"question": "<image>How many?", "message": message(shown("red.png"), "How many?")}, "How many?", ["red.png"]),
        ({"message": message(shown("red.png"), "<image>How many?")}, "How many?", ["red.png"]),
        (
            {"question": "Q", "message": message(shown("red.png"), "Q"), "image": "again.png"},
            "Q",
            ["red.png"],
        ),
        ({"question": "Q", "message": message("Q"), "image": "blue.png"}, "Q", ["blue.png"]),
        ({"question": "Q", "image": "red.png", "images": ["again.png"]}, "Q", ["red.png"]),
        ({"question": "Q", "image": "red.png", "images": ["red.png", "blue.png"]}, "Q", ["red.png", "blue.png"]),
        ({"question": "Q", "image": "gone.png", "images": ["blue.png"]}, "Q", ["blue.png"]),
        ({"question": "Q", "image": "", "images": ["red.png"]}, "Q", ["red.png"]),
        ({"question": "Q", "image": [None], "images": {"bytes": None, "path": "red.png"}}, "Q", ["red.png"]),
        ({"question": "Q", "image_1": "red.png", "image_2": "blue.png", "image_3": None}, "Q", ["red.png", "blue.png"]),
        ({"question": "Q", "message": "a note to the reader"}, "Q", []),
        ({"question": None, "problem": "Q"}, "Q", []),
        ({"question": "Q", "problem": "Q "}, "Q", []),
        ({"prompt": "Q"}, "Q", []),
        ({"question": "Q", "reward_model": {"ground_truth": "3.0"}}, "Q", []),
        ({"question": "Q", "reward_model": {"ground_truth": "So it is 3."}}, "Q", []),
        ({"question": "Q", "choices": ["1", "3"], "options": "['1', '3']"}, "Q", []),
        ({"question": "how many?", "message": message("How many?")}, "how many?", []),
        ({"question": "Q", "image": '{"path": "red.png"}'}, "Q", ["red.png"]),
    ],
)
def test_a_duplicate_field_with_equal_values_is_accepted(
    folder: Path, row: Row, question: str, images: list[str]
) -> None:
    (problem,) = load(folder, row | {"answer": "3"})
    assert (problem.question, names(problem)) == (question, images)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "How many?", "message": message("What color?")}, "question and message hold different questions"),
        ({"question": "Q", "problem": "R"}, "question and problem both hold the question, and differ"),
        ({"question": "Q", "image": "red.png", "images": ["blue.png"]}, "both hold images, but different ones"),
        ({"question": "Q", "answer": "4", "reward_model": {"ground_truth": "3"}}, "both hold the answer, and differ"),
        ({"question": "Q", "answer": "3", "reward_model": {"ground_truth": "13"}}, "both hold the answer, and differ"),
        ({"question": "Q", "answer": "1/2", "reward_model": {"ground_truth": "1"}}, "both hold the answer, and differ"),
        ({"question": "Q", "choices": ["1", "3"], "options": ["3", "1"]}, "choices and options both hold choices"),
        (
            {"messages": json.loads(message("Q")), "conversations": [{"from": "human", "value": "R"}]},
            "messages and conversations both hold messages, but different ones; set columns.chat",
        ),
    ],
)
def test_contradictory_fields_are_rejected(folder: Path, row: Row, words: str) -> None:
    with pytest.raises(DataError, match=rf"p\.jsonl:1: .*{words}"):
        load(folder, {"answer": "3"} | row)


def test_a_column_of_the_configuration_decides_between_two(folder: Path) -> None:
    row = {"question": "Q", "problem": "R", "image": "red.png", "images": ["blue.png"], "answer": "3"}
    (problem,) = load(folder, row, question="problem", images="images")
    assert (problem.question, names(problem)) == ("R", ["blue.png"])


VERL = {
    "data_source": "geo3k",
    "prompt": [{"role": "user", "content": "<image>How many?"}],
    "images": [{"bytes": None, "path": "red.png"}],
    "reward_model": {"style": "rule", "ground_truth": "3"},
    "extra_info": {"index": 0, "split": "train"},
}


def test_verl_rows_are_detected_and_dotted_names_read_structs(folder: Path) -> None:
    for columns in ({}, {"chat": "prompt", "answer": "reward_model.ground_truth"}):
        (problem,) = load(folder, VERL, **columns)
        assert (problem.question, problem.answer, names(problem)) == ("How many?", "3", ["red.png"])
        assert problem.extra == {key: VERL[key] for key in ("data_source", "reward_model", "extra_info")}
    text = {"question": "Q", "extra_info": json.dumps({"gold": {"value": 7}})}
    assert load(folder, text, answer="extra_info.gold.value")[0].answer == "7"
    with pytest.raises(DataError, match=r"no column 'reward_model\.gold' \(columns\.answer\)"):
        load(folder, VERL, answer="reward_model.gold")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (3, "3"),
        (2.5, "2.5"),
        (True, "True"),
        (["3", "4"], "3\n4"),
        (["3", None], "3"),
        (0, "0"),
        ("['A', 'B']", "A\nB"),
        ("[1, 2]", "[1, 2]"),
    ],
)
def test_answers_of_other_types_become_text(folder: Path, answer: Any, expected: str) -> None:
    assert load(folder, {"question": "Q", "answer": answer})[0].answer == expected


def test_the_assistant_turn_is_the_default_answer(folder: Path) -> None:
    user, said = {"role": "user", "content": "<image>How many?"}, {"role": "assistant", "content": "So 2.\n#### 2"}
    row = {"messages": [user, said], "images": ["red.png"]}
    (problem,) = load(folder, row)
    assert (problem.question, problem.answer, names(problem)) == ("How many?", "So 2.\n#### 2", ["red.png"])
    assert load(folder, row | {"answer": "3"})[0].answer == "3"
    sharegpt = {"conversations": [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "2"}]}
    assert load(folder, sharegpt)[0].answer == "2"
    assert load(folder, sharegpt, answer="conversations.1.value")[0].answer == "2"
    with pytest.raises(DataError, match="has no answer"):
        load(folder, {"messages": [user], "images": ["red.png"]})


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("{'style': 'rule', 'ground_truth': '3'}", "answer must be a text or a number, got .*columns.answer=answer"),
        (float("nan"), "has no answer; it has question, answer .answer is nan"),
        (float("inf"), "answer must be a text or a number, got 'inf'"),
        ({"value": "3"}, "answer must be a text or a number, got .*columns.answer=answer"),
        ([{"a": 1}], "answer must be a text or a number"),
        ([["3"]], "answer must be a text or a number"),
        ([], "has no answer"),
        (" \n", "has no answer"),
    ],
)
def test_answers_that_cannot_be_graded_are_refused(folder: Path, answer: Any, words: str) -> None:
    with pytest.raises(DataError, match=rf"p\.jsonl:2: {words}"):
        load(folder, {"question": "P", "answer": "1"}, {"question": "Q", "answer": answer})


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("imgs", ["red.png"]),
        ("decoded_image", {"bytes": None, "path": "red.png"}),
        ("image_base64", base64.b64encode(png("red")).decode()),
        ("figure", "data:image/png;base64,iVBORw0KGgo="),
        ("diagram_path", "red.png"),
        ("photo", "red.heic"),
    ],
)
def test_an_image_in_an_unread_column_is_refused_by_name(folder: Path, column: str, value: Any) -> None:
    row = {"question": "How many?", "answer": "3", column: value}
    with pytest.raises(DataError, match=rf"p\.jsonl:1: column '{column}' looks like images .*columns\.images={column}"):
        load(folder, row)
    assert load(folder, row, images=False)[0].images == ()
    (problem,) = load(folder, row, images=column)
    assert len(problem.images) == 1
    assert column not in problem.extra


def test_an_image_url_is_not_downloaded(folder: Path) -> None:
    row = {"question": "How many?", "answer": "3", "link": "https://host/red.png?size=2"}
    with pytest.raises(DataError, match=r"p\.jsonl:1: column 'link' looks like images .*columns\.images=false"):
        load(folder, row)
    with pytest.raises(DataError, match="download it first"):
        load(folder, row, images="link")


def test_an_image_inside_an_unread_struct_is_refused_by_name(folder: Path) -> None:
    row = {"question": "How many?", "answer": "3", "extra_info": {"index": 0, "shown": ["red.png"]}}
    with pytest.raises(
        DataError, match=r"column 'extra_info\.shown' looks like images .*columns\.images=extra_info\.sh"
    ):
        load(folder, row)
    assert names(load(folder, row, images="extra_info.shown")[0]) == ["red.png"]


def test_an_image_next_to_a_missing_path_is_reported(folder: Path) -> None:
    held = {"bytes": base64.b64encode(png("red")).decode(), "path": None}
    row = {"question": "Q", "answer": "3", "image": "images/1.png", "decoded_image": held}
    with pytest.raises(DataError, match=r"column 'decoded_image' looks like images .*columns\.images=decoded_image"):
        load(folder, row)
    assert len(load(folder, row, images="decoded_image")[0].images) == 1
    assert names(load(folder, row | {"image": "red.png"})[0]) == ["red.png"]


def test_a_column_that_may_hold_images_is_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(folder, {"question": "What is shown in the figure?", "answer": "3", "figure": "geo/17", "image_width": 3})
    assert "p.jsonl:1: column 'figure' may hold images and is not read" in capsys.readouterr().err
    load(folder, {"question": "1 + 2?", "answer": "3", "figure": "geo/17"})
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("column", ["my_video", "audio_id", "audio_url"])
def test_media_that_are_not_read_are_refused_by_name(folder: Path, column: str) -> None:
    for value in ("a.mp4", ["a.mp4"], {"bytes": "x"}):
        with pytest.raises(
            DataError, match=rf"p\.jsonl:1: column '{column}' holds .*, a video or audio that is not read; set columns"
        ):
            load(folder, {"question": "Q", "answer": "3", column: value})
    for value in (None, "", [], False):
        assert load(folder, {"question": "Q", "answer": "3", column: value})[0].question == "Q"


@pytest.mark.parametrize(
    "value",
    ["a.mp4", ["a.WAV"], {"path": "a.webm", "bytes": None}, "data:audio/wav;base64,UklGRg==", "https://h/a.mp3?x=1"],
)
def test_media_are_detected_by_file_name(folder: Path, value: Any) -> None:
    with pytest.raises(DataError, match=r"p\.jsonl:1: column 'input' holds .*, a video or audio that is not read"):
        load(folder, {"question": "Q", "answer": "3", "input": value})


def test_unread_parts_of_messages_are_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    system, user = {"role": "system", "content": "Answer with a letter."}, {"role": "user", "content": "How many?"}
    rows = [{"messages": [system, user], "answer": "3"}, {"messages": [system, user], "answer": "4"}]
    assert [problem.question for problem in load(folder, *rows)] == ["How many?"] * 2
    said = capsys.readouterr().err
    assert "p.jsonl:1: system turns are not read; set prompt.system instead (2 such rows)" in said
    turns = [user, {"role": "assistant", "content": "A"}, {"role": "user", "content": "And?"}]
    with pytest.raises(DataError, match="an assistant turn before the last user turn"):
        load(folder, {"messages": turns, "answer": "3"})
    with pytest.raises(DataError, match="role 'tool' must be one of"):
        load(folder, {"messages": [{"role": "tool", "content": "x"}], "answer": "3"})
    with pytest.raises(
        DataError, match="a message holds a part of type 'video_url', but videos and audio are read from columns"
    ):
        load(folder, {"messages": json.loads(message({"type": "video_url", "video_url": "a.mp4"})), "answer": "3"})


def test_other_columns_are_kept_and_written_again(folder: Path) -> None:
    row = {"id": 7, "question": "Q", "answer": "3", "level": 5, "meta": {"a": [1]}, "solution": "s", "image": "red.png"}
    (problem,) = load(folder, row)
    assert problem.extra == {"level": 5, "meta": {"a": [1]}}
    write_problems(folder / "out" / "q.jsonl", [problem], {"7": {"accuracy": 0.5}})
    (again,) = load_problems(ProblemsConfig(path=str(folder / "out" / "q.jsonl")))
    assert again.extra == {"level": 5, "meta": {"a": [1]}, "accuracy": 0.5}
    assert (again.id, again.solution, len(again.images)) == ("7", "s", 1)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ({"options": ["3 cm", "5 cm"]}, ("3 cm", "5 cm")),
        ({"choices": {"A": "3 cm", "B": "5 cm", "C": None}}, ("3 cm", "5 cm")),
        ({"choices": {"label": ["A", "B"], "text": ["3 cm", "5 cm"]}}, ("3 cm", "5 cm")),
        ({"options": "['3 cm', '5 cm']"}, ("3 cm", "5 cm")),
        ({"options": '["3 cm", "5 cm"]'}, ("3 cm", "5 cm")),
        ({"A": "3 cm", "B": "5 cm", "C": None, "hint": None}, ("3 cm", "5 cm")),
        ({"choices": [3, 5.5]}, ("3", "5.5")),
        ({"choices": ["3 cm", "5 cm", None, ""]}, ("3 cm", "5 cm")),
        ({"answer_choices": ["3 cm", "5 cm"]}, ("3 cm", "5 cm")),
        ({"options": "array(['3 cm', '5 cm'], dtype=object)"}, ("3 cm", "5 cm")),
        ({"options": "['it is' \"it isn't\"\n 'never']"}, ("it is", "it isn't", "never")),
        ({"options": "A. 3 cm\nB. 5 cm"}, ("3 cm", "5 cm")),
        ({"options": "(A) 3.5 cm (B) 5 cm"}, ("3.5 cm", "5 cm")),
        ({"options": "A: 3 cm; B: 5 cm"}, ("3 cm", "5 cm")),
        ({"choices": [{"label": "A", "text": "3 cm"}, {"label": "B", "text": "5 cm"}]}, ("3 cm", "5 cm")),
        ({"choices": [{"A": "3 cm"}, {"B": "5 cm"}]}, ("3 cm", "5 cm")),
        ({"choices": [["A", "3 cm"], ["B", "5 cm"]]}, ("3 cm", "5 cm")),
        ({"option_a": "3 cm", "option_b": "5 cm", "option_d": "9 cm"}, ("3 cm", "5 cm")),
        ({"choiceA": "3 cm", "choiceB": "5 cm"}, ("3 cm", "5 cm")),
        ({"a": "3 cm", "b": "5 cm"}, ()),
        ({"choices": []}, ()),
    ],
)
def test_options_in_all_their_forms(folder: Path, cell: Row, expected: tuple[str, ...]) -> None:
    (problem,) = load(folder, {"question": "How long?", "answer": "B"} | cell)
    assert problem.choices == expected


@pytest.mark.parametrize(
    "cell",
    [
        {"choices": {"label": ["1", "2"], "text": ["3 cm", "5 cm"]}},
        {"choices": {"1": "3 cm", "2": "5 cm"}},
        {"option_1": "3 cm", "option_2": "5 cm"},
    ],
)
def test_an_answer_by_label_becomes_the_letter(folder: Path, cell: Row) -> None:
    (problem,) = load(folder, {"question": "How long?", "answer": "2"} | cell)
    assert (problem.choices, problem.answer) == (("3 cm", "5 cm"), "B")


def test_a_list_that_may_be_options_is_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"question": "How long?", "correct_answer": "5 cm", "answers": ["3 cm", "5 cm"]}
    assert load(folder, row, answer="correct_answer")[0].choices == ()
    assert (
        "p.jsonl:1: column 'answers' may hold options and is not read; set columns.choices" in capsys.readouterr().err
    )
    assert load(folder, row, answer="correct_answer", choices="answers")[0].choices == ("3 cm", "5 cm")
    load(folder, {"question": "How long?", "answer": "5 cm", "tags": ["length", "cube"]})
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("cell", ["A. 3 B. 4", {"A": "3", "C": "4"}, [None, "3"], ["3"], [{"x": 1}, "2"]])
def test_ambiguous_options_are_rejected(folder: Path, cell: Any) -> None:
    with pytest.raises(DataError, match=r"p\.jsonl:1: choices must be"):
        load(folder, {"question": "How long?", "answer": "B", "options": cell})


def test_a_lone_surrogate_in_a_list_is_rejected(folder: Path) -> None:
    for options in ('["a", "\\ud83d"]', r"['a', '\udc00']"):
        with pytest.raises(DataError, match=r"p\.jsonl:1: choices holds half of a surrogate pair"):
            load(folder, {"question": "Q", "answer": "A", "options": options})


def test_an_option_index_is_not_an_answer(folder: Path) -> None:
    row = {"question": "How long?", "choices": [3, 5]}
    assert load(folder, row | {"answer": 5})[0].answer == "5"
    with pytest.raises(DataError, match=r"p\.jsonl:1: answer 1 is none of the choices .* write the letter"):
        load(folder, row | {"answer": 1})


def test_missing_images_are_reported_together(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": f"Q{name}", "answer": "3", "image": name} for name in ("red.png", "gone.png", "no.png")]
    assert len(load(folder, *rows)) == 3
    assert "2 of 3 problems name files that do not exist, " in capsys.readouterr().err


LINES = "\nChoices:\nA. 3 cm\nB. 5 cm"


@pytest.mark.parametrize(
    ("question", "choices", "answer", "expected"),
    [
        ("How long?", ("3 cm", "5 cm"), "B", f"How long?{LINES}"),
        (f"How long?{LINES}", ("3 cm", "5 cm"), "B", f"How long?{LINES}"),
        ("How long?\n(A) 3 cm (B) 5  cm", ("3 cm", "5 cm"), "B", "How long?\n(A) 3 cm (B) 5  cm"),
        ("How long? A: 3 cm; B: 5 cm", ("A. 3 cm", "B. 5 cm"), "B", "How long? A: 3 cm; B: 5 cm"),
        ("How long?", ("A. 3 cm", "B. 5 cm"), "B", f"How long?{LINES}"),
        ("Is it 3 cm or 5 cm?", ("3 cm", "5 cm"), "B", f"Is it 3 cm or 5 cm?{LINES}"),
        ("Is it 3 cm or 5 cm?", ("3 cm", "5 cm"), "5 cm", "Is it 3 cm or 5 cm?"),
        ("Is it 33 cm or 5 cm?", ("3 cm", "5 cm"), "5 cm", f"Is it 33 cm or 5 cm?{LINES}"),
        ("How long?", (), "5", "How long?"),
    ],
)
def test_options_are_appended_unless_the_question_lists_them(
    question: str, choices: tuple[str, ...], answer: str, expected: str
) -> None:
    assert with_choices(question, choices, answer) == expected
    problem = Problem("p", question, answer, choices=choices)
    (turn,) = messages(problem, PromptConfig(preset="plain"))
    assert turn["content"] == expected
    (turn,) = messages(problem, PromptConfig(preset="plain", choices=False))
    assert turn["content"] == question
