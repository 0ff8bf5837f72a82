"""Expose the Python API of mmprm; importing the package loads neither torch, vLLM, nor Ray.

    import mmprm

    scorer = mmprm.load_scorer("runs/demo/train/prm")
    print(mmprm.score_steps(scorer, "What is 1 + 2?", ["1+2=3", "<answer>3</answer>"]))

Every name in `__all__` is imported from its module when it is first used. The modules below `mmprm.api` hold the
functions, `mmprm.types` the data types, and `mmprm.errors` the exceptions.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers
    from mmprm.api.campaign import SearchedProblem, annotate, load_labels, read_trees, write_labels
    from mmprm.api.scoring import LoadedScorer, RankedResponse, load_scorer, rerank, score_steps
    from mmprm.errors import MmprmError
    from mmprm.types import (
        Counts,
        ImageRef,
        LabeledPath,
        Node,
        Problem,
        Rollout,
        Scorer,
        Solution,
        Steps,
        StepScores,
        Tree,
        Verdict,
    )

    __version__: str

__all__ = [
    "Counts",
    "ImageRef",
    "LabeledPath",
    "LoadedScorer",
    "MmprmError",
    "Node",
    "Problem",
    "RankedResponse",
    "Rollout",
    "Scorer",
    "SearchedProblem",
    "Solution",
    "StepScores",
    "Steps",
    "Tree",
    "Verdict",
    "annotate",
    "load_labels",
    "load_scorer",
    "read_trees",
    "rerank",
    "score_steps",
    "write_labels",
]

_MODULES = {
    "mmprm.api.campaign": ("SearchedProblem", "annotate", "load_labels", "read_trees", "write_labels"),
    "mmprm.api.scoring": ("LoadedScorer", "RankedResponse", "load_scorer", "rerank", "score_steps"),
    "mmprm.errors": ("MmprmError",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("mmprm")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF.get(name, "mmprm.types")), name)
    globals()[name] = value  # cached, so later lookups bypass this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
