"""Test the PRM that reads logits at the markers: equal to full logits, created from any base, saved, and rejected
folders.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

from mmprm.config import load
from mmprm.errors import CheckpointError, ConfigError, DataError
from mmprm.labels.parquet import LabeledExample
from mmprm.prm.data import TargetConfig, make_samples
from mmprm.prm.formats import MmPrmFormat
from mmprm.prm.info import PrmTokens, read_info, write_info
from mmprm.prm.model import Prm, initialize_prm, load_prm, save_prm
from mmprm.prm.packing import Marks
from mmprm.prm.train import TrainConfig, prepare_model
from mmprm.tiny.tokenizer import build_tokenizer
from mmprm.tiny.world import make_problems, solve
from mmprm.types import Counts, LabeledPath, Problem, Solution


@pytest.fixture(scope="module")
def prm(random_policy_folder: Path) -> Prm:
    return initialize_prm(str(random_policy_folder), PrmTokens())


@pytest.fixture(scope="module")
def solutions() -> list[Solution]:
    return [Solution(tiny.problem, solve(tiny)) for tiny in make_problems(4, seed=0, split="train")]


@pytest.fixture(scope="module")
def text_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a Llama with tied embeddings and exactly as many rows as tokens."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = build_tokenizer()
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=1, tie_word_embeddings=True, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def test_judgment_logits_equal_the_full_logits(prm: Prm, solutions: list[Solution]) -> None:
    inputs = prm.renderer.encode(solutions)
    logits_BTV = prm.model.backbone(**inputs).logits
    at_marker_BT = inputs["input_ids"] == prm.renderer.marker_id
    expected_M2 = logits_BTV[at_marker_BT][:, [prm.renderer.yes_id, prm.renderer.no_id]]
    assert expected_M2.std() > 0.01
    torch.testing.assert_close(prm.model(**inputs), expected_M2, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_other_rows_and_padding_change_nothing(prm: Prm, solutions: list[Solution]) -> None:
    together_M2 = prm.model(**prm.renderer.encode(solutions))
    alone_M2 = torch.cat([prm.model(**prm.renderer.encode([solution])) for solution in solutions])
    torch.testing.assert_close(together_M2, alone_M2, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_step_is_judged_only_by_its_prefix(prm: Prm, solutions: list[Solution]) -> None:
    problem, steps = solutions[0].problem, solutions[0].steps
    first_M2 = prm.model(**prm.renderer.encode([Solution(problem, steps[:2])]))
    other_end_M2 = prm.model(**prm.renderer.encode([Solution(problem, (*steps[:2], "red=1"))]))
    torch.testing.assert_close(first_M2, other_end_M2[:2], rtol=1e-4, atol=1e-5)


def test_new_tokens_start_as_the_mean(text_base: Path) -> None:
    tokens = PrmTokens(yes="Right", no="Wrong")
    with pytest.raises(CheckpointError, match="add_missing_tokens=true"):
        initialize_prm(str(text_base), tokens)
    old_VH = LlamaForCausalLM.from_pretrained(text_base).get_input_embeddings().weight
    prm = initialize_prm(str(text_base), tokens, add_missing_tokens=True)
    new_VH = prm.model.backbone.get_input_embeddings().weight
    assert new_VH.shape[0] == old_VH.shape[0] + 3
    assert {prm.renderer.marker_id, prm.renderer.yes_id, prm.renderer.no_id} == set(range(len(old_VH), len(new_VH)))
    torch.testing.assert_close(new_VH[: len(old_VH)], old_VH)
    torch.testing.assert_close(new_VH[len(old_VH) :], old_VH.mean(dim=0).expand(3, -1))
    assert prm.model.backbone.get_output_embeddings().weight is new_VH


def test_spare_rows_are_used_before_new_ones(prm: Prm, random_policy_folder: Path) -> None:
    old = AutoModelForImageTextToText.from_pretrained(random_policy_folder)
    for table in ("get_input_embeddings", "get_output_embeddings"):
        old_VH, new_VH = getattr(old, table)().weight, getattr(prm.model.backbone, table)().weight
        assert new_VH.shape == old_VH.shape
        torch.testing.assert_close(new_VH[prm.renderer.marker_id], old_VH[: prm.renderer.marker_id].mean(dim=0))


@torch.no_grad()
def test_saved_and_loaded(prm: Prm, solutions: list[Solution], tmp_path: Path) -> None:
    folder = tmp_path / "prm"
    save_prm(folder, prm)
    save_prm(folder, prm)
    assert [path.name for path in tmp_path.iterdir()] == ["prm"]
    loaded = load_prm(folder)
    assert loaded.info == prm.info
    assert not loaded.model.training
    inputs = loaded.renderer.encode(solutions)
    torch.testing.assert_close(loaded.model(**inputs), prm.model(**prm.renderer.encode(solutions)))
    AutoModelForImageTextToText.from_pretrained(folder)
    write_info(folder, prm.info.model_copy(update={"aggregator": "min", "threshold": 0.4}))
    assert (read_info(folder).aggregator, read_info(folder).threshold) == ("min", 0.4)


@torch.no_grad()
def test_text_only_base(text_base: Path, tmp_path: Path) -> None:
    save_prm(tmp_path / "prm", initialize_prm(str(text_base), PrmTokens()))
    prm = load_prm(tmp_path / "prm")
    inputs = prm.renderer.encode([Solution(Problem("p", "2 + 3 = ?", "5"), ("2+3=5", "<answer>5</answer>"))])
    expected_M2 = prm.model.backbone(**inputs).logits[inputs["input_ids"] == prm.renderer.marker_id]
    torch.testing.assert_close(prm.model(**inputs), expected_M2[:, [prm.renderer.yes_id, prm.renderer.no_id]])


def test_folders_that_are_refused(random_policy_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no prm.json, so it is not a process reward model"):
        load_prm(random_policy_folder)
    for name, text, message in (
        ("other", json.dumps({"format": "math-shepherd"}), "has format 'math-shepherd', which only supports scoring"),
        ("none", json.dumps({"tokens": {}}), "an object with the key format"),
        ("unknown", json.dumps({"format": "gpt"}), "format='gpt'"),
        ("newer", json.dumps({"format": "mm-prm", "color": 1}), "color does not exist"),
        ("cut", '{"format": ', "was not written by mmprm"),
    ):
        folder = tmp_path / name
        shutil.copytree(random_policy_folder, folder)
        (folder / "prm.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            load_prm(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no config.json, so it is not a model folder"):
        initialize_prm(str(tmp_path / "empty"), PrmTokens())


def test_pickled_weights_are_refused(random_policy_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(random_policy_folder, folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="safetensors"):
        initialize_prm(str(folder), PrmTokens())


def config_of(folder: Path, *sets: str) -> TrainConfig:
    return load(TrainConfig, None, [f"model={folder}", "labels=x", "output=y", *sets])


def test_truncated_weights_are_rejected(text_base: Path, tmp_path: Path) -> None:
    shutil.copytree(text_base, tmp_path / "base")
    with (tmp_path / "base/model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(CheckpointError, match="cannot be loaded as a model"):
        initialize_prm(str(tmp_path / "base"), PrmTokens())


def test_frozen_parameters(random_policy_folder: Path) -> None:
    model = initialize_prm(str(random_policy_folder), PrmTokens()).model
    prepare_model(model, config_of(random_policy_folder, r"frozen=['^model\.visual\.(?!merger)']"))
    still = {name for name, parameter in model.backbone.named_parameters() if not parameter.requires_grad}
    assert "model.visual.blocks.0.attn.qkv.weight" in still
    assert not any("merger" in name or "language_model" in name for name in still)
    with pytest.raises(ConfigError, match=r"'vison' matches no parameter; .* begin with .*model.visual"):
        prepare_model(model, config_of(random_policy_folder, "frozen=[vison]"))
    with pytest.raises(ConfigError, match="leaves no trainable parameter"):
        prepare_model(model, config_of(random_policy_folder, "frozen=['.']"))


def test_targets(prm: Prm, solutions: list[Solution]) -> None:
    """Targets stay floats (15/16 is neither 0 nor 1), unlabeled steps are NaN, and paths without labels give no
    samples.
    """
    problem, steps = solutions[0].problem, solutions[0].steps[:3]
    labeled = LabeledPath(problem.id, steps, (Counts(15, 1), None, Counts(0, 3, 9)), False)
    unlabeled = LabeledPath(problem.id, steps, (None, None, Counts(0, 0, 4)), False)
    examples = [LabeledExample(problem, path, "train") for path in (labeled, unlabeled)]
    (soft,) = make_samples(examples, prm.renderer, TargetConfig())
    assert (soft.targets[0], soft.targets[2], soft.label_count) == (0.9375, 0.0, 2)
    assert soft.targets[1] != soft.targets[1]
    for error_value, target in ((0.0, 1.0), (0.95, 0.0)):
        (hard,) = make_samples(examples, prm.renderer, TargetConfig(kind="hard", error_value=error_value))
        assert hard.targets[0] == target
    marked = LabeledExample(problem, LabeledPath(problem.id, ("a<prm>",), (Counts(1, 1),), False), "train")
    with pytest.raises(DataError, match="step 1 contains '<prm>'"):
        make_samples([marked], prm.renderer, TargetConfig())


def test_masked_after_the_first_error(prm: Prm, solutions: list[Solution]) -> None:
    """In a b c, b is incorrect. Its label is stored on the first path, but also masks later steps of the second
    path.
    """
    problem = solutions[0].problem
    first = LabeledPath(problem.id, ("a", "b", "c"), (Counts(3, 1), Counts(1, 9), Counts(0, 4)), False)
    second = LabeledPath(problem.id, ("a", "b", "d"), (None, None, Counts(0, 4)), False)
    other = LabeledPath("other", ("a", "b", "d"), (None, None, Counts(0, 4)), False)
    examples = [LabeledExample(problem, path, "train") for path in (first, second, other)]
    kept = make_samples(examples, prm.renderer, TargetConfig(error_value=0.1))
    assert [sample.label_count for sample in kept] == [3, 1, 1]
    masked = make_samples(examples, prm.renderer, TargetConfig(error_value=0.1, after_error="mask"))
    assert [sample.targets[:2] for sample in masked[:1]] == [(0.75, 0.1)]
    assert [sample.label_count for sample in masked] == [2, 1]
    strict = make_samples(examples, prm.renderer, TargetConfig(error_value=0.0, after_error="mask"))
    assert [sample.label_count for sample in strict] == [3, 1, 1]


def test_correct_solutions_may_label_all_their_steps(prm: Prm, solutions: list[Solution]) -> None:
    """A correct solution labels its unlabeled steps as correct, unless a prefix is known to be incorrect."""
    problem, last = solutions[0].problem, "<answer>1</answer>"
    correct = LabeledPath(problem.id, ("a", "b", last), (Counts(3, 1), None, Counts(correct=1)), True)
    lucky = LabeledPath(problem.id, ("x", "y", last), (Counts(0, 4), None, Counts(correct=1)), True)
    failed = LabeledPath(problem.id, ("a", "z", last), (None, None, Counts(incorrect=1)), True)
    examples = [LabeledExample(problem, path, "train") for path in (correct, lucky, failed)]
    samples = make_samples(examples, prm.renderer, TargetConfig(correct_solutions="all_steps"))
    assert samples[0].targets == (0.75, 1.0, 1.0)
    assert [sample.label_count for sample in samples] == [3, 2, 1]
    assert [s.label_count for s in make_samples(examples, prm.renderer, TargetConfig())] == [2, 2, 1]


def test_token_count_equals_the_encoded_length(prm: Prm, solutions: list[Solution]) -> None:
    marks = Marks(MmPrmFormat(prm.processor, prm.info.tokens))
    lengths = prm.renderer.encode(solutions)["attention_mask"].sum(dim=1).tolist()
    assert [len(marks(solution)[0]) for solution in solutions] == lengths
