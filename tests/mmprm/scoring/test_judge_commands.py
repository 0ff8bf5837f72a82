"""Test a thinking judge on a scripted server: what it is sent, what can go wrong, and every command that scores."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from scripted_server import Act, ScriptedServer, error, says
from served import running

import mmprm
from mmprm.cli import rerank
from mmprm.cli.main import main
from mmprm.cli.search import GuidedSearchConfig, search_summary
from mmprm.cli.serve import ServeConfig, make_service
from mmprm.config import build
from mmprm.errors import EngineStoppedError, SamplingError, UnknownScoresError
from mmprm.labels.parquet import LabeledExample, read_parquet, write_parquet
from mmprm.scoring.config import ServerConfig
from mmprm.scoring.http.remote import RemoteScorer
from mmprm.scoring.judge_scorer import JudgeScorer
from mmprm.selection.accuracy import accuracy_at_n
from mmprm.selection.candidates import candidate_lines, read_groups
from mmprm.selection.groups import Candidate, CandidateGroup, score_groups
from mmprm.selection.guided import search_problems
from mmprm.selection.strategies import GuidedConfig
from mmprm.types import Counts, LabeledPath, Problem, SampleRequest, StepScores, Verdict
from tests.mmprm.guided_world import PROBLEM, DigitSampler, TagGrader
from tests.mmprm.scoring.scripted_judge import ChainSampler, judge_config, lines, solution


def text_of(request: dict[str, Any]) -> str:
    content = request["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def verdicts(request: dict[str, Any]) -> Act:
    """Call a step incorrect if it contains "wrong"; a solution that contains "odd" gets no readable verdict."""
    text = text_of(request)
    steps = [part.split("\n")[0] for part in text.split("Solution:\n")[1].split("\n\nCheck")[0].split("Step ")[1:]]
    judged = lines(*(int("wrong" not in step) for step in steps))
    reply = "I am not sure." if "odd" in text.split("Solution:\n")[1] else judged
    return says(*[reply] * request["n"], top={"usage": {"completion_tokens": 20 * request["n"]}})


def sets(server: ScriptedServer, folder: Path, **more: object) -> list[str]:
    judge = {"engine.model": "judge", "engine.servers.urls": [server.url], "engine.servers.attempts": 2}
    judge |= {"engine.servers.backoff_seconds": 0.01, "cache": folder / "judge.sqlite"}
    values = {"scorer.backend": "judge"} | {f"scorer.judge.{key}": value for key, value in judge.items()} | more
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def test_the_server_is_sent_the_request_and_its_settings(tmp_path: Path) -> None:
    with ScriptedServer(verdicts) as server:
        sampling = {"temperature": 0.7, "max_tokens": 77}
        config = judge_config(tmp_path, server, chains=3, sampling=sampling, system="Be strict.")
        scorer = JudgeScorer(config)
        assert scorer.score([solution("a", "wrong", "c")]) == [StepScores((1.0, 0.0, 0.0), 60)]
        scorer.close()
    (request,) = server.requests
    assert (request["model"], request["n"], request["temperature"], request["max_tokens"]) == ("judge", 3, 0.7, 77)
    assert [turn["role"] for turn in request["messages"]] == ["system", "user"]


def test_a_separate_chain_of_thought_is_counted_and_not_read_as_the_reply(tmp_path: Path) -> None:
    thoughts = {"message": {"content": lines(1), "reasoning": "Step 1: incorrect"}}
    only = {"message": {"content": None, "reasoning": lines(1)}, "finish_reason": "length"}
    top = {"usage": {"completion_tokens": 30}}
    with ScriptedServer(says("", choice=thoughts, top=top), says("", choice=only, top=top)) as server:
        scorer = JudgeScorer(judge_config(tmp_path, server))
        assert scorer.score([solution("a")]) == [StepScores((1.0,), 30)]
        (answer,) = scorer.score_each([solution("b")])
        assert isinstance(answer, UnknownScoresError)
        assert answer.tokens == 30
        scorer.close()
    assert scorer.unread == {"a chain that was cut off": 1}


def test_a_refused_request_is_unknown_and_a_gone_server_stops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def act(request: dict[str, Any]) -> Act:
        return error(400, "the prompt is too long") if "long" in text_of(request) else verdicts(request)

    with ScriptedServer(act) as server:
        scorer = JudgeScorer(judge_config(tmp_path, server))
        unknown, known = scorer.score_each([solution("long"), solution("a")])
        assert "1 × a request that failed: status 400" in str(unknown)
        assert "status 400: the prompt is too long" in capsys.readouterr().err
        assert known == StepScores((1.0,), 20)
        scorer.close()
    with ScriptedServer(error(401)) as server:
        scorer = JudgeScorer(judge_config(tmp_path, server))
        with pytest.raises(EngineStoppedError, match="status 401"):
            scorer.score_each([solution("b")])
        assert scorer.score([solution("a")]) == [StepScores((1.0,), 20)]  # from the cache
        scorer.close()


def test_score_writes_tokens_and_unknown_solutions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"question": "q", "steps": ["a", "wrong"]},
        {"question": "q", "steps": ["odd"]},
        {"question": "q", "responses": ["<step>odd</step>", "no steps", "<step>a</step><answer>1</answer>"]},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with ScriptedServer(verdicts) as server:
        command = ["score", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
        assert main([*command, *sets(server, tmp_path)]) == 0
        asked = len(server.requests)
        assert main([*command, *sets(server, tmp_path)]) == 0
        assert len(server.requests) == asked == 3
    first, second, third = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert (first["scores"], first["aggregate"], first["tokens"], first["unknown"]) == ([1.0, 0.0], 0.0, 20, None)
    assert (second["scores"], second["aggregate"], second["tokens"]) == (None, None, 20)
    assert "in.jsonl:2: the judge's verdicts are unknown (1 × no verdicts)" in second["unknown"]
    assert (third["tokens"], third["aggregate"], third["chosen"]) == ([20, 0, 20], [None, None, 1.0], 2)
    assert [bool(reason) for reason in third["unknown"]] == [True, False, False]
    printed = capsys.readouterr().err
    assert "2 solutions scored\naggregator min, the default for a judge\n2 solutions unknown, 80 tokens" in printed


def candidate(*steps: str, correct: bool) -> Candidate:
    return Candidate("", steps, str(correct), Verdict(correct), 5)


def test_rerank_excludes_unknown_solutions_and_counts_them(tmp_path: Path) -> None:
    candidates = (candidate("odd", correct=True), candidate("wrong", correct=False), candidate("odd", correct=True))
    group = CandidateGroup(Problem("p", "q", "1"), (*candidates, candidate("a", correct=True)))
    with ScriptedServer(verdicts) as server:
        scorer = JudgeScorer(judge_config(tmp_path, server))
        groups = score_groups([group], scorer)
        scorer.close()
    rows = list(candidate_lines(groups, "min"))
    assert [row["scores"] for row in rows] == [None, (0.0,), None, (1.0,)]
    assert [row["chosen"] for row in rows] == [False, False, False, True]
    assert [row["score_tokens"] for row in rows] == [20, 20, 20, 20]
    summary = rerank.rerank_summary(groups, {}, "min", accuracy_at_n(groups, "min", [4], 0))
    assert (summary["unscored"], summary["unknown_scores"], summary["score_tokens"]) == (2, 2, 60)
    (again,) = read_groups(("file", json.loads(json.dumps(row))) for row in rows)
    assert [(each.unknown_scores, each.score_tokens) for each in again.candidates] == [
        (True, 20),
        (False, 20),
        (True, 20),
        (False, 20),
    ]


async def test_search_counts_unknown_paths_and_the_judges_tokens(tmp_path: Path) -> None:
    """The paths 0, 1 and 2 are judged after the first step: 2 is unknown, so 1 and then 0 are continued."""

    def reply(request: SampleRequest, number: int) -> str:
        steps = re.findall(r"^Step \d+: (.*)$", request.problem.question, re.MULTILINE)
        return "?" if "2" in steps else lines(*(step in ("1", "<answer>111</answer>") for step in steps))

    judge = ChainSampler(reply)
    scorer = JudgeScorer(judge_config(tmp_path), judge)
    config = GuidedConfig(strategy="beam", samples=3, beams=2)
    searched = await search_problems(
        [PROBLEM], DigitSampler(), TagGrader(), scorer, config, aggregate="min", step_format="tags"
    )
    scorer.close()
    (result,) = searched.results
    asked = {request.problem.question for request in judge.requests}
    assert result.score_tokens == 10 * len(asked)
    assert result.unknown_scores == sum("Step 1: 2" in question for question in asked) == 1
    assert not any(step == "2" for candidate in result.group.candidates for step in candidate.steps[:1])
    values = {"problems": {"path": "x"}, "engine": {"model": "x"}, "scorer": {"prm": "x"}}
    summary = search_summary(searched, None, "min", build(GuidedSearchConfig, values))
    assert (summary["unknown_scores"], summary["score_tokens"]) == (1, result.score_tokens)


async def test_search_keeps_a_problem_whose_paths_are_all_unknown(tmp_path: Path) -> None:
    judge = ChainSampler(lambda request, number: SamplingError("status 400"))
    scorer = JudgeScorer(judge_config(tmp_path), judge)
    config = GuidedConfig(strategy="beam", samples=3, beams=2)
    searched = await search_problems(
        [PROBLEM], DigitSampler(), TagGrader(), scorer, config, aggregate="min", step_format="tags"
    )
    scorer.close()
    assert searched.failed == {}
    values = {"problems": {"path": "x"}, "engine": {"model": "x"}, "scorer": {"prm": "x"}}
    summary = search_summary(searched, None, "min", build(GuidedSearchConfig, values))
    assert (summary["unknown_scores"], summary["score_tokens"]) == (len(judge.requests), 0)
    assert summary["solutions"] > 0


def test_eval_leaves_unknown_solutions_out_and_counts_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labeled = [(["a", "wrong"], 1), (["a"], -1), (["odd"], -1), (["a", "b"], 1)]
    rows = [{"id": f"x-{n}", "problem": f"q{n}", "steps": s, "label": label} for n, (s, label) in enumerate(labeled)]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    out = ["--set", f"output={tmp_path / 'out'}", "--set", "development=0"]
    with ScriptedServer(verdicts) as server:
        assert main(["eval", "processbench", str(tmp_path / "x.json"), *out, *sets(server, tmp_path)]) == 0
    result = json.loads((tmp_path / "out" / "processbench.json").read_text())
    assert (result["unknown"], result["tokens"], result["pooled"]["solutions"]) == (1, 80, 3)
    assert (result["threshold"], result["scored_by"]) == (0.5, "judge")
    # One of two first errors is found, and no error is claimed in the correct solution: F1 = 2 · 0.5 · 1 / 1.5.
    assert result["pooled"]["f1"]["value"] == pytest.approx(2 / 3)
    assert "1 solutions unknown and left out, 80 tokens of the judge" in capsys.readouterr().out
    assert "The judge generated 80 tokens; 1 solutions are left out" in (tmp_path / "out" / "report.html").read_text()


def test_eval_without_a_known_solution_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text(json.dumps([{"id": "x-1", "problem": "q", "steps": ["odd"], "label": -1}]))
    out = ["--set", f"output={tmp_path / 'out'}"]
    with ScriptedServer(verdicts) as server:
        assert main(["eval", "processbench", str(tmp_path / "x.json"), *out, *sets(server, tmp_path)]) == 2
    assert "the judge's verdicts on every solution are unknown; raise" in capsys.readouterr().err


def test_consensus_judges_no_step_of_an_unknown_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = Counts(4, 0), Counts(0, 4)
    paths = [("a", "wrong"), ("a", "odd")]
    examples = [
        LabeledExample(Problem(f"p{n}", f"q{n}", "1"), LabeledPath(f"p{n}", steps, (good, bad), False), "train")
        for n, steps in enumerate(paths)
    ]
    write_parquet(tmp_path / "labels.parquet", examples)
    files = ["--set", f"labels={tmp_path / 'labels.parquet'}", "--set", f"output={tmp_path / 'judged.parquet'}"]
    with ScriptedServer(verdicts) as server:
        assert main(["consensus", *files, *sets(server, tmp_path)]) == 0
    judged = read_parquet(tmp_path / "judged.parquet")
    assert [each.judged for each in judged] == [(1.0, 0.0), (None, None)]
    printed = capsys.readouterr().out
    assert "40 tokens of the judge" in printed
    assert "not judged: 1 (paths about which its verdicts are unknown)" in printed


def test_a_judge_in_python(tmp_path: Path) -> None:
    with ScriptedServer(verdicts) as server:
        judge = judge_config(tmp_path, server).model_dump()
        with mmprm.load_scorer(backend="judge", judge=judge) as scorer:
            assert mmprm.score_steps(scorer, "q", ["a", "wrong"]) == (1.0, 0.0)
            with pytest.raises(UnknownScoresError, match="verdicts are unknown"):
                mmprm.score_steps(scorer, "q", ["odd"])
            responses = [f"<step>{step}</step><answer>1</answer>" for step in ("odd", "wrong", "a")]
            ranked = mmprm.rerank(scorer, "q", responses)
    assert [(each.index, each.reward) for each in ranked] == [(2, 1.0), (1, 0.0), (0, None)]
    assert "1 × no verdicts" in (ranked[-1].reason or "")


def test_a_served_judge_says_what_is_unknown_and_what_it_cost(tmp_path: Path) -> None:
    with ScriptedServer(verdicts) as server:
        scorer = {"backend": "judge", "judge": judge_config(tmp_path, server).model_dump()}
        service = make_service(build(ServeConfig, {"scorer": scorer}))
        with running(service) as url:
            model = httpx.get(f"{url}/v1/model").json()
            assert (model["model"], model["backend"], model["format"]) == ("judge", "judge", "plain")
            assert (model["aggregator"], model["threshold"]) == ("min", 0.5)
            known = httpx.post(f"{url}/v1/score", json={"question": "q", "steps": ["a", "wrong"]}).json()
            assert (known["scores"], known["aggregate"], known["tokens"]) == ([1.0, 0.0], 0.0, 20)
            refused = httpx.post(f"{url}/v1/score", json={"question": "q", "steps": ["odd"]})
            problem = refused.json()["error"]
            assert (refused.status_code, problem["type"], problem["tokens"]) == (422, "unknown", 20)
            remote = RemoteScorer(ServerConfig(urls=(url,)))
            unknown, scored = remote.score_each([solution("odd"), solution("a")])
            assert isinstance(unknown, UnknownScoresError)
            assert (unknown.tokens, scored) == (20, StepScores((1.0,), 20))
            remote.close()
