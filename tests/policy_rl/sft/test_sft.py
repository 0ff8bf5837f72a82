"""Test SFT: its loss against plain cross-entropy, packed and padded, and a run that learns, stops and resumes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from mmprm.backbone.load import load_backbone
from mmprm.backbone.masks import why_not_packed
from mmprm.config import build
from mmprm.errors import CheckpointError, ConfigError, DataError
from mmprm.problems import write_problems
from mmprm.prompts import PromptConfig
from mmprm.tiny.model import weights_path
from mmprm.tiny.world import make_problems, solve
from mmprm.training.ranks import Ranks
from policy_rl.sft import batch as sft_batch
from policy_rl.sft import train as sft
from policy_rl.sft.batch import ConversationEncoder
from policy_rl.sft.conversations import Conversation
from policy_rl.sft.train import ConversationRows, SftConfig, SftTask, train_sft
from policy_rl.trainer.policy import Policy
from tests.backbones import BACKBONES, WITH_IMAGE, tiny_solutions, write_backbone

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=list(BACKBONES))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Any]:
    folder = write_backbone(request.param, tmp_path_factory.mktemp(request.param) / "model")
    return request.param, *load_backbone(str(folder), torch.float32)


def conversations(name: str) -> list[Conversation]:
    """Return conversations, some with images and one with two turns to learn."""
    found = []
    for number, solution in enumerate(tiny_solutions(name, 5)):
        images = solution.problem.images if number % 2 == 0 else ()
        asked = [*[{"type": "image"}] * len(images), {"type": "text", "text": solution.problem.question}]
        turns = [
            {"role": "user", "content": asked if images else solution.problem.question},
            {"role": "assistant", "content": "".join(solution.steps)},
        ]
        if number == 2:
            turns += [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes"}]
        found.append(Conversation(str(number), tuple(turns), images))
    return found


def gradients(policy: Policy, batches: list[Any]) -> tuple[float, dict[str, torch.Tensor]]:
    policy.zero_grad()
    total = 0.0
    for batch in batches:
        loss = -policy(batch).logprobs_NT.sum()
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def test_padding_to_the_grid_of_a_gpu_changes_neither_loss_nor_gradients(
    loaded: tuple[str, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, backbone, processor = loaded
    encoder, policy = ConversationEncoder(backbone, processor), Policy(backbone)
    samples = conversations(name)
    rows = ConversationRows(samples, [encoder.size(sample) for sample in samples], encoder, 400)
    loss, expected = gradients(policy, [rows.collate(range(len(rows.lengths)), False)])
    monkeypatch.setattr(sft_batch, "on_grid", lambda width: -(-width // 512) * 512)
    padded = rows.collate(range(len(rows.lengths)), False)
    assert padded.input_ids_BL.shape[1] == 512
    again, found = gradients(policy, [padded])
    assert again == pytest.approx(loss, rel=1e-5)
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-3, atol=2e-5)


def test_the_loss_is_cross_entropy_on_the_learned_tokens(loaded: tuple[str, Any, Any]) -> None:
    """Losses and gradients of padded and packed batches equal those of single conversations with the model's full
    logits.
    """
    name, backbone, processor = loaded
    encoder, policy = ConversationEncoder(backbone, processor), Policy(backbone)
    samples = conversations(name)
    expected = 0.0
    for sample in samples:
        encoded = encoder(sample)
        ids_1T = encoded.ids_T[None]
        more = dict(encoded.images)
        if more and encoder.axes > 1:
            more["mm_token_type_ids"] = (ids_1T == backbone.config.image_token_id).int()
        with torch.no_grad():
            logits_TV = backbone(input_ids=ids_1T, **more).logits[0].float()
        target_T = torch.where(encoded.learned_T, encoded.ids_T, -100)
        expected += cross_entropy(logits_TV[:-1], target_T[1:], reduction="sum").item()
    sizes = [encoder.size(sample) for sample in samples]
    alone, packed = ConversationRows(samples, sizes, encoder, None), ConversationRows(samples, sizes, encoder, 400)
    assert len(packed.lengths) < len(alone.lengths) == 5
    assert sum(packed.terms) == sum(alone.terms) == sum(size.learned for size in sizes)
    one_by_one, left = gradients(policy, [alone.collate([row], False) for row in range(5)])
    padded, middle = gradients(policy, [alone.collate(range(5), False)])
    assert one_by_one == pytest.approx(expected, rel=1e-5)
    assert padded == pytest.approx(expected, rel=1e-5)
    assert why_not_packed(backbone) is None
    together, right = gradients(policy, [packed.collate(range(len(packed.lengths)), False)])
    assert together == pytest.approx(expected, rel=1e-5)
    assert left.keys() == middle.keys() == right.keys()
    for key, gradient in left.items():
        torch.testing.assert_close(middle[key], gradient, rtol=1e-3, atol=2e-5)
        torch.testing.assert_close(right[key], gradient, rtol=1e-3, atol=2e-5)
    if name in WITH_IMAGE:
        assert any("vis" in key for key in left), "the vision tower learns, too"


def test_a_placeholder_image_has_weight_zero(loaded: tuple[str, Any, Any]) -> None:
    name, backbone, processor = loaded
    if name not in WITH_IMAGE:
        return
    encoder, policy = ConversationEncoder(backbone, processor), Policy(backbone)
    samples = [sample for sample in conversations(name) if not sample.images]
    rows = ConversationRows(samples, [encoder.size(sample) for sample in samples], encoder, None)
    batch = rows.collate([0, 1], True)
    assert batch.images, "the vision tower runs"
    assert not batch.shows_images
    without, _ = gradients(policy, [rows.collate([0, 1], False)])
    loss, found = gradients(policy, [batch])
    assert loss == pytest.approx(without, rel=1e-6)
    assert all(not gradient.any() for key, gradient in found.items() if "visual" in key or "vision_tower" in key)


def config(folder: Path, base: Path, output: str, **training: Any) -> SftConfig:
    values = {
        "model": str(base),
        "data": {"path": str(folder / "train.jsonl")},
        "held_out": {"path": str(folder / "test.jsonl")},
        "output": str(folder / output),
        "prompt": {"preset": "plain"},
        "max_length": 150,
        "training": {
            "epochs": 2,
            "batch_size": 8,
            "micro_batch_tokens": 400,
            "learning_rate": 3e-3,
            "precision": "fp32",
            **training,
        },
    }
    return build(SftConfig, values)


@pytest.fixture(scope="module")
def solutions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 24 solved problems and 8 held-out ones; the first one's solution exceeds max_length."""
    folder = tmp_path_factory.mktemp("solutions")
    for name, count, split in (("train", 24, "train"), ("test", 8, "test")):
        tiny = make_problems(count, seed=0, split=split)
        answers = {each.problem.id: {"solution": "".join(solve(each))} for each in tiny}
        if name == "train":
            answers[tiny[0].problem.id]["solution"] += "<step>1</step>" * 60
        write_problems(folder / f"{name}.jsonl", [each.problem for each in tiny], answers)
    return folder


def losses(folder: Path, kind: str) -> list[float]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if row["kind"] == kind]


def test_a_run_learns_and_an_interrupted_one_takes_the_same_steps(solutions: Path, random_policy_folder: Path) -> None:
    summary = train_sft(config(solutions, random_policy_folder, "whole", eval_every=1))
    found = losses(solutions / "whole", "eval")
    assert len(found) == summary.steps == 6
    assert found[-1] < 0.8 * found[0]
    assert summary.evaluation["loss"] == found[-1]
    assert (summary.samples, summary.too_long) == (23, 1)
    backbone, processor = load_backbone(str(summary.policy), torch.float32)
    assert processor.tokenizer.convert_tokens_to_ids("<|im_end|>") in backbone.generation_config.eos_token_id
    # The saved model has the loss that was measured.
    encoder = ConversationEncoder(backbone, processor)
    held_out = sft._samples(config(solutions, summary.policy, "-").held_out, config(solutions, "x", "-"), encoder)
    rows = ConversationRows(held_out[0], held_out[1], encoder, None)
    with torch.no_grad():
        loss = -Policy(backbone)(rows.collate(range(8), False)).logprobs_NT.sum().item()
    assert loss / sum(rows.terms) == pytest.approx(found[-1], rel=1e-4)

    class StoppedError(Exception):
        pass

    class Stopping(SftTask):
        calls = 0

        def evaluate(self, engine: Any) -> dict[str, float]:
            Stopping.calls += 1
            if Stopping.calls == 4:
                raise StoppedError
            return super().evaluate(engine)

    settings = config(solutions, random_policy_folder, "resumed", eval_every=1, save_every=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft, "SftTask", Stopping)
        with pytest.raises(StoppedError):
            train_sft(settings)
    train_sft(settings)
    assert losses(solutions / "resumed", "train") == pytest.approx(losses(solutions / "whole", "train"), rel=1e-5)


def test_nothing_short_enough(solutions: Path, random_policy_folder: Path) -> None:
    settings = config(solutions, random_policy_folder, "none").model_copy(update={"max_length": 10})
    with pytest.raises(DataError, match="all 24 conversations exceed max_length=10"):
        train_sft(settings)
    long = solutions / "long.jsonl"
    long.write_text(json.dumps({"question": "How many? " * 99, "answer": "4", "solution": "<answer>4</answer>"}))
    settings = config(solutions, random_policy_folder, "none")
    settings = settings.model_copy(update={"held_out": settings.data.model_copy(update={"path": str(long)})})
    with pytest.raises(DataError, match=r"long.jsonl: all 1 conversations exceed"):
        train_sft(settings)


def test_each_conversation_weighs_the_same_in_a_sequence_mean() -> None:
    """Log-probabilities −1, −3 and −2 alone have token mean 6/3 = 2 and sequence mean (2 + 2)/2 = 2.

    With −5 instead of −2, they are 9/3 = 3 and (2 + 5)/2 = 3.5. Padding does not count.
    """
    response_NT = torch.tensor([[True, True], [True, False]])
    for last, by_token, by_sequence in ((-2.0, 2.0, 2.0), (-5.0, 3.0, 3.5)):
        logprobs_NT = torch.tensor([[-1.0, -3.0], [last, 0.0]])
        assert sft.token_loss(logprobs_NT, response_NT) / 3 == pytest.approx(by_token)
        assert sft.sequence_loss(logprobs_NT, response_NT) / 2 == pytest.approx(by_sequence)


def test_a_sequence_mean_is_that_of_conversations_alone(loaded: tuple[str, Any, Any]) -> None:
    """Loss and gradients of packed rows equal those of single conversations, one per device."""
    name, backbone, processor = loaded
    encoder, policy = ConversationEncoder(backbone, processor), Policy(backbone)
    samples = conversations(name)
    sizes = [encoder.size(sample) for sample in samples]
    found = []
    for width in (None, 400):
        rows = ConversationRows(samples, sizes, encoder, width)
        task = SftTask(rows, rows, 400, False, ALONE, "sequence_mean")
        assert sum(task.terms) == len(samples)
        policy.zero_grad()
        loss = sum(task.loss_sum(policy, task.collate([row])) for row in range(len(rows.lengths))) / sum(task.terms)
        loss.backward()
        head = next(p for p in policy.parameters() if p.grad is not None and p.grad.any())
        found.append((loss.item(), head.grad.clone()))
    alone = ConversationRows(samples, sizes, encoder, None)
    means = [-policy(alone.collate([row], False)).logprobs_NT.mean().item() for row in range(len(samples))]
    assert [loss for loss, _ in found] == pytest.approx([sum(means) / len(means)] * 2, rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=2e-5)


def test_pixel_limits_in_order() -> None:
    values = {"model": "tiny", "data": {"path": "x.jsonl"}, "output": "o", "min_pixels": 3136, "max_pixels": 784}
    with pytest.raises(ConfigError, match="min_pixels=3136 must not exceed max_pixels=784"):
        build(SftConfig, values)


OPENS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<step>{% endif %}"
)


@pytest.mark.parametrize(
    ("prompt", "solution", "given", "learned"),
    [
        ({"chat_template": OPENS}, "<step>a</step>", "<step>", "a</step><|im_end|>"),
        ({"chat_template": OPENS}, "a</step>", "<step>", "a</step><|im_end|>"),
        ({"template": "raw"}, "a</step>", "q", "a</step><|im_end|>"),
        ({"template": "raw", "prefill": "A: "}, "a", "qA: ", "a<|im_end|>"),
    ],
)
def test_the_prefilled_part_of_a_turn_is_not_learned(
    prompt: dict[str, Any], solution: str, given: str, learned: str
) -> None:
    config = PromptConfig(preset="plain", **prompt)
    backbone, processor = load_backbone(str(weights_path()), torch.float32)
    if config.template == "raw":
        processor.tokenizer.eos_token = "<|im_end|>"
    encoder = ConversationEncoder(backbone, processor, prompt=config)
    turns = ({"role": "user", "content": "q"}, {"role": "assistant", "content": (config.prefill or "") + solution})
    first, second = encoder.pieces(Conversation("f:1", turns, (), config.prefill or ""))
    assert (first.text.endswith(given), second.text) == (True, learned)
    assert (first.learned, second.learned) == (False, True)


def test_a_template_that_leaves_the_question_out_is_refused() -> None:
    backbone, processor = load_backbone(str(weights_path()), torch.float32)
    prompt = PromptConfig(chat_template=OPENS.replace("{{ m.content }}", "{{ m.content if m.role != 'user' }}"))
    turns = ({"role": "user", "content": "Why so?"}, {"role": "assistant", "content": "x"})
    with pytest.raises(CheckpointError, match=r"f:1: the chat template omits 'Why so\?' from the prompt"):
        ConversationEncoder(backbone, processor, prompt=prompt).pieces(Conversation("f:1", turns))
