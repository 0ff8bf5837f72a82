"""Test that a command names a damaged model folder and exits with status 2, whatever error a library raises."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmprm.errors import CheckpointError
from mmprm.prm.info import PrmTokens
from mmprm.prm.model import initialize_prm
from mmprm.tiny.model import weights_path


def change_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def another_shape(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if weights[name].ndim == 2)
    weights[name] = torch.zeros(3, 3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


FAULTS: dict[str, Callable[[Path], object]] = {
    "weights of another shape": another_shape,
    "weights cut off": lambda folder: (folder / "model.safetensors").write_bytes(b"\x10" + b"\0" * 7),
    "empty weights": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "empty tokenizer": lambda folder: (folder / "tokenizer.json").write_text(""),
    "tokenizer of another kind": lambda folder: (folder / "tokenizer.json").write_text("[]"),
    "deep tokenizer": lambda folder: (folder / "tokenizer.json").write_text("[" * 100_000),
    "empty config": lambda folder: (folder / "config.json").write_text(""),
    "config as a list": lambda folder: (folder / "config.json").write_text("[]"),
    "deep config": lambda folder: (folder / "config.json").write_text('{"a":' * 100_000),
    "unknown model": lambda folder: change_config(folder, model_type="no-such-model"),
    "sizes as text": lambda folder: change_config(folder, text_config={"hidden_size": "many"}),
    "template that does not parse": lambda folder: (folder / "chat_template.jinja").write_text("{% for %}"),
    "template that breaks out": lambda folder: (folder / "chat_template.jinja").write_text(
        "{{ ().__class__.__base__.__subclasses__() }}"
    ),
    "template that fails": lambda folder: (folder / "chat_template.jinja").write_text("{{ 1 / 0 }}"),
    "template that drops the text": lambda folder: (folder / "chat_template.jinja").write_text("x"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_folder_is_named(fault: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(weights_path(), folder)
    FAULTS[fault](folder)
    with pytest.raises(CheckpointError, match=r"model: |chat template|has no chat"):
        initialize_prm(str(folder), PrmTokens())
