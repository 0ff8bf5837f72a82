"""Run the RL loop: collect groups, compute advantages, update the policy, sync the engines; log, evaluate, save.

    loop = Loop(config, total_steps, pool, trainer, collector, evaluation)
    summary = await loop.run()

`pool` and `trainer` can be any objects with the methods of RolloutPool and TrainerGroup. Each step of the loop has
these parts:

1. collect: sample, grade, score, filter (policy_rl.collector)
2. old: compute old and reference log-probabilities and values, if several updates, KL or a critic need them
3. advantages (policy_rl.algorithms.samples, or tree_samples if responses branch), then up to `batch.updates` optimizer
   steps per epoch, each on some groups
4. sync: send the weights to all engines and verify that they use them; the policy version is the step number. A first
   sync precedes the first step, so that a broken transfer wastes no rollouts
5. write a checkpoint if one is due, then evaluate if an evaluation is due

With one_step_ahead, part 1 of the next step runs in parallel with parts 2 and 3 of this one. With max_staleness, part 1
of several steps runs in parallel with all other parts, and responses in flight continue with new weights
(policy_rl.rollouts.step_queue).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from mmprm.errors import EngineStoppedError
from mmprm.sampling.dtype import engine_dtype
from mmprm.training.checkpoints import newest, offer_best
from mmprm.training.metrics_log import MetricsLog
from mmprm.training.ranks import Ranks
from mmprm.training.stop_request import StopRequest
from policy_rl.algorithms.samples import Aggregate
from policy_rl.collector import Collector
from policy_rl.config import RLConfig
from policy_rl.graded import GradedGroup
from policy_rl.learner import Learner
from policy_rl.metrics import Timed, console_line, shares
from policy_rl.monitor.alarms import Alarms, alarm_error
from policy_rl.monitor.samples import SampleLog, chosen, sample_of, trained_sample
from policy_rl.monitor.truths import TurnTruths
from policy_rl.rewards.prm_refresh import PrmRefresh
from policy_rl.rollouts.collected import Collected
from policy_rl.rollouts.evaluate import Evaluation
from policy_rl.rollouts.protocol import Pool
from policy_rl.rollouts.step_queue import StepQueue
from policy_rl.rollouts.tree_store import TreeStore
from policy_rl.run_folder import Summary, check_same, checkpoints_of, is_evaluated, policy_of, report_run, resume_key_of
from policy_rl.trainer.protocol import TrainerLike
from policy_rl.trainer.resume_key import current_state
from policy_rl.types import TrainingSample
from policy_rl.weights.publish import publish_watched


class Loop:
    """Runs the training steps of `mmprm rl`.

    `evaluation` evaluates the engines' current policy, or is None if there are no held-out problems. `aggregate`
    combines step scores with credit.mode=scalar. `trees` keeps the trees of responses that branch, and `refresh`
    retrains the process reward model on them; both are None if not configured.
    """

    def __init__(
        self,
        config: RLConfig,
        total: int,
        pool: Pool,
        trainer: TrainerLike,
        collector: Collector,
        evaluation: Callable[[], Awaitable[Evaluation]] | None = None,
        aggregate: Aggregate | None = None,
        trees: TreeStore | None = None,
        refresh: PrmRefresh | None = None,
    ) -> None:
        self._config, self._total, self._trees, self._refresh = config, total, trees, refresh
        self._pool, self._trainer, self._collector, self._evaluation = pool, trainer, collector, evaluation
        self._output = Path(config.output)
        self._checkpoints, self._policy = checkpoints_of(config), policy_of(config)
        self._learner = Learner(config, trainer, collector, aggregate, trees, refresh)
        self._alarms, self._truths = Alarms(config.monitor), TurnTruths(config.environment, config.seed)
        self._resume_key = resume_key_of(config, total, collector.fingerprint)
        self._evaluations: dict[int, Evaluation] = {}
        self._queue = StepQueue(collector.collect)
        self._depth = 1 if config.one_step_ahead else config.max_staleness
        """Number of steps to collect ahead."""
        self._seconds: Counter[str] = Counter()

    async def run(self) -> Summary:
        """Train from the newest checkpoint, if there is one, to the last step.

        On SIGTERM or Ctrl-C, finishes the current step and saves. Then returns after SIGTERM, and raises
        KeyboardInterrupt after Ctrl-C.
        """
        step = await self._resume()
        # Without a checkpoint the run starts over, so earlier log entries in this folder do not belong to it.
        settings = self._config.model_dump(mode="json")
        log = MetricsLog(self._output, step or -1, self._config.tracker, settings)
        samples = SampleLog(self._output, step)
        with closing(log), closing(samples), StopRequest(Ranks(0, 1, torch.device("cpu"))) as stop:
            try:
                await self._after_checkpoint(step, log)
                stopping = False
                while not stopping and not self._is_last(step):
                    if self._refresh is not None:
                        await self._refresh.retrain_if_due(step)
                    step += 1
                    groups, trained, metrics = await self._step(step)
                    self._write(step, metrics, log)
                    await self._write_samples(step, groups, trained, samples)
                    # A step without an update lacks metrics on which alarms may be set.
                    crossed = self._alarms.see(metrics) if metrics["updates"] else None
                    due = self._is_last(step) or _due(self._config.save_every, step) or self._may_be_best(step)
                    # If the run is killed while a new PRM is trained, it resumes with the training.
                    due = due or (self._refresh is not None and self._refresh.is_due)
                    saved = stop.came() or crossed is not None or due
                    if saved:
                        await self._write_checkpoint(self._state(step))
                    await self._after_checkpoint(step, log)
                    if crossed:
                        raise alarm_error(step, crossed, newest(self._checkpoints))
                    stopping = stop.came() and not self._is_last(step)
                    # A signal may have arrived during the evaluation, after the decision to save.
                    if stopping and not saved:
                        await self._write_checkpoint(self._state(step))
            finally:
                await self._queue.cancel()
                report_run(self._output, with_rollouts=True)
        if stopping:
            print(
                f"{self._output}: {stop.name}; saved after step {step} of {self._total}, run the same command again to "
                "resume"
            )
            if stop.interrupted:
                raise KeyboardInterrupt
        elif self._config.ends_by_passes:
            print(f"{self._output}: finished {self._config.episodes} passes over the problems after step {step}")
        if not stopping and self._collector.waiting:
            size = self._config.batch.prompts // self._config.batch.updates
            print(f"{self._output}: {self._collector.waiting} groups are left over, fewer than the {size} of an update")
        policy = None if stopping else self._policy
        before, after = self._evaluations.get(0), self._evaluations.get(step)
        return Summary(step, self._total, not stopping, policy, before, after)

    def _is_last(self, step: int) -> bool:
        """Return whether `step` is the last step of the run.

        With a filter and without `steps`, a run ends after `episodes` passes over the problems, regardless of the
        number of steps.
        """
        if self._config.ends_by_passes:
            return self._queue.is_empty and self._collector.passes >= self._config.episodes
        return step >= self._total

    def _may_be_best(self, step: int) -> bool:
        return self._config.keep_best and self._evaluation is not None and _due(self._config.eval_every, step)

    async def _after_checkpoint(self, step: int, log: MetricsLog) -> None:
        """Save the policy after the last step, and evaluate if an evaluation is due.

        This follows the step's checkpoint. If the run is killed in between, the resumed run makes up for it.
        """
        last = self._is_last(step)
        if last and not self._policy.is_dir():
            await asyncio.to_thread(self._trainer.save_model, self._policy)
        due = self._evaluation is not None and (step == 0 or last or _due(self._config.eval_every, step))
        if due and not is_evaluated(self._output, step):
            await self._evaluate(step, log)
            await asyncio.to_thread(report_run, self._output)

    def _write(self, step: int, metrics: dict[str, float], log: MetricsLog) -> None:
        log.write("train", step, metrics, shown=False, total=max(step, self._total))
        print(console_line(step, max(step, self._total), metrics), flush=True)

    async def _write_samples(
        self, step: int, groups: Sequence[GradedGroup], trained: Sequence[TrainingSample], log: SampleLog
    ) -> None:
        config, collector = self._config, self._collector
        found = chosen(groups, config.monitor.samples)
        truths = [await self._truths.of(groups[index].problem, each.response) for index, each in found]
        log.write(
            [
                sample_of(
                    step,
                    groups[index],
                    each,
                    config.step_format,
                    collector.prefill,
                    trained_sample(trained, index, each),
                    collector.step_of_token(each),
                    true,
                )
                for (index, each), true in zip(found, truths, strict=True)
            ]
        )

    async def _step(self, step: int) -> tuple[list[GradedGroup], list[TrainingSample], dict[str, float]]:
        """Run one training step, and return its groups, the samples that were trained on, and its metrics."""
        started, self._seconds = time.perf_counter(), Counter()
        with Timed(self._seconds, "wait"):
            collected = await self._collect(step)
        await self._start_ahead(step)
        trained, metrics = await self._learner.learn(step, collected, self._pool.version, self._seconds)
        if self._config.one_step_ahead:
            with Timed(self._seconds, "wait"):
                await self._queue.wait_for_all()
        metrics["probe_distance"] = await self._sync(step)
        metrics |= shares(self._seconds, collected, time.perf_counter() - started, self._depth > 0)
        return collected.groups, trained, metrics

    async def _sync(self, version: int) -> float:
        """Send the weights to all engines as version `version`. See RolloutPool.load_weights for the result."""
        with Timed(self._seconds, "sync"):
            if self._config.rollouts.colocated:  # the engines sleep and have released their weights
                await asyncio.to_thread(self._trainer.release_memory)
                await self._pool.wake()
            dtype = getattr(torch, engine_dtype(self._config.engine))
            return await self._pool.load_weights(await publish_watched(self._trainer, self._pool, version, dtype))

    async def _evaluate(self, step: int, log: MetricsLog) -> None:
        """Evaluate the current policy and log the result.

        Any error is printed and the evaluation is skipped. Before the first step, where an error loses no work, it is
        raised instead.
        """
        assert self._evaluation is not None
        try:
            found = await self._evaluation()
        except Exception as error:
            if step == 0:
                raise
            print(
                f"no evaluation after step {step}: {error}; after the last step, the same command tries again",
                file=sys.stderr,
                flush=True,
            )
            return
        log.write("eval", step, found.metrics(), shown=True, total=max(step, self._total))
        self._evaluations[step] = found
        if self._config.keep_best:
            await asyncio.to_thread(offer_best, self._checkpoints, step, found.pass_at_1.value, True)

    async def _collect(self, step: int) -> Collected:
        """Collect the groups of a step, and put colocated engines to sleep.

        If the engines stop, saves a checkpoint of the previous step before failing; the trainer still holds its
        weights at that time.
        """
        self._queue.start(step)
        if not self._config.one_step_ahead:
            await self._start_ahead(step)
        try:
            collected = await self._queue.wait(step)
            if self._config.rollouts.colocated:
                await self._pool.sleep()
        except EngineStoppedError:
            last = newest(self._checkpoints)
            if step > 1 and (last is None or last.name != f"step-{step - 1:08d}"):
                await self._write_checkpoint(self._state(step - 1))
            raise
        self._queue.drop(step)
        return collected

    async def _start_ahead(self, step: int) -> None:
        """Start to collect the steps after `step`, as far ahead as the configuration allows."""
        for later in range(step + 1, step + self._depth + 1):
            await asyncio.sleep(0)  # the step before takes its problems, which `passes` counts
            if self._config.ends_by_passes:
                if self._collector.passes >= self._config.episodes:
                    return
            elif later > self._total:
                return
            self._queue.start(later)

    async def _write_checkpoint(self, state: dict[str, Any]) -> None:
        """Write a checkpoint in a thread, so that the event loop can still detect that Ray has ended."""
        await asyncio.to_thread(self._trainer.save, self._checkpoints, state, self._config.keep_checkpoints)

    def _state(self, step: int) -> dict[str, Any]:
        """Return the loop state to store in a checkpoint, in addition to the weights."""
        return {
            "step": step,
            "identity": self._resume_key,
            "noted": self._config.noted(),
            "collector": self._collector.state(),
            "pending": self._queue.state(),
            **self._learner.state(),
            "alarms": dict(self._alarms.counts),
            "refresh": None if self._refresh is None else self._refresh.state(),
        }

    async def _resume(self) -> int:
        """Load the newest checkpoint, sync the engines, and return the number of completed steps.

        Without a checkpoint, the initial weights are sent, although engines start with them, to verify the transfer
        before the first step.
        """
        extra = await asyncio.to_thread(self._trainer.resume, self._checkpoints)
        if extra is None:
            if self._trees is not None:
                self._trees.clear()
            if self._refresh is not None:
                self._refresh.start_over()
            await self._sync(0)
            return 0
        extra = current_state(extra)
        check_same(self._checkpoints, extra["identity"], self._resume_key)
        for key, here in self._config.noted().items():
            if extra["noted"][key] != here:
                print(f"{self._output}: {key} was {extra['noted'][key]} and is {here} from step {extra['step'] + 1} on")
        self._collector.restore(extra["collector"])
        for ahead, collected in extra["pending"].items():
            self._queue.put(int(ahead), self._collector.collected(collected))
        self._learner.restore(extra)
        self._alarms.counts |= {name: extra["alarms"].get(name, 0) for name in self._alarms.counts}
        if self._refresh is not None:
            await self._refresh.restore(extra["refresh"])
        await self._sync(extra["step"])
        return extra["step"]


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0
