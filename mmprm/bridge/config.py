"""Configure `mmprm bridge`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mmprm.client import ClientConfig
from mmprm.config import Config, PathText
from mmprm.grading.symbolic import GraderConfig
from mmprm.problems import ProblemsConfig


class RoleConfig(Config):
    """Configures a model on OpenAI-compatible servers."""

    model: str
    """Name of the model on its servers."""
    client: ClientConfig
    """Connection settings for the servers."""
    temperature: float = Field(0.6, ge=0)
    """Sampling temperature."""
    max_tokens: int = Field(8192, ge=1)
    """Maximum number of tokens per reply, including thoughts. A longer reply is cut off and not used."""


class BridgeConfig(Config):
    """Configures `mmprm bridge`."""

    problems: ProblemsConfig
    """Problems with images and gold answers."""
    seer: RoleConfig
    """Vision-language model that describes the images."""
    reasoner: RoleConfig
    """Reasoning model that solves the problems from the descriptions; it needs no vision."""
    attempts: int = Field(1, ge=1)
    """Maximum number of solutions to request per description; the first one that passes all checks is kept."""
    min_words: int = Field(20, ge=0)
    """Minimum number of words in the thoughts."""
    max_words: int = Field(6000, ge=1)
    """Maximum number of words in the thoughts."""
    wording: PathText | None = None
    """YAML file with `repairs` (a mapping from regular expression to replacement) and `betrayals` (a list of regular
    expressions), which replace the built-in ones. Thoughts that still match a betrayal are refused."""
    grader: GraderConfig = GraderConfig()
    """Grader for the reasoner's answers. Only responses with the verdict correct are kept."""
    form: Literal["think", "sharegpt"] = "think"
    """Format of the rows. think: problems with a solution in <think> and <answer> tags, for mmprm sft with
    prompt.preset=think; sharegpt: conversations, with the think prompt in the human turn."""
    samples_shown: int = Field(50, ge=1)
    """Maximum number of kept rows to show in samples.html."""
    seed: int = 0
    """Seed of the requests; the n-th attempt uses seed + n."""
    output: PathText = "runs/bridge"
    """Folder for kept.jsonl and its images, refused.jsonl, summary.json and samples.html."""
    cache: PathText | None = None
    """File that caches all replies, so that a run that resumes requests only missing ones; defaults to replies.sqlite
    in the output folder."""

    @model_validator(mode="after")
    def _has_room(self) -> BridgeConfig:
        if self.min_words > self.max_words:
            raise ValueError(
                f"min_words={self.min_words} must be at most max_words={self.max_words}; lower it, or raise max_words"
            )
        return self
