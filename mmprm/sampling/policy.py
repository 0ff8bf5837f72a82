"""What every command is told that lets a policy answer problems."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from mmprm.config import Config
from mmprm.grading.symbolic import GraderConfig
from mmprm.problems import ProblemsConfig
from mmprm.prompts import PromptConfig
from mmprm.rendering import template_of_file
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.steps import Markup

DECISIVE = {
    "engine": {"model", "dtype", "max_model_len", "max_pixels", "min_pixels"},
    "grader": {"seconds": True, "max_length": True, "judge": {"model"}},
    **dict.fromkeys(("sampling", "prompt", "markup", "seed"), True),
}
"""The keys that decide what is sampled for a problem and how it is graded."""


class PolicyConfig(Config):
    problems: ProblemsConfig
    """The problems to answer."""
    engine: EngineConfig
    """The policy's engine; the model "tiny" is the embedded policy."""
    sampling: SamplingConfig = SamplingConfig()
    """How completions are drawn; max_tokens limits each draw."""
    prompt: PromptConfig = PromptConfig()
    """How the policy is asked."""
    markup: Markup = "tags"
    """How the policy marks its steps: tags, blank_lines or numbered."""
    grader: GraderConfig = GraderConfig()
    """How final answers are judged."""
    seed: int = 0
    """Run seed; with the content of a request it gives the request's seed. Intervals are drawn with it, too."""
    workers: int | None = Field(None, ge=1)
    """Engines; by default one a GPU (group of tensor_parallel_size GPUs), without a GPU one a core."""
    ray_address: str | None = None
    """Address of a Ray cluster to join, host:port; by default that of RAY_ADDRESS or of `ray start` on this machine,
    else one is started here, which listens on the loopback interface alone. local: always start one."""

    @model_validator(mode="before")
    @classmethod
    def _chat_template_of_a_file(cls, values: Any) -> Any:
        return template_of_file(values, "engine", "chat_template")

    def identity(self) -> dict[str, Any]:
        """What must be equal for samples of a problem to be the same."""
        return self.model_dump(mode="json", include=DECISIVE)
