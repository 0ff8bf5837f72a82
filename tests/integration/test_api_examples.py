"""Test that the Python examples in README.md and docs/api.md run as printed on the output of a small demo."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import mmprm
from mcts.campaign import run_campaign
from mcts.worker import LocalWorker
from mmprm.prm.info import PrmTokens, read_info, write_info
from mmprm.prm.model import initialize_prm, save_prm
from mmprm.tiny.world import make_problems
from tests.mcts.scripted_campaign import config, local_worker, write_problems

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def demo(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with runs/demo/annotate, from a scripted policy, and runs/demo/train/prm."""
    folder = tmp_path_factory.mktemp("examples")
    prm = folder / "runs/demo/train/prm"
    save_prm(prm, initialize_prm(str(policy_folder), PrmTokens(), add_missing_tokens=True))
    write_info(prm, read_info(prm).model_copy(update={"aggregator": "min"}))
    settings = config(str(write_problems(folder, 8)), str(folder / "runs/demo/annotate"), workers=1)

    async def make_worker(number: int) -> LocalWorker:
        return local_worker(settings, delay=0)

    run_campaign(settings, make_worker=make_worker)
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


RUNNER = """
import sys
from pathlib import Path
for name in sys.argv[1:]:
    exec(compile(Path(name).read_text(encoding="utf-8"), name, "exec"), {"__name__": "__main__"})
    print("\\x1e", end="")
"""
"""Runs files one after the other, each in a namespace of its own: imports cost most of an example's time."""


@pytest.fixture(scope="module")
def outputs(demo: Path) -> list[str]:
    """Return the output of the README.md example, followed by those of docs/api.md."""
    files = []
    for page in ("README.md", "docs/api.md"):
        for number, code in enumerate(PYTHON_BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))):
            files.append(demo / f"{Path(page).stem}-{number}.py")
            files[-1].write_text(code, encoding="utf-8")
    command = [sys.executable, "-c", RUNNER, *map(str, files)]
    result = subprocess.run(command, cwd=demo, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.split("\x1e")[:-1]


def test_the_readme_scores_two_steps(outputs: list[str]) -> None:
    scores = [float(text) for text in outputs[0].strip("()\n").split(",")]
    assert len(scores) == 2
    assert all(0 < score < 1 for score in scores)


def test_the_api_page_runs(demo: Path, outputs: list[str]) -> None:
    assert len(outputs) == 1 + 6
    assert "<answer>" in outputs[3]
    assert "'done': 2" in outputs[4]
    assert outputs[5].count("question ") == 8
    assert (demo / "runs/mine/trees.sqlite").is_file()
    assert (demo / "labels.parquet").is_file()


def test_annotate_takes_rows_and_problems_and_resumes(tmp_path: Path) -> None:
    first, second = (tiny.problem for tiny in make_problems(2, 5, "annotate"))
    row = {"question": first.question, "answer": first.answer, "images": list(first.images)}
    settings = {"engine": {"model": "tiny", "kv_cache_gib": 0.25}, "prompt": {"preset": "plain"}, "workers": 1}
    limits = {"sampling": {"max_tokens": 96}, "search": {"max_rollouts": 48}}
    summary = mmprm.annotate([row, second], tmp_path, **settings, **limits)
    assert summary.problems == {"open": 0, "done": 2, "failed": 0}
    assert 40 <= summary.new_rollouts <= 2 * 48
    again = mmprm.annotate(tmp_path / "problems.jsonl", tmp_path, **settings, **limits)
    assert (again.new_rollouts, again.rollouts) == (0, summary.rollouts)
    assert [found.problem.images[0].path for found in mmprm.read_trees(tmp_path)]
