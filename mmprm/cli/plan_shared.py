"""Build memory plans from configurations and report them, for all plan commands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from mmprm.cli.shared.policy import model_path
from mmprm.errors import ConfigError
from mmprm.hardware import HardwareConfig
from mmprm.planning.engine import EngineSettings, ScorerSettings
from mmprm.planning.fitting import Changes, spelled, ways_to_fit
from mmprm.planning.parts import GIB, MemoryPlan, memory_text
from mmprm.planning.shapes import Shape, shape_of
from mmprm.planning.trainer import TrainerSettings
from mmprm.sampling.config import LocalEngineConfig
from mmprm.scoring.config import LocalScorerConfig
from mmprm.training.config import OptimizationConfig
from mmprm.training.lora import LoraConfig

GPUS_PER_NODE = 8
"""Number of GPUs per node to assume when proposing more GPUs."""
MAX_FACTOR = 16
"""Largest multiple of the configured number of GPUs to propose."""
TENSOR_PARALLEL_SIZES = (1, 2, 4, 8)
"""Tensor-parallel sizes to propose for an engine or a scorer."""
STORED_DTYPE = "bfloat16"
"""Dtype assumed for stored checkpoints; with dtype=auto, they are loaded in this dtype on GPU."""
GPU_DTYPE = "bfloat16"
"""Dtype of engines with dtype=auto on GPU. GPUs without bf16 instructions use float16, which has the same size."""
MENTIONED_HOST = 64 * GIB
"""Additional CPU memory per node, in bytes, above which a proposed change states its total need."""
LARGER_GPUS = (139, 178)
"""Memory in GiB of larger GPUs to propose: H200 and B200."""

PlanWith = Callable[[Sequence[str]], MemoryPlan]
"""Function that plans a command's configuration with the given `key=value` overrides added."""


def report_plan(plan: MemoryPlan, plan_with: PlanWith, changes: Iterable[Changes]) -> None:
    """Print a plan; if the run does not fit, raise ConfigError with changes that would make it fit."""
    print(memory_text(plan))
    if plan.fits:
        return
    ways = ways_to_fit(lambda change: _fits(plan_with, change), changes)
    if ways:
        found = f"what would fit: {'; '.join(_described(change, plan, plan_with) for change in ways)}"
    elif plan.lacks_only_host_memory:
        found = f"use machines with at least {max(plan.host.values()) / GIB:,.0f} GiB of CPU memory"
    else:
        found = "none of the known changes would fit; choose a smaller model"
    raise ConfigError("\n".join([*plan.shortfalls(), found]))


def _described(change: Changes, plan: MemoryPlan, plan_with: PlanWith) -> str:
    """Format a change as options, and append its CPU memory per node if this exceeds the plan's by more than
    MENTIONED_HOST."""
    before, after = (max(each.host.values(), default=0.0) for each in (plan, plan_with(overrides(change))))
    needs = f" (needs {after / GIB:,.0f} GiB of CPU memory per node)" if after - before > MENTIONED_HOST else ""
    return spelled(change) + needs


def model_shape(
    model: str,
    hardware: HardwareConfig,
    key: str,
    frozen: tuple[str, ...] = (),
    lora: LoraConfig | None = None,
    judges: bool = False,
) -> Shape:
    """Return the layer sizes and parameter counts of a configured model.

    `judges` marks a PRM. `key` names the model's setting in error messages.
    """
    name = hardware.shapes.get(model, model)
    return shape_of(model_path(name), frozen, lora, judges, key)


def trainer_settings(
    training: OptimizationConfig, ranks: int, longest: int, checkpointing: bool, reads_logits: bool = True
) -> TrainerSettings:
    """Extract the trainer settings that determine memory use. `longest` is the number of tokens in the longest
    sequence."""
    return TrainerSettings(
        ranks=ranks,
        stage=training.stage,
        precision=training.precision,
        offload=training.offload,
        tokens=max(training.micro_batch_tokens, longest),  # a sample longer than the budget runs alone
        longest=longest,
        checkpointing=checkpointing,
        reads_logits=reads_logits,
    )


def engine_settings(engine: LocalEngineConfig, shape: Shape) -> EngineSettings:
    """Extract the engine settings that determine memory use."""
    return EngineSettings(
        dtype=GPU_DTYPE if engine.dtype == "auto" else engine.dtype,
        tensor_parallel=engine.tensor_parallel_size,
        utilization=engine.gpu_memory_utilization,
        longest=engine.max_model_len or shape.context,
        max_num_seqs=engine.max_num_seqs,
        kv_cache_gib=engine.kv_cache_gib,
        max_pixels=engine.max_pixels,
        compiled=engine.compile is not False,
        videos=engine.videos_per_prompt > 0,
        audios=engine.audios_per_prompt > 0,
    )


def scorer_settings(scorer: LocalScorerConfig) -> ScorerSettings:
    """Extract the settings that determine the memory use of a scorer on this machine's GPUs."""
    assert scorer.backend not in ("server", "judge"), "they have plans of their own"
    return ScorerSettings(
        backend=scorer.backend,
        dtype=STORED_DTYPE if scorer.dtype == "auto" else scorer.dtype,
        batch_tokens=scorer.batch_tokens,
        utilization=scorer.gpu_memory_utilization,
        tensor_parallel=scorer.tensor_parallel_size,
    )


def scorer_changes(scorer: LocalScorerConfig, prefix: str) -> Iterator[Changes]:
    """Yield changes that make a scorer fit: first bfloat16, then other numbers of GPUs. `prefix` is the path of its
    keys."""
    if scorer.dtype == "float32":
        yield {f"{prefix}.dtype": "bfloat16"}
    for size in TENSOR_PARALLEL_SIZES:
        if size != scorer.tensor_parallel_size:
            yield {f"{prefix}.backend": "vllm", f"{prefix}.tensor_parallel_size": size}


def trainer_changes(
    training: OptimizationConfig, prefix: str, longest: int, checkpointing: Changes, lora: Changes
) -> Iterator[Changes]:
    """Yield trainer changes that save memory, cheapest first.

    `prefix` is the path of the keys of `training`. `checkpointing` and `lora` are the changes that turn these on, or
    empty if they are on already.
    """
    stage, tokens = training.zero_stage, training.micro_batch_tokens // 2
    if checkpointing:
        yield checkpointing
    for higher in range(stage + 1, 4):
        yield {f"{prefix}.zero_stage": higher}
    while tokens >= longest:
        yield {f"{prefix}.micro_batch_tokens": tokens}
        tokens //= 2
    # DeepSpeed only offloads what it shards.
    for offload, least in (("optimizer", 2), ("all", 3)):
        if training.offload != offload:
            yield {f"{prefix}.offload": offload, **({f"{prefix}.zero_stage": least} if stage < least else {})}
    if lora:
        yield lora


def more_gpus(hardware: HardwareConfig, *keys: str) -> Iterator[Changes]:
    """Yield changes that add GPUs (2, 4, 8, … times as many), followed by changes that use larger GPUs.

    `keys` are set to the new number of GPUs.
    """
    gpus = hardware.gpus * 2
    while gpus <= hardware.gpus * MAX_FACTOR:
        nodes = max(hardware.nodes, -(-gpus // GPUS_PER_NODE))
        if gpus % nodes == 0:
            own = {"hardware.nodes": nodes} if nodes != hardware.nodes else {}
            yield {"hardware.gpus": gpus, **own, **dict.fromkeys(keys, gpus)}
        gpus *= 2
    for memory in LARGER_GPUS:
        if memory > hardware.gpu_memory_gib:
            yield {"hardware.gpu_memory_gib": memory}


def halved(value: int, least: int) -> Iterator[int]:
    """Yield half of the value, a quarter of it, and so on, down to `least`."""
    while value // 2 >= least:
        value //= 2
        yield value


def overrides(changes: Changes) -> list[str]:
    """Format the changes as `key=value` overrides."""
    return [f"{key}={_text(value)}" for key, value in changes.items()]


def _fits(plan_with: PlanWith, changes: Changes) -> bool:
    try:
        return plan_with(overrides(changes)).fits
    except ConfigError:
        return False


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
