"""The process group: one process alone, or the ranks that torchrun started."""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mmprm.errors import ConfigError
from mmprm.files import locked

LOOPBACK = "127.0.0.1"
MEETING_TIME = timedelta(minutes=30)
"""How long a rank waits for the others, as torch does."""


@dataclass(frozen=True, slots=True)
class Ranks:
    rank: int
    count: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.count > 1:
            dist.barrier()

    def sum(self, *values: float) -> list[float]:
        """Each value summed over the ranks."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.count > 1:
            dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, in rank order, on every rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values


def check_shared(ranks: Ranks, folder: Path, key: str) -> None:
    """Raise ConfigError, which names the configuration's `key`, unless every rank sees what the first one writes into
    `folder`: checkpoints are written by all ranks and finished by one. Every rank must call it."""
    if ranks.count == 1:
        return
    mark = folder / f".shared-{ranks.gather(uuid.uuid4().hex)[0]}"  # a name that nobody has asked for before
    problem = None
    if ranks.is_main:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
        except OSError as error:
            problem = f"cannot be written ({error}); choose another folder"
    problem = ranks.gather(problem)[0]
    seen = ranks.gather(os.path.exists(mark))
    if ranks.is_main and problem is None:
        mark.unlink()
    if problem is None and not all(seen):
        problem = f"rank {seen.index(False)} does not see what rank 0 writes there; choose a folder on shared storage"
    if problem is not None:
        raise ConfigError(f"{key}={folder}: {problem}")


@contextlib.contextmanager
def alone_in(ranks: Ranks, folder: Path, key: str) -> Iterator[None]:
    """Hold `folder`, which all ranks see, for this run alone. Raises ConfigError, which names the configuration's
    `key`, on every rank where another run writes there. Every rank must enter it."""
    check_shared(ranks, folder, key)
    with contextlib.ExitStack() as stack:
        refusal = None
        if ranks.is_main:
            try:
                stack.enter_context(locked(folder, key))
            except ConfigError as error:
                refusal = str(error)
        refusal = ranks.gather(refusal)[0]
        if refusal is not None:
            raise ConfigError(refusal)
        yield


def _keep_to_loopback() -> None:
    """Let gloo, which listens on the machine's address otherwise, take the loopback interface."""
    if os.path.exists("/sys/class/net/lo"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def _loopback_store(rank: int, count: int) -> dist.TCPStore:
    """Return the store where ranks of one machine meet. By itself torch listens on every interface."""
    port, listening = int(os.environ["MASTER_PORT"]), None
    if rank == 0:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, port))
        listener.listen(2 * count)
        listening = listener.detach()
    return dist.TCPStore(LOOPBACK, port, count, rank == 0, MEETING_TIME, master_listen_fd=listening)


def join_ranks() -> Ranks:
    """Join the group that torchrun's environment describes, or form one of this process alone. May be called again."""
    cuda = torch.cuda.is_available()
    backend = "nccl" if cuda else "gloo"
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        import deepspeed

        if "RANK" not in os.environ:  # without the environment's keys, so that child processes do not inherit a rank
            _keep_to_loopback()
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        elif os.environ.get("MASTER_ADDR") == LOOPBACK and "TORCHELASTIC_RUN_ID" not in os.environ:
            _keep_to_loopback()
            rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            dist.init_process_group(backend, store=_loopback_store(rank, count), rank=rank, world_size=count)
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    return Ranks(dist.get_rank(), dist.get_world_size(), device)
