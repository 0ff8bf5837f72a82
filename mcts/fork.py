"""A run under another configuration goes on in a copy of its folder."""

from __future__ import annotations

from pathlib import Path

from mcts.config import CampaignConfig
from mmprm.config import differing_keys
from mmprm.trees.database import STORE_NAME
from mmprm.trees.store import Store

BUDGETS = {"search.max_searches", "search.max_rollouts"}
"""Keys that decide only where a search ends: with larger ones the batches of a store are the beginning of what is
asked. Any other key of `search` changes its order, hence the sizes of batches and which rollouts are evidence."""


def fork(config: CampaignConfig) -> tuple[CampaignConfig, str]:
    """The configuration with the run folder to go on in, and a sentence about it.

    That is `config.run` if its store has this configuration or there is none; else the first of RUN-2, RUN-3, … of
    which the same is true, made from RUN if it is new: its problems, all open, and its batches if they hold.
    """
    run, asked = Path(config.run), config.identity()
    folder, number = run, 1
    while (folder / STORE_NAME).is_file():
        if not differing_keys(_stored(folder), asked):
            message = f"{folder} has this configuration and goes on" if folder != run else ""
            return config.model_copy(update={"run": str(folder)}), message
        number += 1
        folder = run.with_name(f"{run.name}-{number}")
    message = _copy(run, folder, asked) if folder != run else ""
    return config.model_copy(update={"run": str(folder)}), message


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
        keep = differing.keys() <= BUDGETS and not _ends_earlier(store.config, asked)
        store.fork(folder / STORE_NAME, asked, keep_batches=keep)
    finally:
        store.close()
    shown = ", ".join(f"{key} ({values})" for key, values in differing.items())
    kept = "its problems and batches" if keep else "its problems, and none of its batches: others are asked for"
    return f"{run} has another configuration: {shown}; {folder} goes on with {kept}"


def _ends_earlier(stored: dict, asked: dict) -> bool:
    """Whether a budget is smaller: the store then holds batches beyond the end, which would count as labels."""
    budgets = [key.removeprefix("search.") for key in BUDGETS]
    return any(asked["search"][budget] < stored["search"][budget] for budget in budgets)
