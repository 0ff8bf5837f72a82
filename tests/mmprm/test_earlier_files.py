"""Test that files written by version 0.1 are read: problems, labels, candidates, samples, PRM folders and
checkpoints.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyarrow import parquet

from mmprm.cli.rerank import RerankConfig, _digest
from mmprm.config import build
from mmprm.data.rows import read_file
from mmprm.errors import CheckpointError
from mmprm.labels.parquet import read_parquet
from mmprm.prm.info import read_info
from mmprm.prm.train import TrainConfig, _origin
from mmprm.problems import load_problems
from mmprm.selection.candidates import read_groups
from mmprm.selection.sample_file import SampleFile
from mmprm.training import checkpoints
from mmprm.training.loop import _resume_key
from mmprm.types import Verdict

FOLDER = Path(__file__).parent.parent / "data/version-0.1"
POLICY = {"problems": {"path": str(FOLDER / "problems.jsonl")}, "engine": {"model": "scripted", "dtype": "bfloat16"}}


def rerank_config(**changes: object) -> RerankConfig:
    return build(RerankConfig, POLICY | {"scorer": {"prm": "prm"}, "samples": 2} | changes)


def test_the_column_pictures_holds_images() -> None:
    problems = load_problems(rerank_config().problems)
    assert [problem.id for problem in problems] == ["p0", "p1", "p2"]
    assert [len(problem.images) for problem in problems] == [1, 1, 1]
    assert Path(problems[0].images[0].path).is_file()


def test_the_columns_right_and_wrong_are_read_as_counts() -> None:
    rows = parquet.read_table(FOLDER / "labels.parquet").to_pylist()
    paths = [example.path for example in read_parquet(FOLDER / "labels.parquet")]
    for name, column in (("correct", "right"), ("incorrect", "wrong")):
        read = [[None if counts is None else getattr(counts, name) for counts in path.counts] for path in paths]
        assert read == [row[column] for row in rows]
    assert sum(counts is not None for path in paths for counts in path.counts) == 17


def test_candidates_are_read() -> None:
    groups = read_groups(read_file(FOLDER / "rerank/candidates.jsonl"))
    assert [len(group.candidates) for group in groups] == [2, 2, 2]
    first = groups[0].candidates[0]
    assert (first.verdict, first.answer, first.scores.scores) == (Verdict.CORRECT, None, (0.5,) * 7)


@pytest.mark.parametrize(("changes", "found"), [({}, 3), ({"sampling": {"temperature": 0.5}}, 0)])
def test_samples_are_reused_under_the_same_settings(changes: dict[str, object], found: int, capsys) -> None:
    config = rerank_config(**changes)
    problems = load_problems(config.problems)
    resume_key = config.resume_key() | {"samples": config.samples, "problems": _digest(problems)}
    file = SampleFile(FOLDER / "rerank/samples.jsonl", resume_key, {p.id: p for p in problems}, config.samples)
    assert len(file.groups) == found
    assert ("sampling.temperature (stored 1.0, asked 0.5)" in capsys.readouterr().err) == (not found)


def test_a_prm_folder_is_read() -> None:
    info = read_info(FOLDER / "prm")
    assert (info.format, info.base, info.aggregator, info.threshold) == (
        "mm-prm",
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "min",
        0.4,
    )


class LoadedError(Exception):
    pass


def engine_of_one_rank() -> SimpleNamespace:
    """Return an engine that raises LoadedError instead of loading its state."""

    def load_checkpoint(*_: object, **__: object) -> None:
        raise LoadedError

    ranks = SimpleNamespace(count=1, rank=0, is_main=True, gather=lambda value: [value])
    return SimpleNamespace(ranks=ranks, deepspeed=SimpleNamespace(load_checkpoint=load_checkpoint))


def resume_training(folder: Path, **changes: object) -> None:
    values = {"model": "base-model", "labels": str(FOLDER / "labels.parquet"), "output": str(folder)}
    config = build(TrainConfig, values | changes)
    engine, task = engine_of_one_rank(), SimpleNamespace(lengths=[10, 20], terms=[2, 3])
    checkpoints.resume(engine, folder / "checkpoints", _resume_key(task, engine, config.training, _origin(config)))


def test_training_is_resumed_under_the_same_settings(tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "train", tmp_path, dirs_exist_ok=True)
    with pytest.raises(LoadedError):
        resume_training(tmp_path)
    with pytest.raises(CheckpointError, match=r"different settings: target\.correct_solutions \("):
        resume_training(tmp_path, target={"correct_solutions": "all_steps"})
