"""Sample completions from one vLLM engine."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprm.data.media_inputs import vllm_media
from mmprm.errors import ContextLimitError, MmprmError, SamplingError
from mmprm.hub_models import HUB_ID, check_hub_model
from mmprm.model_limits import check_cpu_engine
from mmprm.prompts import PRESETS, PromptConfig
from mmprm.rendering import opening, render
from mmprm.sampling.arguments import NO_ARGUMENTS
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.sampling.dtype import this_device
from mmprm.sampling.engines import EngineStats
from mmprm.sampling.seeds import derive_seed
from mmprm.sampling.start import start_engine
from mmprm.sampling.token_text import TokenText
from mmprm.sampling.turn import TurnBeginning, with_given
from mmprm.types import Completion, MediaRef, SampleRequest

if TYPE_CHECKING:
    from vllm import RequestOutput

_TOO_LONG = ("longer than the maximum model length", "maximum context length")
"""Parts of vLLM's messages about a prompt that exceeds the context, for which it has no exception type of its own."""
ATTEMPTS = 8
"""Maximum number of samples to draw until one begins with the rest of the prefix; after that, the whole prefix is sent
as text."""


class VllmSampler:
    """Starts a vLLM engine and samples from it; `close` stops the engine.

    Hundreds of `sample` calls may be in flight, from any event loop; the engine batches them and shares the computation
    of common prefixes.

    `Completion.text` omits special tokens; `token_count` counts every generated token. Sample i uses seed + i, so a
    request repeated alone on the same machine gives the same text. In other batches, rounding may change the text.

    With `prefix_ids`, the prompt ends in these ids. If the policy's next token spanned the end of the prefix, the ids
    stop before that token and the policy samples it again. Only samples that begin with the rest of the prefix are
    accepted, which preserves the policy's distribution given this text. A prefix of a given solution ends in the tokens
    of the whole solution, as if the policy had generated it.

    `arguments` are additional vLLM engine arguments beyond those derived from the configuration.
    """

    def __init__(
        self,
        engine: EngineConfig,
        sampling: SamplingConfig | None = None,
        prompt: PromptConfig | None = None,
        arguments: Mapping[str, Any] = NO_ARGUMENTS,
    ) -> None:
        _check_model(engine.model)
        if this_device().kind == "CPU":
            check_cpu_engine(engine.model)
        _prepare_environment(engine.model)
        from transformers import AutoProcessor

        self._sampling = sampling or SamplingConfig()
        self._prompt = prompt or PromptConfig()
        self._takes_ids = PRESETS[self._prompt.preset].continuation is None
        try:
            self._template_owner = AutoProcessor.from_pretrained(engine.model, trust_remote_code=False)
            self._turn = TurnBeginning(opening(self._template_owner, self._prompt), self._prompt)
            self._tokenizer = getattr(self._template_owner, "tokenizer", self._template_owner)
            self._token_text = TokenText(self._tokenizer)
            self._engine = start_engine(engine, arguments)
        except MmprmError:
            raise
        except (
            Exception
        ) as error:  # vLLM and transformers raise many exception types for an unsuitable folder or machine.
            raise SamplingError(
                f"{engine.model}: the engine did not start; see vLLM's log above and mmprm doctor "
                f"({type(error).__name__}: {error})"
            ) from error

    async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
        """Return the completions of a request; see types.Sampler.

        Raises SamplingError or DataError (an unreadable image) naming the problem; the engine keeps running.
        """
        request, given = self._turn.own(request)
        request, rest = self._fitted(request)
        generations = enumerate(await self._sample(request))
        kept = await asyncio.gather(
            *(self._kept(request, rest, number, *generated) for number, generated in generations)
        )
        return tuple(with_given(completion, given) for completion in kept)

    async def generate(self, request: SampleRequest, **settings: Any) -> RequestOutput:
        """Return vLLM's output, including token ids; `settings` are additional SamplingParams fields.

        Raises the same errors as `sample`.
        """
        return await self.complete(request, lambda: self._beginning(request), request.problem.media, **settings)

    async def complete(
        self,
        request: SampleRequest,
        make_prompt: Callable[[], dict[str, Any]],
        media: Sequence[MediaRef],
        **settings: Any,
    ) -> RequestOutput:
        """Return vLLM's output for a prompt in vLLM's format, together with the given media; see `generate`."""
        problem = request.problem
        try:
            prompt = make_prompt() | vllm_media(self._template_owner, media)
            return await asyncio.wrap_future(self._engine.submit(prompt, self._params(request, settings)))
        except MmprmError as error:
            raise type(error)(f"problem {problem.id}: {error}") from error
        except Exception as error:  # vLLM raises many exception types for an unsuitable prompt.
            kind = ContextLimitError if any(part in str(error) for part in _TOO_LONG) else SamplingError
            raise kind(
                f"problem {problem.id}: {error}; shorten or correct the prompt, or leave the problem out"
            ) from error

    async def logprobs(self, token_ids: Sequence[int]) -> tuple[float, ...]:
        """Return log P(token i | preceding tokens) for i = 1, 2, … of a text without images, at temperature 1."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        output = await asyncio.wrap_future(self._engine.submit({"prompt_token_ids": list(token_ids)}, params))
        positions = zip(output.prompt_logprobs[1:], token_ids[1:], strict=True)
        return tuple(position[token].logprob for position, token in positions)

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the vLLM engine as soon as no request is in flight. Later submissions wait for it."""
        return await asyncio.wrap_future(self._engine.call(method, *arguments))

    async def interrupt(self) -> None:
        """Stop the requests in flight; they return the tokens so far, with the finish_reason "abort"."""
        await asyncio.wrap_future(self._engine.interrupt())

    @property
    def template_owner(self) -> Any:
        """Return the checkpoint's processor, or its tokenizer if the model does not accept images."""
        return self._template_owner

    def stats(self) -> EngineStats:
        """Return the engine's current statistics."""
        return self._engine.stats()

    def check(self) -> None:
        """Raise EngineStoppedError if the engine has stopped."""
        self._engine.check()

    def close(self) -> None:
        """Stop the engine; requests in flight raise SamplingError."""
        self._engine.close()

    def _fitted(self, request: SampleRequest) -> tuple[SampleRequest, str]:
        """Drop the request's prefix ids if they are unusable; return the request and the suffix of its prefix that the
        ids do not cover.

        If a stop string may begin in this suffix, all stop strings are dropped.
        """
        if request.prefix_ids is None:
            request = replace(request, prefix_ids=self._ids_in_context(request))
        if request.prefix_ids is None:
            return request, ""
        rest = self._token_text.missing(request.prefix_ids, request.prefix) if self._takes_ids else None
        if rest is None:
            return replace(request, prefix_ids=None), ""
        return (replace(request, stop=()) if _may_stop_in(rest, request.stop) else request), rest

    def _ids_in_context(self, request: SampleRequest) -> tuple[int, ...] | None:
        """Tokenize the given solution that the prefix is taken from; return its tokens that end within the prefix.

        Returns None if the request has no such solution or its tokens do not spell its text.
        """
        if not (request.prefix and request.continuation):
            return None
        text = request.prefix + request.continuation
        tokens = self._token_text.tokens(self._tokenizer(text, add_special_tokens=False).input_ids, text)
        return None if tokens is None else tokens.ids[: tokens.whole_in(len(request.prefix))]

    async def _sample(self, request: SampleRequest) -> list[tuple[Any, bool]]:
        """Return vLLM's samples in order, each with a flag that says whether its tokens continue the request's prefix
        ids."""
        output = await self.generate(request)
        if any(
            generated.finish_reason == "error" for generated in output.outputs
        ):  # such as an image evicted from vLLM's cache
            raise SamplingError(f"problem {request.problem.id}: the engine aborted a sample; request it again")
        continued = not request.prefix
        if request.prefix_ids is not None:  # vLLM re-encodes prompts if it places images by text
            continued = tuple(output.prompt_token_ids[-len(request.prefix_ids) or sys.maxsize :]) == request.prefix_ids
        return [(generated, continued) for generated in output.outputs]

    async def _kept(
        self, request: SampleRequest, rest: str, number: int, generated: Any, continued: bool
    ) -> Completion:
        """Sample again until the output begins with `rest`, the part of the prefix that is not in the prompt ids."""
        seed, token_count = request.seed + number, len(generated.token_ids)
        attempts = 1 if request.greedy else ATTEMPTS
        while not generated.text.startswith(rest):
            attempts -= 1
            if attempts:
                other = derive_seed(seed, request.problem.id, request.prefix, attempts)
                again = replace(request, n=1, seed=other)
            else:
                rest, again = "", replace(request, n=1, seed=seed, prefix_ids=None)
            ((generated, continued),) = await self._sample(again)
            token_count += len(generated.token_ids)
        tokens = self._token_text.tokens(generated.token_ids, generated.text, len(rest)) if continued else None
        return Completion(generated.text[len(rest) :], token_count, generated.finish_reason, tokens)

    def _beginning(self, request: SampleRequest) -> dict[str, Any]:
        if request.prefix_ids is None:
            return {"prompt": render(self._template_owner, request.problem, request.prefix, self._prompt)}
        text = render(self._template_owner, request.problem, "", self._prompt)
        return {"prompt_token_ids": [*self._tokenizer(text, add_special_tokens=False).input_ids, *request.prefix_ids]}

    def _params(self, request: SampleRequest, further: Mapping[str, Any]) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        settings = self._sampling.model_dump() | ({"temperature": 0.0} if request.greedy else {}) | further
        # One request for n samples: vLLM gives sample i the seed `seed + i`, and prepares prompt and images only once.
        return SamplingParams(
            n=request.n,
            seed=request.seed,
            stop=list(request.stop),
            include_stop_str_in_output=bool(request.stop),
            output_kind=RequestOutputKind.FINAL_ONLY,
            **settings,
        )


def _may_stop_in(rest: str, stop: Sequence[str]) -> bool:
    """Return whether a stop string may begin inside `rest`, the part of the prefix that is sampled again.

    It would then end the completion too early.
    """
    tails = [rest[position:] for position in range(len(rest))]
    # A tail longer than the stop string may contain all of it; a shorter one may be its beginning.
    return any(end.startswith(tail[: len(end)]) for end in stop for tail in tails)


def _check_model(model: str) -> None:
    folder = Path(model)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise SamplingError(
                f"{model}: is not a model folder (it has no config.json); give a Hugging Face checkpoint"
            )
    elif not HUB_ID.fullmatch(model):
        raise SamplingError(f"{model}: does not exist; give the folder of a checkpoint or a hub id such as owner/name")
    check_hub_model(model)


def _prepare_environment(model: str) -> None:
    """Set environment variables that vLLM and huggingface_hub read on import; user settings take precedence."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # mmprm.worker_logs finds causes there
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if Path(model).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
