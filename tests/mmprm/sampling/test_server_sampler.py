"""Test the requests sent to a server and how its responses are read."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image
from scripted_server import Act, ScriptedServer, error, says

from mmprm.client import Choice, Reply
from mmprm.config import build
from mmprm.errors import DataError, EngineStoppedError, SamplingError
from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.sampling.open import open_sampler
from mmprm.sampling.server_sampler import ServerSampler, token_counts
from mmprm.types import Completion, ImageRef, Problem, SampleRequest

TEXT = Problem("p", "What is 1 + 1?", "2")


def sampler(server: ScriptedServer, dialect: str = "vllm", trust_prefix: bool = False, **values: Any) -> ServerSampler:
    servers = {"urls": [server.url], "dialect": dialect, "attempts": 2, "backoff_seconds": 0.01}
    servers |= {"trust_prefix": trust_prefix}
    engine = build(EngineConfig, {"model": "served", "servers": servers})
    return ServerSampler(engine, SamplingConfig(**values), PromptConfig(preset="plain"))


async def test_request_and_response() -> None:
    answer = says("one", "two", choice={"token_ids": [1, 2, 3]}, top={"prompt_text": "…<step>a</step>"})
    with ScriptedServer(answer) as server:
        async with sampler(server, temperature=0.7, top_k=5, max_tokens=9) as asked:
            samples = await asked.sample(SampleRequest(TEXT, "<step>a</step>", 2, 77))
    assert samples == (Completion("one", 3, "stop"), Completion("two", 3, "stop"))
    assert server.requests == [
        {
            "model": "served",
            "messages": [
                {"role": "user", "content": "What is 1 + 1?"},
                {"role": "assistant", "content": "<step>a</step>"},
            ],
            "n": 2,
            "seed": 77,
            "temperature": 0.7,
            "top_p": 1.0,
            "max_tokens": 9,
            "top_k": 5,
            "repetition_penalty": 1.0,
            "return_token_ids": True,
            "continue_final_message": True,
            "add_generation_prompt": False,
            "return_prompt_text": True,
        }
    ]


async def test_without_prefix_the_assistant_turn_is_new() -> None:
    with ScriptedServer(says("x", top={"usage": {"completion_tokens": 4}})) as server:
        async with sampler(server) as asked:
            assert await asked.sample(SampleRequest(TEXT, "", 1, 0)) == (Completion("x", 4, "stop"),)
    assert [turn["role"] for turn in server.requests[0]["messages"]] == ["user"]
    assert "continue_final_message" not in server.requests[0]
    assert server.requests[0]["top_k"] == -1, "SGLang refuses 0, vLLM takes both"


async def test_images_are_sent_with_the_pixels_of_local_engines(tmp_path) -> None:
    Image.new("RGBA", (3, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    problem = Problem("p", "Left <image> or right?", "2", (ImageRef(path=str(tmp_path / "clear.png")),))
    with ScriptedServer(says("x", choice={"token_ids": [1]})) as server:
        async with sampler(server) as asked:
            await asked.sample(SampleRequest(problem, "", 1, 0))
    before, image, after = server.requests[0]["messages"][0]["content"]
    assert (before, after) == ({"type": "text", "text": "Left "}, {"type": "text", "text": " or right?"})
    head, data = image["image_url"]["url"].split(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as seen:
        assert (seen.mode, seen.size, seen.getpixel((0, 0))) == ("RGB", (3, 2), (255, 255, 255))


async def test_a_missing_image_and_a_long_prompt_name_the_problem() -> None:
    with ScriptedServer(error(400, "too long")) as server:
        async with sampler(server) as asked:
            with pytest.raises(DataError, match=r"problem q: nowhere\.png"):
                await asked.sample(SampleRequest(Problem("q", "?", "1", (ImageRef(path="nowhere.png"),)), "", 1, 0))
            with pytest.raises(SamplingError, match=r"problem p: http.*status 400: too long"):
                await asked.sample(SampleRequest(TEXT, "", 1, 0))


async def test_a_template_that_changes_the_prefix_is_refused() -> None:
    with ScriptedServer(says("x", choice={"token_ids": [1]}, top={"prompt_text": "assistant: one."})) as server:
        async with sampler(server) as asked:
            with pytest.raises(EngineStoppedError, match=r"changes the end of the prefix 'one\.\\n\\n'"):
                await asked.sample(SampleRequest(TEXT, "one.\n\n", 1, 0))


@pytest.mark.parametrize(
    ("prefix", "shown", "written", "text"),
    [
        ("<step>a</step>\n", "<step>a</step>", "\n<step>b", "<step>b"),
        ("<step>a</step>\n", "<step>a</step>", "<answer>", "<answer>"),
        ("<step_1>a</step_1>\n\n", "<step_1>a</step_1>", "\n\n<step_2>b", "<step_2>b"),
        ("<step>a</step>\n", "<step>a</step>\n", "\n<step>b", "\n<step>b"),  # nothing was trimmed
    ],
)
async def test_line_breaks_after_a_tag_may_be_trimmed_and_are_written_once(
    prefix: str, shown: str, written: str, text: str
) -> None:
    """Some chat templates trim the contents of turns, for example Llama 3's."""
    answer = says(written, choice={"token_ids": [1, 2]}, top={"prompt_text": "assistant: " + shown})
    with ScriptedServer(answer) as server:
        async with sampler(server) as asked:
            samples = await asked.sample(SampleRequest(TEXT, prefix, 1, 0))
    assert samples == (Completion(text, 2, "stop"),)


@pytest.mark.parametrize("prefix", ["<step>a\n", "<step>\n", "a</steps>\n"])
async def test_other_line_breaks_may_not_be_trimmed(prefix: str) -> None:
    answer = says("x", choice={"token_ids": [1]}, top={"prompt_text": prefix.rstrip()})
    with ScriptedServer(answer) as server:
        async with sampler(server) as asked:
            with pytest.raises(EngineStoppedError, match="changes the end of the prefix"):
                await asked.sample(SampleRequest(TEXT, prefix, 1, 0))


async def test_a_server_without_prompt_text_must_be_trusted() -> None:
    with ScriptedServer(says("x", choice={"token_ids": [1]})) as server:
        async with sampler(server) as asked:
            await asked.sample(SampleRequest(TEXT, "", 1, 0))
            with pytest.raises(EngineStoppedError, match=r"no prompt_text.*engine\.servers\.trust_prefix=true"):
                await asked.sample(SampleRequest(TEXT, "<step>a</step>", 1, 0))
        async with sampler(server, trust_prefix=True) as asked:
            assert await asked.sample(SampleRequest(TEXT, "<step>a</step>", 1, 0)) == (Completion("x", 1, "stop"),)
    with ScriptedServer(says("x", choice={"token_ids": [1]}, top={"prompt_text": "<step>a"})) as server:
        async with sampler(server, trust_prefix=True) as asked:
            with pytest.raises(EngineStoppedError, match="changes the end of the prefix"):
                await asked.sample(SampleRequest(TEXT, "<step>a</step>", 1, 0))


async def test_openai_dialect_sends_nothing_of_vllms() -> None:
    with ScriptedServer(says("x", top={"usage": {"completion_tokens": 1}})) as server:
        async with sampler(server, "openai") as asked:
            await asked.sample(SampleRequest(TEXT, "", 1, 5))
            with pytest.raises(EngineStoppedError, match=r"prompt\.preset=previous_steps"):
                await asked.sample(SampleRequest(TEXT, "<step>a</step>", 1, 5))
        async with sampler(server, "openai", top_k=3) as asked:
            with pytest.raises(EngineStoppedError, match="top_k"):
                await asked.sample(SampleRequest(TEXT, "", 1, 5))
    assert [set(request) for request in server.requests] == [
        {"model", "messages", "n", "seed", "temperature", "top_p", "max_tokens"}
    ]


async def test_other_finish_reasons_are_aborts() -> None:
    with ScriptedServer(says("x", choice={"token_ids": [1], "finish_reason": "content_filter"})) as server:
        async with sampler(server) as asked:
            (sampled,) = await asked.sample(SampleRequest(TEXT, "", 1, 0))
    assert sampled.finish_reason == "abort"


@pytest.mark.parametrize(
    ("texts", "total", "counts"),
    [(("aaaa", "aa", "aa"), 8, [4, 2, 2]), (("a", "a", "a"), 8, [2, 3, 3]), (("", ""), 3, [0, 3]), (("abc",), 7, [7])],
)
def test_tokens_of_a_request_are_divided_over_its_samples(texts, total, counts) -> None:
    assert token_counts(Reply(tuple(Choice(text, "stop") for text in texts), total)) == counts


def test_tokens_must_be_counted_somewhere() -> None:
    with pytest.raises(SamplingError, match=r"usage\.completion_tokens"):
        token_counts(Reply((Choice("x", "stop"),)))


async def test_the_configuration_chooses_the_servers() -> None:
    with ScriptedServer(Act(drop=True)) as server:
        engine = build(EngineConfig, {"model": "m", "servers": {"urls": [server.url]}})
        async with open_sampler(engine, SamplingConfig(), PromptConfig()) as chosen:
            assert isinstance(chosen, ServerSampler)


async def test_a_separate_reasoning_field_is_rejected() -> None:
    """Steps in a separate reasoning field would silently be missing from the searched text."""
    message = {"role": "assistant", "content": "42", "reasoning_content": "6 times 7"}
    with ScriptedServer(says("", choice={"message": message, "token_ids": [1]})) as server:
        async with sampler(server) as asked:
            with pytest.raises(SamplingError, match="problem p: the server returns the reasoning apart from the text"):
                await asked.sample(SampleRequest(TEXT, "", 1, 0))


@pytest.mark.parametrize(
    ("prompt_text", "text"),
    [
        ("What is 1 + 1?[assistant]", "<think>6 times 7</think>42"),
        ("What is 1 + 1?[assistant]<think>\n", "<think>\n6 times 7</think>42"),
        (None, "<think>6 times 7</think>42"),
    ],
)
async def test_a_joined_reasoning_field_is_opened_once(prompt_text: str | None, text: str) -> None:
    """Templates of reasoning models, such as DeepSeek-R1's, end the prompt with <think>."""
    message = {"role": "assistant", "content": "42", "reasoning": "6 times 7"}
    answer = says("", choice={"message": message, "token_ids": [1]}, top={"prompt_text": prompt_text})
    with ScriptedServer(answer) as server:
        engine = build(EngineConfig, {"model": "served", "servers": {"urls": [server.url]}})
        async with ServerSampler(engine, None, PromptConfig(preset="plain"), reasoning="join") as asked:
            (completion,) = await asked.sample(SampleRequest(TEXT, "", 1, 0))
    assert completion.text == text


def test_tokens_are_split_by_the_length_of_thoughts_and_text() -> None:
    choices = (Choice("42", "stop", reasoning="123456"), Choice("42", "stop"))
    assert token_counts(Reply(choices, completion_tokens=20)) == [16, 4]
