"""Define the Ray actor that runs one vLLM engine of a RolloutPool."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import numpy as np

from mmprm.backbone.processor import vision_token_ids
from mmprm.errors import MmprmError, TrainingError
from mmprm.model_limits import check_cpu_reload
from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.sampling.dtype import this_device
from mmprm.types import Problem, SampleRequest
from policy_rl.rollouts.episodes import EpisodeConfig, EpisodePlayer, EpisodeSampler
from policy_rl.types import Group, Response, ResponsePrefix
from policy_rl.weights.probe import probe_token_ids
from policy_rl.weights.transfer import Published

FINISHED = ("stop", "length")
ARGUMENTS = {
    # Log-probabilities of the sampling distribution, after temperature and banned tokens are applied.
    "logprobs_mode": "processed_logprobs",
    "worker_extension_cls": "policy_rl.weights.worker.WeightLoading",
    "disable_log_stats": True,  # statistics take 5 % of a small model's time, and nothing reads them
}


class RolloutEngine:
    """Runs a vLLM engine in a Ray actor.

    Its methods are called through Ray. `start` launches the engine instead of the constructor, because Ray passes on
    the exceptions of a method unchanged.
    """

    _player: EpisodePlayer | None = None
    _interrupts = 0
    """Number of times that the requests in flight were interrupted."""

    async def start(
        self,
        engine: EngineConfig,
        sampling: SamplingConfig,
        prompt: PromptConfig,
        further: dict[str, Any],
        episodes: EpisodeConfig | None = None,
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Start the engine; return the token ids of the probe text, and the token ids that the engine must not sample.

        `further` holds additional arguments for vLLM. The probe text is used to verify new weights. With `episodes`,
        responses are episodes.
        """
        from transformers import AutoConfig

        from mmprm.sampling.vllm_sampler import VllmSampler

        if "weight_transfer_config" in further:
            # vLLM pickles GPU memory handles to send them to its own processes.
            os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        if this_device().kind == "CPU":
            check_cpu_reload(engine.model)
        arguments = ARGUMENTS | further
        if episodes is None:
            self._sampler = VllmSampler(engine, sampling, prompt, arguments)
        else:
            self._sampler = EpisodeSampler(engine, sampling, prompt, episodes.environment, arguments)
            self._player = EpisodePlayer(self._sampler, episodes)
        self._is_asleep = False
        owner = self._sampler.template_owner
        self._tokenizer = getattr(owner, "tokenizer", owner)
        self._probe = probe_token_ids(self._tokenizer)
        self._banned = vision_token_ids(
            AutoConfig.from_pretrained(engine.model, trust_remote_code=False), self._tokenizer
        )
        if isinstance(self._sampler, EpisodeSampler):
            self._sampler.banned = self._banned
        return self._probe, self._banned

    async def sample(
        self, problem: Problem, n: int, seed: int, version: int, prefix: ResponsePrefix | None = None, **settings: Any
    ) -> Group:
        """Sample `n` responses to a problem, labeled with policy version `version`.

        With a prefix, all of them begin with its tokens, which are not sampled again; the environment of an episode
        is restored by replaying its actions. Responses that `interrupt`
        stopped have the finish_reason "interrupted".
        """
        if self._player is not None:
            return await self._player.group(problem, n, seed, version, prefix)
        given = None if prefix is None else tuple(prefix.token_ids.tolist())
        interrupts = self._interrupts
        output = await self._sampler.generate(
            SampleRequest(problem, "", n, seed, prefix_ids=given),
            logprobs=0,
            flat_logprobs=True,
            logit_bias=dict.fromkeys(self._banned, float("-inf")) or None,
            **settings,
            detokenize=False,  # otherwise vLLM looks up every token's text again for its log-probability
        )
        is_interrupted = self._interrupts > interrupts
        responses = tuple(self._response(generated, prefix, is_interrupted) for generated in output.outputs)
        prompt_tokens = len(output.prompt_token_ids) - len(given or ())
        if given and tuple(output.prompt_token_ids[prompt_tokens:]) != given:
            raise TrainingError(
                f"problem {problem.id}: vLLM changed the tokens of a prefix, so this model's responses cannot branch; "
                "leave rollouts.branching out"
            )
        return Group(problem, responses, version, prompt_tokens)

    async def interrupt(self) -> None:
        """Stop the responses in flight. `sample` then returns their tokens so far."""
        self._interrupts += 1
        await self._sampler.interrupt()

    async def load(self, published: Published) -> tuple[float, ...]:
        """Load new weights, reset all caches, and return the log-probabilities of the probe text's tokens.

        If the engine is asleep, its KV cache is reallocated first.
        """
        try:
            if published.folder is not None:
                await self._load_files(published)
            if self._is_asleep:
                await self._sampler.call("wake_up", ["kv_cache"])
                self._is_asleep = False
            # The engine handles these calls in order. The encoder cache holds image embeddings, which depend on the
            # weights; the processor cache stays, because it holds only pixels.
            emptied, _, answer = await asyncio.gather(
                self._sampler.call("reset_prefix_cache"),
                self._sampler.call("reset_encoder_cache"),
                self._sampler.logprobs(self._probe),
            )
            if not emptied:
                raise TrainingError(
                    "vLLM did not empty its prefix cache, which holds values computed with the old weights; run the "
                    "same command again to resume from the last checkpoint"
                )
            return answer
        except MmprmError:
            raise
        except Exception as error:  # vLLM raises many kinds of errors for weights that do not match its model
            raise TrainingError(
                f"an engine cannot load the {published}: {type(error).__name__}: {error}; check that trainer and "
                "engines start from the same model, and run the same command again to resume"
            ) from error

    async def _load_files(self, published: Published) -> None:
        arguments = (published.folder, published.version, dict(published.checksums))
        for got in await self._sampler.call("collective_rpc", "load_weight_files", None, arguments):
            if tuple(got) != (published.tensors, published.bytes):
                raise TrainingError(
                    f"an engine's worker read {got[0]} tensors of {got[1]} bytes, not the {published}; check that "
                    "nothing else writes to weights.folder, and run the same command again to resume"
                )

    async def worker_call(self, method: str, arguments: dict[str, Any]) -> list[Any]:
        """Call a method on every vLLM worker of this engine, and return their results."""
        return await self._sampler.call("collective_rpc", method, None, (), arguments)

    async def check(self) -> None:
        """Raise EngineStoppedError if the engine has stopped."""
        self._sampler.check()

    async def sleep(self) -> None:
        """Discard the weights and caches to free their memory."""
        # Level 1 would copy the weights to host memory and back, although new ones replace them.
        await self._sampler.call("sleep", 2)
        self._is_asleep = True

    async def wake(self) -> None:
        """Reallocate memory for the weights only. Caches follow later, because sending weights needs memory too."""
        await self._sampler.call("wake_up", ["weights"])

    def _response(self, generated: Any, prefix: ResponsePrefix | None, is_interrupted: bool) -> Response:
        token_ids, logprobs = list(generated.token_ids), generated.logprobs.logprobs
        finish_reason = generated.finish_reason if generated.finish_reason in FINISHED else "abort"
        if is_interrupted and generated.finish_reason == "abort":
            finish_reason = "interrupted"
        if prefix is not None:
            token_ids = [*prefix.token_ids.tolist(), *token_ids]
            logprobs = np.concatenate([prefix.logprobs, np.asarray(logprobs, dtype=np.float32)])
        text = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return Response(text, token_ids, logprobs, finish_reason)
