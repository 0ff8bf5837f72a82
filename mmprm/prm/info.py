"""Read and write prm.json, the file that marks a Hugging Face checkpoint as a process reward model.

Also lists the supported PRM families and their default tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from mmprm.config import Config, build
from mmprm.errors import CheckpointError, ConfigError
from mmprm.files import parse_json, whole_file
from mmprm.sampling.config import check_pixel_limits, pixel_limits

FormatName = Literal["mm-prm", "math-shepherd", "qwen", "rlhflow", "skywork", "visualprm", "trl"]
"""Name of a supported PRM family (see mmprm.prm.formats); `mmprm train` supports only mm-prm."""

FORMAT: FormatName = "mm-prm"
INFO_FILE = "prm.json"


class PrmTokens(Config):
    marker: str = "<prm>"
    """Token after each step, at which the step is scored. It is added to the tokenizer as a special token."""
    yes: str = "Yes"
    """Token whose logit represents "no error so far"."""
    no: str = "No"
    """Token whose logit represents "an error so far"."""


TOKENS: dict[str, PrmTokens] = {
    "mm-prm": PrmTokens(),
    "math-shepherd": PrmTokens(marker="ки", yes="+", no="-"),
    "qwen": PrmTokens(marker="<extra_0>", yes="", no=""),
    "rlhflow": PrmTokens(marker="+", yes="+", no="-"),
    "skywork": PrmTokens(marker="\n", yes="", no=""),
    "visualprm": PrmTokens(marker="+", yes="+", no="-"),
    "trl": PrmTokens(marker="\n", yes="", no=""),
}
"""Default tokens of each PRM family. `yes` and `no` are empty for families with a scoring head."""


class AggregatorEvidence(Config):
    """Holds the aggregator's best-of-N accuracy on its development set, with a 95% confidence interval."""

    problems: int = Field(ge=1)
    """Number of problems in the development set."""
    samples: int = Field(ge=1)
    """Number of samples per problem (N)."""
    value: float = Field(ge=0, le=1)
    """Fraction of the problems for which the chosen sample is correct."""
    low: float
    """Lower bound of the confidence interval."""
    high: float
    """Upper bound of the confidence interval."""


class PrmInfo(Config):
    """Holds the contents of prm.json: the information a scorer needs beyond the Hugging Face checkpoint."""

    format: FormatName = FORMAT
    """PRM family, which determines how solutions are rendered and where scores are read."""
    tokens: PrmTokens = PrmTokens()
    """Tokens that mark the steps and represent the two judgments."""
    min_pixels: int | None = Field(None, ge=1)
    """Minimum number of pixels per image or video frame, as in training; null means the processor's own limit."""
    max_pixels: int | None = Field(None, ge=1)
    """Maximum number of pixels per image or video frame, as in training; null means the processor's own limit."""
    base: str = ""
    """Model folder or hub id that training started from."""
    aggregator: str | None = None
    """Aggregator that reduces step scores to one solution score; null until one is chosen on a development set."""
    aggregator_evidence: AggregatorEvidence | None = None
    """Accuracy measured when the aggregator was chosen; null if it was set by hand."""
    threshold: float | None = Field(None, ge=0, le=1)
    """Score below which a step counts as an error; null until a threshold is chosen on a development set."""
    labels: dict[str, Any] = Field(default_factory=dict)
    """Name of the label file, and the settings that determined how its labels became training targets."""

    @model_validator(mode="before")
    @classmethod
    def _tokens_of_the_format(cls, values: Any) -> Any:
        """Fill in missing tokens with the default tokens of the PRM family."""
        given = values.get("tokens", {})
        family = TOKENS.get(values.get("format", FORMAT))
        return values | {"tokens": family.model_dump() | given} if family and isinstance(given, dict) else values

    @model_validator(mode="after")
    def _pixel_limits_in_order(self) -> PrmInfo:
        check_pixel_limits(self.min_pixels, self.max_pixels)
        if self.pixel_limits and self.format != FORMAT:
            raise ValueError(f"min_pixels and max_pixels apply to the format {FORMAT} only, not to {self.format}")
        return self

    @property
    def pixel_limits(self) -> dict[str, int]:
        """Return the image processor's arguments for the limits that are set."""
        return pixel_limits(self.min_pixels, self.max_pixels)


class JudgeInfo(PrmInfo):
    """Holds the defaults of a thinking judge, which has no prm.json.

    With the aggregator min, the value of a solution is the fraction of chains that find no error in it. The threshold
    is that of a majority vote.
    """

    aggregator: str | None = "min"
    """Aggregator that reduces step scores to one solution score."""
    threshold: float | None = Field(0.5, ge=0, le=1)
    """Score below which a step counts as an error."""


def read_info(path: str | Path, format: FormatName | Literal["auto"] = "auto") -> PrmInfo:
    """Read prm.json from a folder.

    If a checkpoint (folder or hub id) has no prm.json, `format` names its family. If prm.json exists, its format must
    match `format`.
    """
    file = Path(path) / INFO_FILE
    if not file.is_file():
        if format != "auto":
            return PrmInfo(format=format)
        raise CheckpointError(
            f"{path}: has no {INFO_FILE}, so it is not a process reward model; train one with mmprm train, or, "
            "for a PRM of another family, set its format (scorer.format) to one of "
            f"{', '.join(get_args(FormatName)[1:])}"
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
        raise CheckpointError(f"{file}: has format {info.format}, but scorer.format={format}; set format to auto")
    return info


def write_info(path: str | Path, info: PrmInfo) -> None:
    """Replace prm.json atomically, for example to store an aggregator chosen after training."""
    file = Path(path) / INFO_FILE
    with whole_file(file, error=CheckpointError) as written:
        written.write(json.dumps(info.model_dump(), indent=2, ensure_ascii=False) + "\n")
