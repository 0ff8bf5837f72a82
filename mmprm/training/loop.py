"""Run the training loop: plan a step, run its micro-batches, update, log, evaluate, and save a checkpoint."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from torch import Tensor, nn

from mmprm.errors import TrainingError
from mmprm.training import checkpoints
from mmprm.training.batches import MicroBatch, epoch_batches, micro_batches, one_ahead
from mmprm.training.config import TrainingConfig
from mmprm.training.engine import Engine
from mmprm.training.metrics_log import MetricsLog
from mmprm.training.ranks import Ranks
from mmprm.training.stop_request import StopRequest


class Task(Protocol):
    """Protocol for a training task: the samples, the number of loss terms in each sample, and the loss."""

    lengths: Sequence[int]
    """Number of tokens in each sample."""
    terms: Sequence[int]
    """Number of loss terms in each sample. The loss of a step is the sum over its terms divided by their number."""

    def collate(self, samples: Sequence[int]) -> Any:
        """Collate samples into model inputs on the CPU; called in a thread while the model runs."""
        ...

    def loss_sum(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the sum of the loss terms in a batch from `collate`, as a scalar tensor."""
        ...

    def evaluate(self, engine: Engine) -> dict[str, float]:
        """Compute metrics on held-out data; every rank calls it."""
        ...


def step_count(samples: int, config: TrainingConfig) -> int:
    """Return the number of optimizer steps in the whole run."""
    return config.epochs * -(-samples // config.batch_size)


def fit(
    task: Task,
    engine: Engine,
    config: TrainingConfig,
    folder: Path,
    origin: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, float]:
    """Train to the end, resuming from the newest checkpoint in `folder` if there is one, and return the last
    evaluation.

    An interrupted and resumed run takes the same steps on the same data as an uninterrupted one. `origin` holds further
    settings that must match on resume. After SIGTERM or Ctrl-C, the loop finishes the current step, saves a checkpoint,
    and raises SystemExit(0) or KeyboardInterrupt.
    """
    ranks, resume_key, saved = engine.ranks, _resume_key(task, engine, config, origin), folder / "checkpoints"
    first, bad_steps = checkpoints.resume(engine, saved, resume_key), 0
    total = step_count(len(task.lengths), config)
    log = MetricsLog(folder, first, config.tracker, resume_key) if ranks.is_main else None
    collated = one_ahead(
        partial(task.collate, micro.samples) for step in _steps(task, config, ranks, first) for micro in step.own
    )
    (evaluated, *_) = ranks.gather(log.evaluated if log else set())
    evaluation: dict[str, float] | None = None

    def due(step: int) -> bool:
        return step == total or (config.eval_every > 0 and step % config.eval_every == 0)

    def evaluate(step: int) -> dict[str, float]:
        """Run the evaluation after optimizer step `step`. Its checkpoint is saved first, so that an error in the
        evaluation loses no training."""
        found = task.evaluate(engine)
        if log:
            log.write("eval", step, found, shown=True, total=total)
            if config.keep_best and "loss" in found:
                checkpoints.offer_best(saved, step, found["loss"], higher=False)
        return found

    with StopRequest(ranks) as stop, closing(log) if log else nullcontext():
        if first > 0 and due(first) and first not in evaluated:
            evaluation = evaluate(first)
        for done, step in enumerate(_steps(task, config, ranks, first), start=first + 1):
            started, rate = time.perf_counter(), engine.learning_rate  # engine.step advances the learning rate
            loss, norm = engine.step(_losses(task, step, collated), step.terms)
            bad_steps = bad_steps + 1 if engine.skipped else 0
            seconds = time.perf_counter() - started
            if log:
                metrics = _step_metrics(step, loss, norm, rate, seconds, engine.skipped)
                shown = engine.skipped or done % config.log_every == 0 or done == total
                log.write("train", done, metrics, shown, total)
            if bad_steps == config.max_bad_steps:
                raise _too_many(bad_steps, done, checkpoints.newest(saved))
            stopping = stop.came() and done < total
            saving = config.save_every and (done == total or done % config.save_every == 0)
            if stopping or saving or (config.keep_best and due(done)):
                checkpoints.save(engine, saved, done, resume_key, config.keep_checkpoints)
            if due(done):
                evaluation = evaluate(done)
            if stopping:
                raise _stopped(stop, f"{folder}: {stop.name}; saved after step {done} of {total}" if log else None)
        return task.evaluate(engine) if evaluation is None else evaluation


@dataclass(frozen=True, slots=True)
class _Step:
    """Holds the plan of one optimizer step: this rank's micro-batches, and the loss terms and tokens over all ranks."""

    own: tuple[MicroBatch, ...]
    terms: int
    tokens: int


def _steps(task: Task, config: TrainingConfig, ranks: Ranks, first: int) -> Iterator[_Step]:
    number = 0
    for epoch in range(config.epochs):
        for batch in epoch_batches(len(task.lengths), config.batch_size, config.seed, epoch):
            if number >= first:
                rows = micro_batches(batch, task.lengths, config.micro_batch_tokens, ranks.count)
                yield _Step(
                    own=tuple(row[ranks.rank] for row in rows),
                    terms=sum(task.terms[sample] for sample in batch),
                    tokens=sum(task.lengths[sample] for sample in batch),
                )
            number += 1


def _step_metrics(
    step: _Step, loss: float, norm: float | None, rate: float, seconds: float, skipped: bool
) -> dict[str, float]:
    """Return the metrics of one optimizer step. The gradient norm is omitted if it was not computed."""
    metrics = {"loss": loss, "learning_rate": rate, "seconds": seconds, "skipped": float(skipped)}
    metrics |= {} if norm is None else {"gradient_norm": norm}
    return metrics | {"tokens_per_second": step.tokens / seconds, "terms_per_second": step.terms / seconds}


def _stopped(stop: StopRequest, message: str | None) -> BaseException:
    """Print `message` and, if given, how to resume, and return the exception that ends the run."""
    if message is not None:
        print(f"{message}. Run the same command to resume", flush=True)
    return KeyboardInterrupt() if stop.interrupted else SystemExit(0)


def _too_many(bad_steps: int, done: int, checkpoint: Path | None) -> TrainingError:
    last = f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint (training.save_every)"
    return TrainingError(
        f"step {done}: the loss or its gradient was not finite in training.max_bad_steps={bad_steps} consecutive steps"
        f"; {last}. Raise max_bad_steps to resume from there, or lower training.learning_rate and choose another "
        "output, because a run can only be resumed with its original settings"
    )


def _losses(task: Task, step: _Step, collated: Iterator[Any]) -> Iterator[Callable[[nn.Module], Tensor]]:
    """Yield, for each micro-batch, a function that computes its loss with the model. The collated batch is fetched on
    demand."""
    for micro in step.own:
        yield partial(_loss, task=task, batch=next(collated), is_padding=micro.is_padding)


def _loss(model: nn.Module, task: Task, batch: Any, is_padding: bool) -> Tensor:
    loss = task.loss_sum(model, batch)
    return loss * 0.0 if is_padding else loss


def _resume_key(task: Task, engine: Engine, config: TrainingConfig, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that must match for a run to be resumed from a checkpoint."""
    free = ("eval_every", "save_every", "keep_checkpoints", "keep_best", "log_every", "max_bad_steps", "tracker")
    data = hashlib.sha256(json.dumps([list(task.lengths), list(task.terms)]).encode()).hexdigest()
    shared = {**config.model_dump(mode="json", exclude=set(free)), "ranks": engine.ranks.count, "data": data[:16]}
    return shared | dict(origin)
