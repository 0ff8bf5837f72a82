"""Check the GPU paths on one GPU and add the results to benchmarks/results/gpu.json: `make gpu-check`.

    python benchmarks/gpu.py                      # every part, each in a separate process
    python benchmarks/gpu.py --only update ipc    # some parts; other results stay in the file
    python benchmarks/gpu.py --dry                # small sizes on CPU; parts that need a GPU are skipped

Each part prints one line. A part that fails or takes too long is reported, and the next one runs. The file holds the
results of each device; a failure does not replace an earlier result. The model has the width and vocabulary of
Qwen2.5-VL-7B, but few layers and random weights: shapes are real, and nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_kernels import flex_attention, output_layer, vision_tower
from gpu_setup import (
    DRY,
    GIB,
    embedding_size,
    gpu_memory,
    open_engine,
    open_trainer,
    planned_update,
    random_samples,
    sample_groups,
    tiny_problems,
    training_samples,
    wait_for,
    write_model,
)

RESULTS = Path(__file__).parent / "results" / "gpu.json"
LIMIT_SECONDS = 600
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
"""Dense bfloat16 peak rates from the vendor's data sheets, for model FLOP utilization."""


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
    return _engine(compiled=False)


def engine_compiled() -> dict[str, Any]:
    """Measure an engine with CUDA graphs, the default of `mmprm rl` on GPU."""
    return _engine(compiled=True)


def ipc() -> dict[str, Any]:
    return _ipc(compiled=False)


def ipc_compiled() -> dict[str, Any]:
    """Measure sleep mode with CUDA graphs, as in all recipes with colocated engines."""
    return _ipc(compiled=True)


def _engine(compiled: bool) -> dict[str, Any]:
    """Measure a rollout engine of `mmprm rl`: startup time, tokens per second, and reproducibility with equal seeds."""
    with open_engine(write_model()[0], 0.5, compiled) as (engine, started):
        problems = tiny_problems(4 if DRY else 64)
        found: dict[str, Any] = {"start_seconds": started, **gpu_memory()}
        sample_groups(engine, problems[:1], 1)
        ids: dict[str, list[tuple[int, ...]]] = {}
        for name in ("first", "again"):
            start = time.perf_counter()
            groups = sample_groups(engine, problems, 2 if DRY else 8)
            tokens = sum(len(response.token_ids) for group in groups for response in group.responses)
            found[f"tokens_per_second_{name}"] = tokens / (time.perf_counter() - start)
            ids[name] = [tuple(response.token_ids.tolist()) for group in groups for response in group.responses]
        pairs = list(zip(ids["first"], ids["again"], strict=True))
        found["same_seed_same_ids"] = sum(first == again for first, again in pairs) / len(pairs)
        return found


def _ipc(compiled: bool) -> dict[str, Any]:
    """Run engine and trainer on one GPU: log-probability mismatch, sleep, update, CUDA IPC weight transfer, wake-up."""
    folder, _ = write_model()
    with open_engine(folder, 0.4, compiled) as (engine, _):
        found: dict[str, Any] = {}
        trainer = open_trainer(folder, precision="bf16", zero_stage=2)
        found["memory_with_both"] = gpu_memory()
        problems = tiny_problems(8)
        found["mismatch"] = _mismatch(trainer, sample_groups(engine, problems, 8))
        transfer = _local_transfer(engine)
        trainer.open_transfer(lambda _: transfer)
        samples = training_samples(sample_groups(engine, problems, 8))
        for version, level in ((1, 1), (2, 2)):
            found[f"sleep_{level}"] = _asleep_and_back(engine, trainer, samples, version, level)
        found["mismatch_after"] = _mismatch(trainer, sample_groups(engine, problems, 8))
        return found


def scorers() -> dict[str, Any]:
    """Compare the transformers and vLLM PRM scorers on the built-in model: largest score difference, and seconds."""
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
    solutions = [Solution(problem, steps) for problem in tiny_problems(8 if DRY else 64)]
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
    for part in (
        *(flex_attention, output_layer, vision_tower, update, update_lora, update_kl, update_unshared),
        *(engine, engine_compiled, ipc, ipc_compiled, scorers),
    )
}
GPU_ONLY = {"flex_attention", "output_layer", "vision_tower", "engine_compiled", "ipc", "ipc_compiled"}


def _updates(**settings: Any) -> dict[str, Any]:
    """Measure three updates on the same responses. The first one includes compilation.

    An update takes 6 FLOPs per token and parameter of a matrix, and 2 more because activations are recomputed. Neither
    the lookup of embeddings nor attention is counted. `mfu` is the share of the peak without the recomputation, and
    `share_of_peak` the one with it, as in `mmprm plan train --mfu`.
    """
    from dataclasses import replace

    folder, parameters = write_model()
    matrices = parameters - embedding_size(folder)
    trainer = open_trainer(folder, precision="fp32" if DRY else "bf16", zero_stage=3, **settings)
    samples = random_samples(trainer)
    if "loss" in settings:
        start = time.perf_counter()
        known = trainer.log_probs(samples, reference_only=True)
        samples = [replace(sample, ref=known[index].ref) for index, sample in enumerate(samples)]
    tokens = sum(len(sample.token_ids) for sample in samples)
    found: dict[str, Any] = {"parameters": parameters, "response_tokens": tokens, "seconds": []}
    found |= {"micro_batch_tokens": trainer.config.optimization.micro_batch_tokens}
    for _ in range(3):
        if not DRY:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        metrics = trainer.update(samples)
        found["seconds"].append(time.perf_counter() - start)
    found |= {"loss": metrics["loss"], "gradient_norm": metrics.get("gradient_norm"), **gpu_memory()}
    if not DRY:
        name = torch.cuda.get_device_name()
        peak = next((rate for device, rate in PEAK_FLOPS.items() if device in name), None)
        found["peak_gib"] = torch.cuda.max_memory_allocated() / GIB
        if peak is not None:
            share = matrices * tokens / found["seconds"][-1] / peak
            found |= {"mfu": 6 * share, "share_of_peak": 8 * share}
        if not settings:
            found["planned_peak_gib"] = planned_update(folder, found["micro_batch_tokens"]) / GIB
    return found


def _mismatch(trainer: Any, groups: Sequence[Any]) -> dict[str, float]:
    """Summarize the differences between the trainer's and the engine's log-probabilities, in nats."""
    samples = training_samples(groups)
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
            wait_for(engine.worker_call(method, (arguments or [{}])[0]))

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
        wait_for(call("sleep", level))
    found["asleep"] = gpu_memory()
    with clocked("update"):
        trainer.update(samples)
    found["after_update"] = gpu_memory()
    torch.cuda.empty_cache()
    found["cache_given_back"] = gpu_memory()
    with clocked("wake_weights"):
        wait_for(call("wake_up", ["weights"]))
    with clocked("transfer"):
        published = trainer.publish(version, engine._probe, torch.bfloat16)
    with clocked("wake_cache"):
        wait_for(call("wake_up", ["kv_cache"]))
    answer = wait_for(engine.load(published))
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
    for name in arguments.only:
        found = _run(name, arguments.dry)
        print(f"{name}: {json.dumps(found)}", flush=True)
        if not arguments.dry:
            add_result(RESULTS, torch.cuda.get_device_name(), name, found)


def add_result(path: Path, device: str, name: str, found: dict[str, Any]) -> None:
    """Add a part's metrics to the results of a device, unless the part failed and has an earlier result."""
    results = json.loads(path.read_text()) if path.exists() else {}
    of_device = results.setdefault(device, {})
    if "failed" in found and name in of_device:
        return
    of_device[name] = {"torch": torch.__version__, "python": platform.python_version(), **found}
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
