from __future__ import annotations

import base64
import io
import json
import re
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from mmprm.errors import DataError
from mmprm.problems import Columns, ProblemsConfig, content_id, load_problems, open_image, write_problems
from mmprm.types import ImageRef, Problem

DATA = Path(__file__).parents[4] / "shared" / "data"


def png(color: str = "red", mode: str = "RGB", size: tuple[int, int] = (4, 3)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, "PNG")
    return buffer.getvalue()


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(path: Path, **options) -> list[Problem]:
    return load_problems(ProblemsConfig(path=str(path), **options))


def test_json_list_with_relative_image_paths(tmp_path: Path) -> None:
    (tmp_path / "k12.json").write_text(
        json.dumps([{"id": "a", "question": "Q", "answer": "25°.", "image_path": "i/a.png"}])
    )
    (tmp_path / "i").mkdir()
    (tmp_path / "i" / "a.png").write_bytes(png())
    [problem] = load(tmp_path / "k12.json")
    assert problem == Problem("a", "Q", "25°.", images=(ImageRef(path=str(tmp_path / "i/a.png")),))
    assert open_image(problem.images[0]).getpixel((0, 0)) == (255, 0, 0)


def test_jsonl_with_solution_and_no_id(tmp_path: Path) -> None:
    rows = [{"problem": "1+1?", "answer": 2, "solution": "…"}, {"problem": "1+2?", "answer": 3}]
    first, second = load(write_jsonl(tmp_path / "m.jsonl", rows))
    assert (first.question, first.answer, first.solution, second.solution) == ("1+1?", "2", "…", None)
    assert first.id == content_id("1+1?", "2") != second.id
    assert len(first.id) == 16


@pytest.mark.parametrize("form", ["struct", "list"])
def test_mmk12_parquet_keeps_bytes(tmp_path: Path, form: str) -> None:
    import pyarrow
    from pyarrow import parquet

    image = {"bytes": png("blue"), "path": "x.png"}
    row = {
        "id": 7,
        "question": "<image>\nQ",
        "answer": "B",
        "subject": "math",
        "image": [image] if form == "list" else image,
    }
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "train-00000.parquet")
    for path in (tmp_path / "train-00000.parquet", tmp_path):
        [problem] = load(path)
        assert problem == Problem("7", "Q", "B", images=(ImageRef(data=image["bytes"]),))


def test_mm_eureka_message_as_a_json_string(tmp_path: Path) -> None:
    content = [{"type": "image", "image": "file:///data/x.png"}, {"type": "text", "text": "What is x?"}]
    message = json.dumps([{"role": "system", "content": "S"}, {"role": "user", "content": content}])
    [problem] = load(write_jsonl(tmp_path / "e.jsonl", [{"id": "1", "message": message, "answer": "$3$"}]))
    assert problem == Problem("1", "What is x?", "$3$", images=(ImageRef(path="/data/x.png"),))


def test_internvl_conversations_and_urls(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "no"}]
    rows = [{"id": "1", "conversations": turns, "answer": "3", "image_urls": ["a.png", "b.png"]}]
    [problem] = load(write_jsonl(tmp_path / "v.jsonl", rows), image_root="/images")
    assert (problem.question, problem.images) == (
        "What?",
        (ImageRef(path="/images/a.png"), ImageRef(path="/images/b.png")),
    )


def test_lmm_r1_message_as_a_list(tmp_path: Path) -> None:
    rows = [{"message": [{"role": "user", "content": "2+2?"}], "answer": "4"}]
    [problem] = load(write_jsonl(tmp_path / "l.jsonl", rows))
    assert (problem.question, problem.answer, problem.images) == ("2+2?", "4", ())


def test_column_map_choices_and_limit(tmp_path: Path) -> None:
    rows = [{"q": f"{i}?", "gold": "A", "opts": ["1", "2"], "pic": None} for i in range(3)]
    columns = Columns(question="q", answer="gold", choices="opts", images="pic")
    loaded = load(write_jsonl(tmp_path / "c.jsonl", rows), columns=columns, limit=2)
    assert [(p.question, p.answer, p.choices, p.images) for p in loaded] == [
        ("0?", "A", ("1", "2"), ()),
        ("1?", "A", ("1", "2"), ()),
    ]


def test_hub_datasets_are_read_without_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = {"question": ["Q"], "answer": ["3"], "image": [{"bytes": png(), "path": None}]}
    features = datasets.Features(
        question=datasets.Value("string"), answer=datasets.Value("string"), image=datasets.Image()
    )
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return datasets.Dataset.from_dict(rows, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    [problem] = load_problems(ProblemsConfig(path="owner/name", subset="s", split="test"))
    assert problem.images[0].data == png()
    assert asked == [(("owner/name", "s"), {"split": "test"})]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"question": "Q", "answer": "1"}', "{oops"], r"bad.jsonl:2: is not JSON"),
        (['{"question": "Q"}'], r"bad.jsonl:1: has no answer; it has question"),
        (['{"question": "Q", "answer": " "}'], r"bad.jsonl:1: has no answer"),
        (['{"answer": "1"}'], r"bad.jsonl:1: has no question"),
        (["[1]"], r"bad.jsonl:1: must be an object"),
        (
            [f'{{"id": "a", "question": "Q", "answer": "{answer}"}}' for answer in (1, 2)],
            r"bad.jsonl:2: id 'a' belongs to another problem already, at .*bad.jsonl:1",
        ),
        (['{"question": "Q", "answer": "1", "image": "http://x/y.png"}'], r"bad.jsonl:1: an image must be a path"),
        (['{"question": "Q", "answer": "1", "image": "data:image/png;base64,###"}'], "not base64"),
        (['{"question": "Q", "answer": "B", "options": "A. 3 B. 4"}'], r"bad.jsonl:1: choices must be a list"),
        (['{"message": "[{\\"role\\": 3", "answer": "1"}'], r"bad.jsonl:1 \(chat messages\): is not JSON"),
        (['{"message": [{"role": "user", "content": [{"text": "Q"}]}], "answer": "1"}'], "an unknown format"),
        ([], "holds no problem"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, lines: list[str], message: str) -> None:
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=message):
        load(tmp_path / "bad.jsonl")


def test_a_duplicate_problem_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Published datasets contain duplicates, which must not make the whole file unusable."""
    (tmp_path / "twice.jsonl").write_text(
        "".join(f'{{"question": "{question}", "answer": "1"}}\n' for question in ("Q", "R", "Q"))
    )
    assert [problem.question for problem in load(tmp_path / "twice.jsonl")] == ["Q", "R"]
    assert re.search(r"1 duplicate problems are left out.*twice.jsonl:3 is .*twice.jsonl:1", capsys.readouterr().err)


def chat(*parts: dict[str, object]) -> str:
    content = [*parts, {"type": "text", "text": "How many?"}]
    return json.dumps({"messages": [{"role": "user", "content": content}], "answer": "1", "image": "a.png"})


@pytest.mark.parametrize(
    ("parts", "paths"),
    [
        ([{"type": "image"}], ["a.png"]),
        ([{"type": "image", "image": None, "text": ""}], ["a.png"]),
        ([], ["a.png"]),
        ([{"type": "image", "url": "b.png"}], ["a.png", "b.png"]),
        ([{"type": "image", "path": "b.png"}], ["a.png", "b.png"]),
        ([{"type": "image_url", "image_url": "b.png"}], ["a.png", "b.png"]),
    ],
)
def test_message_parts_contain_images_or_placeholders(
    tmp_path: Path, parts: list[dict[str, object]], paths: list[str]
) -> None:
    (tmp_path / "chat.jsonl").write_text(chat(*parts))
    (problem,) = load(tmp_path / "chat.jsonl")
    assert [Path(image.path).name for image in problem.images] == paths
    assert problem.question == "How many?"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([{"type": "image"}] * 2, r"2 image placeholders, .* hold 1 images; set columns.images"),
        ([{"type": "image", "img": "b"}], "known form"),
    ],
)
def test_placeholders_without_images_are_rejected(tmp_path: Path, parts: list[dict[str, object]], message: str) -> None:
    (tmp_path / "chat.jsonl").write_text(chat(*parts))
    with pytest.raises(DataError, match=message):
        load(tmp_path / "chat.jsonl")


def test_the_same_words_with_other_choices_are_another_problem(tmp_path: Path) -> None:
    rows = [{"question": "Which is true?", "answer": "B", "choices": choices} for choices in (["1", "2"], ["3", "4"])]
    (tmp_path / "choices.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first, second = load(tmp_path / "choices.jsonl")
    assert first.id != second.id


def test_relative_images_are_found_from_other_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [problem] = load(write_jsonl(Path("g.jsonl"), [{"question": "Q", "answer": "1", "image": "i/a.png"}]))
    assert problem.images == (ImageRef(path=str(tmp_path / "i/a.png")),)


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "a.txt").write_text("x")
    for name, message in {
        "a.parquet": "is not readable Parquet",
        "a.json": "must hold a list",
        "a.txt": "give a .jsonl",
        "none.jsonl": "does not exist",
    }.items():
        with pytest.raises(DataError, match=message):
            load(tmp_path / name)
    with pytest.raises(DataError, match=r"no column 'q' \(columns.question\), only question, answer"):
        load(write_jsonl(tmp_path / "a.jsonl", [{"question": "Q", "answer": "1"}]), columns=Columns(question="q"))


def test_content_id_follows_the_pixels_not_the_path(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    by_path, by_bytes = ImageRef(path=str(tmp_path / "a.png")), ImageRef(data=png())
    assert content_id("Q", "1", [by_path]) == content_id("Q", "1", [by_bytes])
    assert content_id("Q", "1", [by_bytes]) != content_id("Q", "1", [ImageRef(data=png("blue"))])
    assert content_id("Q", "1") != content_id("Q1", "")


def test_written_problems_are_read_back(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(png("blue"))
    written = [
        Problem(
            "a/1.json", "Ünï $x$", "3", (ImageRef(data=png()), ImageRef(path=str(tmp_path / "p.png"))), ("1", "3"), "s"
        ),
        Problem("b", "Q", "4"),
    ]
    write_problems(tmp_path / "out" / "problems.jsonl", written)
    first, second = load(tmp_path / "out" / "problems.jsonl")
    assert (first.id, first.question, first.choices, first.solution) == ("a/1.json", "Ünï $x$", ("1", "3"), "s")
    assert [open_image(image).getpixel((0, 0)) for image in first.images] == [(255, 0, 0), (0, 0, 255)]
    assert second == written[1]
    assert all(Path(image.path).parent == tmp_path / "out" / "images" for image in first.images)


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    write_problems(path, [Problem("a", "Q", "1")])
    with pytest.raises(DataError, match=r"p.jsonl: problem 'c' cannot be written.*gone.png"):
        write_problems(path, [Problem("b", "Q", "1"), Problem("c", "Q", "1", (ImageRef(path="/gone.png"),))])
    assert [problem.id for problem in load(path)] == ["a"]


def test_transparency_becomes_white_and_data_urls_open(tmp_path: Path) -> None:
    url = "data:image/png;base64," + base64.b64encode(png("#00000000", "RGBA")).decode()
    [problem] = load(write_jsonl(tmp_path / "u.jsonl", [{"question": "Q", "answer": "1", "image": url}]))
    image = open_image(problem.images[0])
    assert (image.mode, image.getpixel((0, 0))) == ("RGB", (255, 255, 255))


def bomb(width: int, height: int) -> bytes:
    """Return a PNG whose valid header declares more pixels than the file contains."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bomb(9_000, 9_000), "9000×9000 pixels, but at most 64,000,000"),
        (bomb(10, 2_001), "10×2001 pixels, but one side may be at most 200 times the other"),
        (bomb(60_000, 60_000), "DecompressionBombError"),
        (png(size=(200, 200))[:-40], "cannot be read as an image"),
        (b"%!PS-Adobe", "cannot be read as an image"),
        (b"", "cannot be read as an image"),
    ],
)
def test_bombs_and_broken_images_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(DataError, match=rf"x\.png: .*{message}"):
        open_image(ImageRef(path=str(tmp_path / "x.png")))


def test_missing_image_is_named_when_it_is_opened(tmp_path: Path) -> None:
    rows = [{"question": "Q", "answer": "1", "image": "gone.png"}]
    [problem] = load(write_jsonl(tmp_path / "g.jsonl", rows))
    with pytest.raises(DataError, match=r"gone\.png: cannot be read as an image \(FileNotFoundError"):
        open_image(problem.images[0])


@pytest.mark.skipif(not DATA.is_dir(), reason="the folder shared/data is not beside this checkout")
def test_shared_data_is_read_unchanged() -> None:
    k12, math = load(DATA / "k12" / "problems.json"), load(DATA / "math" / "problems.jsonl")
    assert (len(k12), len(math)) == (60, 60)
    assert all(len(problem.images) == 1 and open_image(problem.images[0]).width > 0 for problem in k12)
    assert all(problem.solution and not problem.images for problem in math)
