"""Step scores through vLLM's pooling runner, from the plain checkpoint, with the engine in the calling process.

vLLM turns the output rows of two tokens into a classifier that gives one probability a token,
sigmoid(logit_yes - logit_no) = softmax([yes, no])_first; the scores are those at the markers.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoProcessor

from mmprm.errors import DataError, SetupError
from mmprm.prm.format import Renderer
from mmprm.prm.info import PrmInfo, read_info
from mmprm.problems import open_picture
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.context import check_length, context_length
from mmprm.types import Solution, StepScores

TASK = "token_classify"
PICTURES = 16
"""Most pictures of one problem."""


class VllmScorer:
    """A Scorer on one engine."""

    def __init__(self, config: ScorerConfig) -> None:
        info = read_info(config.prm)
        self._renderer = Renderer(AutoProcessor.from_pretrained(config.prm), info.tokens)
        self._context = min(context_length(AutoConfig.from_pretrained(config.prm)), config.batch_tokens)
        self._llm = _engine(config, info, self._context)

    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        from vllm.exceptions import VLLMClientError

        if not solutions:
            return []
        try:
            outputs = self._llm.encode(
                [self._prompt(solution) for solution in solutions],
                pooling_task=TASK,
                use_tqdm=False,
                # The chat template has written the special tokens.
                tokenization_kwargs={"add_special_tokens": False},
            )
        except VLLMClientError as error:
            for solution in solutions:
                check_length(solution, self._renderer.encode([solution])["input_ids"].shape[1], self._context)
            raise DataError(f"vLLM refuses a solution: {error}") from error
        return [self._at_markers(output, solution) for output, solution in zip(outputs, solutions, strict=True)]

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()

    def _prompt(self, solution: Solution) -> dict[str, Any]:
        prompt: dict[str, Any] = {"prompt": self._renderer.render(solution)}
        if solution.problem.pictures:
            prompt["multi_modal_data"] = {"image": [open_picture(picture) for picture in solution.problem.pictures]}
        return prompt

    def _at_markers(self, output: Any, solution: Solution) -> StepScores:
        probabilities = output.outputs.data.flatten().tolist()
        tokens = output.prompt_token_ids
        assert len(probabilities) == len(tokens), "one probability a token"
        pairs = zip(tokens, probabilities, strict=True)
        scores = tuple(probability for token, probability in pairs if token == self._renderer.marker_id)
        assert len(scores) == len(solution.steps), "one marker a step"
        return StepScores(scores)


def _engine(config: ScorerConfig, info: PrmInfo, context: int) -> Any:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    try:
        from vllm import LLM
        from vllm.config import PoolerConfig
        from vllm.platforms import current_platform
    except ImportError as error:
        raise SetupError(f"scoring with vllm needs vLLM ({error}); pip install 'mmprm[cpu]' or 'mmprm[gpu]'") from error
    cpu = current_platform.is_cpu()
    memory = {"kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30)} if cpu else {}
    set_num_threads = torch.set_num_threads
    try:
        return LLM(
            model=config.prm,
            dtype=config.dtype,
            runner="pooling",
            convert="classify",
            hf_overrides={
                "classifier_from_token": [info.tokens.no, info.tokens.yes],
                "method": "from_2_way_softmax",
            },
            pooler_config=PoolerConfig(task=TASK, tok_pooling_type="ALL"),
            max_model_len=context,
            max_num_batched_tokens=config.batch_tokens,
            gpu_memory_utilization=config.gpu_memory_utilization,
            limit_mm_per_prompt={"image": PICTURES, "video": 0, "audio": 0},
            # A cached token yields no score, and a score needs its whole solution in one pass.
            enable_prefix_caching=False,
            enable_chunked_prefill=False,
            enforce_eager=cpu,
            distributed_executor_backend="uni",
            seed=0,
            **memory,
        )
    finally:
        torch.set_num_threads = set_num_threads  # vLLM's CPU worker replaces it, for all that share the process
