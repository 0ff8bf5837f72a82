"""Test one rank on DeepSpeed: updates against plain torch, non-finite values, checkpoints, and published weights."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from one_rank import PLAIN, assert_same, config, start, weights_of
from safetensors.torch import load_file
from scripted_rl import make_config
from transformers import AutoModelForImageTextToText

from mmprm.backbone.load import load_backbone
from mmprm.backbone.processor import vision_token_ids
from mmprm.errors import DataError, TrainingError
from mmprm.training.lora import LoraConfig
from policy_rl.algorithms.importance import ImportanceMask
from policy_rl.algorithms.losses import KlConfig, LossConfig
from policy_rl.metrics import metric_names
from policy_rl.trainer.batch import collate_rows
from policy_rl.trainer.config import CriticConfig, TrainerConfig, UpdateConfig
from policy_rl.trainer.policy import Policy
from policy_rl.trainer.prompt_encoder import PromptEncoder
from policy_rl.trainer.trainer import Trainer
from policy_rl.types import TrainingSample
from policy_rl.weights.probe import probe_token_ids
from policy_rl.weights.transfer import FileTransfer

pytestmark = pytest.mark.usefixtures("one_thread")


def test_an_update_by_plain_torch(random_policy_folder: Path, samples: list[TrainingSample]) -> None:
    """The reference writes out two policy gradient updates; on policy, the ratio is 1 and the gradient −A·∇log π."""
    trainer = start(random_policy_folder)
    backbone, processor = load_backbone(str(random_policy_folder), torch.float32)
    policy = Policy(backbone, banned=vision_token_ids(backbone.config, processor.tokenizer))
    encoder = PromptEncoder(backbone, processor, PLAIN)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    tokens = sum(len(sample.token_ids) for sample in samples)
    for number in (1, 2):
        metrics = trainer.update(samples)
        optimizer.zero_grad()
        entropy = distance = 0.0
        for sample in samples:
            output = policy(collate_rows([(0,)], [sample], encoder))
            (-float(sample.advantages[0]) * output.logprobs_NT.sum() / tokens).backward()
            entropy += output.entropy_NT.sum().item()
            distance += (output.logprobs_NT[0].detach() - torch.tensor(sample.engine)).abs().sum().item()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        assert metrics["loss"] == pytest.approx(-sum(e.advantages.sum() for e in samples) / tokens, rel=1e-5)
        assert metrics["entropy"] == pytest.approx(entropy / tokens, rel=1e-5)
        assert metrics["mismatch_absolute"] == pytest.approx(distance / tokens, rel=1e-4)
        expected = {"clip_fraction": 0, "kl_old": 0, "log_ratio_min": 0, "log_ratio_max": 0, "skipped": 0}
        expected |= {"tokens": tokens, "responses": 12, "learning_rate": 1e-3}
        assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-7)
        assert not {"kl", "kl_ref", "value_loss"} & metrics.keys()
        assert trainer.updates == number
    assert_same(weights_of(trainer), {f"{name}": tensor for name, tensor in policy.state_dict().items()}, atol=2e-4)


def learned(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics without timings, which may differ between equal updates."""
    return {name: value for name, value in metrics.items() if name not in ("seconds", "vision_calls")}


def test_own_log_probabilities_are_those_of_an_extra_pass(
    random_policy_folder: Path, samples: list[TrainingSample]
) -> None:
    limits = ImportanceMask(low=0.9, high=1.1)
    settings = config(loss=LossConfig(importance_cap=2.0, importance_mask=limits, entropy_coefficient=0.01))
    short, long = start(random_policy_folder, settings), start(random_policy_folder, settings)
    found = long.log_probs(samples)
    assert all(each.ref is None and each.values is None for each in found.values())
    with_old = [replace(sample, old=found[position].old) for position, sample in enumerate(samples)]
    ours, theirs = short.update(samples), long.update(with_old)
    assert learned(ours) == pytest.approx(learned(theirs), rel=1e-4, abs=1e-5)
    assert 0 < ours["importance_masked"] < 1
    assert_same(weights_of(short), weights_of(long), atol=1e-4)
    # A second update on the same rollout is off policy.
    again = long.update(with_old)
    assert again["kl_old"] > 1e-5
    assert again["log_ratio_min"] < -1e-3 < 1e-3 < again["log_ratio_max"]


@pytest.mark.parametrize(
    ("form", "aggregation"),
    [
        ({"tokens": 60}, "sequence_mean"),
        ({"tokens": 60}, "prompt_mean"),
        ({"tokens": 100_000}, "sequence_mean"),
        ({"share_prompt": False}, "prompt_mean"),
        ({"order": True}, "sequence_mean"),
    ],
)
def test_the_split_changes_nothing(
    random_policy_folder: Path, samples: list[TrainingSample], form: dict[str, Any], aggregation: str
) -> None:
    """Token budget, shared prompts and the order of responses do not matter, even with masks and several losses."""
    loss = LossConfig(surrogate="cpgd", aggregation=aggregation, kl=KlConfig(coefficient=0.1))
    masks = [np.arange(len(e.token_ids)) != position % 3 for position, e in enumerate(samples)]
    samples = [replace(e, mask=mask) for e, mask in zip(samples, masks, strict=True)]
    results = []
    for settings, order in (({}, False), ({k: v for k, v in form.items() if k != "order"}, form.get("order", False))):
        learns_at_once = CriticConfig(warmup_updates=0, learning_rate=1e-3)
        trainer = start(random_policy_folder, config(loss=loss, critic=learns_at_once, **settings), critic=True)
        found = trainer.log_probs(samples)
        ready = [
            replace(e, old=found[i].old + 0.1, ref=found[i].ref - 0.1, values=found[i].values, returns=e.advantages + 1)
            for i, e in enumerate(samples)
        ]
        if order:
            random.Random(0).shuffle(ready)
        metrics = [trainer.update(ready) for _ in range(2)]
        results.append((metrics, weights_of(trainer)))
    (metrics, weights), (other_metrics, other_weights) = results
    as_told = {"advantage": {"estimator": "gae"}, "trainer": {"loss": {"kl": {"coefficient": 0.1}}}}
    assert metrics[0].keys() <= metric_names(make_config(Path("unused"), **as_told)), "the metrics available to alarms"
    assert metrics[0]["value_loss"] > 0.1
    assert metrics[0]["kl_ref"] == pytest.approx(math.exp(-0.1) - 1 + 0.1, rel=1e-3)
    for one, other in zip(metrics, other_metrics, strict=True):
        assert learned(other) == pytest.approx(learned(one), rel=1e-3, abs=1e-4)
    assert_same(weights, other_weights, atol=5e-4)


def test_the_learning_rate_follows_the_progress_of_the_run(
    random_policy_folder: Path, samples: list[TrainingSample]
) -> None:
    """A cosine to 10 % over at most 100 updates ends near the end of the run, although the run makes only four."""
    optimization = UpdateConfig(precision="fp32", learning_rate=1e-3, warmup=0.02, final_learning_rate=0.1)
    trainer = start(random_policy_folder, TrainerConfig(optimization=optimization))
    rates = [trainer.update(samples, progress)["learning_rate"] for progress in (0.0, 0.51, 0.995)]
    assert rates[0] == pytest.approx(1e-3 / 3)
    assert rates[1] == pytest.approx(1e-3 * (0.1 + 0.9 * 0.5))
    assert rates[2] == pytest.approx(1e-4, rel=0.01)
    by_count = trainer.update(samples)["learning_rate"]
    assert by_count == pytest.approx(1e-3, rel=0.01), "the fourth of 100 updates by default"


def test_non_finite_values_reach_no_weight(random_policy_folder: Path, samples: list[TrainingSample]) -> None:
    trainer = start(random_policy_folder)
    before = weights_of(trainer)
    for name in ("advantages", "engine"):
        bad = replace(samples[3], **{name: np.full(len(samples[3].token_ids), np.nan)})
        with pytest.raises(TrainingError, match=f"problem {bad.problem.id}: {name} of a response is not finite"):
            trainer.update([*samples[:3], bad])
    nothing = [replace(e, mask=np.zeros(len(e.token_ids), dtype=bool)) for e in samples]
    with pytest.raises(TrainingError, match="needs a response token that counts"):
        trainer.update(nothing)
    with pytest.raises(DataError, match="context of 1024"):
        trainer.update([*samples, replace(samples[0], token_ids=(9,) * 1024, advantages=None, engine=None)])
    assert_same(weights_of(trainer), before)
    # Finite numbers that give an infinite loss.
    huge = [replace(e, advantages=np.full(len(e.token_ids), 3e38)) for e in samples]
    assert trainer.update(huge)["skipped"] == 1.0
    assert_same(weights_of(trainer), before)
    with pytest.raises(TrainingError, match="2 consecutive updates"):
        trainer.update(huge)
    assert_same(weights_of(trainer), before)
    assert trainer.update(samples)["skipped"] == 0.0


def test_resumed_equals_uninterrupted(
    random_policy_folder: Path, samples: list[TrainingSample], tmp_path: Path
) -> None:
    settings = config(lora=LoraConfig(rank=2, dropout=0.2))
    trainer = start(random_policy_folder, settings)
    assert trainer.resume(tmp_path / "checkpoints") is None
    trainer.update(samples)
    extra = {"step": 1, "carried": ["p1", "p2"]}
    trainer.save(tmp_path / "checkpoints", extra, keep=2)
    expected = [trainer.update(samples)["loss"] for _ in range(2)]
    resumed = start(random_policy_folder, settings)
    assert resumed.resume(tmp_path / "checkpoints") == extra
    assert resumed.updates == 1
    assert [resumed.update(samples)["loss"] for _ in range(2)] == expected
    assert_same(weights_of(resumed), weights_of(trainer))


def test_resumed_at_another_learning_rate(
    random_policy_folder: Path, samples: list[TrainingSample], tmp_path: Path
) -> None:
    """The error about non-finite updates suggests this change; it keeps the schedule position, also with smaller
    micro-batches.
    """
    schedule = {"precision": "fp32", "warmup": 0.05, "final_learning_rate": 0.1}

    def at(rate: float, **more: Any) -> Trainer:
        optimization = UpdateConfig(learning_rate=rate, **schedule, **more)
        return start(random_policy_folder, TrainerConfig(optimization=optimization, gradient_checkpointing=bool(more)))

    trainer = at(1e-3)
    for _ in range(2):
        trainer.update(samples)
    trainer.save(tmp_path / "checkpoints", {"step": 1}, keep=2)
    resumed = at(2e-4, micro_batch_tokens=60)
    resumed.resume(tmp_path / "checkpoints")
    expected = [trainer.update(samples)["learning_rate"] for _ in range(6)]
    found = [resumed.update(samples)["learning_rate"] for _ in range(6)]
    assert found == pytest.approx([rate / 5 for rate in expected])
    assert expected[0] < expected[3] > expected[-1], "the rate rises and falls"


def test_a_step_without_updates_has_its_own_checkpoint(
    random_policy_folder: Path, samples: list[TrainingSample], tmp_path: Path
) -> None:
    trainer = start(random_policy_folder)
    trainer.update(samples)
    for step in (1, 2):
        trainer.save(tmp_path, {"step": step}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]
    again = start(random_policy_folder)
    assert again.resume(tmp_path) == {"step": 2}
    assert again.updates == 1


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_saved_and_published_weights(
    random_policy_folder: Path, samples: list[TrainingSample], tmp_path: Path, lora: LoraConfig | None
) -> None:
    """Both are plain models that reproduce the trainer's log-probabilities."""
    trainer = start(random_policy_folder, config(lora=lora, loss=LossConfig(kl=KlConfig(coefficient=0.1))))
    original = load_file(random_policy_folder / "model.safetensors")
    first = trainer.log_probs(samples)
    np.testing.assert_allclose(first[5].ref, first[5].old, atol=1e-5)
    ready = [replace(e, ref=first[i].ref) for i, e in enumerate(samples)]
    for _ in range(2):
        trainer.update(ready)
    after = trainer.log_probs(samples)
    assert np.abs(after[5].old - first[5].old).max() > 1e-3
    np.testing.assert_allclose(after[5].ref, first[5].ref, atol=1e-5)
    assert trainer.log_probs(samples, reference_only=True)[5].old is None
    trainer.save_model(tmp_path / "model")
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert saved.keys() == original.keys()
    loaded = start(tmp_path / "model").log_probs(samples)
    np.testing.assert_allclose(loaded[5].old, after[5].old, atol=1e-4)
    probe = probe_token_ids(trainer.processor.tokenizer)
    trainer.open_transfer(lambda rank: FileTransfer(tmp_path / "shared", is_main=rank == 0))
    published = trainer.publish(2, probe, torch.float32)
    assert len(published.probe) == len(probe) - 1
    model = AutoModelForImageTextToText.from_pretrained(random_policy_folder)
    sent = {k: v for file in Path(published.folder).glob("*.safetensors") for k, v in load_file(file).items()}
    model.load_state_dict(sent, strict=True)
    assert_same(
        dict(model.named_parameters()),
        dict(AutoModelForImageTextToText.from_pretrained(tmp_path / "model").named_parameters()),
        atol=1e-6,
    )
    trainer.close()


def test_bf16(random_policy_folder: Path, samples: list[TrainingSample]) -> None:
    exact = start(random_policy_folder).update(samples)
    optimization = UpdateConfig(precision="bf16", zero_stage=1, learning_rate=1e-3)
    rounded = start(random_policy_folder, TrainerConfig(optimization=optimization)).update(samples)
    assert rounded["loss"] == pytest.approx(exact["loss"], rel=0.02)
    assert rounded["entropy"] == pytest.approx(exact["entropy"], rel=0.02)
    assert rounded["skipped"] == 0


def test_a_checkpoint_of_version_0_1_is_resumed(random_policy_folder: Path, tmp_path: Path) -> None:
    """Version 0.1 stored the keys of supervised training at their defaults."""
    older = start(random_policy_folder)
    older._resume_key["optimization"] |= {"epochs": 1, "log_every": 10}
    older.save(tmp_path, {"step": 3}, keep=1)
    older.close()
    newer = start(random_policy_folder)
    assert newer.resume(tmp_path) == {"step": 3}
    newer.close()


def test_features_of_a_frozen_tower_are_computed_once(
    random_policy_folder: Path, samples: list[TrainingSample]
) -> None:
    """The log-probabilities of policy and reference run the tower; two updates do not."""
    loss = LossConfig(kl=KlConfig(coefficient=0.1))
    found = {}
    for enabled in (False, True):
        trainer = start(random_policy_folder, config(loss=loss, frozen=("vision", "projector")))
        assert trainer._policy.image_features.enabled
        trainer._policy.image_features.enabled = enabled
        own = trainer.log_probs(samples)
        ready = [replace(each, old=own[n].old, ref=own[n].ref) for n, each in enumerate(samples)]
        found[enabled] = own, [trainer.update(ready) for _ in range(2)]
    (own, updates), (plain, plain_updates) = found[True], found[False]
    for n, each in plain.items():
        assert own[n].old.tolist() == each.old.tolist()
        assert own[n].ref.tolist() == each.ref.tolist()
    assert [each["loss"] for each in updates] == [each["loss"] for each in plain_updates]
    assert [each["gradient_norm"] for each in updates] == [each["gradient_norm"] for each in plain_updates]
    passes = plain_updates[1]["vision_calls"]
    assert [each["vision_calls"] for each in plain_updates] == [3 * passes, passes]
    assert [each["vision_calls"] for each in updates] == [passes, 0]
