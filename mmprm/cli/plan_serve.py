"""Estimate the memory of inference engines and of the scorer, for any command that uses them.

--config takes a file of `mmprm serve` (scorer only), `rerank` (engines, then the scorer), `search` (both at the same
time), or `annotate` and `filter` (engines only). Needs no weights, no GPU, and no network; see `mmprm plan rl --help`.
If the run does not fit, the command exits with code 2 and suggests changes with which it would fit.

Examples:
  mmprm plan serve --config configs/search/internvl3-8b.yaml
  mmprm plan serve --set scorer.prm=OpenGVLab/InternVL3-38B-hf --set scorer.dtype=bfloat16
  mmprm plan serve --config configs/rerank/internvl3-8b.yaml --set engine.max_model_len=32768
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from mcts.config import CampaignConfig
from mmprm.cli.plan_rl import PROMPT_TOKENS, add_prompt_option
from mmprm.cli.plan_shared import (
    TENSOR_PARALLEL_SIZES,
    engine_settings,
    halved,
    model_shape,
    more_gpus,
    report_plan,
    scorer_changes,
    scorer_settings,
)
from mmprm.cli.rerank import RerankConfig
from mmprm.cli.search import GuidedSearchConfig
from mmprm.cli.serve import ServeConfig
from mmprm.cli.shared.options import add_config_options
from mmprm.config import load, override, read_yaml
from mmprm.errors import ConfigError
from mmprm.planning.fitting import Changes
from mmprm.planning.parts import MemoryPlan
from mmprm.planning.serving import serving_plan
from mmprm.planning.shapes import shape_text
from mmprm.sampling.config import EngineConfig
from mmprm.scoring.config import LocalScorerConfig

Served = ServeConfig | RerankConfig | GuidedSearchConfig | CampaignConfig

MIN_CONTEXT = 2048
"""Smallest engine.max_model_len and scorer.batch_tokens to propose."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    add_prompt_option(parser)
    add_config_options(parser, ServeConfig)


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm plan serve`."""
    config = read_served(arguments.config, arguments.set)
    for name, model in (("engine.model", _engine(config)), ("scorer.prm", _scorer(config))):
        if model is not None:
            path = model.model if isinstance(model, EngineConfig) else model.prm
            print(shape_text(path, model_shape(path, config.hardware, name)), end="\n\n")
    tokens = PROMPT_TOKENS if arguments.prompt_tokens is None else arguments.prompt_tokens

    def plan_with(more: Sequence[str]) -> MemoryPlan:
        return plan_serve(read_served(arguments.config, [*arguments.set, *more]), tokens)

    report_plan(plan_serve(config, tokens), plan_with, serve_changes(config))


def read_served(path: str | None, sets: Sequence[str] = ()) -> Served:
    """Load a configuration, inferring from its keys which command it belongs to."""
    values = override(read_yaml(Path(path)) if path else {}, sets)
    if "engine" not in values:
        kind: type[Served] = ServeConfig
    elif "scorer" not in values:
        own = CampaignConfig.model_fields.keys() - RerankConfig.model_fields.keys()
        kind = CampaignConfig if own & values.keys() else RerankConfig
    else:
        kind = GuidedSearchConfig if "search" in values else RerankConfig
    if kind is not ServeConfig and "problems" not in values:
        sets = ["problems.path=problems.jsonl", *sets]  # a placeholder that the plan does not read
    return load(kind, path, sets)


def plan_serve(config: Served, prompt_tokens: int = PROMPT_TOKENS) -> MemoryPlan:
    """Estimate the memory of the configured engines and scorer."""
    hardware, engine, scorer = config.hardware, _engine(config), _scorer(config)
    if engine is None and scorer is None:
        raise ConfigError(
            "servers run the models, so nothing runs on this machine; plan on the machines of the servers"
        )
    policy = prm = None
    tokens = prompt_tokens
    if engine is not None:
        shape = model_shape(engine.model, hardware, "engine.model")
        policy = (shape, engine_settings(engine, shape))
        tokens += config.sampling.max_tokens
    if scorer is not None:
        prm = (model_shape(scorer.prm, hardware, "scorer.prm"), scorer_settings(scorer))
    together = isinstance(config, GuidedSearchConfig)
    return serving_plan(policy, prm, hardware.gpus, hardware.gpu_memory_gib, together, tokens, hardware.nodes)


def serve_changes(config: Served) -> Iterator[Changes]:
    """Yield configuration changes that save memory or add GPUs, cheapest first."""
    engine, scorer = _engine(config), _scorer(config)
    if scorer is not None:
        yield from scorer_changes(scorer, "scorer")
        yield from _smaller_batches(scorer)
    if engine is not None:
        longest = engine.max_model_len or model_shape(engine.model, config.hardware, "engine.model").context
        for length in halved(longest, MIN_CONTEXT):
            yield {"engine.max_model_len": length}
        if engine.kv_cache_gib is not None:
            yield {"engine.kv_cache_gib": None}
        for percent in (90, 80, 70, 60, 50, 45, 40, 30, 20):
            yield {"engine.gpu_memory_utilization": percent / 100}
        for size in TENSOR_PARALLEL_SIZES:
            if size != engine.tensor_parallel_size:
                yield {"engine.tensor_parallel_size": size}
    yield from more_gpus(config.hardware)


def _smaller_batches(scorer: LocalScorerConfig) -> Iterator[Changes]:
    """Yield changes that lower the scorer's batch_tokens and, for vLLM, gpu_memory_utilization."""
    for tokens in halved(scorer.batch_tokens, MIN_CONTEXT):
        yield {"scorer.batch_tokens": tokens}
    if scorer.backend == "vllm":
        for percent in (90, 80, 70, 60, 50, 45, 40, 30, 20):
            yield {"scorer.gpu_memory_utilization": percent / 100}


def _engine(config: Served) -> EngineConfig | None:
    """Return the engine settings if engines run on this machine, or None otherwise."""
    engine = None if isinstance(config, ServeConfig) else config.engine
    return None if engine is None or engine.servers is not None else engine


def _scorer(config: Served) -> LocalScorerConfig | None:
    """Return the scorer settings if a scorer runs on this machine, or None otherwise."""
    scorer = None if isinstance(config, CampaignConfig) else config.scorer
    if scorer is None or scorer.is_remote:
        return None
    if scorer.judge is not None:
        raise ConfigError(
            "scorer.backend=judge: the memory of a judge is not planned with other models; plan its engine alone with "
            "mmprm plan annotate"
        )
    return scorer
