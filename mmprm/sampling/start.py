"""Start the vLLM engines that `mmprm annotate`, `filter`, `eval policy` and `rl` use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmprm.errors import SamplingError
from mmprm.sampling.arguments import NO_ARGUMENTS
from mmprm.sampling.config import EngineConfig
from mmprm.sampling.engines import InProcessEngine
from mmprm.sampling.separate_engine import SeparateEngine
from mmprm.worker_logs import explained_start


def start_engine(config: EngineConfig, arguments: Mapping[str, Any] = NO_ARGUMENTS) -> InProcessEngine | SeparateEngine:
    """Start an engine in this process or in separate ones, according to its configuration.

    Raises SamplingError, with the cause from the log, if a process that vLLM started failed, and vLLM's own errors.
    """
    from vllm.platforms import current_platform

    alone = current_platform.is_cpu() and config.tensor_parallel_size == 1
    if config.mode == "in_process" or (config.mode == "auto" and alone):
        return InProcessEngine(config, arguments)
    with explained_start(config.model, "engine", SamplingError):
        return SeparateEngine(config, arguments)
