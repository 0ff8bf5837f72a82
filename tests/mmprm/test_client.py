"""Test the HTTP client against servers that misbehave in many ways."""

from __future__ import annotations

import asyncio
import email.utils
import gzip
import logging
import threading
import time
import tracemalloc
from types import SimpleNamespace

import pytest
from scripted_server import Act, ScriptedServer, error, says

from mmprm.client import Client, ClientConfig
from mmprm.config import build, load
from mmprm.errors import ConfigError, EngineStoppedError, SamplingError


def client(*servers: ScriptedServer | str, **values: object) -> Client:
    urls = tuple(server if isinstance(server, str) else server.url for server in servers)
    return Client(ClientConfig(urls=urls, **{"backoff_seconds": 0.01, "attempts": 3, "timeout_seconds": 5} | values))


async def ask(client: Client, affinity: str = "p", n: int = 1) -> tuple[str, ...]:
    reply = await client.chat({"model": "m", "n": n}, affinity)
    return tuple(choice.text for choice in reply.choices)


@pytest.mark.parametrize(
    "trouble",
    [
        error(429),
        error(500, "engine died"),
        error(503),
        Act(drop=True),
        Act(body=b"<html>proxy</html>"),
        Act(body=b"[]"),
        Act(body=b'{"choices": [{"index": 0}]}'),
        Act(body=b'{"choices": [{"message": {"content": 7}}]}'),
        Act(body=b'{"choices": null}'),
        says("one", "too many"),
    ],
    ids=["429", "500", "503", "dropped", "html", "list", "no message", "number", "null", "choices"],
)
async def test_one_bad_response_is_retried(trouble: Act) -> None:
    with ScriptedServer(trouble, says("fine")) as server:
        async with client(server) as asked:
            assert await ask(asked) == ("fine",)
        assert len(server.requests) == 2


async def test_a_slow_response_times_out() -> None:
    with ScriptedServer(Act(wait=30), says("fine")) as server:
        async with client(server, timeout_seconds=1) as asked:
            begun = time.monotonic()
            assert await ask(asked) == ("fine",)
            assert time.monotonic() - begun < 20


async def test_a_trickling_response_times_out() -> None:
    """Each chunk arrives in time, but the whole response does not."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(1000):
            writer.write(b" ")
            await asyncio.sleep(0.05)

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with client(f"http://127.0.0.1:{port}/v1", timeout_seconds=0.3, attempts=1) as asked:
        with pytest.raises(EngineStoppedError, match=r"no answer within 0\.3 s"):
            await ask(asked)
    server.close()


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_retry_after_is_respected(form: str) -> None:
    date = email.utils.formatdate(time.time() + 3, usegmt=True)  # in whole seconds, so two or three seconds from now
    with ScriptedServer(error(429, Retry_After="0.7" if form == "seconds" else date), says("fine")) as server:
        async with client(server) as asked:
            assert await ask(asked) == ("fine",)
        assert server.times[1] - server.times[0] >= 0.7


async def test_backoff_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses are recorded, because the times at which requests arrive depend on the machine's load."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("mmprm.client.asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": sleep}))
    with ScriptedServer(error(500)) as server:
        async with client(server, attempts=4, backoff_seconds=0.2) as asked:
            with pytest.raises(EngineStoppedError):
                await ask(asked)
        assert len(server.times) == 5, "four attempts and a one-token probe"
    for pause, longest in zip(pauses, (0.2, 0.4, 0.8), strict=True):
        assert longest / 2 <= pause <= longest


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        (error(500, "CUDA out of memory"), "status 500: CUDA out of memory"),
        (error(429, "slow down"), "status 429: slow down"),
        (Act(drop=True), "connection dropped"),
        (Act(body=b"<html>proxy</html>"), "answer is not JSON: <html>proxy</html>"),
        (Act(body=b"{}"), "answer is not a chat completion: lacks 'choices'"),
        (error(401, "bad key"), "status 401: bad key; set api_key_env"),
        (error(404, "no model m"), "status 404: no model m; check the model's name"),
    ],
)
async def test_an_unresponsive_server_is_distinguished(trouble: Act, told: str) -> None:
    """EngineStoppedError: no problem is at fault, and requests can be repeated."""
    with ScriptedServer(trouble) as server:
        async with client(server) as asked:
            with pytest.raises(EngineStoppedError) as caught:
                await ask(asked)
        assert str(caught.value).startswith(f"{server.url}: {told}")


async def test_nothing_listens() -> None:
    async with client("http://127.0.0.1:9/v1") as asked:
        with pytest.raises(EngineStoppedError, match=r"http://127\.0\.0\.1:9/v1: no connection"):
            await ask(asked)


async def test_rejected_requests_are_not_retried() -> None:
    with ScriptedServer(error(400, "maximum context length is 1024")) as server:
        async with client(server) as asked:
            with pytest.raises(SamplingError, match="status 400: maximum context length") as caught:
                await ask(asked)
        assert not isinstance(caught.value, EngineStoppedError)
        assert len(server.requests) == 1


async def test_a_request_is_blamed_if_others_succeed() -> None:
    """Other requests succeed meanwhile, so the engine has not stopped."""
    answered = threading.Event()

    def act(request: dict) -> Act:
        if request["model"] != "poison":
            return says("fine")
        assert answered.wait(20)
        return error(500, "bad image")

    with ScriptedServer(act) as server:
        async with client(server, timeout_seconds=30) as asked:
            poison = asyncio.create_task(asked.chat({"model": "poison"}, "p"))
            while not server.requests:
                await asyncio.sleep(0.001)
            assert await ask(asked) == ("fine",)
            answered.set()
            with pytest.raises(SamplingError, match=r"bad image.*while other requests were answered") as caught:
                await poison
    assert not isinstance(caught.value, EngineStoppedError)


@pytest.mark.parametrize("trouble", [error(500, "bad image"), Act(wait=30)], ids=["500", "time-out"])
async def test_a_lone_failing_request_is_blamed_after_a_probe(trouble: Act) -> None:
    """The client probes the server with one token before it blames the request."""
    with ScriptedServer(lambda request: says("1") if request.get("max_tokens") == 1 else trouble) as server:
        async with client(server, attempts=2, timeout_seconds=2) as asked:
            with pytest.raises(SamplingError, match="while other requests were answered") as caught:
                await ask(asked)
    assert not isinstance(caught.value, EngineStoppedError)
    assert [(request["model"], "n" in request) for request in server.requests] == [("m", True)] * 2 + [("m", False)]


async def test_a_problem_uses_one_url_and_problems_are_spread() -> None:
    with ScriptedServer(says("a")) as first, ScriptedServer(says("b")) as second:
        async with client(first, second) as asked, client(second, first) as other:
            once = [await ask(asked, str(problem)) for problem in range(96)]
            again = [await ask(other, str(problem)) for problem in range(96)]
    assert once == again
    assert len(first.requests) + len(second.requests) == 2 * 96
    assert 24 <= len(first.requests) // 2 <= 72, "the shares depend on the random ports of the servers"


async def test_the_next_url_takes_over_and_the_failed_one_pauses() -> None:
    with ScriptedServer(error(503)) as sick, ScriptedServer(says("fine")) as healthy:
        async with client(sick, healthy, backoff_seconds=60) as asked:
            begun = time.monotonic()
            answers = [await ask(asked, str(problem)) for problem in range(24)]
            assert time.monotonic() - begun < 20
    assert answers == [("fine",)] * 24
    assert len(sick.requests) == 1


async def test_concurrency_is_bounded() -> None:
    released = threading.Event()

    def act(_: dict) -> Act:
        assert released.wait(20)
        return says("fine")

    with ScriptedServer(act) as server:
        async with client(server, concurrency=3, timeout_seconds=30) as asked:
            asking = [asyncio.create_task(ask(asked, str(problem))) for problem in range(12)]
            while server.open < 3:
                await asyncio.sleep(0.001)
            assert (asked.running, asked.waiting) == (3, 9)
            asking[-1].cancel()
            released.set()
            await asyncio.gather(*asking, return_exceptions=True)
            assert (asked.running, asked.waiting) == (0, 0)
        assert (server.open_max, len(server.requests)) == (3, 11)


async def test_the_key_goes_to_the_server_and_nowhere_else(monkeypatch, caplog, capsys) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")
    caplog.set_level(logging.DEBUG)
    with ScriptedServer(error(401, "Incorrect API key provided: sk-secret")) as server:
        asked = client(server, api_key_env="MY_KEY")
        async with asked:
            with pytest.raises(EngineStoppedError) as caught:
                await ask(asked)
        assert server.authorizations == ["Bearer sk-secret"]
    output = capsys.readouterr()
    seen = caplog.text + str(caught.value) + repr(asked._config) + output.out + output.err
    assert "MY_KEY" in seen
    assert "sk-secret" not in seen


def test_a_missing_key_is_reported_at_once(monkeypatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ConfigError, match="api_key_env=MY_KEY: this environment variable is not set"):
        client("http://host/v1", api_key_env="MY_KEY")


@pytest.mark.parametrize(
    ("url", "rule"),
    [("localhost:8000", "must begin with http"), ("http://me:secret@host/v1", "a user, password"), ("", "must begin")],
)
def test_urls_are_checked(url: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        build(ClientConfig, {"urls": [url]})


def test_urls_are_needed() -> None:
    with pytest.raises(ConfigError, match="urls"):
        load(ClientConfig, sets=["urls=[]"])


async def test_a_compressed_response_is_not_decompressed() -> None:
    """64 KiB would decompress to 64 MiB; unrequested compression is rejected."""
    packed = gzip.compress(bytes(64 * 2**20))
    bomb = Act(body=packed, headers={"Content-Encoding": "gzip"})
    with ScriptedServer(bomb) as server:
        async with client(server, attempts=1) as asked:
            tracemalloc.start()
            with pytest.raises(EngineStoppedError, match="answer is compressed"):
                await ask(asked)
            assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
            tracemalloc.stop()


async def test_an_endless_response_is_cut_off() -> None:
    large = Act(body=b" " * (3 * 2**20))
    with ScriptedServer(large) as server:
        async with client(server, attempts=1, max_answer_mib=2) as asked:
            with pytest.raises(EngineStoppedError, match=r"answer is too large: more than max_answer_mib=2"):
                await ask(asked)
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    "act",
    [
        error(400, "no: Bearer sk-se\x1b[0mcret-key\x1b[31m"),
        error(500, "\x1b]0;sk-secret-key\x07 sk-secret-key"),
        Act(body=b"sk-secret-key \x1b[2J"),
        says("a", choice={"logprobs": {"content": [{"top_logprobs": [{"token": "a", "logprob": "sk-secret-key"}]}]}}),
        Act(body=b'{"choices": [{"message": {}, "logprobs": {"content": "sk-secret-key"}}]}'),
    ],
    ids=["400", "500", "no JSON", "a number", "logprobs"],
)
async def test_errors_contain_no_key_and_no_control_codes(act: Act, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret-key")
    with ScriptedServer(act) as server:
        async with client(server, api_key_env="MY_KEY", attempts=1) as asked:
            with pytest.raises(SamplingError) as caught:
                await ask(asked)
    for text in (str(caught.value), str(caught.value.__cause__)):
        assert "sk-secret-key" not in text
        assert "\x1b" not in text


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
@pytest.mark.parametrize("content", ["42", None])
async def test_the_chain_of_thought_is_kept(name: str, content: str | None) -> None:
    message = {"role": "assistant", "content": content, name: "6 times 7"}
    with ScriptedServer(says("", choice={"message": message})) as server:
        async with client(server) as asked:
            (choice,) = (await asked.chat({"model": "m"}, "p")).choices
    assert (choice.text, choice.reasoning) == (content or "", "6 times 7")


async def test_a_reply_truncated_in_its_reasoning_needs_no_content() -> None:
    with ScriptedServer(says("", choice={"message": {"reasoning": "6 times"}})) as server:
        async with client(server) as asked:
            (choice,) = (await asked.chat({"model": "m"}, "p")).choices
    assert (choice.text, choice.reasoning) == ("", "6 times")
