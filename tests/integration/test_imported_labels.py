"""Test that labels of every published format train a PRM, which is then evaluated on them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from mmprm.cli.main import main
from mmprm.config import build
from mmprm.labels.parquet import LabeledExample, read_parquet, write_parquet
from mmprm.prm.train import TrainConfig, train_prm
from mmprm.tiny.image import COLORS
from tests.mmprm.prm.test_imported_training import QUESTION, RECORDS

pytestmark = pytest.mark.integration


def imported(folder: Path, name: str, question: str) -> list[LabeledExample]:
    """Import one record of a dataset's format with the command; each record has a different question."""
    record = json.dumps(RECORDS[name], ensure_ascii=False).replace(QUESTION, question)
    (folder / f"{name}.jsonl").write_text(record + "\n", encoding="utf-8")
    output = folder / f"{name}.parquet"
    command = ["labels", "import", str(folder / f"{name}.jsonl"), "--format", name]
    assert main([*command, "--set", f"output={output}", "--set", "only_split=train"]) == 0
    return read_parquet(output)


def test_import_train_eval(random_policy_folder: Path, tmp_path: Path) -> None:
    colors = itertools.combinations(COLORS, 2)
    questions = {name: f"{one} + {other} = ?" for name, (one, other) in zip(RECORDS, colors, strict=False)}
    examples = [each for name, question in questions.items() for each in imported(tmp_path, name, question)]
    assert len({example.problem.id for example in examples}) == len(RECORDS)
    labels, output = tmp_path / "labels.parquet", tmp_path / "train"
    write_parquet(labels, examples)
    training = {"epochs": 2, "batch_size": 6, "learning_rate": 1e-3, "precision": "fp32"}
    keys = {"model": str(random_policy_folder), "labels": str(labels), "output": str(output), "training": training}
    summary = train_prm(build(TrainConfig, keys))
    assert (summary.samples, summary.steps) == (len(RECORDS), 4)
    export = ["labels", "export", "--format", "trl", "--set", f"labels={labels}", "--set", f"output={tmp_path / 'trl'}"]
    assert main(export) == 0
    evaluation = ["eval", "steps", str(tmp_path / "trl" / "train.jsonl"), "--set", "format=trl"]
    settings = {"scorer.prm": output / "prm", "scorer.backend": "transformers", "output": tmp_path / "eval"}
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    assert main([*evaluation, *sets, "--set", "threshold=0.5"]) == 0
    assert (tmp_path / "eval" / "steps.json").is_file()
