"""Test that a run's store and its labels keep the videos and audio of their problems."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mmprm.errors import DataError, StoreError
from mmprm.labels.export import ExportConfig, export_labels
from mmprm.labels.parquet import LabeledExample, read_parquet, write_parquet
from mmprm.trees.store import Store
from mmprm.types import AudioRef, Counts, ImageRef, LabeledPath, Problem, VideoRef


def clip_problem(folder: Path) -> Problem:
    (folder / "clip.mp4").write_bytes(b"video")
    path = str(folder / "clip.mp4")
    videos = (VideoRef(path=path, frames=4), VideoRef(data=b"more"))
    audios = (AudioRef(path=path), AudioRef(data=b"sound"))
    return Problem("p", "Does <audio> fit?", "joy", (ImageRef(data=b"x"),), videos=videos, audios=audios)


def test_problems_with_media_round_trip(tmp_path: Path) -> None:
    problem = clip_problem(tmp_path)
    store = Store.create_or_open(tmp_path / "trees.sqlite", {})
    store.add_problems([problem, replace(problem, id="audio", videos=())])
    assert store.problem("p") == problem
    assert store.problem("audio").audios == problem.audios
    store.close()


def test_a_known_id_keeps_its_clip_but_the_file_may_move(tmp_path: Path) -> None:
    problem = clip_problem(tmp_path)
    store = Store.create_or_open(tmp_path / "trees.sqlite", {})
    store.add_problems([problem])
    (tmp_path / "moved.mp4").write_bytes(b"video")
    moved = replace(problem, videos=(VideoRef(path=str(tmp_path / "moved.mp4"), frames=4), problem.videos[1]))
    store.add_problems([moved])
    assert store.problem("p") == moved
    with pytest.raises(StoreError, match="problem 'p' is stored with another video or audio"):
        store.add_problems([replace(moved, videos=(replace(moved.videos[0], frames=8), moved.videos[1]))])
    store.close()


def test_labels_name_the_files_and_hold_other_media(tmp_path: Path) -> None:
    problem = replace(clip_problem(tmp_path), images=())
    path = LabeledPath("p", ("<step>a</step>",), (Counts(1, 1),), True)
    write_parquet(tmp_path / "labels.parquet", [LabeledExample(problem, path, "train")])
    (found,) = read_parquet(tmp_path / "labels.parquet")
    assert (found.problem.videos, found.problem.audios) == (problem.videos, problem.audios)


def test_formats_of_other_projects_refuse_clips(tmp_path: Path) -> None:
    """Otherwise, a format of texts would keep the question and drop what it is about."""
    path = LabeledPath("p", ("<step>a</step>",), (Counts(1, 1),), True)
    write_parquet(tmp_path / "labels.parquet", [LabeledExample(clip_problem(tmp_path), path, "train")])
    for form in ("trl", "mm-prm"):
        config = ExportConfig(labels=str(tmp_path / "labels.parquet"), output=str(tmp_path / "out"), format=form)
        with pytest.raises(DataError, match=f"problem 'p' has videos or audio, which format={form} cannot hold"):
            export_labels(config)
