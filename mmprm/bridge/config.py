"""Configure `mmprm bridge`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from mmprm.config import Config, PathText
from mmprm.grading.symbolic import GraderConfig
from mmprm.problems import ProblemsConfig
from mmprm.prompts import PromptConfig
from mmprm.rendering import template_of_file
from mmprm.sampling.config import START_TIMEOUT_SECONDS, EngineConfig, SamplingConfig


class RoleConfig(Config):
    """Configures one of the two models."""

    engine: EngineConfig
    """Model, and the vLLM engines or the servers (engine.servers) that run it; the model "tiny" is the built-in
    policy."""
    sampling: SamplingConfig = SamplingConfig(temperature=0.6, max_tokens=8192)
    """Sampling settings; max_tokens limits each reply, including thoughts. A longer reply is cut off and not used."""
    template_options: dict[str, Any] | None = None
    """Variables to pass to the chat template, such as {enable_thinking: true}."""

    @model_validator(mode="after")
    def _prompt_is_valid(self) -> RoleConfig:
        _ = self.prompt  # raises an error for invalid template options, and for a template that cannot be read
        return self

    @property
    def prompt(self) -> PromptConfig:
        """Return the settings with which requests become prompts."""
        template = template_of_file({"engine": self.engine}, "engine", "chat_template").get("prompt", {})
        return PromptConfig(preset="plain", template_options=self.template_options, **template)


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
    workers: int | None = Field(None, ge=1)
    """Number of engines per model; defaults to one per tensor_parallel_size GPUs or, if there are no GPUs, one per CPU
    core."""
    start_timeout_seconds: float = Field(START_TIMEOUT_SECONDS, gt=0)
    """Maximum time in seconds to wait for machines with enough free resources for the engines, not including the time
    to load the model."""
    ray_address: str | None = None
    """Address (host:port) of a Ray cluster to join; defaults to RAY_ADDRESS or a local `ray start`. If there is none,
    Ray is started here and listens on the loopback interface only. local: always start Ray here."""

    @property
    def takes_turns(self) -> bool:
        """Return whether both models need engines. The second one then starts after the first one has stopped."""
        return self.seer.engine.servers is None and self.reasoner.engine.servers is None

    @model_validator(mode="after")
    def _has_room(self) -> BridgeConfig:
        if self.min_words > self.max_words:
            raise ValueError(
                f"min_words={self.min_words} must be at most max_words={self.max_words}; lower it, or raise max_words"
            )
        return self
