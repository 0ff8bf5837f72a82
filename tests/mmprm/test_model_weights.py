"""Test weights: pickles are rejected, files are not memory-mapped, and models of equal names are distinguished."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from mmprm.errors import CheckpointError
from mmprm.prm.info import PrmTokens
from mmprm.prm.model import initialize_prm, save_prm
from mmprm.sampling.arguments import engine_arguments
from mmprm.sampling.config import EngineConfig
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.open import open_scorer
from mmprm.types import Problem, Solution
from mmprm.weights import check_weights, fingerprint, shard_names

SOLUTIONS = [Solution(Problem("p", "what is one plus one?", "2"), ("1+1=2", "2"))]


@pytest.fixture(scope="module")
def prm(random_policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "prm"
    torch.manual_seed(0)
    save_prm(folder, initialize_prm(str(random_policy_folder), PrmTokens(), add_missing_tokens=True))
    return folder


@pytest.fixture
def pickled(prm: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(prm, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("backend", ["transformers", "vllm"])
def test_a_process_reward_model_of_pickles_is_refused(pickled: Path, backend: str) -> None:
    with pytest.raises(CheckpointError, match="safetensors"):
        open_scorer(ScorerConfig(prm=str(pickled), backend=backend))


def test_a_policy_of_pickles_is_refused(pickled: Path, prm: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds its weights as pytorch_model\.bin.*can run code"):
        engine_arguments(EngineConfig(model=str(pickled)))
    assert engine_arguments(EngineConfig(model=str(prm))).load_format == "safetensors"


@pytest.mark.parametrize("name", ["pytorch_model-00001-of-00002.bin", "consolidated.00.pth", "model.pt", "last.ckpt"])
def test_every_kind_of_pickle_is_detected(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=name):
        check_weights(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    check_weights(str(tmp_path))  # the other file is never read
    check_weights("owner/name")


def test_a_file_that_changes_changes_no_scores(prm: Path, tmp_path: Path) -> None:
    """The file is overwritten in place and then truncated; a memory map would change the scores and then crash."""
    folder = shutil.copytree(prm, tmp_path / "prm")
    scorer = open_scorer(ScorerConfig(prm=str(folder)))
    (before,) = scorer.score(SOLUTIONS)
    weights = folder / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 2)
        file.write(b"\x3f" * (weights.stat().st_size // 2))
        file.flush()
        assert scorer.score(SOLUTIONS) == [before]
        file.truncate(100)
    assert scorer.score(SOLUTIONS) == [before]
    scorer.close()


def test_models_of_one_name_have_different_fingerprints(prm: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(prm, tmp_path / "prm")
    assert fingerprint(str(copy)) == fingerprint(str(prm))
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(2 * (copy / "model.safetensors").stat().st_size // 9)
        file.write(b"\x7f" * 64)
    assert fingerprint(str(copy)) != fingerprint(str(prm))
    assert fingerprint("owner/name") == ""


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": null}}', "\0"])
def test_a_damaged_index_of_weights_is_named(text: str, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(CheckpointError, match=rf"{index.name}: cannot be read .*; copy it again"):
        shard_names(index)
    index.write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    assert shard_names(index) == {"a": "model-1.safetensors"}


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_pipe_in_a_model_folder_is_refused(name: str, tmp_path: Path) -> None:
    """Opening it would block forever."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match=rf"{name}: is not a regular file; copy the model again"):
        check_weights(str(tmp_path))
