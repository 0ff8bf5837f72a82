"""Test `mmprm labels import`: what is stored, what is dropped and counted, and that untrusted files cannot do harm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmprm.cli.main import main
from mmprm.config import build
from mmprm.errors import ConfigError, DataError
from mmprm.labels.export import ExportConfig, export_labels
from mmprm.labels.importing import ImportConfig, ImportSummary, import_labels
from mmprm.labels.parquet import LabeledExample, read_metadata, read_parquet, write_parquet
from mmprm.types import Counts, LabeledPath, Problem

PLAIN = {"question": "1+1?", "answer": "2", "steps": ["It is 2.", "So 2."], "labels": [True, 0.75]}


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "labels.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def run(path: Path, **keys: Any) -> tuple[ImportSummary, list[LabeledExample]]:
    output = path.parent / "out.parquet"
    config = build(ImportConfig, {"path": str(path), "format": "steps", "output": str(output), **keys})
    return import_labels(config), read_parquet(output)


def test_a_plain_file_keeps_every_label(tmp_path: Path) -> None:
    summary, (example,) = run(write(tmp_path, PLAIN))
    assert example.path.steps == ("It is 2.", "So 2.")
    assert example.path.counts == (Counts(1, 0), Counts(1, 0, estimate=0.75))
    assert (example.problem.question, example.problem.answer) == ("1+1?", "2")
    assert summary == ImportSummary(records=1, problems=1, paths=1, labels=2, correct=2, dropped={})


def test_a_shared_prefix_is_labeled_once(tmp_path: Path) -> None:
    other = PLAIN | {"steps": ["It is 2.", "So 3."], "labels": [True, 0]}
    disagreeing = PLAIN | {"steps": ["It is 2."], "labels": [False]}
    summary, examples = run(write(tmp_path, PLAIN, other, disagreeing))
    assert [example.path.counts for example in examples][1] == (None, Counts(0, 1))
    assert summary.labels == 3
    assert summary.dropped == {
        "repeated label": 1,
        "repeated label with another value": 1,
        "solution without a label of its own": 1,
    }


def test_problems_keep_their_split(tmp_path: Path) -> None:
    rows = [PLAIN | {"question": f"{number}+1?"} for number in range(200)]
    _, examples = run(write(tmp_path, *rows), dev=0.2, test=0.2)
    share = sum(example.split == "train" for example in examples) / 200
    assert 0.5 < share < 0.7
    _, examples = run(write(tmp_path, *rows), only_split="test")
    assert {example.split for example in examples} == {"test"}


def test_an_invalid_record_names_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, PLAIN, PLAIN | {"labels": [True]})
    with pytest.raises(DataError, match=r"labels.jsonl:2: has 2 steps but 1 labels; correct or remove it, or set inv"):
        run(path)
    summary, examples = run(path, invalid="drop")
    assert (len(examples), summary.dropped) == (1, {"invalid record": 1})


def test_a_failed_import_leaves_the_earlier_file(tmp_path: Path) -> None:
    run(write(tmp_path, PLAIN))
    with pytest.raises(DataError):
        run(write(tmp_path, PLAIN, {"question": "?"}))
    assert len(read_parquet(tmp_path / "out.parquet")) == 1


def test_a_file_without_labels_says_why(tmp_path: Path) -> None:
    path = write(tmp_path, PLAIN | {"labels": [None, None]})
    with pytest.raises(DataError, match=r"no label to import \(1 solution without a label of its own\)"):
        run(path)


def test_images_are_embedded(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    _, (example,) = run(write(tmp_path, PLAIN | {"question": "<image>\n1+1?", "image": "a.png"}))
    assert example.problem.images[0].data == (tmp_path / "a.png").read_bytes()
    assert example.problem.question == "1+1?"
    _, (example,) = run(write(tmp_path, PLAIN | {"image": "a.png"}), embed_images=False)
    assert example.problem.images[0].path == str(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname"])
def test_a_file_cannot_copy_files_outside_of_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    folder = tmp_path / "data"
    folder.mkdir()
    with pytest.raises(DataError, match="is not below"):
        run(write(folder, PLAIN | {"image": name}))


def test_a_text_file_is_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("secret")
    with pytest.raises(DataError, match=r"a\.png is not an image"):
        run(write(tmp_path, PLAIN | {"image": "a.png"}))


def test_an_id_of_two_problems_is_replaced(tmp_path: Path) -> None:
    _, examples = run(write(tmp_path, PLAIN | {"id": "7"}, PLAIN | {"id": "7", "question": "2+2?"}))
    first, second = (example.problem.id for example in examples)
    assert first == "7"
    assert len(second) == 16


def test_a_problem_has_one_id_although_each_of_its_solutions_has_its_own(tmp_path: Path) -> None:
    rows = [{"id": f"gsm8k-{number}", "problem": "q", "steps": ["a", f"b{number}"], "label": 1} for number in range(2)]
    summary, (first, second) = run(write(tmp_path, *rows), format="processbench")
    assert (first.problem.id, second.problem.id) == ("gsm8k-0", "gsm8k-0")
    assert second.path.counts == (None, Counts(0, 1))
    assert (summary.problems, summary.dropped) == (1, {"repeated label": 1})


def test_source_and_license_are_stored(tmp_path: Path) -> None:
    run(write(tmp_path, PLAIN), source="https://example.org/set", license="mit")
    assert read_metadata(tmp_path / "out.parquet") == {
        "source": "https://example.org/set",
        "format": "steps",
        "license": "mit",
    }
    run(write(tmp_path, PLAIN))
    assert read_metadata(tmp_path / "out.parquet") == {"source": "labels.jsonl", "format": "steps"}


def test_an_export_carries_source_and_license(tmp_path: Path) -> None:
    run(write(tmp_path, PLAIN), license="mit")
    keys = {"labels": str(tmp_path / "out.parquet"), "output": str(tmp_path / "again"), "format": "parquet"}
    export_labels(build(ExportConfig, keys))
    origin = {"source": "labels.jsonl", "format": "steps", "license": "mit"}
    assert read_metadata(tmp_path / "again" / "labels.parquet") == origin
    assert json.loads((tmp_path / "again" / "export.json").read_text())["origin"] == origin
    assert read_parquet(tmp_path / "again" / "labels.parquet") == read_parquet(tmp_path / "out.parquet")


def test_the_split_shares_must_leave_training_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dev=0.5 and test=0.5 must sum to less than 1"):
        run(write(tmp_path, PLAIN), dev=0.5, test=0.5)


def examples_of_a_store() -> list[LabeledExample]:
    problem = Problem("p", "How many?", "2")
    counts = (Counts(3, 13), None, Counts(0, 1))
    paths = [LabeledPath("p", ("One.", "Two.", "Three."), counts, True)]
    paths += [LabeledPath("p", ("One.", "Other."), (None, Counts(12, 4)), False)]
    return [LabeledExample(problem, path, "train") for path in paths]


def exported(folder: Path, name: str, **keys: Any) -> Path:
    write_parquet(folder / "store.parquet", examples_of_a_store())
    keys = {"labels": str(folder / "store.parquet"), "output": str(folder / name), "format": name, **keys}
    export_labels(build(ExportConfig, keys))
    return folder / name / "train.jsonl"


@pytest.mark.parametrize("name", ["mm-prm", "openrlhf"])
def test_soft_exports_round_trip(tmp_path: Path, name: str) -> None:
    """openrlhf masks unlabeled steps; mm-prm merges them into the next labeled step and repeats shared labels."""
    _, (first, second) = run(exported(tmp_path, name), format=name, rollouts=16)
    last = (None, Counts(0, 16)) if name == "openrlhf" else (Counts(0, 16),)
    assert first.path.counts == (Counts(3, 13), *last)
    assert second.path.counts == (None, Counts(12, 4))


@pytest.mark.parametrize("name", ["trl", "math-shepherd", "prm800k", "visualprm"])
def test_hard_exports_round_trip_as_hard_labels(tmp_path: Path, name: str) -> None:
    _, examples = run(exported(tmp_path, name), format=name)
    values = [[counts and counts.value for counts in example.path.counts] for example in examples]
    masked = name in ("math-shepherd", "prm800k")
    assert values == [[1.0, None, 0.0] if masked else [1.0, 0.0], [None, 1.0]]


def test_the_command_prints_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, PLAIN, PLAIN)
    main(["labels", "import", str(path), "--format", "steps", "--set", f"output={tmp_path / 'x.parquet'}"])
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'x.parquet'}: 2 records of steps",
        "1 problems, 1 solutions, 2 labels (2 above 0)",
        "dropped: 2 × repeated label",
        "dropped: 1 × solution without a label of its own",
        "no license is stored; set license if you intend to share the labels or a model trained on them",
    ]
