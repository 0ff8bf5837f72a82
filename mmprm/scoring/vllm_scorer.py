"""Compute step scores with vLLM's pooling runner, from an unmodified checkpoint.

The engine runs in the calling process; with tensor parallelism, one more process per GPU is added. For a PRM that
judges by two tokens, vLLM converts their rows of the output layer to a classifier. It yields one probability per token,
sigmoid(logit_yes - logit_no) = softmax([yes, no])_first; a head with two classes yields two probabilities. Scores are
read at the positions that the prompt format defines.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoProcessor

from mmprm.errors import ConfigError, DataError, SetupError
from mmprm.prm.formats import Format, Marked, open_format
from mmprm.prm.info import read_info
from mmprm.problems import open_image
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.context import all_scored, context_length, fitting, score_fitting, step_scores
from mmprm.scoring.dtype import scorer_dtype
from mmprm.types import Solution, StepScores
from mmprm.weights import LOAD_FORMAT, check_weights, model_errors
from mmprm.worker_logs import explained_start

TASK = "token_classify"
IMAGES = 32
"""Maximum number of images per solution; an episode has those of all its observations."""


class VllmScorer:
    """Scores solutions with one vLLM engine."""

    def __init__(self, config: ScorerConfig) -> None:
        check_weights(config.prm)
        info = read_info(config.prm, config.format)
        with model_errors(config.prm):
            model = AutoConfig.from_pretrained(config.prm, trust_remote_code=False)
            self._format = open_format(AutoProcessor.from_pretrained(config.prm, trust_remote_code=False), info)
        self._too_long = config.too_long
        self._context = min(context_length(model), config.batch_tokens)
        with model_errors(config.prm):
            own = _head(self._format, model.architectures or [])
            own["mm_processor_kwargs"] = dict(self._format.pixel_limits) or None
            self._llm = _engine(config, own, self._context)

    @property
    def max_tokens(self) -> int | None:
        """Return the maximum number of tokens of a solution, or None if longer solutions are scored as far as they
        fit."""
        return self._context if self._too_long == "refuse" else None

    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        """Compute P(no error so far) for each step of each solution."""
        return all_scored(self.score_each(solutions))

    def score_each(self, solutions: Sequence[Solution]) -> list[StepScores | DataError]:
        """Score solutions like `score`, but return a DataError for each one that cannot be scored."""
        return score_fitting(solutions, self._readable, self._score)

    def _readable(self, solution: Solution) -> Solution:
        if len(solution.images) > IMAGES:
            raise DataError(
                f"problem {solution.problem.id}: has {len(solution.images)} images, but scorer.backend=vllm reads at "
                f"most {IMAGES}; use scorer.backend=transformers"
            )
        tokens = len(self._format.mark(solution).ids)  # lower bound: an image counts as one token here
        return solution if tokens <= self._context else self._fitting(solution)

    def _score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        if not solutions:
            return []
        from vllm.exceptions import VLLMClientError

        try:
            return self._encoded(solutions)
        except VLLMClientError as error:
            # Image tokens are not counted beforehand, so a solution may turn out to be too long only now.
            fitted = [self._fitting(item) for item in solutions]
            if fitted == list(solutions):
                raise DataError(f"vLLM rejects a solution: {error}; shorten it, or set scorer.too_long=cut") from error
        return self._encoded(fitted)

    def close(self) -> None:
        """Shut down the engine and free its memory."""
        # vLLM's own shutdown also destroys process-wide state, which other engines in this process share.
        engine = self._llm.llm_engine
        engine.engine_core._finalizer.detach()
        engine.model_executor.shutdown()
        del self._llm
        gc.collect()

    def _fitting(self, solution: Solution) -> Solution:
        return fitting(solution, self._format.length, self._context, self._too_long)

    def _encoded(self, solutions: Sequence[Solution]) -> list[StepScores]:
        marked = [self._format.mark(solution) for solution in solutions]
        outputs = self._llm.encode(
            [self._prompt(solution, item) for solution, item in zip(solutions, marked, strict=True)],
            pooling_task=TASK,
            use_tqdm=False,
            # The chat template has already inserted the special tokens.
            tokenization_kwargs={"add_special_tokens": False},
        )
        return [self._at_positions(output, item) for output, item in zip(outputs, marked, strict=True)]

    def _prompt(self, solution: Solution, marked: Marked) -> dict[str, Any]:
        if len(solution.media) > len(solution.images):
            raise DataError(
                f"problem {solution.problem.id}: has videos or audio, which scorer.backend=vllm does not read; use "
                "scorer.backend=transformers"
            )
        if not solution.images:
            return {"prompt_token_ids": list(marked.ids)}
        images = [open_image(image) for image in solution.images]
        return {"prompt": self._format.text(solution), "multi_modal_data": {"image": images}}

    def _at_positions(self, output: Any, marked: Marked) -> StepScores:
        tokens = output.prompt_token_ids
        correct_T = output.outputs.data.reshape(len(tokens), -1)[:, -1].tolist()
        return step_scores(correct_T[position] for position in self._format.located(marked, tokens))


def _head(form: Format, architectures: Sequence[str]) -> dict[str, Any]:
    """Return the engine arguments that make vLLM run the model as a token classifier.

    Raises ConfigError if vLLM has no class for the checkpoint.
    """
    if form.head == "two_tokens":
        tokens = form.tokenizer.convert_ids_to_tokens([form.no_id, form.yes_id])
        overrides = {"classifier_from_token": tokens, "method": "from_2_way_softmax"}
        return {"convert": "classify", "hf_overrides": overrides}
    known = any(name == "Qwen2ForProcessRewardModel" or name.endswith("TokenClassification") for name in architectures)
    if form.head == "two_classes" and known:
        return {}
    raise ConfigError(
        f"scorer.backend=vllm: vLLM has no class for {', '.join(architectures) or 'this checkpoint'}; use "
        "scorer.backend=transformers"
    )


def _engine(config: ScorerConfig, own: dict[str, Any], context: int) -> Any:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    try:
        from vllm import LLM
        from vllm.config import PoolerConfig
        from vllm.platforms import current_platform
    except ImportError as error:
        raise SetupError(
            f"scorer.backend=vllm needs vLLM ({error}); install 'mmprm[cpu]' or 'mmprm[gpu]' with pip"
        ) from error
    cpu = current_platform.is_cpu()
    memory = {"kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30)} if cpu else {}
    set_num_threads = torch.set_num_threads
    try:
        with explained_start(config.prm, "scorer", SetupError):
            return LLM(
                model=config.prm,
                dtype=scorer_dtype(config, on_gpu=not cpu),
                load_format=LOAD_FORMAT,
                runner="pooling",
                pooler_config=PoolerConfig(task=TASK, tok_pooling_type="ALL"),
                max_model_len=context,
                max_num_batched_tokens=config.batch_tokens,
                gpu_memory_utilization=config.gpu_memory_utilization,
                limit_mm_per_prompt={"image": IMAGES, "video": 0, "audio": 0},
                # A cached token yields no score, and a score requires the whole solution in one pass.
                enable_prefix_caching=False,
                enable_chunked_prefill=False,
                enforce_eager=cpu,
                tensor_parallel_size=config.tensor_parallel_size,
                distributed_executor_backend="uni" if config.tensor_parallel_size == 1 else "mp",
                seed=0,
                **own,
                **memory,
            )
    finally:
        torch.set_num_threads = set_num_threads  # vLLM's CPU worker replaces it for the whole process
