"""Resolve engine.dtype=auto to the data type in which a policy's engine is fastest on this machine.

| device | bf16 instructions | hidden size | data type |
|---|---|---|---|
| GPU | yes | any | bfloat16 |
| GPU | no | any | float16 |
| CPU | yes | any | bfloat16 |
| CPU with AVX-512 | no | below WIDE | bfloat16 |
| any other CPU | no | any | float32 |

On a CPU without bf16 instructions, a bfloat16 product converts its operands. With AVX-512, most products take two to
four times as long as in float32; in a narrow model, products take little time, and the smaller weights and activations
matter more. On a CPU with AVX2 only, products take 4 to 65 times as long, and an engine of the built-in policy up to
2.7 times. Arm is treated the same, although it has not been measured. benchmarks/engine_dtype.py measures this.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from mmprm.hub_models import check_hub_model
from mmprm.ray_address import cluster_address
from mmprm.sampling.config import EngineConfig, LocalEngineConfig

WIDE = 576
"""Hidden size from which float32 is faster than bfloat16 on a CPU with AVX-512 but without bf16 instructions."""

EngineDtype = Literal["bfloat16", "float16", "float32"]
_E = TypeVar("_E", bound=LocalEngineConfig)

_FLAGS = r"^(?:flags|Features)\s*:.*\s(?:{names})\b"
"""Pattern of the line of /proc/cpuinfo that lists one of the instruction sets `names`, on x86 and on Arm."""
_BF16 = re.compile(_FLAGS.format(names="avx512_bf16|amx_bf16|bf16"), re.MULTILINE)
_AVX512 = re.compile(_FLAGS.format(names="avx512f"), re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Device:
    """Describes a device for engines: its kind, whether it computes in bfloat16, and whether it is a CPU with
    AVX-512."""

    kind: Literal["CPU", "GPU"]
    bf16: bool
    avx512: bool = False

    @classmethod
    def cpu(cls, cpuinfo: str) -> Device:
        """Describe the CPU whose instruction sets the text of /proc/cpuinfo lists."""
        return cls("CPU", _BF16.search(cpuinfo) is not None, _AVX512.search(cpuinfo) is not None)

    @property
    def text(self) -> str:
        """Describe the device in words."""
        if self.bf16:
            return f"{self.kind} with bf16 instructions"
        missing = "bf16" if self.kind == "GPU" or self.avx512 else "bf16 and AVX-512"
        return f"{self.kind} without {missing} instructions"


def fastest_dtype(device: Device, hidden_size: int | None) -> EngineDtype:
    """Return the fastest data type for a device and hidden size. An unknown hidden size counts as wide."""
    if device.bf16:
        return "bfloat16"
    if device.kind == "GPU":
        return "float16"
    return "bfloat16" if device.avx512 and hidden_size is not None and hidden_size < WIDE else "float32"


def this_device() -> Device:
    """Return the device on which this machine's engines run."""
    import torch

    if torch.cuda.device_count():
        from vllm.platforms import current_platform  # reads the driver's library and starts no CUDA context

        return Device("GPU", torch.bfloat16 in current_platform.supported_dtypes)
    path = Path("/proc/cpuinfo")
    return Device.cpu(path.read_text(encoding="utf-8") if path.is_file() else "")


def engine_dtype(config: LocalEngineConfig) -> EngineDtype:
    """Return the configured data type; auto means the fastest one on this machine."""
    if config.dtype != "auto":
        return config.dtype
    device = this_device()
    return fastest_dtype(device, None if device.bf16 else hidden_size(config.model))


def hidden_size(model: str) -> int | None:
    """Return the hidden size of a model's language layers, or None if its configuration cannot be read."""
    from transformers import AutoConfig

    check_hub_model(model)
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=False).get_text_config().hidden_size
    except Exception:  # of any type; the preflight checks report an unsuitable folder in detail
        return None


def with_dtype(
    engine: _E, ray_address: str | None = None, stored: str | None = None, model_folder: str | None = None
) -> _E:
    """Return the engine configuration with `auto` replaced by a data type, and print the choice and its reason to
    stderr.

    Commands record this data type, so that a run does not change if it is resumed on another machine: `stored` is the
    data type of the run to resume, if any. The machines of a Ray cluster may differ from this one, so bfloat16 is used
    there. `model_folder` is the folder of the model if `engine.model` is only its name.
    """
    if engine.dtype != "auto":
        return engine
    if isinstance(engine, EngineConfig) and engine.servers is not None:
        return engine.model_copy(update={"dtype": stored or "bfloat16"})  # unused, because the servers have their own
    dtype, reason = (stored, "as before") if stored else _chosen(model_folder or engine.model, ray_address)
    print(f"engine.dtype=auto: {dtype} ({reason})", file=sys.stderr, flush=True)
    return engine.model_copy(update={"dtype": dtype})


def _chosen(model: str, ray_address: str | None) -> tuple[EngineDtype, str]:
    cluster, _ = cluster_address(ray_address)
    if cluster is not None:
        return "bfloat16", f"cluster {cluster}; if its GPUs are older than Ampere, set engine.dtype=float16"
    device = this_device()
    if not device.avx512 or device.bf16:
        return fastest_dtype(device, None), device.text
    size = hidden_size(model)
    return fastest_dtype(device, size), f"{device.text}, hidden size {size or 'unknown'}"
