"""Configure `mmprm eval policy`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from mmprm.config import Config, PathText
from mmprm.data.media import MAX_FRAMES
from mmprm.evaluation.extractor import ExtractorConfig
from mmprm.grading.symbolic import GraderConfig
from mmprm.problems import VIDEO_FRAMES, Columns
from mmprm.prompts import PromptConfig
from mmprm.rendering import template_of_file
from mmprm.sampling.config import START_TIMEOUT_SECONDS, EngineConfig, SamplingConfig


class PolicyEvalConfig(Config):
    benchmark: Literal[
        "problems",
        "mmk12",
        "k12",
        "mathvista",
        "mathverse",
        "mathvision",
        "olympiadbench",
        "we-math",
        "mm-math",
        "dynamath",
        "math-500",
        "aime",
        "gpqa",
        "cv-bench",
        "mmstar",
        "chartqa",
        "blink",
        "vsr",
        "mmmu",
        "mme",
        "hallusionbench",
        "dfew",
        "mafw",
        "ravdess",
    ] = "problems"
    """Name of the benchmark, which determines the columns to read, the answer rule and the aggregate scores. `problems`
    means the columns that all other commands read."""
    columns: Columns = Columns()
    """Names of the columns to read if benchmark=problems."""
    samples: int = Field(1, ge=1)
    """Number of responses per question. With more than one, pass@k and the majority vote are also reported, and
    sampling.temperature must be above 0."""
    output: PathText = "runs/eval"
    """Output folder for the metrics (policy-BENCHMARK.json) and the responses (responses-BENCHMARK.jsonl)."""
    split: str | None = None
    """Split to read from a hub data set or a folder; defaults to the split on which results are published."""
    subset: str | None = None
    """Configuration name of a hub data set, for example OE_MM_maths_en_COMP."""
    image_root: PathText | None = None
    """Folder that relative image paths refer to; defaults to the folder of the problem file."""
    limit: int | None = Field(None, ge=1)
    """Maximum number of rows to read; default: all."""
    video_frames: int = Field(VIDEO_FRAMES, ge=1, le=MAX_FRAMES)
    """Number of frames to sample from each video, evenly from the first to the last."""
    engine: EngineConfig
    """Engine that runs the policy; the model "tiny" is the built-in toy policy."""
    sampling: SamplingConfig = SamplingConfig(temperature=0, max_tokens=4096)
    """Sampling parameters for the responses."""
    prompt: PromptConfig = PromptConfig(preset="think")
    """Prompt preset and template for the policy."""
    grader: GraderConfig = GraderConfig()
    """Grader configuration. Answers that symbolic comparison cannot decide go to grader.judge, and these scores are
    reported separately."""
    extractor: ExtractorConfig | None = None
    """Language model that copies the final answer from responses in which the grader finds none. These scores are
    reported separately."""
    seed: int = 0
    """Random seed for sampling and the bootstrap."""
    workers: int | None = Field(None, ge=1)
    """Number of engines; defaults to one per tensor_parallel_size GPUs or, if there are no GPUs, one per CPU core."""
    start_timeout_seconds: float = Field(START_TIMEOUT_SECONDS, gt=0)
    """Maximum time in seconds to wait for machines with enough free resources for the engines, not including the time
    to load the model."""
    ray_address: str | None = None
    """Address (host:port) of a Ray cluster to join; defaults to RAY_ADDRESS or a local `ray start`. If there is none,
    Ray is started here and listens on the loopback interface only. local: always start Ray here."""

    @model_validator(mode="after")
    def _different_samples(self) -> PolicyEvalConfig:
        if self.samples > 1 and self.sampling.temperature == 0:
            raise ValueError(
                f"samples={self.samples} with sampling.temperature=0 would sample the same response {self.samples} "
                "times; set sampling.temperature, for example to 1.0"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _chat_template_of_a_file(cls, values: Any) -> Any:
        return template_of_file(values, "engine", "chat_template")
