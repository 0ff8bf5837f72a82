"""Measure an engine's speed in float32 and bfloat16, on which `engine.dtype: auto` bases its choice.

models        the built-in policy (hidden size 128) and, if `make real-model` has run, SmolLM2-135M (hidden size 576)
instructions  all: what this CPU has; no_bf16, for the products only: oneDNN may not use bf16 or AMX instructions, as on
              older CPUs (vLLM chooses its kernels by what the CPU has, so its engines cannot be restricted)
concurrency   number of completions generated at the same time
products      GFLOP/s of the matrix products of a decoder layer alone, by hidden size and number of tokens

Each engine runs in its own process, pinned to one core, as `mmprm annotate` runs it. Every completion has the same
number of tokens. Seconds are CPU time, on which other processes have little influence. Writes
benchmarks/results/dtype.json:

python benchmarks/engine_dtype.py [--rounds 3] [--only products built-in smollm2]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import machine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "dtype.json"
MODELS = {
    "built-in": (str(ROOT / "mmprm" / "tiny" / "weights"), 64),
    "smollm2": (str(ROOT / ".real-model" / "SmolLM2-135M-Instruct"), 8),
}
"""Folder of each model, and the number of tokens per completion."""
DTYPES = ("float32", "bfloat16")
INSTRUCTIONS = {"all": {}, "no_bf16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}}
CONCURRENCIES = (1, 16, 64)
PROMPT_TOKENS = 16
HIDDEN_SIZES = (128, 576, 1024)
PRODUCTS = "products"
PRODUCT_SECONDS = 0.05


def measure(model: str, tokens: int, dtype: str, rounds: int) -> dict[int, list[float]]:
    """Measure the tokens per second of each round, keyed by concurrency."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from mmprm.sampling.config import EngineConfig
    from mmprm.sampling.engines import InProcessEngine

    core = min(os.sched_getaffinity(0))
    config = EngineConfig(model=model, dtype=dtype, mode="in_process", max_model_len=512, kv_cache_gib=2, cores=(core,))
    engine = InProcessEngine(config)

    def speed(count: int, start: int) -> float:
        whole = {"output_kind": RequestOutputKind.FINAL_ONLY, "detokenize": False}
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=1.0, **whole)
        prompts = [[3 + (start + n) % 50, *range(10, 9 + PROMPT_TOKENS)] for n in range(count)]
        begun = time.process_time()
        futures = [engine.submit({"prompt_token_ids": prompt}, params) for prompt in prompts]
        generated = sum(len(future.result().outputs[0].token_ids) for future in futures)
        assert generated == count * tokens
        return generated / (time.process_time() - begun)

    speed(16, 0)  # warm up
    speeds = {count: [speed(count, number) for number in range(rounds)] for count in CONCURRENCIES}
    engine.close()
    return speeds


def products(dtype: str, rounds: int) -> dict[str, list[float]]:
    """Measure the GFLOP/s of the seven products of a Llama layer in each round, keyed by hidden size and tokens."""
    import torch

    torch.set_num_threads(1)
    kind = getattr(torch, dtype)
    found = {}
    for hidden in HIDDEN_SIZES:
        inner = hidden * 8 // 3
        shapes = [(hidden, hidden)] * 4 + [(hidden, inner)] * 2 + [(inner, hidden)]
        weights = [torch.randn(shape, dtype=kind) for shape in shapes]
        for tokens in CONCURRENCIES:
            inputs = {size: torch.randn(tokens, size, dtype=kind) for size in (hidden, inner)}
            flop = 2 * tokens * sum(weight.numel() for weight in weights)
            found[f"{hidden} at {tokens}"] = [_gflops(inputs, weights, flop) for _ in range(rounds)]
    return found


def _gflops(inputs: dict[int, Any], weights: list[Any], flop: int) -> float:
    begun, done = time.process_time(), -1  # the first pass only warms up
    while done < 1 or time.process_time() - begun < PRODUCT_SECONDS:
        if not done:
            begun = time.process_time()
        for weight in weights:
            inputs[len(weight)] @ weight
        done += 1
    return done * flop / (time.process_time() - begun) / 1e9


def measured_alone(name: str, dtype: str, instructions: str, rounds: int) -> dict[str, list[float]]:
    """Run `measure` or `products` in a new process, because an engine and oneDNN keep state for the whole process."""
    model, tokens = MODELS.get(name, (PRODUCTS, 0))
    command = [sys.executable, __file__, "--rounds", str(rounds), "--measure", model, str(tokens), dtype]
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"} | INSTRUCTIONS[instructions]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure all combinations and write the results. Those of other machines and of other models are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=[PRODUCTS, *MODELS], default=[PRODUCTS, *MODELS])
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        model, tokens, dtype = arguments.measure
        rounds = arguments.rounds
        print(json.dumps(products(dtype, rounds) if model == PRODUCTS else measure(model, int(tokens), dtype, rounds)))
        return
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"machines": {}}
    here = results["machines"].setdefault(f"{machine()}, one core per engine", {"speeds": {}})
    for name in (each for each in arguments.only if each == PRODUCTS or Path(MODELS[each][0]).is_dir()):
        for instructions in INSTRUCTIONS if name == PRODUCTS else ("all",):
            for dtype in DTYPES:
                speeds = measured_alone(name, dtype, instructions, arguments.rounds)
                found = {key if " " in key else f"at {key}": _spread(values) for key, values in speeds.items()}
                here["speeds"].setdefault(f"{name}/{instructions}", {})[dtype] = found
                here["load"] = round(os.getloadavg()[0], 1)
                RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
                print(name, instructions, dtype, found, flush=True)


def _spread(values: list[float]) -> dict[str, float]:
    return {"value": round(statistics.median(values), 1), "low": round(min(values), 1), "high": round(max(values), 1)}


if __name__ == "__main__":
    main()
