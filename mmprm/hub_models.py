"""Check once whether a Hugging Face Hub model is available, instead of retrying each of its files for minutes."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

from mmprm.errors import CheckpointError

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
TIMEOUT_SECONDS = 10.0


@cache
def check_hub_model(model: str) -> None:
    """Raise CheckpointError if `model` is a hub id that is neither in the local cache nor on the Hub.

    Does nothing for folders. If the Hub cannot be reached, but the model is cached, switches this process and those
    that it starts to the cache.
    """
    if Path(model).exists() or not HUB_ID.fullmatch(model):
        return
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        HfApi().model_info(model, timeout=TIMEOUT_SECONDS)
    except GatedRepoError as error:
        raise CheckpointError(
            f"{model}: its owner grants access on request; request it on the model's page, and log in with "
            "`hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{model}: is neither a folder on this machine nor a model on the Hub; correct the name, or, for a private "
            "model, log in with `hf auth login`"
        ) from error
    except (HfHubHTTPError, ValueError, TypeError, KeyError):
        return  # the Hub, or a mirror with other answers, can be reached; loading the model reports any error
    except Exception as error:  # of many types, for a network that is missing, blocked or slow
        if isinstance(try_to_load_from_cache(model, "config.json"), str):
            os.environ["HF_HUB_OFFLINE"], constants.HF_HUB_OFFLINE = "1", True
            return
        raise CheckpointError(
            f"{model}: is neither a folder on this machine nor in the Hub's cache ({constants.HF_HUB_CACHE}), and the "
            f"Hub cannot be reached ({type(error).__name__}: {error}); give the folder of a checkpoint, or download "
            f"the model with `hf download {model}` on a machine with network access and copy the cache"
        ) from error
