"""Test SFT, stages and policy evaluation end to end, and each shipped recipe on the tiny policy.

A recipe keeps its estimator, loss, KL, rewards, filter, schedule and frozen parts; prompt, lengths, batch and tags are
those of the tiny world. Vision-R1 runs as a command. The other recipes share an engine and a grader, and their trainer
runs in this process. test_rl covers the command, test_trainer_group several ranks, and test_prm_actor the PRM, which is
a stand-in here. The recipes of Sokoban need levels instead of problems; test_rl_episodes runs RL over episodes. Those
of clips need an Omni policy; test_omni_engine samples from one and loads new weights.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import ray
import torch

from mmprm.backbone.load import load_backbone
from mmprm.backbone.processor import tokenizer_of
from mmprm.cli.main import main
from mmprm.config import load
from mmprm.grading.open import open_grader
from mmprm.grading.symbolic import GraderConfig
from mmprm.problems import load_problems
from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.sampling.dtype import engine_dtype
from mmprm.trees.store import Store
from mmprm.types import Grader, Solution, StepScores
from policy_rl.collector import Collector
from policy_rl.config import RLConfig
from policy_rl.loop import Loop
from policy_rl.rewards.process import ProcessReward
from policy_rl.rollouts.config import RolloutConfig
from policy_rl.rollouts.pool import RolloutPool
from policy_rl.sft.train import SftConfig, train_sft
from policy_rl.stages import read_stages
from policy_rl.trainer.trainer import Trainer
from policy_rl.types import TrainingSample
from policy_rl.weights.transfer import FileTransfer, shared_folder

pytestmark = pytest.mark.integration

CONFIGS = Path(__file__).parent.parent.parent / "configs"
SMALL_RL = (
    "prompt={preset: plain}",
    "sampling.max_tokens=96",
    "rewards.format=steps",  # the tags of the tiny policy
    "rewards.min_thought_characters=0",
    "batch={prompts: 4, group_size: 4, updates: 2}",
    "steps=2",
    "save_every=0",
    "trainer.ranks=1",
    "trainer.gradient_checkpointing=false",
    "trainer.optimization.precision=fp32",
    "trainer.optimization.zero_stage=0",
    "trainer.optimization.micro_batch_tokens=4096",
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
RECIPES = [file for file in sorted(CONFIGS.glob("rl/*.yaml")) if "sokoban" not in file.stem and "omni" not in file.stem]
PARTS = {"vision", "projector", "language"}
SHOWN = {
    "cpgd-7b": "drift",
    "prm-rl": "scored",
    "visualthinker-r1-zero": "kl_ref",
    "lmm-r1 1": "kl_ref",
    "lmm-r1-mgt-percereason": "kl_ref",
    "lmm-r1-fre-multi": "kl_ref",
    "lmm-r1-direct-rl-geo": "value_loss",
    "lmm-r1 2": "value_loss",
    "mm-eureka-32b 2": "kl_ref",
}
"""By recipe, and stage, a metric that only its own kind has, or that is 0 elsewhere."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, count, split in (("train", 64, "train"), ("test", 32, "test")):
        out = str(folder / f"{name}.jsonl")
        assert main(["tiny", "problems", "--output", out, "--count", str(count), "--split", split, "--solutions"]) == 0
    return folder


RUNNER = """
import json, sys
from mmprm.cli.main import main
for words in json.loads(sys.argv[1]):
    if main(words):
        sys.exit(1)
"""


def run_mmprm(*commands: Sequence[str]) -> str:
    """Run commands in a separate process, without the engines and process groups of other tests; return their output.

    One process for several commands, because importing torch and vLLM takes longer than some of them.
    """
    alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    program = [sys.executable, "-c", RUNNER, json.dumps(commands)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=560, env=alone, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def sets(items: tuple[str, ...], *more: str, stage: str = "") -> list[str]:
    return [word for item in (*items, *more) for word in ("--set", f"{stage}{item}")]


def metrics(folder: Path, kind: str) -> list[dict[str, float]]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["kind"] == kind]


class LocalTrainer:
    """Runs a Trainer in this process, with the interface of a TrainerGroup."""

    def __init__(self, config: RLConfig, total: int) -> None:
        updates = total * config.batch.updates
        self.trainer = Trainer(
            config.engine.model, config.trainer, config.prompt, config.sampling.temperature, updates, config.has_critic
        )
        folder = shared_folder(config.weights, Path(config.output))
        self.trainer.open_transfer(lambda rank: FileTransfer(folder))
        for name in ("update", "publish", "save", "resume", "save_model"):
            setattr(self, name, getattr(self.trainer, name))

    def log_probs(self, samples: Sequence[TrainingSample], policy: bool = True) -> list[TrainingSample]:
        found = self.trainer.log_probs(samples, policy)
        named = [
            {k: v for k, v in asdict(found[position]).items() if v is not None} for position in range(len(samples))
        ]
        return [replace(sample, **arrays) for sample, arrays in zip(samples, named, strict=True)]


class MadeUpPrm:
    async def judge(self, solutions: Sequence[Solution]) -> list[StepScores]:
        return [StepScores(tuple(random.Random(step).random() for step in each.steps)) for each in solutions]


class World:
    """Holds the engine and grader that the recipes share. The engine keeps its weights until the next recipe loads its
    own.
    """

    def __init__(self, runner: asyncio.Runner, pool: RolloutPool, grader: Grader) -> None:
        self._runner, self._pool, self._grader = runner, pool, grader

    def train(self, config: RLConfig) -> None:
        self._runner.run(self._train(config))

    async def _train(self, config: RLConfig) -> None:
        problems = load_problems(config.problems)
        total = config.total_steps(len(problems))
        trainer, process = LocalTrainer(config, total), None
        if config.process is not None:
            process = ProcessReward(tokenizer_of(trainer.trainer.processor), config.step_format, "", MadeUpPrm())
        check = trainer.trainer.limits.check
        collector = Collector(config, problems, self._pool, self._grader, check, process)
        dtype = getattr(torch, engine_dtype(config.engine))
        try:
            await self._pool.load_weights(trainer.publish(0, self._pool.probe_token_ids, dtype))
            assert (await Loop(config, total, self._pool, trainer, collector).run()).finished
        finally:
            trainer.trainer.close()


@pytest.fixture(scope="module")
def world(policy_folder: Path) -> Iterator[World]:
    ray.shutdown()  # the commands of other files leave theirs running
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    engine = EngineConfig(model=str(policy_folder), kv_cache_gib=0.25)
    start = RolloutPool.start(
        engine, SamplingConfig(max_tokens=96), PromptConfig(preset="plain"), RolloutConfig(engines=1)
    )
    with asyncio.Runner() as runner:
        stack, pool = AsyncExitStack(), runner.run(start)
        yield World(runner, pool, runner.run(stack.enter_async_context(open_grader(GraderConfig()))))
        runner.run(stack.aclose())
        pool.close()
    ray.shutdown()


def moved(before: str | Path, after: Path) -> set[str]:
    """Return the parts of the model (vision, projector, language) whose weights changed; check that all are finite."""
    first, last = (load_backbone(str(folder), torch.float32)[0].state_dict() for folder in (before, after))
    assert all(tensor.isfinite().all() for tensor in last.values())
    changed = [name for name, tensor in last.items() if not torch.equal(tensor, first[name])]
    return {"language" if "visual" not in name else "projector" if "merger" in name else "vision" for name in changed}


def assert_trained(name: str, config: RLConfig) -> None:
    """Check that each step updated on responses from the preceding weights, and that only unfrozen parts changed."""
    output = Path(config.output)
    steps = metrics(output, "train")
    assert len(steps) == 2
    for step in steps:
        assert 1 <= step["updates"] <= 2
        assert step["skipped"] == 0
        assert step["mismatch_absolute"] < 0.05
    assert any(step["advantage_size"] > 0 and step["loss"] != 0 for step in steps)
    assert any(step[SHOWN[name]] != 0 for step in steps) if name in SHOWN else True
    assert moved(config.engine.model, output / "policy") == PARTS - set(config.trainer.frozen)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_rl_recipe(file: Path, world: World, data: Path, tmp_path: Path, policy_folder: Path) -> None:
    model = f"engine={{model: {policy_folder}}}"
    own = [f"problems.path={data / 'train.jsonl'}", "held_out=null", model, f"output={tmp_path}"]
    config = load(RLConfig, file, [*SMALL_RL, *own])
    world.train(config)
    assert_trained(file.stem, config)


@pytest.mark.parametrize("name", ["lmm-r1", "mm-eureka-32b"])
def test_recipe_in_two_rl_stages(name: str, world: World, data: Path, tmp_path: Path, policy_folder: Path) -> None:
    """The second stage starts from the checkpoint of the first."""
    own = (*SMALL_RL, f"problems.path={data / 'train.jsonl'}")
    sets = [f"{number}.{item}" for number in (1, 2) for item in own]
    file = CONFIGS / f"stages/{name}.yaml"
    for stage in read_stages(file, [f"output={tmp_path}", f"1.engine.model={policy_folder}", *sets]):
        world.train(stage.config)
        assert_trained(f"{name} {stage.number}", stage.config)


def test_mm_policy_recipe(data: Path, tmp_path: Path, policy_folder: Path) -> None:
    own = ["packing=none", f"model={policy_folder}", f"data.path={data / 'train.jsonl'}", f"output={tmp_path}"]
    config = load(SftConfig, CONFIGS / "sft/mm-policy-8b.yaml", [*SMALL_SFT, *own])
    train_sft(config)
    assert len(metrics(tmp_path, "train")) == 4
    assert moved(config.model, tmp_path / "policy") == PARTS - {"vision"}


def test_vision_r1_recipe_in_two_stages(data: Path, tmp_path: Path) -> None:
    """The RL stage starts from the cold-start policy; a second call finds both stages finished."""
    first = sets(SMALL_SFT, "model=tiny", "packing=none", f"data.path={data / 'train.jsonl'}", stage="1.")
    schedule = "schedule=[{steps: 1, group_size: 4, max_tokens: 96}, {steps: 1, group_size: 3, max_tokens: 48}]"
    second = sets(SMALL_RL, f"problems.path={data / 'train.jsonl'}", schedule, stage="2.")
    call = [
        "stages",
        "--config",
        str(CONFIGS / "stages/vision-r1.yaml"),
        *sets((f"output={tmp_path}",)),
        *first,
        *second,
    ]
    printed = run_mmprm(call, call)
    assert printed.strip().endswith(f"{tmp_path / 'stage-2-rl' / 'policy'}: the policy of the last stage")
    assert len(metrics(tmp_path / "stage-1-sft", "train")) == 4
    (stage,) = [stage for stage in read_stages(call[2], call[4::2]) if stage.kind == "rl"]
    assert_trained("vision-r1", stage.config)
    for stage in ("stage 1 (sft)", "stage 2 (rl)"):
        assert printed.count(f"{stage}: skipped, its policy is saved in") == 1


def mathvision_file(data: Path) -> str:
    """Write the test problems in MathVision's format, with two subjects."""
    file = data / "mathvision.jsonl"
    with file.open("w") as out:
        for number, row in enumerate(map(json.loads, (data / "test.jsonl").read_text().splitlines())):
            line = {"id": row["id"], "question": row["question"], "options": [], "image": row["images"][0]}
            out.write(json.dumps({**line, "answer": row["answer"], "subject": f"half {number % 2}"}) + "\n")
    return str(file)


def test_a_policy_learns_its_solutions_and_is_evaluated(data: Path, tmp_path: Path, random_policy_folder: Path) -> None:
    """SFT of a random policy lowers the held-out loss, and generation stops at the end of solutions. The trained policy
    scores higher on a file in MathVision's format.
    """
    words = [f"data.path={data / 'train.jsonl'}", f"held_out.path={data / 'test.jsonl'}", f"output={tmp_path / 'sft'}"]
    more = ["training.eval_every=2", "training.epochs=6", "training.learning_rate=3e-3"]
    model = f"model={random_policy_folder}"
    train = ["sft", "--config", str(CONFIGS / "sft/tiny.yaml"), *sets(SMALL_SFT, model, *words, *more)]
    benchmark = mathvision_file(data)
    settings = ("benchmark=mathvision", "prompt.preset=plain", "sampling.max_tokens=96", "workers=1")
    models = {"learned": tmp_path / "sft" / "policy", "tiny": "tiny"}
    evaluate = [
        ["eval", "policy", benchmark, *sets(settings, f"engine.model={model}", f"output={tmp_path / name}")]
        for name, model in models.items()
    ]
    run_mmprm(train, *evaluate)
    losses = [row["loss"] for row in metrics(tmp_path / "sft", "eval")]
    assert losses[-1] < 0.6 * losses[0]
    accuracy = {}
    for name in models:
        result = json.loads((tmp_path / name / "policy-mathvision.json").read_text())
        assert result["questions"] == 32
        assert set(result["scores"]["symbolic"]) == {"all", "subject: half 0", "subject: half 1"}
        accuracy[name] = result["scores"]["symbolic"]["all"]["accuracy"]
    assert accuracy["tiny"]["low"] > accuracy["learned"]["high"]


def test_mm_prm_recipe_annotates_and_trains(data: Path, tmp_path: Path, policy_folder: Path) -> None:
    """Every state gets 16 rollouts; the PRM learns from them with a frozen vision tower."""
    run, labels, output = (str(tmp_path / name) for name in ("annotate", "labels.parquet", "train"))
    small = ("engine={model: tiny, max_num_seqs: 256}", "prompt={preset: plain}", "sampling.max_tokens=96", "workers=1")
    own = (f"output={run}", f"problems.path={data / 'train.jsonl'}", "problems.limit=12", "search.max_rollouts=160")
    annotate = ["annotate", "--config", str(CONFIGS / "annotate/mm-prm-8b.yaml"), *sets(small, *own)]
    export = ["labels", *sets((f"store={run}", f"output={labels}", "dev=0.2"))]
    brief = tuple(item for item in SMALL_SFT if not item.startswith(("prompt", "training.epochs")))
    own = ("model=tiny", f"labels={labels}", f"output={output}", "training.eval_every=0")
    train = ["train", "--config", str(CONFIGS / "train/mm-prm-8b.yaml"), *sets(brief, *own)]
    run_mmprm(annotate, export, train)
    store = Store.read(Path(run) / "trees.sqlite")
    batches = [batch for problem in store.problems("done") for batch in store.batches(problem.id)]
    store.close()
    assert {len(batch.rollouts) for batch in batches} == {16}
    steps = metrics(Path(output), "train")
    assert len(steps) >= 3
    assert all(math.isfinite(step["loss"]) and step["skipped"] == 0 for step in steps)
    folders = (str(policy_folder), f"{output}/prm")
    first, last = (load_backbone(folder, torch.float32)[0].state_dict() for folder in folders)
    same = {name for name, tensor in first.items() if torch.equal(tensor, last[name][: len(tensor)])}
    assert same == {name for name in first if "visual" in name and "merger" not in name}
