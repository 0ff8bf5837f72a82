"""Test that every configuration key that names a file or folder expands a leading ~ to the home folder."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Annotated

import pytest
from pydantic import TypeAdapter

from mmprm.cli.main import COMMANDS
from mmprm.config import Config

NAMES = (
    "output", "store", "labels", "cache", "calibration", "folder", "prm", "image_root",
    "api_key_file", "chat_template", "benchmark", "truth", "train_config", "rl_config",
)  # fmt: skip
OTHERS = {
    "BranchingConfig.store",
    "GraderConfig.labels",
    "JudgeInfo.labels",
    "PrmInfo.base",
    "PrmInfo.labels",
    "PromptConfig.chat_template",
    "PolicyEvalConfig.benchmark",
}
"""Fields of these names that hold no path."""


def configurations(base: type[Config] = Config) -> Iterator[type[Config]]:
    for found in base.__subclasses__():
        yield found
        yield from configurations(found)


def test_a_leading_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for command in COMMANDS:
        importlib.import_module(f"mmprm.cli.{command}")
    monkeypatch.setenv("HOME", "/home/me")
    checked = set()
    for configuration in set(configurations()):
        for name, field in configuration.model_fields.items():
            key = f"{configuration.__name__}.{name}"
            if name in NAMES and key not in OTHERS:
                kind = TypeAdapter(Annotated.__class_getitem__((field.annotation, None, *field.metadata)))
                value = ("~/x",) if "tuple" in str(field.annotation) else "~/x"
                assert "/home/me/x" in str(kind.validate_python(value)), key
                checked.add(key)
    assert len(checked) > 20
