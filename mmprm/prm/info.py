"""prm.json: what makes a Hugging Face checkpoint a process reward model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mmprm.config import Config, build
from mmprm.errors import CheckpointError, ConfigError

FORMAT = "mm-prm"
INFO_FILE = "prm.json"


class PrmTokens(Config):
    marker: str = "<prm>"
    """Token after each step, at which its judgement is read; added to the tokenizer as a special token."""
    yes: str = "Yes"
    """Token whose logit speaks for "no error so far"."""
    no: str = "No"
    """Token whose logit speaks against it."""


class PrmInfo(Config):
    """Content of prm.json: all that a scorer must know beside the Hugging Face checkpoint."""

    format: Literal["mm-prm"] = FORMAT
    """How solutions are rendered and where scores are read."""
    tokens: PrmTokens = PrmTokens()
    """Marker and judgement tokens."""
    base: str = ""
    """Model folder or hub id that training began with."""
    aggregator: str | None = None
    """How step scores become one number; null until chosen on a development set."""
    threshold: float | None = Field(None, ge=0, le=1)
    """A step scored below it counts as the first error; null until chosen on a development set."""
    labels: dict[str, Any] = Field(default_factory=dict)
    """Settings of the labels that it was trained on."""


def read_info(path: str | Path) -> PrmInfo:
    file = Path(path) / INFO_FILE
    if not file.is_file():
        raise CheckpointError(f"{path}: has no {INFO_FILE}, so it is no process reward model; train one: mmprm train")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(values, dict) and values.get("format") != FORMAT:
            raise CheckpointError(f"{file}: format {values.get('format')!r} must be {FORMAT!r}")
        return build(PrmInfo, values, source=str(file))
    except (ValueError, ConfigError) as error:
        raise CheckpointError(f"{file}: is not what mmprm writes: {error}") from error


def write_info(path: str | Path, info: PrmInfo) -> None:
    """Replace prm.json in one step, for example to store an aggregator that was chosen later."""
    file = Path(path) / INFO_FILE
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(info.model_dump(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, file)
