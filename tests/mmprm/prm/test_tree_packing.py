"""Test packed rows against one path per row: equal loss, gradients and scores on every kind of backbone."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from mmprm.backbone.masks import PACKED, use_block_masks, why_not_packed
from mmprm.labels.parquet import LabeledExample
from mmprm.prm import packing
from mmprm.prm.data import PrmSample, make_samples
from mmprm.prm.formats import Format, MmPrmFormat
from mmprm.prm.info import PrmTokens
from mmprm.prm.mm_prm_format import Renderer
from mmprm.prm.model import Prm, initialize_prm
from mmprm.prm.packing import Marks, pack_solutions
from mmprm.prm.targets import NO_TARGET, TargetConfig
from mmprm.prm.task import PackedRows, PathRows, PrmTask, TrainingRows, make_rows
from mmprm.problems import open_image
from mmprm.training.batches import micro_batches
from mmprm.types import Counts, LabeledPath, Problem, Solution
from tests.backbones import BACKBONES, RECENT, WITH_IMAGE, tiny_solutions, write_backbone

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=BACKBONES)
def prm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prm:
    folder = write_backbone(request.param, tmp_path_factory.mktemp(request.param) / "base")
    made = initialize_prm(str(folder), PrmTokens())
    made.model.train()
    return made


def form_of(prm: Prm) -> Format:
    return MmPrmFormat(prm.processor, prm.info.tokens)


def tree_samples(prm: Prm, labels: str, problems: int = 3, seed: int = 0) -> list[PrmSample]:
    """Return paths that branch off a solution at each step, some inside a word.

    labels: "once" labels each distinct prefix on the first path that has it; "everywhere" on all paths.
    """
    rng, marks = random.Random(seed), Marks(form_of(prm))
    name = "qwen2_5_vl" if prm.renderer.image else "llama"
    samples = []
    for solution in tiny_solutions(name, problems, seed):
        problem, steps = solution.problem, solution.steps
        paths = [steps, *((*steps[:depth], f"{steps[depth][:-1]}7", "12-3=9") for depth in range(len(steps)))]
        target = {path[:depth]: rng.random() for path in paths for depth in range(1, len(path) + 1)}
        for path in dict.fromkeys(paths):
            prefixes = [path[:depth] for depth in range(1, len(path) + 1)]
            kept = [target.pop(prefix, NO_TARGET) if labels == "once" else target[prefix] for prefix in prefixes]
            weights = tuple(rng.uniform(0.5, 2) for _ in path)
            if any(value == value for value in kept):
                made = Solution(problem, path)
                samples.append(PrmSample(made, tuple(kept), weights, *marks(made)))
    return samples


def loss_and_gradient(prm: Prm, rows: TrainingRows, budget: int) -> tuple[float, Tensor]:
    """Return loss and gradient over all rows, in micro-batches of `budget` tokens."""
    task = PrmTask(rows, rows, budget, CPU)
    prm.model.zero_grad()
    total = 0.0
    for (micro,) in micro_batches(range(len(rows.lengths)), rows.lengths, budget, ranks=1):
        loss = task.loss_sum(prm.model, task.collate(micro.samples))
        loss.backward()
        total += loss.item()
    gradients = [p.grad.flatten() for p in prm.model.parameters() if p.grad is not None]
    return total, torch.cat(gradients)


def packed(prm: Prm, samples: list[PrmSample], max_tokens: int, width: int | None, shared: bool = True) -> PackedRows:
    use_block_masks(prm.model.backbone)
    return PackedRows(samples, form_of(prm), prm.model.backbone.model, max_tokens, width, shared)


def assert_equal_training(prm: Prm, samples: list[PrmSample], rows: PackedRows, budget: int) -> None:
    loss, gradient = loss_and_gradient(prm, PathRows(samples, form_of(prm)), budget=1)
    packed_loss, packed_gradient = loss_and_gradient(prm, rows, budget)
    assert sum(rows.terms) == sum(sample.label_count for sample in samples)
    assert packed_loss == pytest.approx(loss, rel=1e-5)
    assert gradient.norm() > 0.1
    assert (packed_gradient - gradient).norm() <= 1e-4 * gradient.norm()


def test_trees_equal_separate_paths(prm: Prm) -> None:
    """If each path carries the label of a node, the node's weight is the number of its paths."""
    samples = tree_samples(prm, "everywhere")
    rows = packed(prm, samples, max_tokens=10_000, width=None)
    assert sum(rows.lengths) < 0.5 * sum(sample.length for sample in samples)
    assert_equal_training(prm, samples, rows, budget=10_000)


def test_trees_with_each_label_once(prm: Prm) -> None:
    """Rows hold several small trees and padding; targets are on the first path that has a prefix."""
    samples = tree_samples(prm, "once", problems=5)
    longest = max(packed(prm, samples, 10_000, 1).lengths)
    rows = packed(prm, samples, 10_000, width=2 * longest)
    assert 1 < len(rows.lengths) < 5
    assert_equal_training(prm, samples, rows, budget=10_000)


def test_a_tree_is_cut_under_the_budget(prm: Prm) -> None:
    samples = tree_samples(prm, "once")
    most = max(sample.length for sample in samples) + 5
    rows = packed(prm, samples, most, width=most)
    assert len(rows.lengths) > 3
    assert max(rows.lengths) <= most
    assert_equal_training(prm, samples, rows, budget=most)


def test_every_rank_has_a_row(prm: Prm) -> None:
    """Wide rows would leave ranks without data, so trees are split, but never below the longest sample."""
    samples = tree_samples(prm, "once")
    longest = max(sample.length for sample in samples)
    wide, cut = (make_rows(samples, form_of(prm), prm.model.backbone, "trees", 10_000, shares) for shares in (1, 100))
    assert max(wide.lengths) > longest >= max(cut.lengths)
    assert len(wide.lengths) < len(cut.lengths) < len(samples)
    assert_equal_training(prm, samples, cut, budget=10_000)
    assert make_rows([], form_of(prm), prm.model.backbone, "trees", 10_000, 100).lengths == []


def test_a_tree_has_one_question_with_its_images(prm: Prm) -> None:
    """Problem ids do not matter, because the ids of solutions from a file are line numbers."""
    samples = tree_samples(prm, "once")
    solutions, marked = [sample.solution for sample in samples], [(sample.ids, sample.positions) for sample in samples]
    lines = [replace(each, problem=replace(each.problem, id=f"line {n}")) for n, each in enumerate(solutions)]
    expected = [tree.members for tree in pack_solutions(solutions, marked, 10_000)]
    assert len(expected) == 3
    assert [tree.members for tree in pack_solutions(lines, marked, 10_000)] == expected


def test_images_are_opened_once_per_call_and_not_kept(prm: Prm, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that kept images would grow with every request."""
    solutions = [sample.solution for sample in tree_samples(prm, "once", problems=1)]
    marks, opened = Marks(form_of(prm)), []
    monkeypatch.setattr(packing, "open_image", lambda image: opened.append(image) or open_image(image))
    for calls in (1, 2):
        marks.many(solutions)
        assert opened == calls * list(solutions[0].problem.images)


def test_sample_packing(prm: Prm) -> None:
    """A row holds several paths that do not attend to each other, and positions restart at zero."""
    samples = tree_samples(prm, "once")
    rows = packed(prm, samples, 10_000, width=400, shared=False)
    assert 1 < len(rows.lengths) < len(samples) / 2
    assert sum(rows.lengths) <= sum(sample.length for sample in samples)
    assert_equal_training(prm, samples, rows, budget=10_000)


def test_the_image_of_a_tree_is_encoded_once(prm: Prm) -> None:
    """A row contains exactly the tokens of its paths and is read only at the markers."""
    samples = tree_samples(prm, "once")
    rows, form = packed(prm, samples, 10_000, None), form_of(prm)
    batch = rows.collate(range(len(rows.lengths)))
    if prm.renderer.image:
        separate = form.encode([sample.solution for sample in samples])[0]
        problems = {sample.solution.problem.id: sample.solution for sample in samples}
        once = form.encode(list(problems.values()))[0]
        assert batch.inputs["pixel_values"].shape == once["pixel_values"].shape
        assert len(separate["pixel_values"]) > len(once["pixel_values"])
    prefixes = {(s.solution.problem.id, s.solution.steps[: n + 1]) for s in samples for n in range(len(s.targets))}
    assert int((batch.inputs["input_ids"] == prm.renderer.marker_id).sum()) == len(prefixes)
    assert len(batch.marker_N.unique()) == len(batch.target_N) == len(prefixes)
    assert "labels" not in batch.inputs


def test_only_the_judgment_is_learned(prm: Prm) -> None:
    """Packing adds no language-model loss: only the output rows of Yes and No change."""
    output, table = prm.model.backbone.get_output_embeddings(), prm.model.backbone.get_input_embeddings()
    if output.weight is table.weight:
        return
    loss_and_gradient(prm, packed(prm, tree_samples(prm, "once"), 10_000, None), 10_000)
    moved = output.weight.grad.abs().sum(dim=1).nonzero()[:, 0].tolist()
    assert moved == sorted((prm.renderer.yes_id, prm.renderer.no_id))


def test_marks_are_the_tokens_of_the_processor(prm: Prm) -> None:
    """The tokens up to a marker are the same at the end of a text and inside it, for any end of a step."""
    form, marks = form_of(prm), Marks(form_of(prm))
    solution = tree_samples(prm, "once")[0].solution
    steps = ("2+3 =", " 5\n", "so Yes", "Question:", "é <answer>", "5</answer>")
    for whole in (solution, replace(solution, steps=steps)):
        ids, positions = marks(whole)
        encoded, read_BT = form.encode([whole])
        assert ids.tolist() == encoded["input_ids"][0].tolist()
        assert positions.tolist() == read_BT[0].nonzero()[:, 0].tolist()
        assert set(ids[positions]) == {prm.renderer.marker_id}
        for depth in range(1, len(whole.steps) + 1):
            part_ids, part_places = marks(replace(whole, steps=whole.steps[:depth]))
            assert part_places.tolist() == positions[:depth].tolist()
            assert part_ids[: part_places[-1] + 1].tolist() == ids[: positions[depth - 1] + 1].tolist()


@torch.no_grad()
def test_block_masks_reach_the_attention(prm: Prm) -> None:
    """With a dense mask, the GPU's attention function equals SDPA; only the language model uses it."""
    rows = packed(prm, tree_samples(prm, "once"), 10_000, None)
    task, batch = PrmTask(rows, rows, 10_000, CPU), rows.collate(range(len(rows.lengths)))
    before = task.loss_sum(prm.model, batch)
    text = prm.model.backbone.config.get_text_config()
    vision = getattr(prm.model.backbone.config, "vision_config", None)
    of_vision = vision and vision._attn_implementation
    try:
        use_block_masks(prm.model.backbone)
        assert text._attn_implementation == PACKED
        assert (vision and vision._attn_implementation) == of_vision
        assert why_not_packed(prm.model.backbone) is None
        torch.testing.assert_close(task.loss_sum(prm.model, batch), before)
        separate = PathRows(tree_samples(prm, "once"), form_of(prm))
        padded = PrmTask(separate, separate, 1, CPU).loss_sum(prm.model, separate.collate(range(len(separate.lengths))))
        torch.testing.assert_close(padded, before, rtol=1e-4, atol=1e-4)
    finally:
        prm.model.backbone.set_attn_implementation("sdpa")
        AttentionInterface._global_mapping.pop(PACKED, None)


def test_models_without_packing_support(prm: Prm) -> None:
    backbone = prm.model.backbone
    assert why_not_packed(backbone) is None
    text = backbone.config.get_text_config()
    backbone.set_attn_implementation("eager")
    assert "implementation eager" in why_not_packed(backbone)
    backbone.set_attn_implementation("sdpa")
    if hasattr(text, "layer_types"):
        layers, text.layer_types = text.layer_types, ["full_attention", "sliding_attention"]
        assert "sliding_attention" in why_not_packed(backbone)
        text.layer_types = layers
    else:
        text.sliding_window = 16
        assert "window" in why_not_packed(backbone)
        text.sliding_window = None


class _LetterJudge(nn.Module):
    """Returns logits whose loss at target 1 is the number of the letter before the marker: −log softmax([x,
    0])[0] = n.
    """

    def __init__(self, renderer: Renderer) -> None:
        super().__init__()
        self.marker_id, self._numbers = renderer.marker_id, {}
        for number, letter in enumerate("abcde", start=1):
            self._numbers[renderer.processor.encode(letter, add_special_tokens=False)[0]] = float(number)

    def forward(self, input_ids: Tensor, **inputs: Tensor) -> Tensor:
        before = input_ids.flatten()[:-1][input_ids.flatten()[1:] == self.marker_id]
        losses = [self._numbers[int(token)] for token in before]
        return torch.tensor([[-math.log(math.exp(loss) - 1), 0.0] for loss in losses])


def test_five_nodes_on_three_paths(tmp_path: Path) -> None:
    """Nodes of paths abc, abd and ae have losses 1 … 5, packed or not.

    With all labels on every path, a weighs 3 and b 2, so the loss is (3 + 4 + 3 + 4 + 5) / 8 = 2.375. With each label
    once, it is 15 / 5 = 3.0.
    """
    prm = initialize_prm(str(write_backbone("llama", tmp_path / "base")), PrmTokens())
    problem, paths = Problem("p", "?", ""), [("a", "b", "c"), ("a", "b", "d"), ("a", "e")]
    everywhere = [(1.0,) * len(path) for path in paths]
    once = [(1.0, 1.0, 1.0), (NO_TARGET, NO_TARGET, 1.0), (NO_TARGET, 1.0)]
    judge, marks = _LetterJudge(prm.renderer), Marks(form_of(prm))
    for targets, mean in ((everywhere, 2.375), (once, 3.0)):
        samples = [
            PrmSample(Solution(problem, path), target, (1.0,) * len(path), *marks(Solution(problem, path)))
            for path, target in zip(paths, targets, strict=True)
        ]
        forms = PathRows(samples, form_of(prm)), packed(prm, samples, 100, 100), packed(prm, samples, 100, 100, False)
        for rows in forms:
            loss = PrmTask(rows, rows, 100, CPU).loss_sum(judge, rows.collate(range(len(rows.lengths))))
            assert loss.item() / sum(rows.terms) == pytest.approx(mean)


def test_tokens_after_the_last_target_are_left_out(tmp_path: Path) -> None:
    """Samples are truncated for any packing; a packed row also drops the chat template's end."""
    prm = initialize_prm(str(write_backbone("llama", tmp_path / "base")), PrmTokens())
    problem, short = Problem("p", "?", ""), ("a", "b")
    path = LabeledPath("p", (*short, "c", "d"), (None, Counts(1, 1), None, None), False)
    (sample,) = make_samples([LabeledExample(problem, path, "train")], prm.renderer, TargetConfig())
    assert (sample.solution.steps, sample.targets[1:], sample.weights) == (short, (0.5,), (1.0, 1.0))
    ids, positions = Marks(form_of(prm))(Solution(problem, short))
    assert sample.length == len(ids)
    rows = packed(prm, [sample], 100, 100)
    assert rows.lengths == [positions[-1] + 1] < [len(ids)]
    assert rows.collate([0]).inputs["input_ids"][0].tolist() == ids[: positions[-1] + 1].tolist()


def test_backbones_with_images_are_covered() -> None:
    assert {"qwen2_5_vl", "internvl"} <= set(WITH_IMAGE) <= {*BACKBONES, *RECENT}
    assert {"qwen2", "llama"} <= set(BACKBONES)
