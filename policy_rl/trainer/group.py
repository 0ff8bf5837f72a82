"""Run the trainer on all ranks as Ray actors, and send each call to all of them.

    group = TrainerGroup(model, config, prompt, temperature, total_updates, critic, options)
    group.check(sample)               # DataError: count and skip the sample
    samples = group.log_probs(samples)     # with old, ref and values filled in
    metrics = group.update(samples, progress)
    group.open_transfer(make); published = group.publish(version, probe_token_ids, dtype)
    extra = group.resume(folder); group.save(folder, extra, keep); group.save_model(folder)
    group.close()

A rank's exception is re-raised here once, unchanged. If the other ranks cannot continue without that rank, or a rank
does not answer in time, the group is closed.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from mmprm import actors
from mmprm.errors import MmprmError, TrainingError
from mmprm.prompts import PromptConfig
from policy_rl.trainer.batch import Limits
from policy_rl.trainer.config import TrainerConfig
from policy_rl.trainer.trainer import Trainer
from policy_rl.types import LogProbs, TrainingSample
from policy_rl.weights.transfer import Published, Transfer

GRACE_SECONDS = 10
"""Number of seconds to wait for the answers of the other ranks after one rank has failed."""


class TrainerGroup:
    """Runs a Trainer on every rank. Starts Ray if it is not running.

    `options`, one dict of Ray actor options per rank, come from policy_rl.placement; by default each rank has a GPU if
    there are any. The group adds itself to `starting` before it waits for its ranks, so that another thread can abandon
    it. The other arguments are those of Trainer.
    """

    def __init__(
        self,
        model: str,
        config: TrainerConfig,
        prompt: PromptConfig,
        temperature: float,
        total_updates: int,
        critic: bool = False,
        options: Sequence[dict[str, Any]] | None = None,
        max_pixels: int | None = None,
        min_pixels: int | None = None,
        starting: list[TrainerGroup] | None = None,
    ) -> None:
        actors.connect()
        self._timeout_seconds = config.timeout_seconds
        self._closed: str | None = None
        # Ranks synchronize in each call, so calls from different threads must reach all ranks in the same order.
        self._lock = threading.RLock()
        gpu = ray.cluster_resources().get("GPU", 0) > 0
        # Without a GPU, the engines reserve the cores and idle while the ranks compute, so the ranks reserve none.
        options = options or [{"num_cpus": 0, "num_gpus": 1 if gpu else 0}] * config.ranks
        assert len(options) == config.ranks, "options are given per rank"
        self._actors = [ray.remote(concurrency_groups={"monitor": 1}, **each)(_Rank).remote() for each in options]
        if starting is not None:
            starting.append(self)
        (address,) = actors.wait_all(
            [self._actors[0].address.remote()],
            lambda: f"the first rank of the trainer to start; Ray has {actors.free_resources()} free",
            self._timeout_seconds,
            "raise trainer.timeout_seconds if it only needs longer",
            TrainingError,
        )
        threads = None if gpu else max(1, len(os.sched_getaffinity(0)) // config.ranks)
        arguments = (model, config, prompt, temperature, total_updates, critic, max_pixels, min_pixels)
        each = [(rank, config.ranks, address, threads, arguments) for rank in range(config.ranks)]
        self.limits: Limits = self._all("start", each)[0]

    def check(self, sample: TrainingSample) -> None:
        """Raise DataError, naming the problem, for a response that cannot be trained on."""
        self.limits.check(sample)

    def log_probs(self, samples: Sequence[TrainingSample], reference_only: bool = False) -> list[TrainingSample]:
        """Return copies of the samples with the log-probabilities and values that the update needs.

        `old` and, with a critic, `values` are added unless `reference_only` is set; `ref` and `teacher` are added if
        there is a reference model or a teacher.
        """
        found: dict[int, LogProbs] = {}
        for share in self._call("log_probs", list(samples), reference_only):
            found |= share
        named = [asdict(found[index]) for index in range(len(samples))]
        return [
            replace(sample, **{name: array for name, array in each.items() if array is not None})
            for sample, each in zip(samples, named, strict=True)
        ]

    def update(self, samples: Sequence[TrainingSample], progress: float | None = None) -> dict[str, float]:
        """Perform one optimizer step on all ranks. See Trainer.update."""
        return self._call("update", list(samples), progress)[0]

    def open_transfer(self, make: Callable[[int], Transfer]) -> None:
        """Prepare the transfer of weights: call `make(rank)` on every rank (see policy_rl.weights.transfer)."""
        self._call("open_transfer", make)

    def publish(self, version: int, probe_token_ids: Sequence[int], dtype: torch.dtype) -> Published:
        """Send the weights to the engines as version `version`; return a Published describing them. See
        Transfer.publish."""
        return self._call("publish", version, tuple(probe_token_ids), dtype)[0]

    def release_memory(self) -> None:
        """Free cached GPU memory, so that engines on the same GPUs can use it."""
        self._call("release_memory")

    def save(self, folder: Path, extra: dict[str, Any], keep: int) -> None:
        """Write a checkpoint from all ranks. See Trainer.save."""
        self._call("save", folder, extra, keep)

    def resume(self, folder: Path) -> dict[str, Any] | None:
        """Restore the newest checkpoint and return its extra data. See Trainer.resume."""
        return self._call("resume", folder)[0]

    def save_model(self, folder: Path) -> None:
        """Save the policy as a Hugging Face model folder. See Trainer.save_model."""
        self._call("save_model", folder)

    def close(self) -> None:
        """Close the trainer on all ranks and stop their actors."""
        if self._closed is None:
            self._call("close")
        self._kill("it was closed")

    def abandon(self, reason: str) -> None:
        """Kill all ranks immediately, even during a call. May be called from another thread during startup."""
        self._kill(reason)

    def _call(self, method: str, *arguments: Any) -> list[Any]:
        # Store the samples once in Ray's object store, instead of serializing them for each rank.
        shared = arguments if len(self._actors) == 1 else ray.put(arguments)
        with self._lock:
            return self._all("call", [(method, shared)] * len(self._actors))

    def _all(self, method: str, each: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call a method on every rank and return the results in rank order."""
        if self._closed is not None:
            raise TrainingError(f"the trainer has ended: {self._closed}; run the same command again to resume")
        name = each[0][0] if method == "call" else method
        calls = [getattr(actor, method).remote(*arguments) for actor, arguments in zip(self._actors, each, strict=True)]
        answers: dict[int, Any] = {}
        failures: dict[int, BaseException] = {}

        def waiting() -> list[int]:
            return [rank for rank in range(len(calls)) if rank not in answers and rank not in failures]

        def what() -> str:
            return f"{name} of the trainer: {self._state(waiting())}; ranks that answered: {sorted(answers) or 'none'}"

        patience = actors.Patience(
            what,
            self._timeout_seconds,
            "raise trainer.timeout_seconds if it only needs longer",
            TrainingError,
        )
        late: TrainingError | None = None
        while waiting() and late is None:
            try:
                done, _ = ray.wait([calls[rank] for rank in waiting()], timeout=patience.seconds())
            except TrainingError as error:
                late = error
                continue
            for rank in [rank for rank in waiting() if calls[rank] in done]:
                try:
                    answers[rank] = ray.get(calls[rank])
                except RayError as error:
                    failures[rank] = _cause(error, rank)
                    # The other ranks may wait for the failed one in a collective operation, so do not wait long.
                    patience.shorten(GRACE_SECONDS)
        if len(answers) == len(calls):
            return [answers[rank] for rank in range(len(calls))]
        # Prefer an error that explains itself; other ranks may only report that a connection was lost.
        own = next((error for error in failures.values() if isinstance(error, MmprmError)), None)
        failure = own or next(iter(failures.values()), None) or late
        if len(failures) < len(calls):  # the ranks are out of step, so that no further call can succeed
            self._kill(str(failure))
        raise failure

    def _state(self, waiting: Sequence[int]) -> str:
        """Ask the given ranks what they are doing, and format their answers for an error message."""
        questions = [self._actors[rank].doing.remote() for rank in waiting]
        done, _ = ray.wait(questions, num_returns=len(questions), timeout=5)
        states = [
            f"rank {rank}: {_answer(question) if question in done else 'does not report its state'}"
            for rank, question in zip(waiting, questions, strict=True)
        ]
        return "; ".join(states)

    def _kill(self, reason: str) -> None:
        self._closed = self._closed or reason
        for actor in self._actors:
            actors.kill(actor)


class _Rank:
    """Runs a Trainer in its own process, with a second thread that answers `doing` while another call runs."""

    def __init__(self) -> None:
        self._trainer: Trainer | None = None
        self._reserved: socket.socket | None = None

    def address(self) -> tuple[str, int]:
        """Return a rendezvous address for the ranks: this machine's IP address and a free port.

        The port stays reserved until `start` has ended. Only a listener that sets SO_REUSEADDR, as that of the ranks'
        store does, can bind it.
        """
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("", 0))  # on all interfaces, as the store does
        return ray.util.get_node_ip_address(), self._reserved.getsockname()[1]

    def start(
        self, rank: int, count: int, address: tuple[str, int], threads: int | None, arguments: tuple[Any, ...]
    ) -> Limits:
        """Create the Trainer, which joins the other ranks, and return its limits."""
        host, port = address
        # Ray makes only its own GPU visible to each rank, as device 0.
        variables = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": count, "MASTER_ADDR": host, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in variables.items()})
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            self._trainer = Trainer(*arguments)
        finally:
            if self._reserved is not None:
                self._reserved.close()
        return self._trainer.limits

    def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """Call a method of the Trainer by name."""
        return getattr(self._trainer, method)(*arguments)

    @ray.method(concurrency_group="monitor")
    def doing(self) -> str:
        """Return what the Trainer is currently doing. Also works while another call is running."""
        return "loading the model, joining the other ranks" if self._trainer is None else self._trainer.doing


def _answer(question: Any) -> str:
    try:
        return ray.get(question)
    except RayError:
        return "the process has died"


def _cause(error: RayError, rank: int) -> BaseException:
    """Unwrap the exception raised on a rank, because the text of Ray's wrapper includes both tracebacks."""
    if isinstance(error, RayTaskError):
        return error.cause if isinstance(error.cause, Exception) else error
    return TrainingError(
        f"rank {rank} of the trainer has died: {actors.cause_of(error)}; run the same command again, which resumes "
        "from the last checkpoint on the machines that Ray then has"
    )
