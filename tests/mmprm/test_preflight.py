"""Test that settings that cannot work are rejected by key, before an engine or a model is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmprm import preflight
from mmprm.errors import CheckpointError, ConfigError, DataError, MmprmError
from mmprm.preflight import check_disk_space, check_model, check_output, check_policy, check_prm, check_prm_reads
from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.tiny.model import weights_path
from mmprm.types import ImageRef, Problem

TINY = EngineConfig(model=str(weights_path()))
PLAIN = PromptConfig(preset="plain")
SHORT = SamplingConfig(max_tokens=96)
PROBLEMS = [Problem("p1", "blue + red = ?", "5"), Problem("p2", "And blue + blue = ?", "4")]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(weights_path(), tmp_path / "model"))


def test_a_valid_configuration_returns_the_processor() -> None:
    assert hasattr(check_policy(TINY, SHORT, PLAIN, PROBLEMS, samples=8), "image_processor")


@pytest.mark.parametrize(
    ("engine", "sampling", "images", "message"),
    [
        ({}, {"temperature": 0}, 0, "sampling.temperature=0 must be above 0 with search.rollouts=8"),
        ({}, {}, 9, r"engine.images_per_prompt=8: 1 of 1 problems have more images \(up to 9, in p\); set it to 9"),
        ({"max_model_len": 2}, {}, 0, "engine.max_model_len=2 leave no room for a completion: the shortest prompt has"),
        ({"max_model_len": 2048}, {}, 0, "engine.max_model_len=2048 must be at most 1024"),
        ({"model": "no/such/folder"}, {}, 0, "no/such/folder: does not exist"),
    ],
)
def test_a_key_that_cannot_work_is_named(engine: dict, sampling: dict, images: int, message: str) -> None:
    problems = [Problem("p", "How many?", "3", images=(ImageRef(path="x.png"),) * images)]
    given = TINY.model_copy(update=engine), SHORT.model_copy(update=sampling)
    with pytest.raises(MmprmError, match=message):
        check_policy(*given, PLAIN, problems, samples=8, key="search.rollouts")


def test_a_context_that_truncates_completions_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    check_policy(TINY, SHORT.model_copy(update={"max_tokens": 4096}), PLAIN, PROBLEMS)
    told = capsys.readouterr().err
    assert told.startswith("sampling.max_tokens=4096 exceeds what the 1024 tokens")
    check_policy(TINY, SHORT, PLAIN, PROBLEMS)
    assert not capsys.readouterr().err


def test_one_greedy_sample_is_accepted() -> None:
    owner = check_policy(TINY, SHORT.model_copy(update={"temperature": 0}), PLAIN, PROBLEMS)
    assert hasattr(owner, "image_processor")


@pytest.mark.parametrize(
    ("prompt", "dialect", "message"),
    [
        ({"template": "raw"}, "vllm", "prompt.template=raw needs engines of this run"),
        ({"chat_template": "x"}, "vllm", "engine.chat_template applies to engines of this run"),
        ({"template_options": {"a": 1}}, "openai", "prompt.template_options cannot be sent"),
    ],
)
def test_servers_render_their_own_prompts(prompt: dict, dialect: str, message: str) -> None:
    engine = EngineConfig(model="m", servers={"urls": ["http://localhost:1/v1"], "dialect": dialect})
    with pytest.raises(ConfigError, match=message):
        check_policy(engine, SHORT, PromptConfig(**prompt), PROBLEMS)


def test_an_incomplete_model_folder_is_rejected(model: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"lacks model-00002-of-00002.safetensors, one of its 2 weight files"):
        check_model(str(model))
    (model / "model.safetensors.index.json").unlink()
    (model / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        check_prm(str(model))
    (model / "config.json").unlink()
    with pytest.raises(MmprmError, match=r"has no config.json.*mmprm convert"):
        check_model(str(model))


def test_truncated_weights_are_reported_as_damaged(model: Path) -> None:
    whole = (model / "model.safetensors").read_bytes()
    for data in (whole[:-1], whole[:100], b"", b"x" * 64):
        (model / "model.safetensors").write_bytes(data)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: is damaged .*; copy it again"):
            check_model(str(model))


def test_a_prm_that_reads_text_only_gets_no_images(model: Path) -> None:
    with_image = [*PROBLEMS, Problem("p3", "?", "1", images=(ImageRef(path="x.png"),))]
    check_prm_reads(str(model), with_image)
    check_prm_reads("", with_image)
    (model / "processor_config.json").unlink()
    check_prm_reads(str(model), PROBLEMS)
    with pytest.raises(DataError, match=r"problem p3: has images, but scorer\.prm=.* reads text only"):
        check_prm_reads(str(model), with_image)


def test_a_broken_tokenizer_is_named(model: Path) -> None:
    (model / "tokenizer.json").write_text("")
    with pytest.raises(CheckpointError, match="its processor or tokenizer cannot be loaded"):
        preflight.load_template_owner(str(model))


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"output=.*file: cannot be written"):
        check_output(tmp_path / "file", "output")
    with pytest.raises(ConfigError, match=r"--output=.*: cannot be written"):
        check_output(tmp_path, "--output", file=True)
    check_output(tmp_path / "new/folder", "output")
    check_output(tmp_path / "other/out.jsonl", "--output", file=True)
    assert not (tmp_path / "other/out.jsonl").exists()


def test_a_disk_that_is_too_small_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_disk_space(tmp_path, "output", str(weights_path()))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    with pytest.raises(ConfigError, match=r"output=.*: has 0\.0 GiB free, but the model .* takes 0\.0"):
        check_disk_space(tmp_path, "output", str(weights_path()))
