"""Set up the model, trainer, engine and samples that the parts of benchmarks/gpu.py measure."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

GIB = 2**30
LAYERS = 4
DRY = bool(os.environ.get("MMPRM_GPU_DRY"))
DEVICE = "cpu" if DRY else "cuda"


def gpu_memory() -> dict[str, float]:
    """Return GPU memory in GiB: used by this process's tensors, reserved by its allocator, and free."""
    if DRY:
        return {}
    sizes = {"in_use": torch.cuda.memory_allocated(), "cached": torch.cuda.memory_reserved()}
    return {
        f"{name}_gib": round(size / GIB, 2) for name, size in {**sizes, "free": torch.cuda.mem_get_info()[0]}.items()
    }


def write_model() -> tuple[str, int]:
    """Write a checkpoint with random weights and the built-in model's processor; return (folder, parameter count)."""
    from transformers import AutoConfig, AutoProcessor, Qwen2_5_VLForConditionalGeneration

    from mmprm.tiny.model import weights_path

    config = AutoConfig.from_pretrained(weights_path())
    text = config.text_config
    if not DRY:
        text.hidden_size, text.intermediate_size, text.vocab_size = 3584, 18944, 152064
        text.num_attention_heads, text.num_key_value_heads = 28, 4
        text.rope_parameters["mrope_section"] = [16, 24, 24]
        config.vision_config.out_hidden_size = 3584
    layers = 1 if DRY else LAYERS
    text.num_hidden_layers, text.max_position_embeddings = layers, 32768
    text.layer_types = ["full_attention"] * layers
    folder = tempfile.mkdtemp()
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(weights_path()).save_pretrained(folder)
    parameters = sum(tensor.numel() for tensor in model.parameters())
    del model
    if not DRY:
        torch.cuda.empty_cache()
    return folder, parameters


def embedding_size(folder: str) -> int:
    """Return the number of parameters of a checkpoint's input embeddings."""
    from transformers import AutoConfig

    text = AutoConfig.from_pretrained(folder).get_text_config()
    return text.vocab_size * text.hidden_size


def planned_update(folder: str, micro_batch_tokens: int) -> float:
    """Return the peak in bytes that `mmprm plan rl` estimates for an update of `open_trainer` on one GPU."""
    from mmprm.planning.shapes import shape_of
    from mmprm.planning.trainer import TrainerSettings, training_plan

    longest = min(micro_batch_tokens, 8192)
    trainer = TrainerSettings(1, 3, "bf16", "none", micro_batch_tokens, longest, checkpointing=True)
    return training_plan(shape_of(folder), trainer, gpu_gib=1).groups[0].peak


def tiny_problems(count: int) -> list[Any]:
    """Make problems from the built-in toy world."""
    from mmprm.tiny.world import make_problems

    return [each.problem for each in make_problems(count, seed=0, split="train")]


def open_trainer(folder: str, **settings: Any) -> Any:
    """Open an RL trainer on a checkpoint, with settings of TrainerConfig or of its optimization."""
    from mmprm.prompts import PromptConfig
    from policy_rl.trainer.config import TrainerConfig, UpdateConfig
    from policy_rl.trainer.trainer import Trainer

    names = UpdateConfig.model_fields
    optimization = {name: settings.pop(name) for name in list(settings) if name in names}
    rate = {"micro_batch_tokens": 512 if DRY else 16384, "learning_rate": 1e-6}
    config = TrainerConfig(optimization=UpdateConfig(**optimization, **rate), gradient_checkpointing=True, **settings)
    return Trainer(folder, config, PromptConfig(preset="plain"), 1.0, 10)


def random_samples(trainer: Any) -> list[Any]:
    """Make groups of responses with random tokens, as long as real ones on a GPU."""
    from policy_rl.types import TrainingSample

    rng, made = np.random.default_rng(0), []
    low, high, group_size = (8, 40, 4) if DRY else (1000, 4000, 8)
    for group, problem in enumerate(tiny_problems(2 if DRY else 3)):
        prompt = len(trainer._encoder._encode(problem).ids_P)
        for _ in range(group_size):
            ids = tuple(int(token) for token in rng.integers(10, 100, size=rng.integers(low, high)))
            advantages = np.full(len(ids), rng.normal())
            made.append(
                TrainingSample(problem, group, prompt, ids, engine=rng.normal(-5, 0.1, len(ids)), advantages=advantages)
            )
    return made


_LOOP = asyncio.new_event_loop()


def wait_for(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on the event loop of the engine's thread and return its result."""
    if not _LOOP.is_running():
        threading.Thread(target=_LOOP.run_forever, daemon=True).start()
    return asyncio.run_coroutine_threadsafe(coroutine, _LOOP).result()


@contextmanager
def open_engine(folder: str, share_of_memory: float, compiled: bool) -> Iterator[tuple[Any, float]]:
    """Start an RL rollout engine in separate vLLM processes; yield it with its startup time in seconds.

    A `compiled` engine uses CUDA graphs.
    """
    from mmprm.prompts import PromptConfig
    from mmprm.sampling.config import EngineConfig, SamplingConfig
    from policy_rl.rollouts.engine import RolloutEngine

    config = EngineConfig(
        model=folder,
        mode="separate",
        dtype="float32" if DRY else "bfloat16",
        gpu_memory_utilization=share_of_memory,
        max_model_len=1024 if DRY else 8192,
        compile=compiled,
        kv_cache_gib=0.25 if DRY else None,
    )
    more = {} if DRY else {"enable_sleep_mode": True, "weight_transfer_config": {"backend": "ipc"}}
    sampling = SamplingConfig(max_tokens=16 if DRY else 512)
    engine, start = RolloutEngine(), time.perf_counter()
    wait_for(engine.start(config, sampling, PromptConfig(preset="plain"), more))
    yield engine, time.perf_counter() - start
    engine._sampler.close()


def sample_groups(engine: Any, problems: Sequence[Any], count: int) -> list[Any]:
    """Sample `count` responses per problem, with fixed seeds and without stopping at end-of-sequence."""

    async def all_of_them() -> list[Any]:
        calls = [engine.sample(each, count, 7 + index, 0, ignore_eos=True) for index, each in enumerate(problems)]
        return await asyncio.gather(*calls)

    return wait_for(all_of_them())


def training_samples(groups: Sequence[Any]) -> list[Any]:
    """Convert rollouts to training samples with one random advantage per response."""
    from policy_rl.types import TrainingSample

    rng = np.random.default_rng(0)
    return [
        TrainingSample(
            group.problem,
            index,
            group.prompt_tokens,
            response.token_ids,
            engine=np.array(response.logprobs),
            advantages=np.full(len(response.token_ids), rng.normal()),
        )
        for index, group in enumerate(groups)
        for response in group.responses
    ]
