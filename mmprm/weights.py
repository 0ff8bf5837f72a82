"""Read model folders safely, loading weights from safetensors only.

Weights are read only from safetensors, because older formats are pickles, which can run code on loading. Any exception
that a library raises for a folder is converted to a CheckpointError that names it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmprm.errors import CheckpointError, DataError, MmprmError
from mmprm.files import parse_json
from mmprm.hub_models import check_hub_model

LOAD_FORMAT = "safetensors"
"""Weight format to request from vLLM, which would otherwise fall back to pickles."""

_SAMPLE = 2**16
_REASON = 400
"""Maximum number of characters to quote from a library's error message."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def check_weights(model: str) -> None:
    """Raise CheckpointError if a model folder has weights only as pickles. For hub ids, the loader checks this."""
    folder = Path(model)
    if not folder.is_dir():
        return
    for file in folder.iterdir():
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise CheckpointError(f"{file}: is not a regular file; copy the model again")
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{model}: holds its weights as {pickles[0]} and not as safetensors; such files are pickles, which can run "
            "code, and are not read; if you trust them, convert them with transformers' save_pretrained"
        )


def shard_names(index: Path) -> dict[str, str]:
    """Read the mapping from tensor names to weight files in a `model.safetensors.index.json`.

    Raises CheckpointError if the index is invalid.
    """
    try:
        names = parse_json(index.read_bytes(), "it")["weight_map"]
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise TypeError("weight_map must map tensor names to file names")
    except (OSError, DataError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index}: cannot be read ({type(error).__name__}: {error}); copy it again") from error
    return names


@contextmanager
def model_errors(model: str) -> Iterator[None]:
    """Convert exceptions raised while loading `model` to a CheckpointError that names it.

    transformers, tokenizers, safetensors and chat templates raise exceptions of many types for invalid or incomplete
    folders. A hub id is checked first (see `check_hub_model`).
    """
    check_hub_model(model)
    try:
        yield
    except (MmprmError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # raised by torch; the folder is not at fault
            raise
        reason = " ".join(str(error).split()) or "no reason given"
        reason = reason if len(reason) <= _REASON else f"{reason[:_REASON]}…"
        raise CheckpointError(
            f"{model}: cannot be loaded as a model ({type(error).__name__}: {reason}); copy it again"
        ) from error


def fingerprint(model: str) -> str:
    """Hash a model folder to 16 hexadecimal digits that identify the model, or return "" for a hub id.

    The hash covers the configuration files and, for each weight file, its size, its beginning, and samples of the same
    length at eight further positions.
    """
    folder, digest = Path(model), hashlib.sha256()
    if not folder.is_dir():
        return ""
    named = [folder / name for name in ("config.json", "prm.json", "tokenizer.json")]
    for path in sorted([*filter(Path.is_file, named), *folder.glob("*.safetensors")]):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for position in range(9):
                file.seek(position * size // 9)
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()[:16]
