"""Test the row reader: file and folder formats, and how errors describe damaged files."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from mmprm.data.rows import RowsConfig, read_file, read_rows
from mmprm.errors import DataError

ROWS = [{"question": "2 + 2?", "answer": "4"}, {"question": "Größe?", "answer": "7"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
CSV = 'question,answer\r\n2 + 2?,4\r\n"Größe?",7\r\n'.encode()


def rows_of(path: Path, **options: object) -> list[dict[str, object]]:
    return [row for _, row in read_rows(RowsConfig(path=str(path), **options))]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", LINES),
        ("A.JSONL", LINES),
        ("a.ndjson", b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\r\n")),
        ("a.jsonl", json.dumps(ROWS, indent=2).encode()),
        ("a.json", json.dumps(ROWS).encode()),
        ("a.json", b"\xef\xbb\xbf" + json.dumps(ROWS).encode()),
        ("a.json", LINES),
        ("a.json", "\n".join(json.dumps(row, indent=1) for row in ROWS).encode()),
        ("a.json", json.dumps({"data": ROWS}).encode()),
        ("a.jsonl.gz", gzip.compress(LINES)),
        ("a.json.bz2", bz2.compress(json.dumps(ROWS).encode())),
        ("a.csv.xz", lzma.compress(CSV)),
        ("a.csv", CSV),
        ("a.CSV", b"\xef\xbb\xbf" + CSV),
        ("a.tsv", CSV.replace(b",", b"\t")),
    ],
)
def test_texts(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert rows_of(tmp_path / name) == ROWS
    assert rows_of(tmp_path / name, limit=1) == ROWS[:1]


def test_a_json_file_of_one_row_is_a_row(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "Q"}], "answer": "1"}
    (tmp_path / "one.json").write_text(json.dumps(row) + "\n")
    assert rows_of(tmp_path / "one.json") == [row]


def write_saved(folder: Path) -> None:
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(folder)


def write_saved_splits(folder: Path) -> None:
    import datasets

    other = datasets.Dataset.from_list(ROWS[:1])
    datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS), test=other).save_to_disk(folder)


def write_hub_branch(folder: Path) -> None:
    write_parquet(folder / "default" / "train" / "0000.parquet", ROWS)
    write_parquet(folder / "default" / "test" / "0000.parquet", ROWS[:1])


def write_hub_data(folder: Path) -> None:
    for number, row in enumerate(ROWS):
        write_parquet(folder / "data" / f"train-0000{number}-of-00002.parquet", [row])
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", ROWS[:1])
    (folder / "dataset_infos.json").write_text("{}")


def write_lines(folder: Path) -> None:
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(LINES)
    (folder / "test.jsonl").write_text(json.dumps(ROWS[0]))


def write_unnamed(folder: Path) -> None:
    folder.mkdir()
    (folder / "part-1.jsonl").write_bytes(LINES)


def write_parquet(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize(
    ("write", "splits"),
    [
        (write_saved, False),
        (write_saved_splits, True),
        (write_hub_branch, True),
        (write_hub_data, True),
        (write_lines, True),
        (write_unnamed, False),
    ],
)
def test_folders(tmp_path: Path, write: Callable[[Path], None], splits: bool) -> None:
    write(tmp_path / "set")
    assert rows_of(tmp_path / "set") == ROWS
    if splits:
        assert rows_of(tmp_path / "set", split="test") == ROWS[:1]
        with pytest.raises(DataError, match=r"validation.*(has|it has) (train, )?test"):
            rows_of(tmp_path / "set", split="validation")


def test_a_subset_is_chosen_or_refused(tmp_path: Path) -> None:
    for number, subset in enumerate(("main", "socratic")):
        write_parquet(tmp_path / "set" / subset / "train-00000-of-00001.parquet", [ROWS[number]])
    assert rows_of(tmp_path / "set", subset="main") == ROWS[:1]
    assert rows_of(tmp_path / "set", subset="socratic") == ROWS[1:]
    with pytest.raises(DataError, match=r"no subset 'nonsense'; set problems.subset to one of main, socratic"):
        rows_of(tmp_path / "set", subset="nonsense")
    with pytest.raises(DataError, match=r"several subsets: main, socratic; set problems\.subset"):
        rows_of(tmp_path / "set")
    with pytest.raises(DataError, match=r"no subset '\.\.'"):
        rows_of(tmp_path / "set" / "main", subset="..")


@pytest.mark.parametrize("name", ["{}.jsonl", "data/{}-00000-of-00001.jsonl"])
def test_splits_whose_names_are_part_of_others(tmp_path: Path, name: str) -> None:
    """DynaMath has the splits sample_variant1 and sample_variant10, and HallusionBench has image and non_image."""
    (tmp_path / "data").mkdir()
    for split in ("v1", "v2", "v10", "image", "non_image"):
        (tmp_path / name.format(split)).write_text(json.dumps({"split": split}) + "\n")

    def found(split: str) -> list[object]:
        return [row["split"] for row in rows_of(tmp_path, split=split)]

    assert (found("v1"), found("v10+v2+v1")) == (["v1"], ["v10", "v2", "v1"])
    assert found("non_image") == ["non_image"]
    if "of" in name:
        assert found("image+non_image") == ["image", "non_image"]
    with pytest.raises(DataError, match="holds no file of the split v3"):
        found("v1+v3")


def test_a_single_file_rejects_other_splits_and_subsets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train.jsonl", "problems.jsonl"):
        (tmp_path / name).write_bytes(LINES)
    assert rows_of(tmp_path / "train.jsonl", split="train") == ROWS
    assert capsys.readouterr().err == ""
    with pytest.raises(DataError, match=r"split='test', but the file is named after the split 'train'"):
        rows_of(tmp_path / "train.jsonl", split="test")
    assert rows_of(tmp_path / "problems.jsonl", split="test") == ROWS
    assert "problems.split=test has no effect" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"subset='main' applies to a folder"):
        rows_of(tmp_path / "train.jsonl", subset="main")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": 1, "a": 2}', r"a\.jsonl:2: 'a' is given twice"),
        ("a.jsonl", b'{"a": "\\ud83d"}', r"a\.jsonl:1: a holds half of a surrogate pair"),
        ("a.jsonl", b'{"a": {"b": ["x", "\\udc00"]}}', r"a\.jsonl:1: a\.b\.1 holds half"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl:1: .*nested too deeply"),
        ("a.jsonl", b'{"x": %b1%b}' % (b"[" * 900, b"]" * 900), r"a\.jsonl:1: is nested deeper than 100 levels"),
        ("a.jsonl", LINES.decode().encode("utf-16"), r"a\.jsonl: is UTF-16; save it as UTF-8"),
        ("a.jsonl", b'{"a": "\xff"}', r"a\.jsonl:1: is not JSON: .*utf-8"),
        ("a.json", LINES + b'{"question": ', r"a\.json:3: is not JSON"),
        ("a.json", b'{"1": {"question": "Q"}, "2": {"question": "R"}}', "must hold a list .* got an object of 1, 2"),
        ("a.csv", b"q,a\n1,2,3\n", r"a\.csv:2: has 3 cells under 2 column names"),
        ("a.csv", b"q,q\n1,2\n", r"a\.csv:1: a column name is given twice"),
        ("a.csv", b"q,a\n\xff,2\n", r"a\.csv: cannot be read as csv in UTF-8"),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz: cannot be read"),
        ("a.arrow", b"no arrow", r"a\.arrow: is not readable Arrow"),
        (
            "a.zip",
            b"PK",
            r"a\.zip: has an unsupported suffix; give a \.jsonl, \.json, \.csv, \.parquet or \.arrow file",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path / name)


def test_a_whole_pair_of_surrogates_is_a_character(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": "\\ud83d\\ude00"}')
    assert rows_of(tmp_path / "a.jsonl") == [{"a": "😀"}]


def test_locations_name_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'q,a\n"x\ny",1\nz,2\n')
    assert [position for position, _ in read_file(tmp_path / "a.csv")] == [f"{tmp_path}/a.csv:3", f"{tmp_path}/a.csv:4"]


@pytest.mark.parametrize("path", ["a" * 5000, "x/" * 400 + "a.jsonl", "a\0b.jsonl", "a\0b", "no/such/thing/here"])
def test_invalid_paths_are_rejected(path: str) -> None:
    with pytest.raises(DataError, match="does not exist"):
        list(read_rows(RowsConfig(path=path)))
