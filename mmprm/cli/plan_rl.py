"""Estimate the memory of an RL run: per GPU in each phase (rollout, log-probs, update, sync), and per node.

Needs no weights, no GPU, and no network. config.json of the policy and of the PRM is read from its folder or the hub's
cache; the models of the shipped configurations are built in. `hardware` describes the GPUs; engines, ranks and the
PRM are placed on them as in `mmprm rl`. If the run does not fit, the command exits with code 2 and suggests changes
with which it would fit.

Examples:
  mmprm plan rl --config configs/rl/mm-eureka-7b.yaml
  mmprm plan rl --config configs/rl/prm-rl.yaml --set engine.model=Qwen/Qwen3-VL-8B-Instruct
  mmprm plan rl --config configs/rl/mm-eureka-7b.yaml --set hardware.gpus=4 --set trainer.ranks=4
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from mmprm.cli.plan_shared import (
    TENSOR_PARALLEL_SIZES,
    engine_settings,
    halved,
    model_shape,
    more_gpus,
    report_plan,
    scorer_changes,
    scorer_settings,
    trainer_changes,
    trainer_settings,
)
from mmprm.cli.shared.options import add_config_options, load_config
from mmprm.config import load
from mmprm.errors import ConfigError
from mmprm.planning.fitting import Changes
from mmprm.planning.parts import MemoryPlan
from mmprm.planning.rl import RLSettings, Role, rl_plan
from mmprm.planning.shapes import Shape, shape_text
from mmprm.scoring.config import ScorerConfig
from policy_rl.config import RLConfig
from policy_rl.placement import Placement, place_run
from policy_rl.trainer.config import reference_sharding
from policy_rl.weights.config import transport_of

PROMPT_TOKENS = 2048


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    add_prompt_option(parser)
    add_config_options(parser, RLConfig)


def add_prompt_option(parser: argparse.ArgumentParser) -> None:
    """Add the --prompt-tokens option."""
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        metavar="N",
        help=f"number of tokens of the longest prompt, images included (default: {PROMPT_TOKENS}, or the part of a "
        "shorter context that responses leave)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm plan rl`."""
    config = load_config(arguments, RLConfig)
    print(shape_text(config.engine.model, rl_shape(config)), end="\n\n")
    tokens = longest_prompt(arguments, config)

    def plan_with(more: Sequence[str]) -> MemoryPlan:
        return plan_rl(load(RLConfig, arguments.config, [*arguments.set, *more]), tokens)

    report_plan(plan_rl(config, tokens), plan_with, rl_changes(config, tokens))


def longest_prompt(arguments: argparse.Namespace, config: RLConfig) -> int:
    """Return the assumed number of tokens of the longest prompt: --prompt-tokens, or PROMPT_TOKENS if it is not set.

    In a short context, the default is lowered to the context length minus the maximum response length. With an
    environment, it is the length of one observation.
    """
    if arguments.prompt_tokens is not None:
        return arguments.prompt_tokens
    context = config.engine.max_model_len or rl_shape(config).context
    return max(1, min(PROMPT_TOKENS, (context - _longest(config, 0)) // _prompts(config)))


def rl_shape(config: RLConfig) -> Shape:
    """Return the layer sizes and parameter counts of the policy."""
    trainer = config.trainer
    return model_shape(config.engine.model, config.hardware, "engine.model", trainer.frozen, trainer.lora)


def plan_rl(config: RLConfig, prompt_tokens: int = PROMPT_TOKENS) -> MemoryPlan:
    """Estimate the memory of a configured RL run.

    Raises ConfigError if the run cannot be placed on the GPUs in `hardware`.
    """
    if prompt_tokens < 1:
        raise ConfigError(f"--prompt-tokens={prompt_tokens} must be at least 1; give the length of the longest prompt")
    policy, scorer = rl_shape(config), _scorer(config)
    prm = model_shape(scorer.prm, config.hardware, "process.scorer.prm") if scorer else None
    plan = rl_plan(policy, prm, rl_settings(config, policy, prompt_tokens))
    unused = config.hardware.gpus - sum(group.count for group in plan.groups)
    note = f"{unused} of hardware.gpus={config.hardware.gpus} are not used; see trainer.ranks and rollouts.engines."
    return replace(plan, notes=(*plan.notes, note)) if unused else plan


def rl_settings(config: RLConfig, policy: Shape, prompt_tokens: int) -> RLSettings:
    """Extract the settings that determine a run's memory use."""
    trainer, hardware, kl = config.trainer, config.hardware, config.trainer.loss.kl.coefficient
    settings = trainer_settings(
        trainer.optimization, trainer.ranks, _longest(config, prompt_tokens), trainer.gradient_checkpointing
    )
    scorer, distillation = _scorer(config), trainer.distillation
    teacher = model_shape(distillation.teacher, hardware, "trainer.distillation.teacher") if distillation else None
    return RLSettings(
        trainer=replace(settings, float32_logits=trainer.float32_logits),
        engine=engine_settings(config.engine, policy),
        gpus=roles(_placed(config)),
        gpu_gib=hardware.gpu_memory_gib,
        nodes=hardware.nodes,
        transport=transport_of(config.weights_transfer, True, config.rollouts.colocated),
        reference=kl > 0 and trainer.lora is None,  # with adapters, the base model is the reference
        offloads_reference=reference_sharding(trainer).offload == "all",
        computes_log_probs=config.batch.optimizer_steps > 1 or config.has_critic or kl > 0 or teacher is not None,
        scorer=scorer_settings(scorer) if scorer else None,
        teacher=teacher,
        host_gib=hardware.host_memory_gib,
    )


def _placed(config: RLConfig) -> Placement:
    hardware = config.hardware
    try:
        return place_run(config, [hardware.gpus // hardware.nodes] * hardware.nodes)
    except ConfigError as error:
        raise ConfigError(f"hardware.gpus={hardware.gpus}: {error}; or raise hardware.gpus") from error


def roles(placed: Placement) -> dict[tuple[Role, ...], int]:
    """Return the number of GPUs that run each combination of roles: trainer, engine, scorer."""
    on_gpu: dict[tuple[int, int], list[Role]] = {}
    for slot in placed.ranks:
        on_gpu.setdefault(slot, []).append("trainer")
    for slot in sum(placed.engines, ()):
        on_gpu.setdefault(slot, []).append("engine")
    for slot in placed.prm:
        on_gpu.setdefault(slot, []).append("scorer")
    return dict(Counter(map(tuple, on_gpu.values())))


def rl_changes(config: RLConfig, prompt_tokens: int = PROMPT_TOKENS) -> Iterator[Changes]:
    """Yield configuration changes that save memory or add GPUs, cheapest first."""
    trainer, engine, scorer = config.trainer, config.engine, _scorer(config)
    yield from _engine_changes(config)
    if scorer is not None:
        yield from _scorer_changes(scorer, config)
    if config.weights.transport == "file":
        yield {"weights.transport": "auto"}
    longest = _longest(config, prompt_tokens)
    frozen = trainer.loss.kl.coefficient > 0 or trainer.distillation is not None
    if frozen and trainer.optimization.zero_stage == 3 and not trainer.offload_reference:
        yield {"trainer.offload_reference": True}
    checkpointing = {} if trainer.gradient_checkpointing else {"trainer.gradient_checkpointing": True}
    lora = {} if trainer.lora else {"trainer.lora.rank": 16}
    yield from trainer_changes(trainer.optimization, "trainer.optimization", longest, checkpointing, lora)
    for size in TENSOR_PARALLEL_SIZES:
        if size != engine.tensor_parallel_size:
            yield {"engine.tensor_parallel_size": size}
    yield from _more_ranks(config)


def _engine_changes(config: RLConfig) -> Iterator[Changes]:
    """Yield changes that lower the engines' gpu_memory_utilization or max_model_len."""
    engine = config.engine
    for percent in range(90, 10, -5):
        if percent / 100 < engine.gpu_memory_utilization:
            yield {"engine.gpu_memory_utilization": percent / 100}
    if engine.kv_cache_gib is not None:
        yield {"engine.kv_cache_gib": None}
    longest = engine.max_model_len or rl_shape(config).context
    for length in halved(longest, _longest(config, 1)):
        yield {"engine.max_model_len": length}


def _scorer_changes(scorer: ScorerConfig, config: RLConfig) -> Iterator[Changes]:
    """Yield changes that make the process reward model fit, such as a GPU of its own."""
    yield from scorer_changes(scorer, "process.scorer")
    if scorer.backend == "vllm":
        for percent in range(90, 10, -10):
            if percent / 100 < scorer.gpu_memory_utilization:
                yield {"process.scorer.gpu_memory_utilization": percent / 100}
    if config.process is not None and not config.process.own_gpu:
        yield {"process.own_gpu": True}


def _more_ranks(config: RLConfig) -> Iterator[Changes]:
    """Yield changes that add GPUs and trainer ranks, followed by changes that use larger GPUs."""
    hardware = config.hardware
    for change in more_gpus(hardware):
        factor = change.get("hardware.gpus", hardware.gpus) // hardware.gpus
        yield {**change, "trainer.ranks": config.trainer.ranks * factor} if factor > 1 else change


def _prompts(config: RLConfig) -> int:
    """Return the number of prompts in the longest sequence: one, or the observations of an episode."""
    environment = config.environment
    if environment is None:
        return 1
    turns = environment.max_turns
    return turns if environment.images == "all" else max(1, min(environment.images, turns))


def _longest(config: RLConfig, prompt_tokens: int) -> int:
    if config.environment is not None:
        return _prompts(config) * prompt_tokens + config.environment.max_turns * config.environment.max_turn_tokens
    responses = [config.sampling.max_tokens, *(phase.max_tokens for phase in config.schedule)]
    return prompt_tokens + max(responses)


def _scorer(config: RLConfig) -> ScorerConfig | None:
    """Return the scorer's settings, or None if there is no scorer or servers run it."""
    local = config.process is not None and not config.process.scorer.is_remote
    return config.process.scorer if local else None
