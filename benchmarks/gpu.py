"""Check the GPU paths on one GPU and write benchmarks/results/gpu.json: `make gpu-check`.

    python benchmarks/gpu.py                      # every part, each in a separate process
    python benchmarks/gpu.py --only update ipc    # some parts; other results stay in the file
    python benchmarks/gpu.py --dry                # small sizes on CPU; parts that need a GPU are skipped

Each part prints one line. A part that fails or takes too long is reported, and the next one runs. The model has the
width and vocabulary of Qwen2.5-VL-7B, but few layers and random weights: shapes are real, and nothing is downloaded.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

RESULTS = Path(__file__).parent / "results" / "gpu.json"
GIB = 2**30
LIMIT_SECONDS = 300
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
"""Dense bfloat16 peak rates from the vendor's data sheets, for model FLOP utilization."""
LAYERS = 4
DRY = bool(os.environ.get("MMPRM_GPU_DRY"))
DEVICE = "cpu" if DRY else "cuda"


def flex_attention() -> dict[str, Any]:
    """Compare FlexAttention over token trees with dense-mask attention in float32, and measure time and memory.

    Counts compiled graphs over many shapes, and measures time and memory at 16 k tokens.
    """
    from torch._dynamo.utils import counters
    from transformers.integrations.flex_attention import flex_attention_forward

    from mmprm.backbone.masks import attention_mask

    heads, kv_heads, size = 28, 4, 128
    module = torch.nn.Module()

    def inputs(rows: int, width: int, grad: bool = True) -> list[torch.Tensor]:
        shapes = [(rows, count, width, size) for count in (heads, kv_heads, kv_heads)]
        return [torch.randn(shape, device=DEVICE, dtype=torch.bfloat16, requires_grad=grad) for shape in shapes]

    def attend(tensors: Sequence[torch.Tensor], end_BT: torch.Tensor) -> torch.Tensor:
        output, _ = flex_attention_forward(module, *tensors, attention_mask(end_BT), scaling=size**-0.5, dropout=0.0)
        return output

    rows, width = 2, 1900
    end_BT, tensors = _subtree_ends(rows, width, prompt=300, cuts=7), inputs(rows, width)
    output = attend(tensors, end_BT)
    weights = torch.randn_like(output)
    gradients = torch.autograd.grad((output * weights).sum(), tensors)
    place_T = torch.arange(width, device=DEVICE)
    dense = ((place_T <= place_T[:, None]) & (place_T[:, None] <= end_BT[:, None, :]))[:, None]
    exact = [tensor.detach().float().requires_grad_() for tensor in tensors]
    repeated = [exact[0], *(tensor.repeat_interleave(heads // kv_heads, 1) for tensor in exact[1:])]
    reference = torch.nn.functional.scaled_dot_product_attention(*repeated, attn_mask=dense).transpose(1, 2)
    reference_gradients = torch.autograd.grad((reference * weights.float()).sum(), exact)
    pairs = zip((output, *gradients), (reference, *reference_gradients), strict=True)
    errors = [float((ours.float() - theirs).norm() / theirs.norm()) for ours, theirs in pairs]
    for number in range(14):
        rows, width = random.choice([1, 1, 2, 3]), random.randint(300, 4000)
        with torch.set_grad_enabled(number % 2 == 1):
            attend(inputs(rows, width, number % 2 == 1), _subtree_ends(rows, width, prompt=100, cuts=5))
    length = 16384
    end_BT, tensors = _subtree_ends(1, length, prompt=1000, cuts=7), inputs(1, length)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    mask = attention_mask(end_BT)
    mask_gib = (torch.cuda.max_memory_allocated() - before) / GIB

    def tree() -> None:
        output, _ = flex_attention_forward(module, *tensors, mask, scaling=size**-0.5, dropout=0.0)
        torch.autograd.grad(output.sum(), tensors)

    def causal() -> None:
        output = torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=True, enable_gqa=True)
        torch.autograd.grad(output.sum(), tensors)

    timed = {"tree": tree, "causal_flash": causal, "building_the_mask": lambda: attention_mask(end_BT)}
    return {
        "relative_errors": errors,
        "graphs": counters["stats"]["unique_graphs"],
        "recompile_limit": torch._dynamo.config.recompile_limit,
        "tokens": length,
        "mask_gib": mask_gib,
        "ms": {name: _milliseconds(function) for name, function in timed.items()},
    }


def vision_tower() -> dict[str, Any]:
    """Measure the milliseconds per image of Qwen2.5-VL-7B's vision tower in bfloat16, without gradients."""
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    config = Qwen2_5_VLVisionConfig(
        depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, out_hidden_size=3584
    )
    config._attn_implementation = "sdpa"
    with torch.device(DEVICE):
        tower = Qwen2_5_VisionTransformerPretrainedModel(config).to(torch.bfloat16).eval()
    found = {}
    for side in (72, 128):
        patches = torch.randn(side * side, 3 * 2 * 14 * 14, device=DEVICE, dtype=torch.bfloat16)
        grid = torch.tensor([[1, side, side]], device=DEVICE)
        with torch.no_grad():
            found[f"{side * 14} pixels wide, ms"] = _milliseconds(lambda p=patches, g=grid: tower(p, grid_thw=g), 3)
    return found


def update() -> dict[str, Any]:
    return _updates()


def update_lora() -> dict[str, Any]:
    from mmprm.training.lora import LoraConfig

    return _updates(lora=LoraConfig(rank=16))


def update_kl() -> dict[str, Any]:
    from policy_rl.algorithms.losses import KlConfig, LossConfig

    return _updates(loss=LossConfig(kl=KlConfig(coefficient=1e-3)))


def update_unshared() -> dict[str, Any]:
    return _updates(share_prompt=False)


def engine() -> dict[str, Any]:
    """Measure a rollout engine of `mmprm rl`: startup time, tokens per second, and ids repeated with equal seeds."""
    with _engine(_model_folder()[0], 0.5) as (engine, started):
        problems = _problems(4 if DRY else 64)
        found: dict[str, Any] = {"start_seconds": started, **_memory()}
        _sampled(engine, problems[:1], 1)
        ids: dict[str, list[tuple[int, ...]]] = {}
        for name in ("first", "again"):
            start = time.perf_counter()
            groups = _sampled(engine, problems, 2 if DRY else 8)
            tokens = sum(len(response.token_ids) for group in groups for response in group.responses)
            found[f"tokens_per_second_{name}"] = tokens / (time.perf_counter() - start)
            ids[name] = [response.token_ids for group in groups for response in group.responses]
        pairs = list(zip(ids["first"], ids["again"], strict=True))
        found["same_seed_same_ids"] = sum(first == again for first, again in pairs) / len(pairs)
        return found


def ipc() -> dict[str, Any]:
    """Run engine and trainer on one GPU: log-probability mismatch, sleep, update, CUDA IPC weight transfer, wake-up."""
    folder, _ = _model_folder()
    with _engine(folder, 0.4) as (engine, _):
        found: dict[str, Any] = {}
        trainer = _trainer(folder, precision="bf16", zero_stage=2)
        found["memory_with_both"] = _memory()
        problems = _problems(8)
        found["mismatch"] = _mismatch(trainer, _sampled(engine, problems, 8))
        transfer = _local_transfer(engine)
        trainer.open_transfer(lambda _: transfer)
        samples = _samples_of(_sampled(engine, problems, 8))
        for version, level in ((1, 1), (2, 2)):
            found[f"sleep_{level}"] = _asleep_and_back(engine, trainer, samples, version, level)
        found["mismatch_after"] = _mismatch(trainer, _sampled(engine, problems, 8))
        return found


def scorers() -> dict[str, Any]:
    """Compare PRM scores of transformers and vLLM on the built-in model: largest difference and seconds."""
    import shutil

    from mmprm.prm.info import PrmInfo, write_info
    from mmprm.scoring.config import ScorerConfig
    from mmprm.scoring.transformers_scorer import TransformersScorer
    from mmprm.scoring.vllm_scorer import VllmScorer
    from mmprm.tiny.model import weights_path
    from mmprm.types import Solution

    folder = Path(tempfile.mkdtemp()) / "prm"
    shutil.copytree(weights_path(), folder)
    write_info(folder, PrmInfo(tokens={"marker": "</step>", "yes": "1", "no": "0"}))
    steps = tuple(f"Step {number}: {number} + 2 = {number + 2}." for number in range(1, 6))
    solutions = [Solution(problem, steps) for problem in _problems(8 if DRY else 64)]
    found: dict[str, Any] = {}
    for dtype in ("float32", "bfloat16"):
        scores = {}
        for backend, scorer_class in (("transformers", TransformersScorer), ("vllm", VllmScorer)):
            config = ScorerConfig(prm=str(folder), backend=backend, dtype=dtype, gpu_memory_utilization=0.2)
            scorer = scorer_class(config)
            start = time.perf_counter()
            scores[backend] = [score for each in scorer.score(solutions) for score in each.scores]
            found[f"{backend}_{dtype}_seconds"] = time.perf_counter() - start
            scorer.close()
        pairs = zip(scores["transformers"], scores["vllm"], strict=True)
        found[f"largest_difference_{dtype}"] = max(abs(ours - theirs) for ours, theirs in pairs)
    return found


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    part.__name__: part
    for part in (flex_attention, vision_tower, update, update_lora, update_kl, update_unshared, engine, ipc, scorers)
}
GPU_ONLY = {"flex_attention", "vision_tower", "ipc"}


def _subtree_ends(rows: int, width: int, prompt: int, cuts: int) -> torch.Tensor:
    """Return end_BT, the last token that may attend to each token, for a prompt with several responses."""
    end_BT = torch.full((rows, width), width - 1)
    borders = sorted(random.sample(range(prompt + 1, width), cuts))
    for start, end in zip([prompt, *borders], [*borders, width], strict=True):
        end_BT[:, start:end] = end - 1
    return end_BT.to(DEVICE)


def _milliseconds(function: Callable[[], Any], repeats: int = 5) -> float:
    function()
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / repeats


def _memory() -> dict[str, float]:
    """Return GPU memory in GiB: used by this process's tensors, reserved by its allocator, and free."""
    if DRY:
        return {}
    sizes = {"in_use": torch.cuda.memory_allocated(), "cached": torch.cuda.memory_reserved()}
    return {
        f"{name}_gib": round(size / GIB, 2) for name, size in {**sizes, "free": torch.cuda.mem_get_info()[0]}.items()
    }


def _model_folder() -> tuple[str, int]:
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


def _problems(count: int) -> list[Any]:
    from mmprm.tiny.world import make_problems

    return [each.problem for each in make_problems(count, seed=0, split="train")]


def _trainer(folder: str, **settings: Any) -> Any:
    from mmprm.prompts import PromptConfig
    from policy_rl.trainer.config import TrainerConfig, UpdateConfig
    from policy_rl.trainer.trainer import Trainer

    names = UpdateConfig.model_fields
    optimization = {name: settings.pop(name) for name in list(settings) if name in names}
    rate = {"micro_batch_tokens": 512 if DRY else 16384, "learning_rate": 1e-6}
    config = TrainerConfig(optimization=UpdateConfig(**optimization, **rate), gradient_checkpointing=True, **settings)
    return Trainer(folder, config, PromptConfig(preset="plain"), 1.0, 10)


def _random_samples(trainer: Any) -> list[Any]:
    from policy_rl.types import TrainingSample

    rng, made = np.random.default_rng(0), []
    low, high, group_size = (8, 40, 4) if DRY else (1000, 4000, 8)
    for group, problem in enumerate(_problems(2 if DRY else 3)):
        prompt = len(trainer._encoder._encode(problem).ids_P)
        for _ in range(group_size):
            ids = tuple(int(token) for token in rng.integers(10, 100, size=rng.integers(low, high)))
            advantages = np.full(len(ids), rng.normal())
            made.append(
                TrainingSample(problem, group, prompt, ids, engine=rng.normal(-5, 0.1, len(ids)), advantages=advantages)
            )
    return made


def _updates(**settings: Any) -> dict[str, Any]:
    """Measure three updates on the same responses; the first one includes compilation.

    MFU counts 8 FLOPs per parameter and token.
    """
    from dataclasses import replace

    folder, parameters = _model_folder()
    trainer = _trainer(folder, precision="fp32" if DRY else "bf16", zero_stage=3, **settings)
    samples = _random_samples(trainer)
    if "loss" in settings:
        start = time.perf_counter()
        known = trainer.log_probs(samples, reference_only=True)
        samples = [replace(sample, ref=known[index].ref) for index, sample in enumerate(samples)]
    tokens = sum(len(sample.token_ids) for sample in samples)
    found: dict[str, Any] = {"parameters": parameters, "response_tokens": tokens, "seconds": []}
    for _ in range(3):
        if not DRY:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        metrics = trainer.update(samples)
        found["seconds"].append(time.perf_counter() - start)
    found |= {"loss": metrics["loss"], "gradient_norm": metrics.get("gradient_norm"), **_memory()}
    if not DRY:
        name = torch.cuda.get_device_name()
        peak = next((rate for device, rate in PEAK_FLOPS.items() if device in name), None)
        found["peak_gib"] = torch.cuda.max_memory_allocated() / GIB
        found["mfu"] = None if peak is None else 8 * parameters * tokens / found["seconds"][-1] / peak
    return found


LOOP = asyncio.new_event_loop()


def _wait(coroutine: Coroutine[Any, Any, Any]) -> Any:
    if not LOOP.is_running():
        threading.Thread(target=LOOP.run_forever, daemon=True).start()
    return asyncio.run_coroutine_threadsafe(coroutine, LOOP).result()


@contextmanager
def _engine(folder: str, share_of_memory: float) -> Iterator[tuple[Any, float]]:
    """Start an RL rollout engine in separate vLLM processes; yield it with its startup time in seconds."""
    from mmprm.prompts import PromptConfig
    from mmprm.sampling.config import EngineConfig, SamplingConfig
    from policy_rl.rollouts.engine import RolloutEngine

    config = EngineConfig(
        model=folder,
        mode="separate",
        dtype="float32" if DRY else "bfloat16",
        gpu_memory_utilization=share_of_memory,
        max_model_len=1024 if DRY else 8192,
        compile=False,
        kv_cache_gib=0.25 if DRY else None,
    )
    more = {} if DRY else {"enable_sleep_mode": True, "weight_transfer_config": {"backend": "ipc"}}
    sampling = SamplingConfig(max_tokens=16 if DRY else 512)
    engine, start = RolloutEngine(), time.perf_counter()
    _wait(engine.start(config, sampling, PromptConfig(preset="plain"), more))
    yield engine, time.perf_counter() - start
    engine._sampler.close()


def _sampled(engine: Any, problems: Sequence[Any], count: int) -> list[Any]:
    async def all_of_them() -> list[Any]:
        calls = [engine.sample(each, count, 7 + index, 0, ignore_eos=True) for index, each in enumerate(problems)]
        return await asyncio.gather(*calls)

    return _wait(all_of_them())


def _samples_of(groups: Sequence[Any]) -> list[Any]:
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


def _mismatch(trainer: Any, groups: Sequence[Any]) -> dict[str, float]:
    """Summarize the differences between the trainer's and the engine's log-probabilities, in nats."""
    samples = _samples_of(groups)
    known = trainer.log_probs(samples)
    differences = np.concatenate([known[index].old - samples[index].engine for index in known])
    absolute = np.abs(differences)
    return {
        "tokens": len(differences),
        "mean_absolute": float(absolute.mean()),
        "mean": float(differences.mean()),
        "p99": float(np.quantile(absolute, 0.99)),
        "largest": float(absolute.max()),
    }


def _local_transfer(engine: Any) -> Any:
    """Create the RL loop's CUDA IPC weight transfer for an engine in this process instead of a Ray actor."""
    from policy_rl.weights.vllm import EngineClient, VllmTransfer

    class LocalClient(EngineClient):
        def _each(self, method: str, arguments: Sequence[dict[str, Any]] | None = None) -> None:
            _wait(engine.worker_call(method, (arguments or [{}])[0]))

    transfer = VllmTransfer("ipc", [engine], 1, 0, 120)
    transfer._client = LocalClient([engine], 1, 120)
    return transfer


def _asleep_and_back(engine: Any, trainer: Any, samples: Sequence[Any], version: int, level: int) -> dict[str, Any]:
    """Put the engine to sleep, update the trainer and wake the engine; return time and memory of each phase.

    `probe_distance` is the mean absolute difference between engine and trainer after the weight transfer.
    """
    found: dict[str, Any] = {}
    call = engine._sampler.call

    @contextmanager
    def clocked(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        found[f"{name}_seconds"] = time.perf_counter() - start

    with clocked("sleep"):
        _wait(call("sleep", level))
    found["asleep"] = _memory()
    with clocked("update"):
        trainer.update(samples)
    found["after_update"] = _memory()
    torch.cuda.empty_cache()
    found["cache_given_back"] = _memory()
    with clocked("wake_weights"):
        _wait(call("wake_up", ["weights"]))
    with clocked("transfer"):
        published = trainer.publish(version, engine._probe, torch.bfloat16)
    with clocked("wake_cache"):
        _wait(call("wake_up", ["kv_cache"]))
    answer = _wait(engine.load(published))
    found["probe_distance"] = sum(map(lambda a, b: abs(a - b), answer, published.probe)) / len(answer)
    return found


def _run(name: str, dry: bool) -> dict[str, Any]:
    """Run a part in a separate process, because DeepSpeed and vLLM do not free their memory; return its metrics."""
    if dry and name in GPU_ONLY:
        return {"skipped": "needs a GPU"}
    environment = os.environ | ({"MMPRM_GPU_DRY": "1"} if dry else {}) | {"VLLM_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, __file__, "--inner", name]
    try:
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return {"failed": f"not finished after {LIMIT_SECONDS} s"}
    answers = [line for line in ran.stdout.splitlines() if line.startswith("RESULT ")]
    if answers:
        return json.loads(answers[-1].removeprefix("RESULT "))
    return {"failed": f"exit code {ran.returncode}", "log": ran.stderr[-2000:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run")
    parser.add_argument("--dry", action="store_true", help="small sizes on CPU; nothing is written")
    parser.add_argument("--inner", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inner:
        random.seed(0)
        print("RESULT", json.dumps(PARTS[arguments.inner]()), flush=True)
        os._exit(0)  # threads of vLLM and DeepSpeed would keep the process alive
    if not arguments.dry and not torch.cuda.is_available():
        sys.exit("gpu.py: PyTorch sees no GPU on this machine; --dry runs small sizes on CPU")
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    device = "CPU" if arguments.dry else torch.cuda.get_device_name()
    for name in arguments.only:
        found = _run(name, arguments.dry)
        print(f"{name}: {json.dumps(found)}", flush=True)
        kept[name] = {"device": device, "torch": torch.__version__, "python": platform.python_version(), **found}
        if not arguments.dry:
            RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
