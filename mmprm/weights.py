"""Weights are read from safetensors alone: the older files are pickles, which run code when they are read."""

from __future__ import annotations

from pathlib import Path

from mmprm.errors import CheckpointError

LOAD_FORMAT = "safetensors"
"""For vLLM, whose default falls back to pickles."""

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
