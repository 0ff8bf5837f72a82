"""Test `mmprm bridge` with scripted servers: outputs, resuming, and the rows that `mmprm sft` reads."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from benchmark_rows import png
from scripted_server import Act, ScriptedServer, error, says

from mmprm.bridge.config import BridgeConfig
from mmprm.bridge.wording import build_wording
from mmprm.cli.bridge import _bridged
from mmprm.cli.main import main
from mmprm.config import build
from mmprm.problems import ProblemsConfig, load_problems
from mmprm.prompts import PromptConfig
from policy_rl.sft.conversations import read_conversations

THOUGHTS = "The description says that AB is 3 and BC is 4. " + "Both lie on one line, so I add the two lengths. " * 3


def text_of(request: dict[str, Any]) -> str:
    content = request["messages"][0]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


USAGE = {"usage": {"completion_tokens": 9}}


def see(request: dict[str, Any]) -> Act:
    return says("notes" if "Correct answer: " in text_of(request) else "A line with AB = 3 and BC = 4.", top=USAGE)


def solve(request: dict[str, Any]) -> Act:
    """Answer 8 to the second problem, and return the reasoning in its own field, like servers with a reasoning
    parser.
    """
    answer = "8" if "number 1?" in text_of(request) else "7"
    message = {"role": "assistant", "content": f"<answer>{answer}</answer>", "reasoning_content": THOUGHTS}
    return says("", choice={"message": message}, top=USAGE)


def write_data(folder: Path, count: int) -> Path:
    (folder / "a.png").write_bytes(png())
    rows = [
        {"question": f"How long is AC in number {number}?", "answer": "7", "image": "a.png"} for number in range(count)
    ]
    file = folder / "problems.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def role(url: str) -> dict[str, Any]:
    return {"engine": {"model": "m", "servers": {"urls": [url], "attempts": 1, "backoff_seconds": 0.01}}}


@contextmanager
def command(folder: Path, *sets: str) -> Iterator[tuple[ScriptedServer, ScriptedServer, list[str]]]:
    file = write_data(folder, 3)
    with ScriptedServer(see) as seer, ScriptedServer(solve) as reasoner:
        values: dict[str, Any] = {"problems.path": file, "output": folder / "out"}
        for name, server in (("seer", seer), ("reasoner", reasoner)):
            engine = f"{name}.engine"
            values |= {f"{engine}.model": name[0], f"{engine}.servers.urls": f"[{server.url}]"}
            values |= {f"{engine}.servers.attempts": 1}
        yield seer, reasoner, ["bridge", *(f"--set={key}={value}" for key, value in values.items()), *sets]


def test_the_command_writes_rows_reasons_and_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with command(tmp_path) as (seer, reasoner, words):
        assert main(words) == 0
        assert (len(seer.requests), len(reasoner.requests)) == (6, 3)
        assert {request["seed"] for request in seer.requests} == {0}
        capsys.readouterr()
        assert main(words) == 0
        assert (len(seer.requests), len(reasoner.requests)) == (6, 3), "all replies are cached"
    printed = capsys.readouterr()
    assert "2 of 3 problems kept; incorrect answer 1" in printed.out
    assert "0 requests, 9 replies from the cache" in printed.err
    out = tmp_path / "out"
    summary = json.loads((out / "summary.json").read_text())
    assert summary == {"problems": 3, "kept": 2, "repaired": 2, "refused": {"incorrect answer": 1}}
    (refused,) = map(json.loads, (out / "refused.jsonl").read_text().splitlines())
    assert (refused["question"], refused["answer"], refused["gold"]) == ("How long is AC in number 1?", "8", "7")
    page = (out / "samples.html").read_text()
    assert page.count("<section>") == 2
    assert "The image shows that AB is 3" in page
    assert "The description says" not in page


def test_kept_rows_are_read_as_problems_and_by_sft(tmp_path: Path) -> None:
    with command(tmp_path) as (_, _, words):
        assert main(words) == 0
    problems = load_problems(ProblemsConfig(path=str(tmp_path / "out/kept.jsonl")))
    assert [problem.question for problem in problems] == [f"How long is AC in number {n}?" for n in (0, 2)]
    assert problems[0].solution.startswith("<think>\nThe image shows that AB is 3")
    assert problems[0].solution.endswith("\n</think>\n<answer>7</answer>")
    assert Path(problems[0].images[0].path).read_bytes()
    assert problems[0].extra["bridge"] == {
        "description": "A line with AB = 3 and BC = 4.",
        "seer": "s",
        "reasoner": "r",
        "repairs": 2,
    }


def test_both_forms_give_sft_the_same_conversation(tmp_path: Path) -> None:
    found = {}
    for form in ("think", "sharegpt"):
        with command(tmp_path, f"--set=form={form}") as (_, _, words):
            assert main(words) == 0
        rows = ProblemsConfig(path=str(tmp_path / "out/kept.jsonl"))
        found[form] = [(each.messages, each.images) for each in read_conversations(rows, PromptConfig(preset="think"))]
    assert found["think"] == found["sharegpt"]
    assert found["think"][0][0][-1]["content"].startswith("<think>\nThe image shows that AB is 3")


def test_sharegpt_rows(tmp_path: Path) -> None:
    with command(tmp_path, "--set=form=sharegpt") as (_, _, words):
        assert main(words) == 0
    row = json.loads((tmp_path / "out/kept.jsonl").read_text().splitlines()[0])
    human, gpt = row["conversations"]
    assert human["from"] == "human"
    assert human["value"].startswith("<image>How long is AC in number 0?\n\nFirst reason between <think>")
    assert gpt == {"from": "gpt", "value": gpt["value"]}
    assert gpt["value"].endswith("</think>\n<answer>7</answer>")
    assert (tmp_path / "out" / row["images"][0]).is_file()


def test_keeping_no_rows_is_an_error_with_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with command(tmp_path, "--set=min_words=500") as (_, _, words):
        assert main(words) == 2
    assert "no problem was kept (thoughts too short 2, incorrect answer 1)" in capsys.readouterr().err


def stored(cache: Path) -> int:
    if not cache.exists():
        return 0
    with closing(sqlite3.connect(cache)) as connection:
        return connection.execute("SELECT COUNT(*) FROM replies").fetchone()[0]


def test_a_resumed_run_repeats_no_requests(tmp_path: Path) -> None:
    """The first run is canceled with all 24 replies of the seer and 4 of the reasoner; the second requests the
    other 8.
    """
    problems = load_problems(ProblemsConfig(path=str(write_data(tmp_path, 12))))

    def some(request: dict[str, Any]) -> Act:
        is_early = any(each is request for each in killed_reasoner.requests[:4])
        return solve(request) if is_early else Act(wait=60, drop=True)

    def config(url: str) -> BridgeConfig:
        values = {"problems": {"path": "x"}, "output": str(tmp_path / "out"), "seer": role(seer.url)}
        return build(BridgeConfig, values | {"reasoner": role(url)})

    async def killed() -> None:
        task = asyncio.create_task(_bridged(problems, build_wording(), config(killed_reasoner.url)))
        while stored(tmp_path / "out/replies.sqlite") < 28:
            assert not task.done()
            await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with ScriptedServer(see) as seer, ScriptedServer(some) as killed_reasoner, ScriptedServer(solve) as reasoner:
        asyncio.run(killed())
        found = asyncio.run(_bridged(problems, build_wording(), config(reasoner.url)))
    assert len(seer.requests) == 24
    answered = [json.dumps(request) for request in killed_reasoner.requests[:4]]
    resumed = [json.dumps(request) for request in reasoner.requests]
    assert len({*answered, *resumed}) == len(answered) + len(resumed) == 12
    assert sum(each.reason == "kept" for each in found) == 11


def test_a_failed_request_is_counted_and_repeated(tmp_path: Path) -> None:
    (problem,) = load_problems(ProblemsConfig(path=str(write_data(tmp_path, 1))))
    with ScriptedServer(see) as seer, ScriptedServer(error(400, "too long"), solve) as reasoner:
        values = {"problems": {"path": "x"}, "output": str(tmp_path / "out"), "seer": role(seer.url)}
        config = build(BridgeConfig, values | {"reasoner": role(reasoner.url)})
        reasons = [asyncio.run(_bridged([problem], build_wording(), config))[0].reason for _ in range(2)]
    assert reasons == ["request failed: status 400", "kept"]
    assert len(seer.requests) == 2


def test_an_interrupted_reply_is_not_cached(tmp_path: Path) -> None:
    (problem,) = load_problems(ProblemsConfig(path=str(write_data(tmp_path, 1))))
    interrupted = says("A line.", choice={"finish_reason": "insufficient_system_resource"}, top=USAGE)
    seen = (says("notes", top=USAGE), interrupted, says("A line of length 7.", top=USAGE))
    with (
        ScriptedServer(*seen) as seer,
        ScriptedServer(solve) as reasoner,
    ):
        values = {"problems": {"path": "x"}, "output": str(tmp_path / "out"), "seer": role(seer.url)}
        config = build(BridgeConfig, values | {"reasoner": role(reasoner.url)})
        found = [asyncio.run(_bridged([problem], build_wording(), config))[0] for _ in range(2)]
    assert [(each.reason, each.description) for each in found] == [
        ("request failed: SamplingError", ""),
        ("kept", "A line of length 7."),
    ]
    assert len(seer.requests) == 3
