"""Run a vLLM engine in this process or in separate ones, with one interface: submit a prompt, get a future.

InProcessEngine computes in a thread of this process; SeparateEngine uses the processes that vLLM starts.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from mmprm.errors import EngineStoppedError
from mmprm.sampling.arguments import NO_ARGUMENTS, engine_arguments
from mmprm.sampling.config import EngineConfig
from mmprm.sampling.cores import engine_cores

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Holds an engine's token counts since its start, and its state after the last step."""

    generated_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Number of prompt tokens served from the prefix cache."""
    running: int = 0
    """Number of completions that are being generated."""
    waiting: int = 0
    """Number of completions waiting for one of max_num_seqs slots or for cache blocks."""
    kv_cache_usage: float = 0.0
    """Fraction of the KV cache in use, in [0, 1]."""


class StatsKeeper:
    """Collects an engine's statistics through vLLM's stat logger interface, which is called after every engine step."""

    def __init__(self) -> None:
        self.stats = EngineStats()

    def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
        """Add the statistics of one engine step."""
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


@dataclass(frozen=True, slots=True)
class _Prompt:
    prompt: dict[str, Any]
    params: SamplingParams
    future: Future


@dataclass(frozen=True, slots=True)
class _Call:
    method: str
    arguments: tuple[Any, ...]
    future: Future


@dataclass(frozen=True, slots=True)
class _Interrupt:
    future: Future


class InProcessEngine:
    """Runs the engine in a background thread that accepts requests, steps the engine and completes futures.

    `arguments` are additional vLLM engine arguments beyond those derived from the configuration.
    """

    def __init__(self, config: EngineConfig, arguments: Mapping[str, Any] = NO_ARGUMENTS) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        self._inbox: queue.SimpleQueue[_Prompt | _Call | _Interrupt | None] = queue.SimpleQueue()
        self._keeper = StatsKeeper()
        self._stopped: str | None = None
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(config, arguments, ready), name="vllm", daemon=True)
        self._thread.start()
        ready.result()

    def submit(self, prompt: dict[str, Any], params: SamplingParams) -> Future[RequestOutput]:
        """Submit a prompt and return a future for vLLM's output."""
        return self._put(_Prompt(prompt, params, Future()))

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        """Schedule a call to a method of the vLLM engine, and return a future for its result.

        The method runs once nothing is in flight; later submissions wait for it.
        """
        return self._put(_Call(method, arguments, Future()))

    def interrupt(self) -> Future[None]:
        """Stop the requests in flight, and return a future that completes when they have stopped.

        Their own futures then complete with the tokens so far and the finish_reason "abort".
        """
        return self._put(_Interrupt(Future()))

    def stats(self) -> EngineStats:
        """Return the engine's current statistics."""
        return self._keeper.stats

    def check(self) -> None:
        """Raise EngineStoppedError if the engine has stopped."""
        if self._stopped:
            raise self._stop_error()

    def close(self) -> None:
        """Stop the engine after the current step; requests still in flight fail with EngineStoppedError."""
        self._inbox.put(None)
        self._thread.join()

    def _put(self, job: _Prompt | _Call | _Interrupt) -> Future:
        self._inbox.put(job)
        if self._stopped:
            self._refuse()
        return job.future

    def _run(self, config: EngineConfig, arguments: Mapping[str, Any], ready: Future[None]) -> None:
        with engine_cores(config.cores) as cores:
            self._serve(config.model_copy(update={"cores": cores}), arguments, ready)

    def _serve(self, config: EngineConfig, arguments: Mapping[str, Any], ready: Future[None]) -> None:
        try:
            engine = self._start(config, arguments)
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
        # vLLM's own shutdown also tears down process-wide state that other engines of this process use.
        engine.engine_core._finalizer.detach()
        engine.model_executor.shutdown()
        del engine
        gc.collect()

    def _start(self, config: EngineConfig, extra: Mapping[str, Any]) -> Any:
        if config.cores:
            # Threads inherit the affinity mask of their parent, so OpenMP's threads also stay on these cores. In
            # this mode, vLLM itself pins no threads.
            os.sched_setaffinity(0, config.cores)
        import torch
        from vllm.v1.engine.llm_engine import LLMEngine

        if config.cores:
            torch.set_num_threads(len(config.cores))
        arguments = engine_arguments(config, extra)
        arguments.distributed_executor_backend = "uni"
        set_num_threads = torch.set_num_threads
        try:
            return LLMEngine.from_engine_args(arguments, stat_loggers=[lambda *_: self._keeper])
        finally:
            torch.set_num_threads = set_num_threads  # vLLM's CPU worker replaces it for the whole process

    def _pump(self, engine: Any, in_flight: dict[str, Future]) -> None:
        numbers = map(str, itertools.count())
        held: _Call | None = None
        try:
            while True:
                while held is None and (not in_flight or not self._inbox.empty()):
                    job = self._inbox.get()
                    if job is None:
                        return
                    if not job.future.set_running_or_notify_cancel():
                        continue
                    if isinstance(job, _Call):
                        held = job
                    elif isinstance(job, _Interrupt):
                        _settle(job.future, _abort, engine, in_flight)
                    else:
                        _admit(engine, job, next(numbers), in_flight)
                if in_flight:
                    for output in engine.step():
                        in_flight.pop(output.request_id).set_result(output)
                elif held is not None:
                    _settle(held.future, getattr(engine, held.method), *held.arguments)
                    held = None
        finally:
            if held is not None:
                in_flight["call"] = held.future

    def _stop_error(self) -> EngineStoppedError:
        return EngineStoppedError(
            f"the engine has stopped: {self._stopped}; see its log above, and run the command again"
        )

    def _refuse(self) -> None:
        """Fail the requests that remain in the inbox of a stopped engine.

        Also called after a late submit, which may race with the stop.
        """
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._inbox.get_nowait()
                if job is not None and job.future.set_running_or_notify_cancel():
                    job.future.set_exception(self._stop_error())


def _admit(engine: Any, job: _Prompt, name: str, in_flight: dict[str, Future]) -> None:
    try:
        (rendered,) = engine.renderer.render_cmpl([job.prompt], tokenization(engine))
        engine.add_request(name, rendered, job.params)
        in_flight[name] = job.future
    except Exception as error:
        job.future.set_exception(error)


def _abort(engine: Any, in_flight: dict[str, Future]) -> None:
    """Abort all requests in flight, and complete their futures with the tokens so far."""
    outputs: list[RequestOutput] = []
    for state in engine.output_processor.request_states.values():
        # LLMEngine returns nothing for aborted requests. vLLM puts their outputs into a queue if there is one.
        state.queue = SimpleNamespace(put=outputs.append)
    engine.abort_request(list(in_flight))
    forget_finished_parents(engine.output_processor)
    for output in outputs:
        in_flight.pop(output.request_id).set_result(output)


def forget_finished_parents(output_processor: Any) -> None:
    """Remove the parents of aborted requests for several samples.

    vLLM 0.32 would keep them, and the outputs that they hold, until the engine stops.
    """
    parents = output_processor.parent_requests
    for name in [name for name, parent in parents.items() if not parent.child_requests]:
        del parents[name]


def _settle(future: Future, function: Callable[..., Any], *arguments: Any) -> None:
    try:
        future.set_result(function(*arguments))
    except Exception as error:
        future.set_exception(error)


def tokenization(engine: Any) -> Any:
    """Return vLLM's tokenization parameters for rendered prompts.

    A chat template writes its own special tokens, so the tokenizer must not add a second beginning-of-sequence token.
    """
    return engine.renderer.default_chat_tok_params.with_kwargs(add_special_tokens=False)
