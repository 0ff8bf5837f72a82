"""Test that a store started by version 0.1, with p2 unfinished, can be read, resumed and forked."""

from __future__ import annotations

import shutil
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from mcts.campaign import run_campaign
from mcts.config import CampaignConfig
from mcts.dtype import with_settled_dtype
from mcts.fork import fork
from mcts.progress import CampaignSummary
from mcts.status import read_status
from mcts.worker import LocalWorker
from mmprm.cli.main import main
from mmprm.config import build, differing_keys
from mmprm.labels.build import LabelsConfig, build_labels
from mmprm.labels.parquet import read_parquet
from mmprm.trees.store import Store
from tests.mcts import scripted_campaign as scripted
from tests.mcts.scripted_campaign import batches

FOLDER = Path(__file__).parent.parent / "data/version-0.1"
SEARCH = {"rollouts": 4, "max_rollouts": 40, "min_shared_rollouts": 3, "max_posterior_std": 0.2}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a copy of the run folder, in which the paths of images are absolute, as version 0.1 wrote them."""
    folder = Path(shutil.copytree(FOLDER / "annotate", tmp_path / "annotate"))
    with closing(sqlite3.connect(folder / "trees.sqlite")) as database, database:
        for number, packed in database.execute("SELECT number, content FROM problems").fetchall():
            content = zlib.decompress(packed).replace(b'"images/', f'"{FOLDER}/images/'.encode())
            database.execute("UPDATE problems SET content = ? WHERE number = ?", (zlib.compress(content), number))
    return folder


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store.read(FOLDER / "annotate")
    yield store
    store.close()


def config(run: Path, **search: object) -> CampaignConfig:
    return scripted.config(str(FOLDER / "problems.jsonl"), str(run), search=SEARCH | search, workers=1)


def annotate(config: CampaignConfig) -> CampaignSummary:
    async def make(number: int) -> LocalWorker:
        return scripted.local_worker(config, delay=0.0)

    return run_campaign(config, make_worker=make)


def test_stored_settings_have_their_current_names(store: Store) -> None:
    asked = with_settled_dtype(config(FOLDER / "annotate"), None)
    assert not differing_keys(store.config, asked.resume_key())
    assert store.config["search"]["min_shared_rollouts"] == 3


def test_it_is_resumed_and_ends_like_a_run_of_this_version(run: Path, tmp_path: Path) -> None:
    before = batches(run)
    assert {name: len(log) for name, log in before.items()} == {"p0": 10, "p1": 1, "p2": 2}
    summary = annotate(config(run))
    fresh = annotate(config(tmp_path / "fresh"))
    assert batches(run) == batches(tmp_path / "fresh")
    assert summary.new_rollouts == fresh.rollouts - sum(len(b.rollouts) for log in before.values() for b in log) > 0


def test_other_settings_fork_it(run: Path, tmp_path: Path) -> None:
    forked, message = fork(config(run, max_rollouts=60))
    assert "search.max_rollouts (stored 40, asked 60)" in message
    annotate(forked)
    annotate(config(tmp_path / "fresh", max_rollouts=60))
    assert batches(forked.output) == batches(tmp_path / "fresh")


def test_its_status_is_read(store: Store) -> None:
    assert store.summary().problems == {"open": 1, "done": 2, "failed": 0}
    assert (read_status(store).begun, read_status(store).labels) == (1, 10 + 1)


def test_its_labels_equal_those_of_version_0_1(run: Path, tmp_path: Path) -> None:
    """Version 0.1 wrote them to labels.parquet, with the columns right and wrong, and without the value of the root."""
    build_labels(build(LabelsConfig, {"store": str(run), "output": str(tmp_path / "labels.parquet"), "dev": 0.0}))
    read = read_parquet(tmp_path / "labels.parquet")
    assert all(example.path.root_value is not None for example in read)
    without_root = [replace(example, path=replace(example.path, root_value=None)) for example in read]
    assert without_root == read_parquet(FOLDER / "labels.parquet")


@pytest.mark.parametrize("command", ["status", "tree", "view"])
def test_commands_read_it(command: str, run: Path, tmp_path: Path, capsys) -> None:
    more = {"tree": ["p0"], "view": ["--output", str(tmp_path / "view.html")]}.get(command, [])
    assert main([command, str(run), *more]) == 0
