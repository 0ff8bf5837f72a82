"""The embedded policy by its name."""

from __future__ import annotations

from mmprm.sampling.config import EngineConfig


def with_weights(engine: EngineConfig) -> EngineConfig:
    """The engine, with "tiny" replaced by the folder of its weights on this machine where engines are to load it."""
    if engine.model != "tiny" or engine.servers is not None:
        return engine
    from mmprm.tiny.model import weights_path

    return engine.model_copy(update={"model": str(weights_path())})
