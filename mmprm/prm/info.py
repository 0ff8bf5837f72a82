"""Read and write prm.json, which makes a Hugging Face checkpoint a process reward model, and name the PRM families."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from mmprm.config import Config, build
from mmprm.errors import CheckpointError, ConfigError
from mmprm.files import parse_json, whole_file

FormatName = Literal["mm-prm", "math-shepherd", "qwen", "rlhflow", "skywork", "visualprm", "trl"]
"""Families of mmprm.prm.formats; the first is the one that mmprm trains."""

FORMAT: FormatName = "mm-prm"
INFO_FILE = "prm.json"


class PrmTokens(Config):
    marker: str = "<prm>"
    """Token after each step at which the step is judged; added to the tokenizer as a special token."""
    yes: str = "Yes"
    """Token whose logit stands for "no error so far"."""
    no: str = "No"
    """Token whose logit stands for "an error so far"."""


TOKENS: dict[str, PrmTokens] = {
    "mm-prm": PrmTokens(),
    "math-shepherd": PrmTokens(marker="ки", yes="+", no="-"),
    "qwen": PrmTokens(marker="<extra_0>", yes="", no=""),
    "rlhflow": PrmTokens(marker="+", yes="+", no="-"),
    "skywork": PrmTokens(marker="\n", yes="", no=""),
    "visualprm": PrmTokens(marker="+", yes="+", no="-"),
    "trl": PrmTokens(marker="\n", yes="", no=""),
}
"""Default tokens of each family; empty for families with a scoring head instead of two tokens."""


class AggregatorEvidence(Config):
    """Holds the best-of-N accuracy of the aggregator on its development set, with a 95 % interval."""

    problems: int = Field(ge=1)
    """Number of problems in the development set."""
    samples: int = Field(ge=1)
    """N, the number of samples per problem."""
    value: float = Field(ge=0, le=1)
    """Share of the problems for which the chosen sample is correct."""
    low: float
    """Lower bound of the interval."""
    high: float
    """Upper bound of the interval."""


class PrmInfo(Config):
    """Holds the content of prm.json: what a scorer must know in addition to the Hugging Face checkpoint."""

    format: FormatName = FORMAT
    """How solutions are rendered and where scores are read."""
    tokens: PrmTokens = PrmTokens()
    """Marker and judgment tokens."""
    base: str = ""
    """Model folder or hub id from which training started."""
    aggregator: str | None = None
    """Aggregator that turns step scores into one number; null until chosen on a development set."""
    aggregator_evidence: AggregatorEvidence | None = None
    """Evidence for the aggregator; null if it was set by hand."""
    threshold: float | None = Field(None, ge=0, le=1)
    """Score below which a step counts as the first error; null until chosen on a development set."""
    labels: dict[str, Any] = Field(default_factory=dict)
    """Settings of the labels used for training."""

    @model_validator(mode="before")
    @classmethod
    def _tokens_of_the_format(cls, values: Any) -> Any:
        """Take tokens that are not given from the format's family."""
        given = values.get("tokens", {})
        family = TOKENS.get(values.get("format", FORMAT))
        return values | {"tokens": family.model_dump() | given} if family and isinstance(given, dict) else values


def read_info(path: str | Path, format: FormatName | Literal["auto"] = "auto") -> PrmInfo:
    """Read prm.json from a folder.

    For a checkpoint without it, given by folder or hub id, `format` names the family. If prm.json exists, its format
    must agree with `format`.
    """
    file = Path(path) / INFO_FILE
    if not file.is_file():
        if format != "auto":
            return PrmInfo(format=format)
        raise CheckpointError(
            f"{path}: has no {INFO_FILE}, so it is not a process reward model; train one with mmprm train, or "
            f"for a PRM of another family set scorer.format to one of {', '.join(get_args(FormatName)[1:])}"
        )
    try:
        values = parse_json(file.read_bytes(), "it", ConfigError)
        if not isinstance(values, dict) or "format" not in values:
            raise ValueError("it must be an object with the key format")
        info = build(PrmInfo, values, source=str(file))
    except (OSError, ValueError, ConfigError) as error:
        raise CheckpointError(
            f"{file}: was not written by mmprm ({error}); correct it, or convert the model again"
        ) from error
    if format not in ("auto", info.format):
        raise CheckpointError(
            f"{file}: has format {info.format}, but scorer.format={format}; set scorer.format to auto"
        )
    return info


def write_info(path: str | Path, info: PrmInfo) -> None:
    """Replace prm.json atomically, for example to store an aggregator that was chosen later."""
    file = Path(path) / INFO_FILE
    with whole_file(file, error=CheckpointError) as written:
        written.write(json.dumps(info.model_dump(), indent=2, ensure_ascii=False) + "\n")
