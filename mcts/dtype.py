"""Determine the data type of a campaign's engines before it is recorded in the run folder."""

from __future__ import annotations

from pathlib import Path

from mcts.config import CampaignConfig
from mmprm.sampling.dtype import with_dtype
from mmprm.trees.database import STORE_NAME
from mmprm.trees.store import Store


def with_settled_dtype(config: CampaignConfig, model_folder: str | None, own_engines: bool = True) -> CampaignConfig:
    """Replace engine.dtype=auto with the run's stored data type or, for a new run, with the one that `with_dtype`
    chooses.

    `own_engines` is False if the workers do not start engines; the data type is then only recorded.
    """
    if config.engine.dtype != "auto":
        return config
    stored = stored_dtype(Path(config.output))
    if not own_engines:
        engine = config.engine.model_copy(update={"dtype": stored or "bfloat16"})
    else:
        engine = with_dtype(config.engine, config.ray_address, stored, model_folder)
    return config.model_copy(update={"engine": engine})


def stored_dtype(folder: Path) -> str | None:
    """Return the data type that the store in a run folder records, or None if there is no store yet."""
    if not (folder / STORE_NAME).is_file():
        return None
    store = Store.read(folder)
    try:
        return store.config.get("engine", {}).get("dtype")
    finally:
        store.close()
