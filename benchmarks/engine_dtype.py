"""Measure an engine's speed in float32 and bfloat16, on which `engine.dtype: auto` bases its choice.

models        the built-in policy (hidden size 128) and, if `make real-model` has run, SmolLM2-135M (hidden size 576)
instructions  all: what this CPU has; no_bf16: oneDNN may not use bf16 or AMX instructions, as on older CPUs
concurrency   number of completions generated at the same time

Each engine runs alone in its own process, pinned to one core, as `mmprm annotate` runs it. Every completion has the
same number of tokens. Writes benchmarks/results/dtype.json:

python benchmarks/engine_dtype.py [--rounds 3] [--only built-in smollm2]
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

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "dtype.json"
MODELS = {
    "built-in": (str(ROOT / "mmprm" / "tiny" / "weights"), 64),
    "smollm2": (str(ROOT / ".real-model" / "SmolLM2-135M-Instruct"), 16),
}
"""Folder of each model, and the number of tokens per completion."""
DTYPES = ("float32", "bfloat16")
INSTRUCTIONS = {"all": {}, "no_bf16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}}
CONCURRENCIES = (1, 16, 64, 256)
PROMPT_TOKENS = 64


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
        begun = time.perf_counter()
        futures = [engine.submit({"prompt_token_ids": prompt}, params) for prompt in prompts]
        generated = sum(len(future.result().outputs[0].token_ids) for future in futures)
        assert generated == count * tokens
        return generated / (time.perf_counter() - begun)

    speed(16, 0)  # warm up
    speeds = {count: [speed(count, number) for number in range(rounds)] for count in CONCURRENCIES}
    engine.close()
    return speeds


def measured_alone(name: str, dtype: str, instructions: str, rounds: int) -> dict[str, list[float]]:
    """Run `measure` in a new process, because an engine and oneDNN keep state for the whole process."""
    model, tokens = MODELS[name]
    command = [sys.executable, __file__, "--rounds", str(rounds), "--measure", model, str(tokens), dtype]
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"} | INSTRUCTIONS[instructions]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def processor() -> str:
    """Return the processor's name and its relevant instruction sets."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    name = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "unknown")
    found = [flag for flag in ("avx512_bf16", "amx_bf16") if f" {flag}" in text]
    return f"{name}, {', '.join(found) or 'no bf16 instructions'}"


def main() -> None:
    """Measure all combinations and write the results. Results of models that were not measured are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=[*MODELS], default=[*MODELS])
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        model, tokens, dtype = arguments.measure
        print(json.dumps(measure(model, int(tokens), dtype, arguments.rounds)))
        return
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"speeds": {}}
    for name in (each for each in arguments.only if Path(MODELS[each][0]).is_dir()):
        for instructions in INSTRUCTIONS:
            for dtype in DTYPES:
                speeds = measured_alone(name, dtype, instructions, arguments.rounds)
                found = {f"at {count}": _spread(values) for count, values in speeds.items()}
                results["speeds"].setdefault(f"{name}/{instructions}", {})[dtype] = found
                print(name, instructions, dtype, found, flush=True)
    results |= {"machine": f"{processor()}, one core per engine", "load": round(os.getloadavg()[0], 1)}
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _spread(values: list[float]) -> dict[str, float]:
    return {"value": round(statistics.median(values), 1), "low": round(min(values), 1), "high": round(max(values), 1)}


if __name__ == "__main__":
    main()
