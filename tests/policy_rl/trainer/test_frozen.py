"""Test the teacher of a distillation: its log-probabilities, and which models are accepted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mmprm.errors import ConfigError, MmprmError
from mmprm.prompts import PromptConfig
from mmprm.tiny.world import make_problems
from policy_rl.algorithms.distillation import DistillationConfig
from policy_rl.trainer.config import TrainerConfig, UpdateConfig
from policy_rl.trainer.frozen import check_teacher
from policy_rl.trainer.trainer import Trainer
from policy_rl.types import TrainingSample

PLAIN = PromptConfig(preset="plain")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def start(model: Path, teacher: Path | None = None) -> Trainer:
    optimization = UpdateConfig(precision="fp32", micro_batch_tokens=400)
    distillation = None if teacher is None else DistillationConfig(teacher=str(teacher))
    return Trainer(str(model), TrainerConfig(optimization=optimization, distillation=distillation), PLAIN, 0.9, 10)


def test_the_teacher_scores_the_responses_as_a_policy_would(random_policy_folder: Path, policy_folder: Path) -> None:
    """The teacher has different weights, also in the vision tower, and an update of the policy does not change them."""
    trainer, expert = start(random_policy_folder, policy_folder), start(policy_folder)
    problem = next(iter(make_problems(1, seed=0, split="train"))).problem
    tokens = len(trainer._encoder._encode(problem).ids_P)
    samples = [TrainingSample(problem, 0, tokens, ids) for ids in ((11, 12, 13), (14, 15))]
    before = trainer.log_probs(samples)
    expected = expert.log_probs(samples)
    ready = [
        TrainingSample(problem, 0, tokens, each.token_ids, advantages=np.ones(len(each.token_ids))) for each in samples
    ]
    trainer.update(ready)
    after = trainer.log_probs(samples)
    for position in range(2):
        np.testing.assert_allclose(before[position].teacher, expected[position].old, atol=1e-4)
        np.testing.assert_array_equal(before[position].teacher, after[position].teacher)
        assert np.abs(before[position].teacher - before[position].old).max() > 0.1
        assert before[position].ref is None


def test_a_model_with_the_same_tokens_can_be_the_teacher(random_policy_folder: Path, policy_folder: Path) -> None:
    check_teacher(str(random_policy_folder), str(policy_folder))


def test_another_tokenizer_is_refused(random_policy_folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(random_policy_folder, tmp_path / "other"))
    file = other / "tokenizer.json"
    content = json.loads(file.read_text())
    words = content["model"]["vocab"]
    first, second = sorted(words)[:2]
    words[first], words[second] = words[second], words[first]
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"trainer\.distillation\.teacher=.*other has another tokenizer than"):
        check_teacher(str(random_policy_folder), str(other))


def test_another_architecture_is_refused(random_policy_folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(random_policy_folder, tmp_path / "other"))
    (other / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(ConfigError, match=r"other is a qwen2 model, but engine.model=.* is a qwen2_5_vl model"):
        check_teacher(str(random_policy_folder), str(other))


def test_a_missing_teacher_is_reported(random_policy_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MmprmError, match="does not exist"):
        check_teacher(str(random_policy_folder), str(tmp_path / "missing"))
