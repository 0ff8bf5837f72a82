"""Define the configuration of the policy: the settings that every command needs to sample and grade answers."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from mmprm.config import Config
from mmprm.grading.symbolic import GraderConfig
from mmprm.hardware import HardwareConfig
from mmprm.problems import ProblemsConfig
from mmprm.prompts import PromptConfig
from mmprm.rendering import template_of_file
from mmprm.sampling.config import START_TIMEOUT_SECONDS, EngineConfig, SamplingConfig
from mmprm.steps import StepFormat

DECISIVE = {
    "engine": {"model", "dtype", "max_model_len", "max_pixels", "min_pixels"},
    "grader": {"timeout_seconds": True, "max_length": True, "judge": {"model"}},
    **dict.fromkeys(("sampling", "prompt", "step_format", "seed"), True),
}
"""Keys of the settings that determine the samples of a problem and their verdicts."""


class PolicyConfig(Config):
    """Configures the problems, the engine and prompt of the policy, the grader and the random seed."""

    problems: ProblemsConfig
    """Problems to solve."""
    engine: EngineConfig
    """Engine that runs the policy; the model "tiny" is the built-in policy."""
    sampling: SamplingConfig = SamplingConfig()
    """Sampling settings; max_tokens limits each sample."""
    prompt: PromptConfig = PromptConfig()
    """Prompt settings, such as the preset and the prefill."""
    step_format: StepFormat = "tags"
    """How the policy marks its steps: tags, blank_lines, numbered or thoughts."""
    grader: GraderConfig = GraderConfig()
    """Settings for grading final answers."""
    seed: int = 0
    """Random seed of the run. The seed of each request is derived from this seed and the request's content. It also
    seeds the confidence intervals.
    """
    workers: int | None = Field(None, ge=1)
    """Number of engines; default: one per tensor_parallel_size GPUs or, if there are no GPUs, one per CPU core."""
    start_timeout_seconds: float = Field(START_TIMEOUT_SECONDS, gt=0)
    """Maximum time in seconds to wait for machines with enough free resources for the engines. Loading the model is not
    included. With `mmprm annotate`, the limit applies only while no engine runs or is being started."""
    ray_address: str | None = None
    """Address (host:port) of a Ray cluster to join; default: RAY_ADDRESS or a local `ray start`. If there is none, Ray
    is started on this machine and listens only on the loopback interface. local: always start Ray on this machine.
    """
    hardware: HardwareConfig = Field(HardwareConfig(), exclude=True)
    """Hardware that `mmprm plan` assumes; the run itself ignores these settings."""

    @model_validator(mode="before")
    @classmethod
    def _chat_template_of_a_file(cls, values: Any) -> Any:
        return template_of_file(values, "engine", "chat_template")

    def resume_key(self) -> dict[str, Any]:
        """Return the settings that determine a problem's samples, which must not change when a run resumes."""
        return self.model_dump(mode="json", include=DECISIVE)
