from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mmprm.cli import search as command
from mmprm.cli.main import main
from mmprm.cli.shared import policy
from mmprm.prm.info import PrmInfo
from mmprm.selection.accuracy import at_equal_tokens
from mmprm.selection.groups import Candidate, CandidateGroup
from mmprm.types import Problem, StepScores, Verdict
from tests.mmprm.guided_world import DigitSampler, OnesScorer, TagGrader


def test_equal_tokens_by_hand() -> None:
    def group(name: str, *rewards: float, correct: int = 1) -> CandidateGroup:
        candidates = (
            Candidate("", ("s",), str(i), Verdict(i == correct), 10, scores=StepScores((reward,)))
            for i, reward in enumerate(rewards)
        )
        return CandidateGroup(Problem(name, "q", "1"), tuple(candidates))

    # Best-of-N picks the correct candidate in every subset that contains it: 1/4, 2/4, 3/4, 1 for N = 1 to 4 in a,
    # never in b. 50 tokens for two problems are 25 each, or 2.5 samples: (2/4 + 3/4) / 2 in a, half of that over both.
    samples = [group("a", 0.1, 0.9, 0.1, 0.1), group("b", 0.9, 0.1, 0.1, 0.1, correct=9)]
    guided = [group("a", 0.5, 0.9), group("b", 0.5, 0.9, 0.1)]
    equal = at_equal_tokens(guided, 50, samples, "min")
    assert (equal.n, equal.tokens) == (2.5, 25.0)
    assert equal.accuracy["prm"].value == pytest.approx(0.3125)
    assert equal.accuracy["random"].value == pytest.approx(0.125)
    assert equal.difference["prm"].value == pytest.approx(1.0 - 0.3125)
    assert equal.difference["random"].value == pytest.approx((1 / 2 + 1 / 3) / 2 - 0.125)
    few = at_equal_tokens(guided, 500, samples, "min")  # a budget above all samples: all of them, and their tokens
    assert (few.n, few.tokens, few.accuracy["prm"].value) == (4.0, 40.0, 0.5)


async def test_the_command_writes_solutions_and_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextlib.asynccontextmanager
    async def opened(thing: object) -> AsyncIterator[object]:
        yield thing

    class Scorer(OnesScorer):
        def close(self) -> None:
            pass

    monkeypatch.setattr(command, "scorer_info", lambda config: PrmInfo(aggregator="min"))
    monkeypatch.setattr(command, "open_scorer", lambda config: Scorer())
    monkeypatch.setattr(command, "check_config", lambda *_: None)
    monkeypatch.setattr(policy.actors, "connect", lambda address: False)
    monkeypatch.setattr(policy, "open_sampler", lambda *arguments: opened(DigitSampler()))
    monkeypatch.setattr(policy, "open_grader", lambda config: opened(TagGrader()))
    (tmp_path / "problems.jsonl").write_text('{"id": "p", "question": "q", "answer": "111"}')
    sets = [f"problems.path={tmp_path}/problems.jsonl", "engine.model=x", "scorer.prm=p", f"output={tmp_path}/out"]
    sets += ["search.strategy=beam", "search.samples=6", "baseline=8"]
    assert await asyncio.to_thread(main, ["search", *(part for item in sets for part in ("--set", item))]) == 0

    rows = [json.loads(line) for line in (tmp_path / "out" / "candidates.jsonl").read_text().splitlines()]
    assert [(row["answer"], row["tokens"], row["chosen"]) for row in rows[2:4]] == [
        ("111", 4, False),
        ("110", 4, False),
    ]
    assert (rows[0]["chosen"], rows[0]["scores"]) == (True, [0.9] * 4)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["generated_tokens"], summary["samples"], summary["solutions"]) == (24, 24, 6)
    assert summary["accuracy"]["prm"]["value"] == 1.0
    equal = summary["best_of_n_at_equal_tokens"]
    assert (equal["n"], equal["tokens"], equal["accuracy"]["prm"]["value"]) == (6.0, 24.0, 0.0)
    printed = capsys.readouterr().out
    assert re.search(r"prm +1.000 \[1.000, 1.000\] +0.000 \[0.000, 0.000\] +\+1.000", printed)
    assert "24 tokens per problem, 24 for best_of_6" in printed
