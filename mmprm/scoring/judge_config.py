"""Define the configuration of a thinking judge, which scores the steps of a solution with written verdicts."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from mmprm.config import Config, PathText
from mmprm.prompts import PromptConfig
from mmprm.rendering import template_of_file
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.scoring.verdicts import AfterError, FormatOfVerdicts


class ThinkingJudgeConfig(Config):
    """Configures a thinking judge: its model, what it is asked, and how many chains of thought it writes."""

    engine: EngineConfig
    """Model of the judge, and the vLLM engine or the servers (engine.servers) that run it. An engine runs in the
    calling process."""
    sampling: SamplingConfig = SamplingConfig(temperature=0.6, top_p=0.95, max_tokens=8192)
    """Sampling settings of the judge; max_tokens limits each chain of thought together with its verdicts."""
    verdict_format: FormatOfVerdicts = "plain"
    """Layout of the verdicts. plain: a line such as "Step 3: incorrect" for each step; thinkprm: boxed verdicts as
    written by ThinkPRM; genprm: output blocks as written by GenPRM."""
    request: str | None = None
    """Text of the request, which replaces the one of verdict_format; must contain {question} and {steps}."""
    system: str = ""
    """Text of the system turn; an empty text omits the turn."""
    prefill: str = ""
    """Text that starts the judge's turn."""
    template_options: dict[str, Any] | None = None
    """Variables to pass to the chat template, such as {enable_thinking: true}."""
    chains: int = Field(1, ge=1)
    """Maximum number of chains of thought per solution. The score of a step is the fraction of the readable chains
    whose verdict on it is correct."""
    token_budget: int | None = Field(None, ge=1)
    """Maximum number of tokens per solution. A further chain is written only if it fits with all of its
    sampling.max_tokens, so short chains leave room for more of them; null: no limit."""
    after_error: AfterError = "incorrect"
    """How to score the steps after the first one that a chain calls incorrect. incorrect: as incorrect, so that a score
    is P(no error so far), as with a process reward model; as_judged: by their own verdicts, all of which must exist."""
    cache: PathText = "runs/thinking_judge.sqlite"
    """Database file that caches the chains, so that an interrupted run can resume."""
    seed: int = 0
    """Random seed of the chains, combined with the content of each request."""

    @field_validator("request")
    @classmethod
    def _holds_both(cls, request: str | None) -> str | None:
        if request is not None and not ("{question}" in request and "{steps}" in request):
            raise ValueError(
                "must contain {question} and {steps}; use, for example, '{question}\\n\\n{steps}\\n\\nIs each step "
                "correct?'"
            )
        return request

    @model_validator(mode="after")
    def _can_judge(self) -> ThinkingJudgeConfig:
        _ = self.prompt  # raises an error for invalid template options, and for a template that cannot be read
        if self.chains > 1 and self.sampling.temperature == 0:
            raise ValueError(
                f"chains={self.chains} with sampling.temperature=0: all chains would be equal; try "
                "sampling.temperature=0.6, or chains=1"
            )
        if self.token_budget is not None and self.token_budget < self.sampling.max_tokens:
            raise ValueError(
                f"token_budget={self.token_budget} must be at least sampling.max_tokens={self.sampling.max_tokens}, or "
                "not even one chain fits; raise the former or lower the latter"
            )
        return self

    @property
    def prompt(self) -> PromptConfig:
        """Return the settings with which requests become prompts."""
        template = template_of_file({"engine": self.engine}, "engine", "chat_template").get("prompt", {})
        return PromptConfig(
            preset="plain",
            system=self.system,
            prefill=self.prefill,
            template_options=self.template_options,
            **template,
        )

    def identity(self) -> dict[str, Any]:
        """Return the model and the settings that determine the chain of a given number."""
        settings = {"sampling", "verdict_format", "request", "system", "prefill", "template_options", "seed"}
        engine = {"model", "chat_template", "max_pixels", "min_pixels"}
        return self.model_dump(mode="json", include=dict.fromkeys(settings, True) | {"engine": engine})
