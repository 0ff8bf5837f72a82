"""Weights are read from safetensors alone: the older files are pickles, which run code when they are read."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mmprm.errors import CheckpointError

LOAD_FORMAT = "safetensors"
"""For vLLM, whose default falls back to pickles."""

_SAMPLE = 2**16
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def check_weights(model: str) -> None:
    """Raise CheckpointError for a folder that holds weights as pickles only. Of a hub id the loader sees to it."""
    folder = Path(model)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{model}: holds its weights as {pickles[0]} and not as safetensors; such files are pickles, which can run "
            "code, and are not read: convert them with transformers' save_pretrained where you trust them"
        )


def fingerprint(model: str) -> str:
    """Return 16 hexadecimal digits that differ between models: a hash over the configuration and, of each weight file,
    its size, its beginning, and as much at eight places more. Empty for a hub id."""
    folder, digest = Path(model), hashlib.sha256()
    if not folder.is_dir():
        return ""
    named = [folder / name for name in ("config.json", "prm.json", "tokenizer.json")]
    for path in sorted([*filter(Path.is_file, named), *folder.glob("*.safetensors")]):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for place in range(9):
                file.seek(place * size // 9)
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()[:16]
