"""Test a real engine with a chat template that opens the assistant turn, and with no template at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.steps import split
from mmprm.tiny.model import weights_path
from mmprm.tiny.world import make_problems
from mmprm.types import SampleRequest

pytest.importorskip("vllm")
pytestmark = pytest.mark.integration

PLAIN = PromptConfig(preset="plain")
GREEDY = SamplingConfig(temperature=0, max_tokens=96)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = Path(shutil.copytree(weights_path(), tmp_path_factory.mktemp("opens") / "model"))
    template = copy / "chat_template.jinja"
    header = "<|im_start|>assistant\n"
    text = template.read_text()
    assert header in text, "the tiny model's template is ChatML"
    template.write_text(text.replace(header, header + "<step>"))
    return copy


@pytest.fixture(scope="module")
def sampler(folder: Path) -> Iterator:
    from mmprm.sampling.vllm_sampler import VllmSampler

    found = VllmSampler(EngineConfig(model=str(folder), max_num_seqs=8), GREEDY, PLAIN)
    yield found
    found.close()


@pytest.fixture(scope="module")
def problem():
    return make_problems(1, seed=0, split="test")[0].problem


async def test_text_that_the_template_opens_is_part_of_the_response(sampler, problem) -> None:
    (whole,) = await sampler.sample(SampleRequest(problem, "", 1, 0))
    assert whole.text.startswith("<step>")
    assert not whole.text.startswith("<step><step>")
    steps = split(whole.text, "tags").steps
    assert len(steps) > 1
    (rest,) = await sampler.sample(SampleRequest(problem, steps[0], 1, 0))
    assert steps[0] + rest.text == whole.text


async def test_continuing_by_ids_equals_continuing_by_text(sampler, problem) -> None:
    (whole,) = await sampler.sample(SampleRequest(problem, "", 1, 0))
    steps = split(whole.text, "tags").steps
    ids = whole.tokens.ids[: whole.tokens.whole_in(len(steps[0]))]
    (rest,) = await sampler.sample(SampleRequest(problem, steps[0], 1, 0, prefix_ids=ids))
    assert steps[0] + rest.text == whole.text


async def test_without_a_template_the_prompt_is_used_verbatim(sampler, problem, monkeypatch) -> None:
    from mmprm.sampling.turn import TurnBeginning

    chatml = "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    raw = PromptConfig(preset="plain", template="raw", user=chatml, prefill="<step>")
    (expected,) = await sampler.sample(SampleRequest(problem, "", 1, 0))
    monkeypatch.setattr(sampler, "_prompt", raw)
    monkeypatch.setattr(sampler, "_turn", TurnBeginning("", raw))
    (found,) = await sampler.sample(SampleRequest(problem, "", 1, 0))
    assert found.text == expected.text
