"""From configuration to a running loop: Ray, engines, trainer ranks, process reward model, grader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray

from mmprm.errors import DataError
from mmprm.grading.calibration import check_judge
from mmprm.grading.open import open_grader
from mmprm.problems import load_problems
from mmprm.prompts import assistant_beginning
from mmprm.types import Problem
from policy_rl.collecting import Collector
from policy_rl.config import RLConfig
from policy_rl.evaluate import evaluate
from policy_rl.experience import Aggregate
from policy_rl.graded import Process
from policy_rl.loop import Loop, Summary
from policy_rl.rollouts import RolloutPool, check_sampling
from policy_rl.trainer_group import TrainerGroup
from policy_rl.weights import FileTransfer, Transfer, shared_folder


def train_policy(config: RLConfig) -> Summary:
    """Run to the end, or on SIGTERM to the end of the step at hand."""
    check_sampling(config.sampling)
    problems = load_problems(config.problems)
    held_out = load_problems(config.held_out) if config.held_out else []
    _check_disjoint(problems, held_out)
    check_judge(config.grader.judge)
    return asyncio.run(_run(config, problems, held_out))


async def _run(config: RLConfig, problems: Sequence[Problem], held_out: Sequence[Problem]) -> Summary:
    total = config.total_steps(len(problems))
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    async with AsyncExitStack() as stack:
        trainer_start = asyncio.create_task(asyncio.to_thread(_start_trainer, config, total))
        try:
            pool = await RolloutPool.start(
                config.engine, config.sampling, config.prompt, config.rollouts, config.weights
            )
            stack.callback(pool.close)
        finally:
            trainer = await trainer_start
            stack.callback(trainer.close)
        trainer.open_transfer(partial(_transfer, config, pool.engines, _transport(config)))
        grader = await stack.enter_async_context(open_grader(config.grader))
        process = await stack.enter_async_context(_process(config)) if config.process else None
        collector = Collector(config, problems, pool, grader, trainer.check, process)
        prefill = assistant_beginning(config.prompt, "")
        measure = partial(evaluate, pool, grader, held_out, config.eval_samples, config.seed, prefill)
        aggregate = _aggregate(config)
        loop = Loop(config, total, pool, trainer, collector, measure if held_out else None, aggregate)
        print(
            f"{len(problems):,} problems, {len(held_out):,} held out; {total:,} steps of {config.batch.prompts} × "
            f"{config.batch.group_size}, {config.batch.updates} updates each; {len(pool.engines)} engines, "
            f"{config.trainer.ranks} trainer ranks",
            flush=True,
        )
        return await loop.run()


def _aggregate(config: RLConfig) -> Aggregate | None:
    credit = config.step_credit
    return config.process.aggregate() if credit is not None and credit.mode == "scalar" else None


def _start_trainer(config: RLConfig, total: int) -> TrainerGroup:
    share = 1 - config.rollouts.gpu_share if config.rollouts.colocated else 1.0
    return TrainerGroup(
        config.engine.model,
        config.trainer,
        config.prompt,
        config.sampling.temperature,
        total * config.batch.updates,
        config.has_critic,
        share,
        config.engine.max_pixels,
    )


def _transport(config: RLConfig) -> str:
    if config.weights.transport != "auto":
        return config.weights.transport
    return "nccl" if ray.cluster_resources().get("GPU", 0) > 0 else "file"


def _transfer(config: RLConfig, engines: Sequence[Any], transport: str, rank: int) -> Transfer:
    """A rank's side of the way to the engines."""
    if transport == "file":
        return FileTransfer(shared_folder(config.weights, Path(config.output)), is_main=rank == 0)
    from policy_rl.weights_vllm import VllmTransfer

    return VllmTransfer(transport, engines, config.engine.tensor_parallel_size, rank, config.weights.timeout_s)


@asynccontextmanager
async def _process(config: RLConfig) -> AsyncIterator[Process]:
    from transformers import AutoTokenizer

    from policy_rl.prm_actor import Prm
    from policy_rl.process import ProcessReward

    prm = await Prm.start(config.process)
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.engine.model)
        yield ProcessReward(tokenizer, config.markup, assistant_beginning(config.prompt, ""), prm)
    finally:
        prm.close()


def _check_disjoint(problems: Sequence[Problem], held_out: Sequence[Problem]) -> None:
    shared = {problem.id for problem in problems} & {problem.id for problem in held_out}
    if shared:
        raise DataError(
            f"held_out: {len(shared)} problems are also among `problems`, {min(shared)} for one; pass@1 on what is "
            "trained on says nothing: take them out of one of the two"
        )
