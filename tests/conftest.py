"""Provide fixtures that take seconds to create and are shared by all tests: a policy on disk and a running engine."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Tests share two cores with engines and actors, so more threads would only compete for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The profile has no time limits, which a busy machine would exceed, and uses the same examples in every run.
settings.load_profile("ci")


def pytest_collection_finish() -> None:
    """Exempt imported modules from garbage collection, because DeepSpeed runs several 0.7 s collections per engine."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def random_policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the tiny policy's architecture and processor, and random weights."""
    import torch

    from mmprm.tiny.model import build_model
    from mmprm.tiny.tokenizer import build_processor

    folder = tmp_path_factory.mktemp("random_policy")
    processor = build_processor()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        build_model(processor.tokenizer).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def omni_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the tiny Omni policy's architecture and processor, and large random weights."""
    from benchmarks.omni_mismatch import write_policy

    return write_policy(tmp_path_factory.mktemp("omni_policy"))


@pytest.fixture(scope="session")
def policy_folder(random_policy_folder: Path) -> Path:
    """Return the trained policy that ships with the package, or the random one in a checkout without weights."""
    from mmprm.tiny.model import weights_path

    return weights_path() if (weights_path() / "config.json").is_file() else random_policy_folder


@pytest.fixture(scope="session")
def sampler(policy_folder: Path) -> Iterator:
    """Return an in-process CPU VllmSampler for the tiny policy, with the plain preset at temperature 1."""
    from mmprm.prompts import PromptConfig
    from mmprm.sampling.config import EngineConfig, SamplingConfig
    from mmprm.sampling.vllm_sampler import VllmSampler

    engine = EngineConfig(model=str(policy_folder), max_num_seqs=128, kv_cache_gib=0.25)
    sampler = VllmSampler(engine, SamplingConfig(max_tokens=96), PromptConfig(preset="plain"))
    yield sampler
    sampler.close()
