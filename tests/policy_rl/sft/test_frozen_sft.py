"""Test fine-tuning with a frozen vision tower: cached image features change neither loss nor gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmprm.backbone.image_features import FeatureCache, feature_cache
from mmprm.backbone.load import load_backbone
from mmprm.backbone.trainable import TrainableConfig, prepare_training
from mmprm.config import build
from mmprm.problems import write_problems
from mmprm.tiny.world import make_problems, solve
from mmprm.training.ranks import Ranks
from policy_rl.sft import train as sft
from policy_rl.sft.batch import ConversationEncoder
from policy_rl.sft.conversations import Conversation
from policy_rl.sft.train import ConversationRows, SftConfig, SftTask, train_sft
from policy_rl.trainer.policy import Policy
from tests.backbones import tiny_solutions, write_backbone

ALONE = Ranks(0, 1, torch.device("cpu"))
EPOCHS = 2


def conversations() -> list[Conversation]:
    """Return four conversations: two about one image, one about two images, and one without an image."""
    first, second = tiny_solutions("qwen2_5_vl", 2)
    images = [first.problem.images, first.problem.images, first.problem.images + second.problem.images, ()]
    found = []
    for number, shown in enumerate(images):
        question = [*[{"type": "image"}] * len(shown), {"type": "text", "text": f"blue + {number} = ?"}]
        turns = ({"role": "user", "content": question}, {"role": "assistant", "content": "".join(first.steps)})
        found.append(Conversation(str(number), turns, shown))
    return found


def train(policy: Policy, task: SftTask) -> list[Tensor]:
    """Return the losses and the gradient of each epoch, with one row per micro-batch."""
    found = []
    for _ in range(EPOCHS):
        policy.zero_grad()
        for row in range(len(task.lengths)):
            found.append(task.loss_sum(policy, task.collate([row])))
            found[-1].backward()
        found.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    return [each.detach() for each in found]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "internvl"])
def test_cached_features_give_the_same_bits(name: str, tmp_path: Path) -> None:
    backbone, processor = load_backbone(str(write_backbone(name, tmp_path / "model")), torch.float32)
    prepare_training(backbone, TrainableConfig(frozen=("vision", "projector")))
    encoder, policy, samples = ConversationEncoder(backbone, processor), Policy(backbone), conversations()
    rows = ConversationRows(samples, [encoder.size(sample) for sample in samples], encoder, None)
    task = SftTask(rows, rows, 400, False, ALONE)
    found, calls = [], []
    for cache in (FeatureCache(), feature_cache(backbone, ALONE, zero_stage=0)):
        policy.image_features, encoder.describes_images = cache, cache.enabled
        found.append(train(policy, task))
        calls.append(cache.tower_calls)
    assert all(map(torch.equal, *found))
    assert found[0][-1].norm() > 0.1
    assert calls == [3 * EPOCHS, 2], "two of the three image sets are equal"


def test_a_run_with_a_frozen_tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Qwen3-VL run has the same losses with the cache, and held-out images are also computed once."""
    base = write_backbone("qwen3_vl", tmp_path / "base")
    problems = [(each.problem, "".join(solve(each))) for each in make_problems(6, seed=0, split="train")]
    answers = {problem.id: {"solution": solution} for problem, solution in problems}
    write_problems(tmp_path / "data.jsonl", [problem for problem, _ in problems], answers)
    caches: list[FeatureCache] = []

    def run(output: str, make: Any) -> list[float]:
        monkeypatch.setattr(sft, "feature_cache", lambda *arguments: caches.append(make(*arguments)) or caches[-1])
        data = {"path": str(tmp_path / "data.jsonl")}
        training = {"epochs": 2, "batch_size": 3, "learning_rate": 3e-3, "precision": "fp32", "eval_every": 1}
        values = {"model": str(base), "data": data, "held_out": data, "output": str(tmp_path / output)}
        more = {"prompt": {"preset": "plain"}, "frozen": ["vision", "projector"], "packing": "none"}
        train_sft(build(SftConfig, values | more | {"training": training}))
        rows = map(json.loads, (tmp_path / output / "metrics.jsonl").read_text().splitlines())
        return [row["loss"] for row in rows]

    plain = run("plain", lambda *arguments: FeatureCache())
    assert run("cached", feature_cache) == pytest.approx(plain, rel=1e-5)
    assert plain[-1] < plain[0]
    assert caches[1].tower_calls <= len(problems) < caches[0].tower_calls
