"""SFT, stages and the evaluation of a policy for real, and shipped recipes on the tiny policy: their own estimator,
loss, rewards, filter and schedule, at the size of the tiny world. Two stand for all, which test_configs loads: one of
a single stage, and one that goes from a cold start to a schedule of response lengths."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmprm.cli.main import main
from mmprm.prm.model import load_backbone

pytestmark = pytest.mark.integration

CONFIGS = Path(__file__).parent.parent.parent / "configs"
SMALL_RL = (
    "prompt.preset=plain",
    "sampling.max_tokens=48",
    "batch={prompts: 4, group_size: 4, updates: 2}",
    "steps=2",
    "save_every=0",
    "trainer.ranks=1",
    "trainer.gradient_checkpointing=false",
    "trainer.optimisation.precision=fp32",
    "trainer.optimisation.zero_stage=0",
    "trainer.optimisation.micro_batch_tokens=2048",
    "rollouts={engines: 1}",
    "weights.transport=auto",
)
SMALL_SFT = (
    "prompt.preset=plain",
    "training.epochs=1",
    "training.batch_size=16",
    "training.precision=fp32",
    "training.zero_stage=0",
    "training.save_every=0",
    "gradient_checkpointing=false",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, count, split in (("train", 64, "train"), ("test", 32, "test")):
        out = str(folder / f"{name}.jsonl")
        assert main(["tiny", "problems", "--out", out, "--count", str(count), "--split", split, "--solutions"]) == 0
    return folder


def mmprm(*words: str) -> str:
    """In a process of its own: engines and process groups of other tests are not there."""
    alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, "-m", "mmprm", *words], capture_output=True, text=True, timeout=560, env=alone, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def sets(items: tuple[str, ...], *more: str, stage: str = "") -> list[str]:
    return [word for item in (*items, *more) for word in ("--set", f"{stage}{item}")]


def metrics(folder: Path, kind: str) -> list[dict[str, float]]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["kind"] == kind]


def test_cpgd_recipe(data: Path, tmp_path: Path) -> None:
    words = [f"problems.path={data / 'train.jsonl'}", "engine.model=tiny", f"output={tmp_path}"]
    mmprm("rl", "--config", str(CONFIGS / "rl/cpgd-7b.yaml"), *sets(SMALL_RL, *words))
    steps = metrics(tmp_path, "train")
    assert len(steps) == 2
    assert load_backbone(str(tmp_path / "policy"), torch.float32)


def test_vision_r1_recipe_in_two_stages(data: Path, tmp_path: Path) -> None:
    """The RL stage samples from what the cold start left; a second call finds both finished."""
    first = sets(SMALL_SFT, "base=tiny", "packing=none", f"data.path={data / 'train.jsonl'}", stage="1.")
    schedule = "schedule=[{steps: 1, group_size: 4, max_tokens: 32}, {steps: 1, group_size: 2, max_tokens: 48}]"
    second = sets(SMALL_RL, f"problems.path={data / 'train.jsonl'}", schedule, stage="2.")
    call = [
        "stages",
        "--config",
        str(CONFIGS / "stages/vision-r1.yaml"),
        "--set",
        f"output={tmp_path}",
        *first,
        *second,
    ]
    printed = mmprm(*call)
    assert printed.strip().endswith(f"{tmp_path / 'stage-2-rl' / 'policy'}: the policy of the last stage")
    assert len(metrics(tmp_path / "stage-1-sft", "train")) == 4
    assert len(metrics(tmp_path / "stage-2-rl", "train")) == 2
    again = mmprm(*call)
    assert "stage 1 (sft): " in again
    assert again.count("is there") == 2


def test_a_policy_learns_its_solutions_and_is_evaluated(data: Path, tmp_path: Path, random_policy_folder: Path) -> None:
    """SFT of a random policy lowers the loss on held-out solutions, and the engine stops where they ended. The trained
    policy answers a file in the layout of MathVision better than it."""
    words = [f"data.path={data / 'train.jsonl'}", f"held_out.path={data / 'test.jsonl'}", f"output={tmp_path / 'sft'}"]
    more = ["training.eval_every=1", "training.epochs=6", "training.learning_rate=3e-3"]
    call = ["--config", str(CONFIGS / "sft/tiny.yaml"), "--set", f"base={random_policy_folder}"]
    mmprm("sft", *call, *sets(SMALL_SFT, *words, *more))
    losses = [row["loss"] for row in metrics(tmp_path / "sft", "eval")]
    assert losses[-1] < 0.6 * losses[0]
    rows = map(json.loads, (data / "test.jsonl").read_text().splitlines())
    file = data / "mathvision.jsonl"
    with file.open("w") as out:
        for number, row in enumerate(rows):
            line = {"id": row["id"], "question": row["question"], "options": [], "image": row["pictures"][0]}
            out.write(json.dumps({**line, "answer": row["answer"], "subject": f"half {number % 2}"}) + "\n")
    accuracy = {}
    for name, model in (("random", str(tmp_path / "sft" / "policy")), ("tiny", "tiny")):
        found = ("layout=mathvision", "prompt.preset=plain", "sampling.max_tokens=96", "workers=1")
        mmprm("eval", "policy", str(file), *sets(found, f"engine.model={model}", f"output={tmp_path / name}"))
        result = json.loads((tmp_path / name / "policy-mathvision.json").read_text())
        assert result["questions"] == 32
        assert set(result["scores"]["symbolic"]) == {"all", "half 0", "half 1"}
        accuracy[name] = result["scores"]["symbolic"]["all"]["accuracy"]
    assert accuracy["tiny"]["low"] > accuracy["random"]["high"]
