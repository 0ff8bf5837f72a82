"""Play episodes with a policy on one vLLM engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmprm.environments.episode import Action, TurnRequest
from mmprm.environments.load import EnvironmentConfig
from mmprm.errors import ConfigError, SamplingError
from mmprm.prompts import PromptConfig
from mmprm.sampling.arguments import NO_ARGUMENTS
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.sampling.conversation import EpisodeEncoder, EpisodeTokens
from mmprm.sampling.vllm_sampler import VllmSampler
from mmprm.types import SampleRequest

if TYPE_CHECKING:
    from vllm import RequestOutput


class VllmTurnSampler(VllmSampler):
    """Samples one action per request, up to the end of the policy's turn; see TurnSampler.

    A prompt begins with the ids of the previous prompt and action, so the engine's prefix cache holds most of it.
    `environment.max_turn_tokens` replaces `sampling.max_tokens`.
    """

    def __init__(
        self,
        engine: EngineConfig,
        sampling: SamplingConfig,
        prompt: PromptConfig,
        environment: EnvironmentConfig,
        arguments: Mapping[str, Any] = NO_ARGUMENTS,
    ) -> None:
        limited = sampling.model_copy(update={"max_tokens": environment.max_turn_tokens})
        super().__init__(engine, limited, prompt, arguments)
        self.encoder = EpisodeEncoder(self.template_owner, prompt, environment.images)
        self._images_per_prompt = engine.images_per_prompt

    async def act(self, request: TurnRequest) -> Action:
        """Sample the policy's next action. Raises the same errors as `sample`, and ConfigError for too many images."""
        _, output = await self.complete_turn(request)
        (generated,) = output.outputs
        ids = tuple(generated.token_ids)
        return Action(self.encoder.given + generated.text, ids, len(ids), generated.finish_reason)

    async def complete_turn(self, request: TurnRequest, **settings: Any) -> tuple[EpisodeTokens, RequestOutput]:
        """Return the prompt of the next action, and vLLM's output, with one sample; see `act` and `generate`."""
        tokens = self.encoder.prompt(request.observations, request.actions)
        if len(tokens.images) > self._images_per_prompt:
            # The engine's own error would only leave the long episodes without a verdict, which biases the values.
            raise ConfigError(
                f"problem {request.problem.id}: engine.images_per_prompt={self._images_per_prompt} must be at least "
                f"{len(tokens.images)}, the number of images after {len(request.actions)} turns; raise it, or set "
                "environment.images to show fewer"
            )
        asked = SampleRequest(request.problem, "", 1, request.seed)
        output = await self.complete(asked, lambda: {"prompt_token_ids": list(tokens.ids)}, tokens.images, **settings)
        if output.outputs[0].finish_reason == "error":  # such as an image evicted from vLLM's cache
            raise SamplingError(f"problem {request.problem.id}: the engine aborted a turn; request it again")
        return tokens, output
