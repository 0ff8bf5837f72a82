"""Test where a step of guided search ends, and which stop strings the sampler gets."""

from __future__ import annotations

import pytest

from mmprm.sampling.config import EngineConfig, SamplingConfig, ServersConfig
from mmprm.sampling.scripted import ScriptedSampler
from mmprm.sampling.server_sampler import ServerSampler
from mmprm.selection.paths import STOPS, Path, PathState, Writer, extended
from mmprm.steps import StepFormat
from mmprm.types import Completion, SampleRequest
from tests.mmprm.guided_world import PROBLEM

PART = Path(("<step>a</step>",), 5)


@pytest.mark.parametrize(
    ("step_format", "text", "finish", "expected"),
    [
        ("tags", "<step>b</step>", "stop", Path((*PART.steps, "<step>b</step>"), 7)),
        ("tags", "<step>b</step><answer>1</answer>", "stop", Path((*PART.steps, "<step>b</step>"), 7)),
        ("tags", "<answer>1</answer>", "stop", Path((*PART.steps, "<answer>1</answer>"), 7, PathState.COMPLETE)),
        ("tags", "", "stop", Path(PART.steps, 7, PathState.COMPLETE)),
        ("tags", "", "length", Path(PART.steps, 7, PathState.BROKEN)),
        ("tags", "<step>b", "length", Path(PART.steps, 7, PathState.BROKEN, "<step>b")),
        ("tags", "<answer>1</answer>", "length", Path(PART.steps, 7, PathState.BROKEN, "<answer>1</answer>")),
        ("blank_lines", "b\n\n", "stop", Path((*PART.steps, "b\n\n"), 7)),
        ("blank_lines", "So 1.", "stop", Path((*PART.steps, "So 1."), 7, PathState.COMPLETE)),
        ("blank_lines", "So 1", "length", Path(PART.steps, 7, PathState.BROKEN, "So 1")),
        ("numbered", "Step 2: b\nStep 3: c", "length", Path((*PART.steps, "Step 2: b\n"), 7)),
        ("numbered", "Step 2: b", "stop", Path((*PART.steps, "Step 2: b"), 7, PathState.COMPLETE)),
    ],
)
def test_where_a_step_ends(step_format: StepFormat, text: str, finish: str, expected: Path) -> None:
    assert extended(PART, Completion(text, 2, finish), STOPS[step_format](2), step_format) == expected


async def test_stop_strings_depend_on_the_step_number() -> None:
    sampler = ScriptedSampler(lambda problem, prefix, rng: "<step_2>b</step_2><answer>1</answer>")
    (path,) = await Writer(PROBLEM, sampler, "tags", 0).steps(Path(("<step_1>a</step_1>",), 1), 1)
    assert path == Path(("<step_1>a</step_1>", "<step_2>b</step_2>"), 2)


def test_servers_get_stop_strings() -> None:
    engine = EngineConfig(model="m", servers=ServersConfig(urls=["http://localhost:1/v1"]))
    sampler = ServerSampler(engine, SamplingConfig(temperature=0.7))
    body = sampler._body([], "", SampleRequest(PROBLEM, "", 1, 0, ("</step>",), greedy=True))
    assert (body["stop"], body["include_stop_str_in_output"], body["temperature"]) == (["</step>"], True, 0.0)
    plain = sampler._body([], "", SampleRequest(PROBLEM, "", 1, 0))
    assert "stop" not in plain
    assert plain["temperature"] == 0.7
