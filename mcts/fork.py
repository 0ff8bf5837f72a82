"""Continue a run with a different configuration in a copy of its folder."""

from __future__ import annotations

from pathlib import Path

from mcts.config import CampaignConfig
from mcts.dtype import with_settled_dtype
from mmprm.config import differing_keys
from mmprm.errors import ConfigError
from mmprm.trees.database import STORE_NAME
from mmprm.trees.store import Store

BUDGETS = {"search.max_searches", "search.max_rollouts"}
"""Settings that only limit the length of a search; after one is raised, the search still begins with the stored
batches. Any other setting of `search` changes the search order, and with it batch sizes and the evidence for labels."""


def fork(config: CampaignConfig) -> tuple[CampaignConfig, str]:
    """Fork the run in `config.output` if its configuration differs from `config`; return (configuration with the folder
    to run in, message).

    The folder is `config.output` if its store is missing or has this configuration. Otherwise it is the first of
    OUTPUT-2, OUTPUT-3, … for which that is true. A new folder receives OUTPUT's problems, all open, and its batches if
    they are still valid under this configuration.
    """
    if (Path(config.output) / STORE_NAME).is_file():
        config = with_settled_dtype(config, None)
    run, asked = Path(config.output), config.resume_key()
    folder, number = run, 1
    while (folder / STORE_NAME).is_file():
        if not differing_keys(_stored(folder), asked):
            message = f"{folder} has this configuration; resuming it" if folder != run else ""
            return config.model_copy(update={"output": str(folder)}), message
        number += 1
        folder = run.with_name(f"{run.name}-{number}")
    message = _copy(run, folder, asked) if folder != run else ""
    return config.model_copy(update={"output": str(folder)}), message


def _stored(folder: Path) -> dict:
    store = Store.read(folder)
    try:
        return store.config
    finally:
        store.close()


def _copy(run: Path, folder: Path, asked: dict) -> str:
    store = Store.read(run)
    try:
        differing = differing_keys(store.config, asked)
        if "solutions.mode" in differing:
            raise ConfigError(
                f"solutions.mode must equal that of {run} ({differing['solutions.mode']}), because a copy keeps the "
                "problems or solutions of the run; set output to a new folder instead of --fork"
            )
        keep = differing.keys() <= BUDGETS and not _ends_earlier(store.config, asked)
        store.fork(folder / STORE_NAME, asked, keep_batches=keep)
    finally:
        store.close()
    shown = ", ".join(f"{key} ({values})" for key, values in differing.items())
    kept = "its problems and batches" if keep else "its problems, without batches: this configuration samples others"
    return f"{run} has a different configuration: {shown}; continuing in {folder} with {kept}"


def _ends_earlier(stored: dict, asked: dict) -> bool:
    """Return True if a search budget in `asked` is smaller than in the stored configuration.

    The store then holds batches beyond the new end of the search, which must not become labels.
    """
    budgets = [key.removeprefix("search.") for key in BUDGETS]
    return any(asked["search"][budget] < stored["search"][budget] for budget in budgets)
