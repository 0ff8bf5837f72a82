"""Import the functions and classes that a configuration names by import path, such as a user's reward function."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from mmprm.errors import ConfigError


def load_function(path: str, key: str) -> Callable[..., Any]:
    """Import the function at `path` (package.module:function); if this fails, raise a ConfigError that names `key`."""
    module, _, name = path.partition(":")
    if not module or not name:
        raise ConfigError(f"{key}={path!r} must be module:function; write it like my_package.my_module:my_function")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{key}={path!r} cannot be imported: {error}; correct it, or put its folder on PYTHONPATH"
        ) from error
    except (Exception, SystemExit) as error:  # importing a module runs arbitrary code
        raise ConfigError(f"{key}={path!r}: {type(error).__name__} on import: {error}; fix the module") from error
    if not callable(function):
        raise ConfigError(f"{key}={path!r} is not callable ({type(function).__name__}); name a function")
    return function
