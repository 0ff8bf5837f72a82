"""Compare a campaign's tokens per second with those of the same engines given all its requests at once.

A short separate campaign runs right before the comparison, so that both see the same machine load.
"""

from __future__ import annotations

import shutil

from benchmarks.annotate_engine import CORES, Policy, all_at_once
from benchmarks.real.annotated import annotate_sets, read_store
from benchmarks.real.workspace import (
    FORM,
    MAX_TOKENS,
    PROMPTS,
    TEMPERATURE,
    Results,
    Workspace,
    is_quiet,
    run_command,
)
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.trees.database import STORE_NAME
from mmprm.trees.store import Store


def measure(workspace: Workspace) -> Results:
    """Run a campaign and its requests at once; return the ratio of their speeds."""
    quiet = is_quiet()
    folder = workspace.folder / "saturation"
    shutil.rmtree(folder, ignore_errors=True)  # a resumed campaign would count its pauses
    sets = annotate_sets(workspace, folder, {})
    sets["problems.path"] = workspace.first_problems(workspace.sizes.compared, "compared")
    run_command("annotate", "annotate.yaml", sets)
    run = read_store(folder)
    store = Store.read(folder / STORE_NAME)
    engine = EngineConfig(model=str(workspace.policy), max_model_len=512, max_num_seqs=128)
    sampling = SamplingConfig(temperature=TEMPERATURE, max_tokens=MAX_TOKENS)
    tokens, seconds = all_at_once(store, 0, Policy(engine, sampling, PROMPTS[FORM]))
    store.close()
    campaign, at_once = run.tokens / run.seconds, tokens / seconds
    return {
        "saturation": campaign / at_once,
        "tokens_per_second": {"campaign": campaign, "at_once": at_once},
        "labels_per_core_hour": len(run.labels) / run.seconds / len(CORES) * 3600,
        "saturation_quiet": quiet,
    }
