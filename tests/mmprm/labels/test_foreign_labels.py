"""Test labeled paths written or merged by other programs: each defect is one error that names its row."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from mmprm.config import build
from mmprm.errors import DataError
from mmprm.labels.checks import check_splits
from mmprm.labels.export import ExportConfig, export_labels
from mmprm.labels.parquet import read_parquet, write_parquet
from mmprm.labels.schema import SCHEMA
from mmprm.types import Counts

ROW = {
    "problem_id": "1",
    "question": "What is 1+1?",
    "answer": "2",
    "images": [],
    "steps": ["1+1 is 2."],
    "labels": [0.75],
    "correct": [3],
    "incorrect": [1],
    "unknown": [0],
    "complete": False,
    "split": "train",
}
IMAGES = pyarrow.list_(pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]))


def write(path: Path, *rows: dict[str, Any], **types: pyarrow.DataType) -> str:
    fields = [(name, types.get(name, SCHEMA.field(name).type)) for name in ROW]
    parquet.write_table(pyarrow.Table.from_pylist([ROW | row for row in rows], schema=pyarrow.schema(fields)), path)
    return str(path)


def test_an_id_of_two_problems_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "joined.parquet", {}, {"question": "Capital of France?", "steps": ["It is Paris."]})
    with pytest.raises(DataError, match="row 2: problem_id '1' already belongs to a different problem"):
        read_parquet(file)


@pytest.mark.parametrize("name", ["problem_id", "question", "answer", "complete", "steps"])
def test_null_is_named(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / "null.parquet", {}, {name: None, **({"labels": []} if name == "steps" else {})})
    with pytest.raises(DataError, match=rf"row 2: {name}"):
        read_parquet(file)


@pytest.mark.parametrize("image", [None, {"path": None}, {"path": ""}, {"path": "a\0.png"}])
def test_a_missing_image_index_is_named(tmp_path: Path, image: dict[str, Any] | None) -> None:
    with pytest.raises(DataError, match="row 1: images must hold bytes or the path of a file"):
        read_parquet(write(tmp_path / "image.parquet", {"images": [image]}))


def test_other_types_are_cast_where_nothing_is_lost(tmp_path: Path) -> None:
    wide = pyarrow.list_(pyarrow.int64())
    types = {
        "correct": wide,
        "incorrect": wide,
        "labels": pyarrow.list_(pyarrow.float64()),
        "problem_id": pyarrow.int64(),
    }
    (example,) = read_parquet(write(tmp_path / "wide.parquet", {"problem_id": 7}, **types))
    assert (example.problem.id, example.path.counts) == ("7", (Counts(3, 1),))


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("correct", [2**40], pyarrow.list_(pyarrow.int64())),
        ("correct", [2.5], pyarrow.list_(pyarrow.float64())),
        ("steps", "1+1 is 2.", pyarrow.string()),
        ("question", {"text": "?"}, pyarrow.struct([("text", pyarrow.string())])),
    ],
)
def test_other_types_are_refused_where_something_is_lost(
    tmp_path: Path, name: str, value: Any, kind: pyarrow.DataType
) -> None:
    with pytest.raises(DataError, match=rf"other.parquet: column {name} has type .* and must be"):
        read_parquet(write(tmp_path / "other.parquet", {name: value}, **{name: kind}))


def test_empty_truncated_and_unrelated_files_are_named(tmp_path: Path) -> None:
    whole = Path(write(tmp_path / "whole.parquet", {})).read_bytes()
    for content in (b"", whole[:-20], b"PAR1" * 5, b"text"):
        (tmp_path / "bad.parquet").write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.parquet: is not readable Parquet"):
            read_parquet(tmp_path / "bad.parquet")


def test_flipped_bits_are_an_error(tmp_path: Path) -> None:
    rows = [{"problem_id": str(n), "correct": [n % 7 + 1], "labels": [None], "steps": [f"{n}"]} for n in range(300)]
    examples = read_parquet(write(tmp_path / "foreign.parquet", *rows))
    write_parquet(tmp_path / "own.parquet", examples)
    whole, rng = (tmp_path / "own.parquet").read_bytes(), random.Random(0)
    same = 0
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        (tmp_path / "damaged.parquet").write_bytes(damaged)
        try:
            assert read_parquet(tmp_path / "damaged.parquet") == examples
            same += 1
        except DataError:
            pass
    assert same < 75


def test_an_unknown_split_is_rejected(tmp_path: Path) -> None:
    examples = read_parquet(write(tmp_path / "split.parquet", {"split": "validation"}))
    with pytest.raises(DataError, match="split must be train, dev or test, got 'validation'; rename it"):
        check_splits((example.split for example in examples), "split.parquet", "rename it")


def export(labels: str, output: Path, **values: Any) -> None:
    export_labels(build(ExportConfig, {"labels": labels, "output": str(output), "format": "visualprm", **values}))


def test_export_copies_only_images_below_its_folder(tmp_path: Path) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    for folder in (data, elsewhere):
        folder.mkdir()
        Image.new("RGB", (4, 4), "red").save(folder / "a.png")
    (data / "link.png").symlink_to(elsewhere / "a.png")
    (data / "key.png").write_text("private key")
    for path in (str(elsewhere / "a.png"), "../elsewhere/a.png", "link.png"):
        labels = write(data / "labels.parquet", {"images": [{"bytes": None, "path": path}]})
        with pytest.raises(DataError, match=r"problem '1' has the image .* which is not below"):
            export(labels, tmp_path / "out")
    labels = write(data / "labels.parquet", {"images": [{"bytes": None, "path": "key.png"}]})
    with pytest.raises(DataError, match="cannot be read as an image"):
        export(labels, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export(write(data / "labels.parquet", {"images": [{"bytes": None, "path": "a.png"}]}), tmp_path / "out")
    assert len(list((tmp_path / "out" / "images").iterdir())) == 1
    labels = write(data / "labels.parquet", {"images": [{"bytes": None, "path": str(elsewhere / "a.png")}]})
    export(labels, tmp_path / "other", image_root=str(elsewhere))
