"""Completions from one vLLM engine."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from pathlib import Path
from typing import Any

from mmprm.errors import MmprmError, SamplingError
from mmprm.problems import open_picture
from mmprm.prompts import PromptConfig, render
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.sampling.engines import EngineStats, InProcessEngine, SeparateEngine
from mmprm.types import Completion, Picture, SampleRequest


class VllmSampler:
    """A Sampler on an engine that it starts, and closes at the end. Hundreds of `sample` calls may be in flight, from
    any event loop; the engine batches them and shares the computation of common prefixes.

    `Completion.text` leaves special tokens out; `token_count` counts every generated token. Draw i uses seed + i, so a
    request repeated alone on the same machine gives the same text; within other batches rounding may lead elsewhere.
    """

    def __init__(
        self, engine: EngineConfig, sampling: SamplingConfig | None = None, prompt: PromptConfig | None = None
    ) -> None:
        _check_model(engine.model)
        _prepare_environment(engine.model)
        from transformers import AutoProcessor
        from vllm.platforms import current_platform

        self._sampling = sampling or SamplingConfig()
        self._prompt = prompt or PromptConfig()
        in_process = engine.mode == "in_process" or (engine.mode == "auto" and current_platform.is_cpu())
        try:
            self._template_owner = AutoProcessor.from_pretrained(engine.model)
            self._engine = (InProcessEngine if in_process else SeparateEngine)(engine)
        except Exception as error:  # vLLM and transformers raise many kinds for a folder or machine that does not fit.
            raise SamplingError(f"{engine.model}: the engine did not start: {type(error).__name__}: {error}") from error

    async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
        """See types.Sampler. Raises SamplingError or DataError (a picture) naming the problem; the engine goes on."""
        problem = request.problem
        try:
            prompt: dict[str, Any] = {"prompt": render(self._template_owner, problem, request.prefix, self._prompt)}
            if problem.pictures:
                prompt["multi_modal_data"] = {"image": [open_picture(picture) for picture in problem.pictures]}
                prompt["multi_modal_uuids"] = {"image": [_picture_id(picture) for picture in problem.pictures]}
            output = await asyncio.wrap_future(self._engine.submit(prompt, self._params(request)))
        except MmprmError as error:
            raise type(error)(f"problem {problem.id}: {error}") from error
        except Exception as error:  # vLLM raises many kinds for a prompt that does not fit.
            raise SamplingError(f"problem {problem.id}: {error}") from error
        return tuple(Completion(draw.text, len(draw.token_ids), draw.finish_reason) for draw in output.outputs)

    def stats(self) -> EngineStats:
        return self._engine.stats()

    def close(self) -> None:
        """Stop the engine; requests in flight raise SamplingError."""
        self._engine.close()

    def _params(self, request: SampleRequest) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        settings = self._sampling.model_dump() | ({"temperature": 0.0} if request.greedy else {})
        # One request for n draws: vLLM gives draw i the seed `seed + i`, and prepares the prompt and pictures once.
        return SamplingParams(
            n=request.n,
            seed=request.seed,
            stop=list(request.stop),
            include_stop_str_in_output=bool(request.stop),
            output_kind=RequestOutputKind.FINAL_ONLY,
            **settings,
        )


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
