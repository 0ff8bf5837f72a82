"""Replace CUDA, NCCL and vLLM's sleep mode by stand-ins, so that the control flow of GPU runs executes on CPU.

Put this folder on PYTHONPATH and set MMPRM_CUDA_STANDINS to a folder. Every Python process then patches vLLM's modules
on import where they need a GPU, and appends what happened to `events` in that folder.

- NCCL: vLLM's StatelessProcessGroup broadcasts the same bytes over its TCP store.
- CUDA IPC: the packed buffer is a shared file in /dev/shm, and its handle is the path.
- Sleep mode: level 2 fills weights and cache with NaN, and a step before both are awake is an error. Buffers keep their
values, as in vLLM.

All else (protocol, packing, loading and their order) is the code of vLLM and of this project.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = os.environ.get("MMPRM_CUDA_STANDINS")
SHARED = "/dev/shm/mmprm-standin-"


def note(event: str) -> None:
    """Append an event in a single write, so that concurrent events do not mix."""
    with Path(FOLDER, "events").open("a") as file:
        file.write(f"{event}\n")


class Facade:
    """Wraps a module and replaces some of its attributes."""

    def __init__(self, module: Any, **own: Any) -> None:
        self.__dict__.update(own, _module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class Stream:
    """Stands in for a CUDA stream and completes all work at once."""

    def synchronize(self) -> None: ...


def gpu() -> str:
    """Return the id of the first GPU visible to this process; the two raylets have different ones."""
    return f"GPU-{os.environ.get('RAY_RAYLET_PID', '')}-{os.environ.get('CUDA_VISIBLE_DEVICES', '')}"


def cuda_of(torch: ModuleType) -> Facade:
    return Facade(
        torch.cuda,
        Stream=Stream,
        stream=lambda stream: contextlib.nullcontext(),
        current_stream=lambda *_: Stream(),
        synchronize=lambda *_: None,
        ipc_collect=lambda: None,
        get_device_properties=lambda *_: Facade(None, uuid=gpu()),
    )


def replace_accelerator() -> None:
    import torch

    torch.accelerator.current_device_index = lambda: 0
    torch.accelerator.synchronize = lambda *_: None


class StoreCommunicator:
    """Broadcasts like PyNcclCommunicator, but over the group's TCP store."""

    def __init__(self, group: Any) -> None:
        self.group, self.device = group, "cpu"
        note(f"nccl rank {group.rank} of {group.world_size}")

    def broadcast(self, tensor: Any, src: int, stream: Any = None) -> None:
        import torch

        flat = tensor.view(torch.uint8)
        if self.group.rank == src:
            note(f"nccl broadcast {flat.numel()}")
            self.group.broadcast_obj(flat.contiguous().numpy().tobytes(), src)
        else:
            data = self.group.broadcast_obj(None, src)
            flat.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8).view(flat.shape))

    def destroy(self) -> None: ...


def nccl_common(module: ModuleType) -> None:
    from vllm.distributed.utils import StatelessProcessGroup

    def start(master_address: str, master_port: int, rank: int, world_size: int, device: Any) -> StoreCommunicator:
        group = StatelessProcessGroup.create(host=master_address, port=master_port, rank=rank, world_size=world_size)
        return StoreCommunicator(group)

    replace_accelerator()
    module.stateless_init_process_group = start


def packed_tensor(module: ModuleType) -> None:
    import torch
    from torch.multiprocessing import reductions

    replace_accelerator()
    path = f"{SHARED}{os.getpid()}"

    def empty(size: int, dtype: Any, device: str) -> Any:
        note(f"buffer {size}")
        return torch.from_file(path, shared=True, size=size, dtype=dtype)

    def rebuild(path: str, size: int, *_: Any) -> Any:
        return torch.from_file(path, shared=True, size=size, dtype=torch.uint8)

    module.torch = Facade(torch, cuda=cuda_of(torch), empty=empty)
    module._get_streams = lambda device, count: tuple(Stream() for _ in range(count))
    module.reduce_tensor = lambda tensor: (None, (path, tensor.numel(), 0, 0, 0, 0, 0))
    reductions.rebuild_cuda_tensor = rebuild


def ipc_engine(module: ModuleType) -> None:
    import torch

    replace_accelerator()
    module.torch = Facade(torch, cuda=cuda_of(torch))


def cpu_platform(module: ModuleType) -> None:
    module.CpuPlatform.is_sleep_mode_available = classmethod(lambda cls: True)


def cpu_worker(module: ModuleType) -> None:
    """Add sleep mode to the worker of vLLM's CPU backend."""
    worker, asleep = module.CPUWorker, set()
    real_step = worker.execute_model

    def sleep(self: Any, level: int = 1) -> None:
        import torch

        note(f"sleep {level}")
        asleep.update({"weights", "kv_cache"})
        if level == 2:
            with torch.no_grad():
                for tensor in (*self.model_runner.get_model().parameters(), *self.model_runner.kv_caches):
                    tensor.fill_(torch.nan)

    def wake_up(self: Any, tags: list[str] | None = None) -> None:

        note(f"wake {' '.join(tags or ())}")
        asleep.difference_update(tags or tuple(asleep))
        if not asleep:
            for tensor in self.model_runner.kv_caches:
                tensor.zero_()

    def execute_model(self: Any, *arguments: Any, **named: Any) -> Any:
        assert not asleep, f"a step while {sorted(asleep)} sleep"
        return real_step(self, *arguments, **named)

    worker.sleep, worker.wake_up, worker.execute_model = sleep, wake_up, execute_model


STAND_INS: dict[str, Callable[[ModuleType], None]] = {
    "vllm.distributed.weight_transfer.nccl_common": nccl_common,
    "vllm.distributed.weight_transfer.packed_tensor": packed_tensor,
    "vllm.distributed.weight_transfer.ipc_engine": ipc_engine,
    "vllm.platforms.cpu": cpu_platform,
    "vllm.v1.worker.cpu_worker": cpu_worker,
}


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules to patch and patches them after they are executed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in STAND_INS:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            STAND_INS[name](module)

        spec.loader.exec_module = exec_module
        return spec


if FOLDER:
    sys.meta_path.insert(0, Finder())
