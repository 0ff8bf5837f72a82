"""Completions from one vLLM engine."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprm.errors import MmprmError, SamplingError
from mmprm.problems import open_picture
from mmprm.prompts import PRESETS, PromptConfig
from mmprm.rendering import opening, render
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.sampling.engines import NO_ARGUMENTS, EngineStats, InProcessEngine, SeparateEngine
from mmprm.sampling.seeds import derive_seed
from mmprm.sampling.token_text import TokenText
from mmprm.sampling.turn import TurnBeginning, with_given
from mmprm.types import Completion, Picture, SampleRequest

if TYPE_CHECKING:
    from vllm import RequestOutput

ATTEMPTS = 8
"""Times that a draw whose tokens leave the prefix is made before it continues the prefix as text."""


class VllmSampler:
    """A Sampler on an engine that it starts, and closes at the end. Hundreds of `sample` calls may be in flight, from
    any event loop; the engine batches them and shares the computation of common prefixes.

    `Completion.text` leaves special tokens out; `token_count` counts every generated token. Draw i uses seed + i, so a
    request repeated alone on the same machine gives the same text; within other batches rounding may lead elsewhere.

    With `prefix_ids` the prompt ends in these ids. Where the policy's next token held the end of the prefix and more,
    they end before it, and the policy writes that token again: of its draws those count that begin with the rest of
    the prefix, which leaves exactly what it writes after this text.

    `arguments` of vLLM come on top of those that follow from the configuration.
    """

    def __init__(
        self,
        engine: EngineConfig,
        sampling: SamplingConfig | None = None,
        prompt: PromptConfig | None = None,
        arguments: Mapping[str, Any] = NO_ARGUMENTS,
    ) -> None:
        _check_model(engine.model)
        _prepare_environment(engine.model)
        from transformers import AutoProcessor
        from vllm.platforms import current_platform

        self._sampling = sampling or SamplingConfig()
        self._prompt = prompt or PromptConfig()
        self._takes_ids = PRESETS[self._prompt.preset].continuation is None
        in_process = engine.mode == "in_process" or (engine.mode == "auto" and current_platform.is_cpu())
        try:
            self._template_owner = AutoProcessor.from_pretrained(engine.model, trust_remote_code=False)
            self._turn = TurnBeginning(opening(self._template_owner, self._prompt), self._prompt)
            self._tokenizer = getattr(self._template_owner, "tokenizer", self._template_owner)
            self._token_text = TokenText(self._tokenizer)
            self._engine = (InProcessEngine if in_process else SeparateEngine)(engine, arguments)
        except MmprmError:
            raise
        except Exception as error:  # vLLM and transformers raise many kinds for a folder or machine that does not fit.
            raise SamplingError(f"{engine.model}: the engine did not start: {type(error).__name__}: {error}") from error

    async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
        """See types.Sampler. Raises SamplingError or DataError (a picture) naming the problem; the engine goes on."""
        request, given = self._turn.own(request)
        request, rest = self._fitted(request)
        draws = enumerate(await self._draw(request))
        kept = await asyncio.gather(*(self._kept(request, rest, number, *draw) for number, draw in draws))
        return tuple(with_given(completion, given) for completion in kept)

    async def generate(self, request: SampleRequest, **settings: Any) -> RequestOutput:
        """What vLLM answers, with token ids; `settings` are further fields of SamplingParams. Raises like `sample`."""
        problem = request.problem
        try:
            prompt = self._beginning(request)
            if problem.pictures:
                prompt["multi_modal_data"] = {"image": [open_picture(picture) for picture in problem.pictures]}
                prompt["multi_modal_uuids"] = {"image": [_picture_id(picture) for picture in problem.pictures]}
            return await asyncio.wrap_future(self._engine.submit(prompt, self._params(request, settings)))
        except MmprmError as error:
            raise type(error)(f"problem {problem.id}: {error}") from error
        except Exception as error:  # vLLM raises many kinds for a prompt that does not fit.
            raise SamplingError(f"problem {problem.id}: {error}") from error

    async def logprobs(self, token_ids: Sequence[int]) -> tuple[float, ...]:
        """log P(token i | the tokens before it) for i = 1, 2, … of a text without pictures, at temperature 1."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        output = await asyncio.wrap_future(self._engine.submit({"prompt_token_ids": list(token_ids)}, params))
        places = zip(output.prompt_logprobs[1:], token_ids[1:], strict=True)
        return tuple(place[token].logprob for place, token in places)

    async def call(self, method: str, *arguments: Any) -> Any:
        """The result of a method of vLLM's engine, run when nothing is in flight; what is submitted later waits."""
        return await asyncio.wrap_future(self._engine.call(method, *arguments))

    @property
    def template_owner(self) -> Any:
        """The checkpoint's processor, or its tokenizer if it takes no pictures."""
        return self._template_owner

    def stats(self) -> EngineStats:
        return self._engine.stats()

    def close(self) -> None:
        """Stop the engine; requests in flight raise SamplingError."""
        self._engine.close()

    def _fitted(self, request: SampleRequest) -> tuple[SampleRequest, str]:
        """Return the request, without ids where they cannot be continued, and the end of its prefix that they lack."""
        if request.prefix_ids is None:
            return request, ""
        rest = self._token_text.missing(request.prefix_ids, request.prefix) if self._takes_ids else None
        if rest is None:
            return replace(request, prefix_ids=None), ""
        return (replace(request, stop=()) if _may_stop_in(rest, request.stop) else request), rest

    async def _draw(self, request: SampleRequest) -> list[tuple[Any, bool]]:
        """Return vLLM's draws, in order, each with whether its tokens continue the ids of the request."""
        output = await self.generate(request)
        if any(draw.finish_reason == "error" for draw in output.outputs):  # as where a picture left vLLM's own cache
            raise SamplingError(f"problem {request.problem.id}: the engine broke off a draw; ask again")
        continued = not request.prefix
        if request.prefix_ids is not None:  # a model whose pictures vLLM places by text has its prompt encoded anew
            continued = tuple(output.prompt_token_ids[-len(request.prefix_ids) or sys.maxsize :]) == request.prefix_ids
        return [(draw, continued) for draw in output.outputs]

    async def _kept(self, request: SampleRequest, rest: str, number: int, draw: Any, continued: bool) -> Completion:
        """Return the completion of a draw, made again with other seeds until it begins with the rest of the prefix."""
        seed, token_count = request.seed + number, len(draw.token_ids)
        attempts = 1 if request.greedy else ATTEMPTS
        while not draw.text.startswith(rest):
            attempts -= 1
            if attempts:
                other = derive_seed(seed, request.problem.id, request.prefix, attempts)
                again = replace(request, n=1, seed=other)
            else:
                rest, again = "", replace(request, n=1, seed=seed, prefix_ids=None)
            ((draw, continued),) = await self._draw(again)
            token_count += len(draw.token_ids)
        tokens = self._token_text.tokens(draw.token_ids, draw.text, len(rest)) if continued else None
        return Completion(draw.text[len(rest) :], token_count, draw.finish_reason, tokens)

    def _beginning(self, request: SampleRequest) -> dict[str, Any]:
        if request.prefix_ids is None:
            return {"prompt": render(self._template_owner, request.problem, request.prefix, self._prompt)}
        text = render(self._template_owner, request.problem, "", self._prompt)
        return {"prompt_token_ids": [*self._tokenizer(text, add_special_tokens=False).input_ids, *request.prefix_ids]}

    def _params(self, request: SampleRequest, further: Mapping[str, Any]) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        settings = self._sampling.model_dump() | ({"temperature": 0.0} if request.greedy else {}) | further
        # One request for n draws: vLLM gives draw i the seed `seed + i`, and prepares the prompt and pictures once.
        return SamplingParams(
            n=request.n,
            seed=request.seed,
            stop=list(request.stop),
            include_stop_str_in_output=bool(request.stop),
            output_kind=RequestOutputKind.FINAL_ONLY,
            **settings,
        )


def _may_stop_in(rest: str, stop: Sequence[str]) -> bool:
    """Whether a stop string may begin within the text that is written again, where it would end nothing."""
    return any(end.startswith(rest[place : place + len(end)]) for end in stop for place in range(len(rest)))


def _picture_id(picture: Picture) -> str:
    """Tells the engine that two prompts show the same picture without hashing its pixels."""
    return picture.path or hashlib.sha256(picture.data or b"").hexdigest()


def _check_model(model: str) -> None:
    folder = Path(model)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise SamplingError(f"{model}: is no model folder (it has no config.json); give a Hugging Face checkpoint")
    elif not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model):
        raise SamplingError(f"{model}: does not exist; give the folder of a checkpoint or a hub id such as owner/name")


def _prepare_environment(model: str) -> None:
    """Settings that vLLM and the hub client read when they are first imported; the user's own come first."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if Path(model).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
