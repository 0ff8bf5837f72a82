"""Compare a step of `mmprm rl` with a step of TRL's RLOO trainer, on the built-in policy and the same image problems.

Both sample PROMPTS × GROUP_SIZE responses per step, grade them with mmprm's grader and perform one float32 update from
the same weights, without a reference model. TRL samples with transformers, mmprm with vLLM and a compiled model. TRL
runs twice. With default settings (`ratio`), it uses 8 rows at once and gradient checkpointing. With tuned settings
(`tuned_ratio`, `update_ratio`), it runs without checkpointing. In an update, at most TOKENS_AT_ONCE tokens, including
padding, then pass through the model at once. The fastest batch size within that limit counts for each side. TRL is
installed in its own folder (`make trl`) and runs in a separate process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from mmprm.tiny.model import weights_path

ROOT = Path(__file__).parent.parent
TRL = ROOT / ".venv-trl"
PROMPTS, GROUP_SIZE, MAX_TOKENS = 32, 8, 96
STEPS, WARM_UP = 8, 2
TOKENS_AT_ONCE = 8192
OUR_BUDGETS = (2048, 4096, 8192)
TRL_BATCHES = (16, 32, 64)
"""TRL batch sizes to try, in rows. Each divides the rows of a step evenly."""
AS_IT_COMES = 0
"""Placeholder batch size that selects TRL's default settings."""

Results = dict[str, Any]


def step_vs_trl(
    ours: Callable[..., list[Results]], problems: Path, seeds: Sequence[int], learning_rate: float
) -> Results:
    """Measure mmprm's and TRL's steps after WARM_UP steps; return ratios, their spreads, and medians per trainer.

    `ours(name, seed, **keys)` runs `mmprm rl` on `problems` and returns its metrics. `update_seconds` covers forward,
    backward and optimizer.
    """

    def our_step(seed: int, budget: int) -> Results:
        keys = {
            "steps": STEPS,
            "problems.limit": STEPS * PROMPTS,
            "engine.compile": True,
            "held_out.limit": PROMPTS,
            "batch.prompts": PROMPTS,
            "batch.group_size": GROUP_SIZE,
            "sampling.max_tokens": MAX_TOKENS,
            "trainer.optimization.learning_rate": learning_rate,
            "trainer.optimization.micro_batch_tokens": budget,
        }
        rows = [row for row in ours(f"trl-{budget}", seed, **keys) if row["kind"] == "train"]
        return _medians(
            seconds=[row["seconds"] for row in rows],
            update_seconds=[row["seconds_old"] + row["seconds_update"] for row in rows],
            tokens=[row["response_tokens"] for row in rows],
            reward=[row["reward"] for row in rows],
        )

    def their_step(seed: int, batch: int) -> Results:
        found = _trl(problems, batch, learning_rate, seed)
        assert batch * found.pop("longest") <= TOKENS_AT_ONCE, (
            "TRL processes more tokens at once than mmprm"
        )  # batch 0 stands for TRL's defaults, which are not limited
        return _medians(**found)

    budget, our_first = _fastest(our_step, seeds[0], OUR_BUDGETS)
    batch, their_first = _fastest(their_step, seeds[0], TRL_BATCHES)
    rounds = [{"ours": our_first, "trl_tuned": their_first, "trl": their_step(seeds[0], AS_IT_COMES)}]
    for seed in seeds[1:]:
        theirs = {"trl_tuned": their_step(seed, batch), "trl": their_step(seed, AS_IT_COMES)}
        rounds.append({"ours": our_step(seed, budget), **theirs})
    metrics: Results = {}
    for key, other, name in (
        ("ratio", "trl", "seconds"),
        ("tuned_ratio", "trl_tuned", "seconds"),
        ("update_ratio", "trl_tuned", "update_seconds"),
    ):
        ratios = [each["ours"][name] / each[other][name] for each in rounds]
        metrics |= {key: median(ratios), f"{key}_spread": [min(ratios), max(ratios)]}
    for side in rounds[0]:
        metrics[side] = {name: median(each[side][name] for each in rounds) for name in rounds[0][side]}
    return metrics | {"micro_batch_tokens": budget, "per_device_batch": batch}


def _fastest(step: Callable[[int, int], Results], seed: int, batchings: Sequence[int]) -> tuple[int, Results]:
    """Return the batch size with the fastest update, and its metrics. Sampling is the same for all batch sizes."""
    found = {batching: step(seed, batching) for batching in batchings}
    return min(found.items(), key=lambda item: item[1]["update_seconds"])


def _medians(**values: Sequence[float]) -> Results:
    assert all(len(each) == STEPS for each in values.values()), "one value per step"
    return {name: median(each[WARM_UP:]) for name, each in values.items()}


def _trl(problems: Path, batch: int, learning_rate: float, seed: int) -> Results:
    values = (weights_path(), problems, PROMPTS, GROUP_SIZE, STEPS, batch, MAX_TOKENS, learning_rate, seed)
    command = [sys.executable, str(Path(__file__).parent / "trl_rloo.py"), *map(str, values)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(TRL), "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
