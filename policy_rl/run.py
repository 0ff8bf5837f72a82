"""Start the components of an RL run (Ray, engines, trainer ranks, process reward model, grader) and run its loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from mmprm import actors, orphans
from mmprm.environments.first_prompt import first_prompt
from mmprm.errors import DataError
from mmprm.files import locked
from mmprm.grading.calibration import check_judge
from mmprm.grading.golds import check_golds
from mmprm.grading.open import open_grader
from mmprm.preflight import check_disk_space, check_policy, check_prm, check_prm_reads
from mmprm.problems import content_id, load_problems
from mmprm.rendering import turn_beginning
from mmprm.sampling.config import engine_of, sampling_of
from mmprm.sampling.dtype import with_dtype
from mmprm.sampling.seeds import environment_seed
from mmprm.scoring.open import scorer_info
from mmprm.trackers import check_tracker
from mmprm.training.checkpoints import read_extra
from mmprm.types import Problem
from policy_rl.algorithms.samples import Aggregate
from policy_rl.checks.early import check_early
from policy_rl.collector import Collector
from policy_rl.config import RLConfig
from policy_rl.graded import Process
from policy_rl.loop import Loop
from policy_rl.placement import ActorOptions, reserved
from policy_rl.rewards.cutter import StepCutter
from policy_rl.rewards.prm_refresh import PrmRefresh
from policy_rl.rollouts.episodes import EpisodeConfig
from policy_rl.rollouts.evaluate import evaluate
from policy_rl.rollouts.pool import RolloutPool
from policy_rl.rollouts.tree_store import TreeStore
from policy_rl.run_folder import Summary, checkpoints_of, summary_without_training
from policy_rl.trainer.frozen import check_teacher
from policy_rl.trainer.group import TrainerGroup
from policy_rl.weights.config import transport_of
from policy_rl.weights.transfer import FileTransfer, Transfer, remove_versions, shared_folder


def train_policy(config: RLConfig) -> Summary:
    """Train a policy to the end of the run, or, on SIGTERM, to the end of the current step.

    If the run is already finished, returns its summary without training.
    """
    config = _with_settled_dtype(config)
    check_early(config)
    check_tracker(config.tracker, "tracker")
    episodes = config.environment is not None
    problems = load_problems(config.problems, episodes)
    config.check_warmup(len(problems))
    done = summary_without_training(config, config.total_steps(len(problems)), problems)
    if done is not None:
        return done
    held_out = load_problems(config.held_out, episodes) if config.held_out else []
    _check_disjoint(problems, held_out, episodes)
    check_judge(config.grader.judge)
    if config.rewards.accuracy == "verdict" and config.rewards.accuracy_weight and not episodes:
        check_golds(problems, config.grader, config.problems.path)
    with locked(Path(config.output), "output"):
        check_disk_space(config.output, "output", config.engine.model)
    if config.trainer.distillation is not None:
        check_teacher(config.engine.model, config.trainer.distillation.teacher)
    if config.process is not None:
        scorer_info(config.process.scorer)
        check_prm(config.process.scorer.prm)
        check_prm_reads(config.process.scorer.prm, problems)
    shown = [*problems, *held_out]
    if config.environment is not None:
        seed = environment_seed(config.seed, problems[0].id)
        shown = [first_prompt(config.environment, config.engine.images_per_prompt, problems[0], seed)]
    # Prompts and responses must fit into the context in the phase with the longest responses.
    sampling = config.sampling_limits()
    longest = max([sampling.max_tokens, *(phase.max_tokens for phase in config.schedule)])
    sampling = sampling.model_copy(update={"max_tokens": longest})
    owner = check_policy(engine_of(config.engine), sampling, config.prompt, shown)
    return actors.run(_run(config, problems, held_out, turn_beginning(owner, config.prompt)))


def _with_settled_dtype(config: RLConfig) -> RLConfig:
    """Replace engine.dtype=auto with a data type: that of the run to resume, or the one that `with_dtype` chooses."""
    extra = None if config.engine.dtype != "auto" else read_extra(checkpoints_of(config))
    stored = None if extra is None else extra["identity"]["engine"]["dtype"]
    return config.model_copy(update={"engine": with_dtype(config.engine, config.ray_address, stored)})


async def _run(config: RLConfig, problems: Sequence[Problem], held_out: Sequence[Problem], prefill: str) -> Summary:
    total = config.total_steps(len(problems))
    actors.connect(config.ray_address)
    async with AsyncExitStack() as stack:
        options = await stack.enter_async_context(reserved(config))
        transport = transport_of(config.weights_transfer, options is not None, config.rollouts.colocated)
        # Registered first so that it runs last: a killed trainer leaves weight files behind, which occupy memory.
        folder = shared_folder(config.weights, Path(config.output))
        stack.callback(remove_versions, folder)
        orphans.remove(folder)
        pool, trainer = await _start(config, total, options, stack)
        trainer.open_transfer(partial(_transfer, config, transport, pool.engines))
        grader = await stack.enter_async_context(open_grader(config.grader))
        prm_options = None if options is None else options.prm
        cutter = _step_cutter(config, prefill)
        trees = _tree_store(config, cutter, stack)
        process = refresh = None
        if config.process is not None:
            process, refresh = await stack.enter_async_context(_process(config, prm_options, prefill, trees))
        collector = Collector(config, problems, pool, grader, trainer.check, process, prefill, cutter)
        accuracy = config.rewards.accuracy
        measure = partial(evaluate, pool, grader, held_out, config.eval_samples, config.seed, prefill, accuracy)
        aggregate = _aggregate(config)
        evaluation = measure if held_out else None
        loop = Loop(config, total, pool, trainer, collector, evaluation, aggregate, trees, refresh)
        print(
            f"{len(problems):,} problems, {len(held_out):,} held out; {total:,} steps of {config.batch.prompts} × "
            f"{config.batch.group_size}, {config.batch.optimizer_steps} updates each; {len(pool.engines)} engines, "
            f"{config.trainer.ranks} trainer ranks",
            flush=True,
        )
        try:
            return await loop.run()
        except asyncio.CancelledError:
            trainer.abandon("the run was stopped")  # do not wait for the current update to end
            raise


async def _start(
    config: RLConfig, total: int, options: ActorOptions | None, stack: AsyncExitStack
) -> tuple[RolloutPool, TrainerGroup]:
    """Start the engines and the trainer, and register their cleanup with `stack`.

    They start at the same time unless they share GPUs: an engine sizes its KV cache by the free memory of its GPU, so
    it must be alone there. In that case, the engines start first, and sleep while the trainer is loaded.
    """
    starting: list[TrainerGroup] = []

    def start_trainer() -> asyncio.Task[TrainerGroup]:
        return asyncio.create_task(asyncio.to_thread(_start_trainer, config, total, options, starting))

    trainer_start = None if config.rollouts.colocated else start_trainer()
    try:
        pool = await RolloutPool.start(
            engine_of(config.engine),
            sampling_of(config.sampling),
            config.prompt,
            config.rollouts,
            config.weights_transfer,
            options=None if options is None else options.engines,
            episodes=config.environment and EpisodeConfig(config.environment, config.seed),
        )
        stack.callback(pool.close)
        if trainer_start is None:
            await pool.sleep()
            trainer_start = start_trainer()
        await asyncio.wait({trainer_start})
    except BaseException as error:  # raised even if the abandoned trainer fails too
        for group in starting:
            group.abandon("the run was stopped" if isinstance(error, asyncio.CancelledError) else str(error))
        if trainer_start is not None:
            (trainer,) = await asyncio.gather(trainer_start, return_exceptions=True)
            if not isinstance(trainer, BaseException):
                stack.callback(trainer.close)
        raise
    trainer = trainer_start.result()
    stack.callback(trainer.close)
    return pool, trainer


def _aggregate(config: RLConfig) -> Aggregate | None:
    credit = config.step_credit
    return config.process.aggregate() if credit is not None and credit.mode == "scalar" else None


def _start_trainer(
    config: RLConfig, total: int, options: ActorOptions | None, starting: list[TrainerGroup]
) -> TrainerGroup:
    return TrainerGroup(
        config.engine.model,
        config.trainer,
        config.prompt,
        config.sampling.temperature,
        total * config.batch.optimizer_steps,
        config.has_critic,
        None if options is None else options.ranks,
        config.engine.max_pixels,
        config.engine.min_pixels,
        starting,
    )


def _transfer(config: RLConfig, transport: str, engines: Sequence[Any], rank: int) -> Transfer:
    """Create the weight transfer from a trainer rank to the engines."""
    if transport == "file":
        return FileTransfer(shared_folder(config.weights, Path(config.output)), is_main=rank == 0)
    from policy_rl.weights.vllm import VllmTransfer

    return VllmTransfer(transport, engines, config.engine.tensor_parallel_size, rank, config.weights.timeout_seconds)


def _step_cutter(config: RLConfig, prefill: str) -> StepCutter:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.engine.model, trust_remote_code=False)
    return StepCutter(tokenizer, config.step_format, prefill)


def _tree_store(config: RLConfig, cutter: StepCutter, stack: AsyncExitStack) -> TreeStore | None:
    """Open the store of the run's trees, and register its closing with `stack`."""
    if config.rollouts.branching is None or not config.rollouts.branching.store:
        return None
    trees = TreeStore.open(Path(config.output), config.step_format, cutter)
    stack.callback(trees.close)
    return trees


@asynccontextmanager
async def _process(
    config: RLConfig, options: dict[str, Any] | None, prefill: str, trees: TreeStore | None
) -> AsyncIterator[tuple[Process, PrmRefresh | None]]:
    from transformers import AutoTokenizer

    from policy_rl.rewards.prm_actor import RemotePrm
    from policy_rl.rewards.process import ProcessReward

    prm = await RemotePrm.start(config.process, options)
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.engine.model, trust_remote_code=False)
        refresh = None
        if config.process.refresh is not None:
            assert trees is not None, "the configuration requires rollouts.branching.store"
            refresh = PrmRefresh(config.process.refresh, Path(config.output), config.seed, prm, trees)
        yield ProcessReward(tokenizer, config.step_format, prefill, prm), refresh
    finally:
        prm.close()


def _check_disjoint(problems: Sequence[Problem], held_out: Sequence[Problem], episodes: bool = False) -> None:
    """Raise DataError if a held-out problem is also a training problem.

    Problems are compared by content, because ids from two files may coincide, and one problem may have two ids. With
    `episodes`, all columns are content: the question may be the same in all levels of an environment.
    """

    def row(problem: Problem) -> str:
        return json.dumps(problem.extra, sort_keys=True, default=str) if episodes else ""

    questions = {problem.question for problem in problems} & {problem.question for problem in held_out}

    def contents(found: Sequence[Problem]) -> dict[tuple[str, str], str]:
        same_words = (each for each in found if each.question in questions)
        return {(content_id(p.question, p.answer, p.media, p.choices), row(p)): p.id for p in same_words}

    there = contents(held_out)
    shared = there.keys() & contents(problems).keys()
    if shared:
        raise DataError(
            f"held_out: {len(shared)} problems are also in `problems`, for example {there[min(shared)]}; pass@1 on "
            "training problems is not informative, so remove them from one of the two"
        )
