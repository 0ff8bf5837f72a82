"""prm.json: what makes a Hugging Face checkpoint a process reward model; and the families of such models by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from mmprm.config import Config, build
from mmprm.errors import CheckpointError, ConfigError
from mmprm.files import parse_json, whole_file

FormatName = Literal["mm-prm", "math-shepherd", "qwen", "rlhflow", "skywork", "visualprm", "trl"]
"""The families of mmprm.prm.formats; the first is the one that is trained here."""

FORMAT: FormatName = "mm-prm"
INFO_FILE = "prm.json"


class PrmTokens(Config):
    marker: str = "<prm>"
    """Token after each step, at which its judgement is read; added to the tokenizer as a special token."""
    yes: str = "Yes"
    """Token whose logit speaks for "no error so far"."""
    no: str = "No"
    """Token whose logit speaks against it."""


TOKENS: dict[str, PrmTokens] = {
    "mm-prm": PrmTokens(),
    "math-shepherd": PrmTokens(marker="ки", yes="+", no="-"),
    "qwen": PrmTokens(marker="<extra_0>", yes="", no=""),
    "rlhflow": PrmTokens(marker="+", yes="+", no="-"),
    "skywork": PrmTokens(marker="\n", yes="", no=""),
    "visualprm": PrmTokens(marker="+", yes="+", no="-"),
    "trl": PrmTokens(marker="\n", yes="", no=""),
}
"""Tokens of each family where prm.json names none; empty where a head of its own judges instead of two tokens."""


class AggregatorEvidence(Config):
    """Best-of-N accuracy of the aggregator on the problems that chose it, with its 95 % interval."""

    problems: int = Field(ge=1)
    """Problems of the development set."""
    samples: int = Field(ge=1)
    """N, the samples of each."""
    value: float = Field(ge=0, le=1)
    """Share of the problems on which the chosen sample is right."""
    low: float
    """Lower bound of the interval."""
    high: float
    """Upper bound of the interval."""


class PrmInfo(Config):
    """Content of prm.json: all that a scorer must know beside the Hugging Face checkpoint."""

    format: FormatName = FORMAT
    """How solutions are rendered and where scores are read."""
    tokens: PrmTokens = PrmTokens()
    """Marker and judgement tokens."""
    base: str = ""
    """Model folder or hub id that training began with."""
    aggregator: str | None = None
    """How step scores become one number; null until chosen on a development set."""
    aggregator_evidence: AggregatorEvidence | None = None
    """What chose it; null where it was set by hand."""
    threshold: float | None = Field(None, ge=0, le=1)
    """A step scored below it counts as the first error; null until chosen on a development set."""
    labels: dict[str, Any] = Field(default_factory=dict)
    """Settings of the labels that it was trained on."""

    @model_validator(mode="before")
    @classmethod
    def _tokens_of_the_format(cls, values: Any) -> Any:
        """What `tokens` leaves out is the family's."""
        given = values.get("tokens", {})
        family = TOKENS.get(values.get("format", FORMAT))
        return values | {"tokens": family.model_dump() | given} if family and isinstance(given, dict) else values


def read_info(path: str | Path, format: FormatName | Literal["auto"] = "auto") -> PrmInfo:
    """prm.json of a folder. For a checkpoint without it, by folder or hub id, `format` names the family; that of a
    folder with prm.json must agree."""
    file = Path(path) / INFO_FILE
    if not file.is_file():
        if format != "auto":
            return PrmInfo(format=format)
        raise CheckpointError(
            f"{path}: has no {INFO_FILE}, so it is no process reward model; train one: mmprm train, or, for one of "
            f"another family, set scorer.format to one of {', '.join(get_args(FormatName)[1:])}"
        )
    try:
        values = parse_json(file.read_bytes(), "it", ConfigError)
        if not isinstance(values, dict) or "format" not in values:
            raise ValueError("it must be an object with the key format")
        info = build(PrmInfo, values, source=str(file))
    except (OSError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{file}: is not what mmprm writes: {error}") from error
    if format not in ("auto", info.format):
        raise CheckpointError(f"{file}: says {info.format}, scorer.format says {format}; leave scorer.format at auto")
    return info


def write_info(path: str | Path, info: PrmInfo) -> None:
    """Replace prm.json in one step, for example to store an aggregator that was chosen later."""
    file = Path(path) / INFO_FILE
    with whole_file(file, error=CheckpointError) as written:
        written.write(json.dumps(info.model_dump(), indent=2, ensure_ascii=False) + "\n")
