"""Test a pool of two engines in two Ray actors."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from mmprm.errors import EngineStoppedError, SamplingError
from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.tiny.world import make_problems
from mmprm.types import SampleRequest

pytestmark = pytest.mark.integration


async def test_pool(policy_folder):
    from mmprm.sampling.pool import SamplerPool

    problems = [tiny.problem for tiny in make_problems(8, seed=0, split="dev")]
    engine = EngineConfig(model=str(policy_folder), kv_cache_gib=0.1)
    pool = SamplerPool(engine, SamplingConfig(max_tokens=32), PromptConfig(preset="plain"), size=2)
    try:
        answers = await asyncio.gather(*(pool.sample(SampleRequest(problem, "", 4, 0)) for problem in problems))
        tokens = sum(completion.token_count for answer in answers for completion in answer)
        assert (await pool.stats()).generated_tokens == tokens
        with pytest.raises(SamplingError, match=f"problem {problems[0].id}.*maximum context length"):
            await pool.sample(SampleRequest(problems[0], "1" * 5000, 1, 0))
    finally:
        pool.close()
    with pytest.raises(EngineStoppedError):
        await pool.sample(SampleRequest(problems[0], "", 1, 0))


def test_a_failed_start_of_separate_engine_processes_is_explained(policy_folder):
    """The error contains the cause, which vLLM writes to the log of a child process, and the path of that log."""
    from mmprm.sampling.pool import SamplerPool

    engine = EngineConfig(model=str(policy_folder), mode="separate", kv_cache_gib=0.0001)
    cause = r"(?s)the engine did not start \(ValueError: .*KV cache.*; its log is (\S+\.err) on "
    with pytest.raises(SamplingError, match=cause) as seen:
        SamplerPool(engine, size=1)
    log = Path(re.search(cause, str(seen.value))[1])
    assert "KV cache" in log.read_text()
