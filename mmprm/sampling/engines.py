"""Two ways to run one vLLM engine behind one interface: submit a prompt, get a future.

InProcessEngine computes in a thread of this process; SeparateEngine leaves that to processes that vLLM starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mmprm.errors import EngineStoppedError
from mmprm.sampling.config import EngineConfig

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams

CPU_KV_CACHE_GIB = 1.0
CPU_BLOCK_SIZE = 32
CPU_BATCHED_TOKENS = 32768


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Totals since the engine started, and what it did in its last step."""

    generated_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that came from the prefix cache."""
    running: int = 0
    """Completions that are being computed."""
    waiting: int = 0
    """Completions that wait for a place among max_num_seqs or for cache blocks."""
    kv_cache_usage: float = 0.0
    """Share of the key-value cache in use, in [0, 1]."""


class _StatsKeeper:
    """vLLM's stat logger interface; called after every step of the engine."""

    def __init__(self) -> None:
        self.stats = EngineStats()

    def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
        stats = self.stats
        if scheduler_stats is not None:
            prefix_cache = scheduler_stats.prefix_cache_stats
            stats = replace(
                stats,
                prompt_tokens=stats.prompt_tokens + prefix_cache.queries,
                cached_tokens=stats.cached_tokens + prefix_cache.hits,
                running=scheduler_stats.num_running_reqs,
                waiting=scheduler_stats.num_waiting_reqs,
                kv_cache_usage=scheduler_stats.kv_cache_usage,
            )
        if iteration_stats is not None:
            stats = replace(stats, generated_tokens=stats.generated_tokens + iteration_stats.num_generation_tokens)
        self.stats = stats

    def log_engine_initialized(self) -> None: ...

    def log(self) -> None: ...

    def record_sleep_state(self, *_: Any) -> None: ...


class InProcessEngine:
    """One thread owns the engine: it takes in what was submitted, steps, and completes futures."""

    def __init__(self, config: EngineConfig) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        self._inbox: queue.SimpleQueue[tuple[dict[str, Any], SamplingParams, Future] | None] = queue.SimpleQueue()
        self._keeper = _StatsKeeper()
        self._stopped: str | None = None
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(config, ready), name="vllm", daemon=True)
        self._thread.start()
        ready.result()

    def submit(self, prompt: dict[str, Any], params: SamplingParams) -> Future[RequestOutput]:
        future: Future[RequestOutput] = Future()
        self._inbox.put((prompt, params, future))
        if self._stopped:
            self._refuse()
        return future

    def stats(self) -> EngineStats:
        return self._keeper.stats

    def close(self) -> None:
        """Stop after the current step; what is still in flight gets an EngineStoppedError."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self, config: EngineConfig, ready: Future[None]) -> None:
        try:
            engine = self._start(config)
        except BaseException as error:
            ready.set_exception(error)
            return
        ready.set_result(None)
        in_flight: dict[str, Future] = {}
        try:
            self._pump(engine, in_flight)
            self._stopped = "it was closed"
        except Exception as error:
            self._stopped = f"{type(error).__name__}: {error}"
        for future in in_flight.values():
            future.set_exception(self._stop_error())
        self._refuse()
        # vLLM's own ending also takes down process-wide state, under any other engine of this process.
        engine.engine_core._finalizer.detach()
        engine.model_executor.shutdown()
        del engine
        gc.collect()

    def _start(self, config: EngineConfig) -> Any:
        if config.cores:
            # Threads inherit the mask of the one that starts them, so OpenMP's stay on these cores too. Without
            # processes of its own vLLM binds nothing.
            os.sched_setaffinity(0, config.cores)
        import torch
        from vllm.v1.engine.llm_engine import LLMEngine

        if config.cores:
            torch.set_num_threads(len(config.cores))
        arguments = engine_arguments(config)
        arguments.distributed_executor_backend = "uni"
        set_num_threads = torch.set_num_threads
        try:
            return LLMEngine.from_engine_args(arguments, stat_loggers=[lambda *_: self._keeper])
        finally:
            torch.set_num_threads = set_num_threads  # vLLM's CPU worker replaces it, for all that share the process

    def _pump(self, engine: Any, in_flight: dict[str, Future]) -> None:
        numbers = itertools.count()
        while True:
            while not in_flight or not self._inbox.empty():
                job = self._inbox.get()
                if job is None:
                    return
                prompt, params, future = job
                if not future.set_running_or_notify_cancel():
                    continue
                try:
                    (rendered,) = engine.renderer.render_cmpl([prompt], tokenisation(engine))
                    name = str(next(numbers))
                    engine.add_request(name, rendered, params)
                    in_flight[name] = future
                except Exception as error:
                    future.set_exception(error)
            for output in engine.step():
                in_flight.pop(output.request_id).set_result(output)

    def _stop_error(self) -> EngineStoppedError:
        return EngineStoppedError(f"the engine has stopped: {self._stopped}")

    def _refuse(self) -> None:
        """Answer what lies in the inbox of a stopped engine; also called after a late submit, which may cross it."""
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._inbox.get_nowait()
                if job is not None and job[2].set_running_or_notify_cancel():
                    job[2].set_exception(self._stop_error())


class SeparateEngine:
    """vLLM's AsyncLLM on an event loop of its own, so that callers may come from any loop."""

    def __init__(self, config: EngineConfig) -> None:
        from vllm.v1.engine.async_llm import AsyncLLM

        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
        self._keeper = _StatsKeeper()
        self._numbers = itertools.count()
        self._engine = AsyncLLM.from_engine_args(engine_arguments(config), stat_loggers=[lambda *_: self._keeper])
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True).start()

    def submit(self, prompt: dict[str, Any], params: SamplingParams) -> Future[RequestOutput]:
        return asyncio.run_coroutine_threadsafe(self._generate(prompt, params), self._loop)

    def stats(self) -> EngineStats:
        return self._keeper.stats

    def close(self) -> None:
        """Stop vLLM's processes; what is still in flight gets an EngineStoppedError."""
        self._engine.shutdown()
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _generate(self, prompt: dict[str, Any], params: SamplingParams) -> RequestOutput:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            (rendered,) = await self._engine.renderer.render_cmpl_async([prompt], tokenisation(self._engine))
            return [output async for output in self._engine.generate(rendered, params, str(next(self._numbers)))][-1]
        except EngineDeadError as error:
            raise EngineStoppedError(f"the engine has stopped: {error}") from error


def tokenisation(engine: Any) -> Any:
    """A chat template writes its own special tokens: the tokenizer must not add a second beginning."""
    return engine.renderer.default_chat_tok_params.with_kwargs(add_special_tokens=False)


def engine_arguments(config: EngineConfig) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    cpu = current_platform.is_cpu()
    kv_cache_gib = config.kv_cache_gib or (CPU_KV_CACHE_GIB if cpu else None)
    optional = {
        "max_model_len": config.max_model_len,
        # vLLM's own block size on CPU is 128: shorter shared prefixes would never hit the cache.
        "block_size": config.block_size or (CPU_BLOCK_SIZE if cpu else None),
        "kv_cache_memory_bytes": int(kv_cache_gib * 2**30) if kv_cache_gib else None,
        "mm_processor_kwargs": {"max_pixels": config.max_pixels} if config.max_pixels else None,
        # A seeded request whose prompt is computed in parts winds its random numbers back, which stops the engine on
        # CPU ("CPU Generator does not use offset"). So prompts are computed whole, and many fit one step.
        "enable_chunked_prefill": False if cpu else None,
        "max_num_batched_tokens": max(CPU_BATCHED_TOKENS, config.max_model_len or 0) if cpu else None,
    }
    return AsyncEngineArgs(
        model=config.model,
        dtype=config.dtype,
        max_num_seqs=config.max_num_seqs,
        gpu_memory_utilization=config.gpu_memory_utilization,
        tensor_parallel_size=config.tensor_parallel_size,
        enforce_eager=cpu,
        enable_prefix_caching=True,
        limit_mm_per_prompt={"image": config.pictures_per_prompt, "video": 0, "audio": 0},
        seed=0,
        **{name: value for name, value in optional.items() if value is not None},
    )
