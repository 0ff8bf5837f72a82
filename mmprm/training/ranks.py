"""Set up the process group: either a single process or the ranks that torchrun started."""

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
"""Maximum time that a rank waits for the other ranks; equal to torch's default."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Identifies this process in the process group, and exchanges values with the other ranks."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every rank has called this method."""
        if self.count > 1:
            dist.barrier()

    def sum(self, *values: float) -> list[float]:
        """Return the sum of each value over all ranks."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.count > 1:
            dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks on every rank, in rank order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values


def check_shared(ranks: Ranks, folder: Path, key: str) -> None:
    """Raise ConfigError unless every rank sees the files that rank 0 writes to `folder`.

    All ranks write parts of a checkpoint and one completes it, so they need a shared folder. `key` names the setting in
    the error. Every rank must call it.
    """
    if ranks.count == 1:
        return
    mark = folder / f".shared-{ranks.gather(uuid.uuid4().hex)[0]}"  # a new name that no file system has cached
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
    """Lock `folder` for this run inside the `with` block.

    Raises ConfigError on every rank if another run writes there or not all ranks see the folder. `key` names the
    setting in the error. Every rank must enter the context.
    """
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
    """Restrict gloo to the loopback interface, because it listens on the machine's address by default."""
    if os.path.exists("/sys/class/net/lo"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def _loopback_store(rank: int, count: int) -> dist.TCPStore:
    """Create the rendezvous store for ranks on one machine, because torch's own store would listen on every
    interface."""
    port, listening = int(os.environ["MASTER_PORT"]), None
    if rank == 0:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, port))
        listener.listen(2 * count)
        listening = listener.detach()
    return dist.TCPStore(LOOPBACK, port, count, rank == 0, MEETING_TIME, master_listen_fd=listening)


def join_ranks() -> Ranks:
    """Join the process group described by torchrun's environment, or create a group of one process. Repeated calls are
    allowed."""
    cuda = torch.cuda.is_available()
    backend = "nccl" if cuda else "gloo"
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed reads it
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    import deepspeed

    # Only DeepSpeed's inference needs this operator. Compiling it takes a while, and if the compilation is killed, its
    # lock file blocks all later runs.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not dist.is_initialized():
        if "RANK" not in os.environ:  # an in-memory store, so child processes inherit no rank from the environment
            _keep_to_loopback()
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        elif os.environ.get("MASTER_ADDR") == LOOPBACK and "TORCHELASTIC_RUN_ID" not in os.environ:
            _keep_to_loopback()
            rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            dist.init_process_group(backend, store=_loopback_store(rank, count), rank=rank, world_size=count)
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    return Ranks(dist.get_rank(), dist.get_world_size(), device)
