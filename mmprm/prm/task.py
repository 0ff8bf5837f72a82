"""Arrange samples in packed or unpacked input rows, and compute the loss and evaluation metrics of a PRM.

Shapes: M marker (all markers read in a batch, row by row), N labeled step, 2 logits of [Yes, No].
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmprm.backbone.image_features import ImageSet, sets_of_images, why_not_cached
from mmprm.backbone.masks import packed_mask, use_block_masks
from mmprm.backbone.processor import tokenizer_of
from mmprm.backbone.token_tree import fill_rows
from mmprm.errors import DataError
from mmprm.metrics import roc_auc
from mmprm.prm.data import PrmSample
from mmprm.prm.formats import Format
from mmprm.prm.losses import soft_cross_entropy_sum
from mmprm.prm.packing import Pixels, TreeInputs, pack_solutions
from mmprm.training.batches import micro_batches
from mmprm.training.engine import Engine

Packing = Literal["none", "samples", "trees"]


@dataclass(frozen=True, slots=True)
class PrmBatch:
    """Holds the model inputs, targets and weights of a batch of rows."""

    inputs: dict[str, Any]
    marker_N: Tensor
    """Index of each labeled step's marker among the M markers. Packed paths may share a marker."""
    target_N: Tensor
    weight_N: Tensor
    end_BT: Tensor | None = None
    """Index of the last token in each token's subtree, for packed rows only (see mmprm.prm.packing)."""
    image_sets: tuple[ImageSet, ...] = ()
    """Descriptions of the images, if the model caches image features."""


class TrainingRows(Protocol):
    """Protocol for training or evaluation data that is arranged in rows."""

    lengths: list[int]
    """Number of tokens in each row."""
    terms: list[int]
    """Number of loss terms in each row: one per labeled step."""

    def collate(self, rows: Sequence[int]) -> PrmBatch:
        """Build a batch on the CPU from the rows with the given indices."""
        ...


class PathRows:
    """Arranges samples in rows of one sample each. `caches` tells whether the model caches image features."""

    def __init__(self, samples: Sequence[PrmSample], form: Format, caches: bool = False) -> None:
        self._samples, self._processor, self._pixels, self._caches = samples, form.processor, Pixels(form), caches
        self._pad = tokenizer_of(form.processor).pad_token_id or 0
        self.lengths = [sample.length for sample in samples]
        self.terms = [sample.label_count for sample in samples]

    def collate(self, rows: Sequence[int]) -> PrmBatch:
        chosen = [self._samples[row] for row in rows]
        target_M = torch.tensor([target for sample in chosen for target in sample.targets], dtype=torch.float32)
        weight_M = torch.tensor([weight for sample in chosen for weight in sample.weights], dtype=torch.float32)
        marker_N = (~target_M.isnan()).nonzero()[:, 0]
        ids = [torch.from_numpy(sample.ids).long() for sample in chosen]
        ids_BT = pad_sequence(ids, batch_first=True, padding_value=self._pad)
        present_BT = pad_sequence([torch.ones_like(ids_T) for ids_T in ids], batch_first=True)
        inputs = {"input_ids": ids_BT, "attention_mask": present_BT}
        images = self._pixels([each for sample in chosen for each in sample.solution.media])
        inputs |= images.tensors
        if "mm_token_type_ids" in self._processor.model_input_names:
            inputs["mm_token_type_ids"] = (ids_BT == self._processor.image_token_id).int()
        image_sets = sets_of_images(*images) if self._caches else ()
        return PrmBatch(inputs, marker_N, target_M[marker_N], weight_M[marker_N], image_sets=image_sets)


class PackedRows:
    """Packs token trees of samples into rows of `width` tokens, by default the length of the longest tree.

    With `shared`, all samples of a problem form one tree, which is cut if it is longer than `max_tokens`. Otherwise,
    each sample has its own tree. Labels belong to samples: if two samples of a tree have a label at the same node, both
    count, as they would unpacked. `caches` tells whether the model caches image features.
    """

    def __init__(
        self,
        samples: Sequence[PrmSample],
        form: Format,
        model: nn.Module,
        max_tokens: int,
        width: int | None,
        shared: bool,
        caches: bool = False,
    ) -> None:
        self._samples, self._inputs, self._caches = samples, TreeInputs(form, model), caches
        solutions = [sample.solution for sample in samples]
        marked = [(sample.ids, sample.positions) for sample in samples]
        trees = pack_solutions(solutions, marked, max_tokens, shared)
        # Rows are filled by length, so shuffle first: otherwise trees of one problem would often share a row.
        random.Random(0).shuffle(trees)
        lengths = [len(tree.tokens) for tree in trees]
        filled = fill_rows(lengths, width or max(lengths, default=0))
        self._rows = [[trees[index] for index in row] for row in filled]
        self.lengths = [sum(len(tree.tokens) for tree in row) for row in self._rows]
        members = [[member for tree in row for member in tree.members] for row in self._rows]
        self.terms = [sum(samples[member].label_count for member in row) for row in members]

    def collate(self, rows: Sequence[int]) -> PrmBatch:
        chosen = [self._rows[row] for row in rows]
        packed = self._inputs(chosen)
        labels: list[tuple[int, float, float]] = []
        for tree, reads in zip((tree for row in chosen for tree in row), packed.reads, strict=True):
            for member, positions in zip(tree.members, reads, strict=True):
                sample = self._samples[member]
                steps = zip(positions.tolist(), sample.targets, sample.weights, strict=True)
                labels += [(marker, target, weight) for marker, target, weight in steps if not math.isnan(target)]
        marker_N, target_N, weight_N = map(torch.tensor, zip(*labels, strict=True))
        image_sets = sets_of_images(*packed.images) if self._caches else ()
        return PrmBatch(packed.inputs, marker_N, target_N, weight_N, packed.end_BT, image_sets)


def make_rows(
    samples: Sequence[PrmSample],
    form: Format,
    backbone: nn.Module,
    packing: Packing,
    micro_batch_tokens: int,
    shares: int = 1,
) -> TrainingRows:
    """Arrange samples in rows of at most `micro_batch_tokens` tokens. A longer sample gets its own row.

    Packed rows need a backbone that supports them. `shares` is the number of (rank, step) pairs. Packed rows are
    short enough for each pair to get one, but not shorter than the longest sample. One third is added because rows are
    not completely full, and because cut trees repeat their shared tokens.
    """
    caches = why_not_cached(backbone) is None
    if packing == "none":
        return PathRows(samples, form, caches)
    use_block_masks(backbone)

    def rows_of(max_tokens: int) -> PackedRows:
        return PackedRows(samples, form, backbone.model, max_tokens, None, packing == "trees", caches)

    rows = rows_of(micro_batch_tokens)
    share = 4 * sum(rows.lengths) // (3 * shares)
    if share < max(rows.lengths, default=0):
        longest = max(sample.length for sample in samples)
        rows = rows_of(min(micro_batch_tokens, max(share, longest)))
    return rows


class PrmTask:
    """Implements mmprm.training.loop.Task for a PRM. A sample is a row, and a loss term is a labeled step."""

    def __init__(
        self, train: TrainingRows, held_out: TrainingRows, micro_batch_tokens: int, device: torch.device
    ) -> None:
        self._train, self._held_out = train, held_out
        self._tokenizing = threading.Lock()  # two threads build training and held-out batches with one tokenizer
        self._micro_batch_tokens, self._device = micro_batch_tokens, device
        self.lengths, self.terms = train.lengths, train.terms

    def collate(self, rows: Sequence[int]) -> PrmBatch:
        with self._tokenizing:
            return self._train.collate(rows)

    def loss_sum(self, model: nn.Module, batch: PrmBatch) -> Tensor:
        target_N, weight_N = batch.target_N.to(self._device), batch.weight_N.to(self._device)
        return soft_cross_entropy_sum(self._logits(model, batch), target_N, weight_N)

    def evaluate(self, engine: Engine) -> dict[str, float]:
        """Return the mean held-out loss per label, unweighted, and the ROC AUC of P(Yes).

        The AUC is that of predicting whether the target is above 0.5. Returns {} if there are no held-out samples.
        """
        lengths = self._held_out.lengths
        if not lengths:
            return {}
        rows = micro_batches(range(len(lengths)), lengths, self._micro_batch_tokens, engine.ranks.count)
        loss = 0.0
        judged: list[tuple[float, float]] = []
        with engine.inference() as model:
            for row in rows:
                micro = row[engine.ranks.rank]
                with self._tokenizing:
                    batch = self._held_out.collate(micro.samples)
                logits_N2 = self._logits(model, batch).float().cpu()
                if not micro.is_padding:
                    loss += soft_cross_entropy_sum(logits_N2, batch.target_N).item()
                    yes_N = logits_N2.softmax(dim=1)[:, 0]
                    judged += zip(yes_N.tolist(), batch.target_N.tolist(), strict=True)
        (loss,) = engine.ranks.sum(loss)
        pairs = [pair for part in engine.ranks.gather(judged) for pair in part]
        return {"loss": loss / len(pairs), "auc": _auc(pairs), "labels": float(len(pairs))}

    def _logits(self, model: nn.Module, batch: PrmBatch) -> Tensor:
        """Run the model and return the [Yes, No] logits of the labeled steps, logits_N2."""
        inputs = {name: tensor.to(self._device) for name, tensor in batch.inputs.items()}
        if batch.end_BT is not None:
            inputs["attention_mask"] = packed_mask(batch.end_BT.to(self._device))
        return model(**inputs, image_sets=batch.image_sets)[batch.marker_N.to(self._device)]


def _auc(pairs: Sequence[tuple[float, float]]) -> float:
    """Return the ROC AUC, or NaN if all held-out labels are on one side of 0.5."""
    try:
        return roc_auc([score for score, _ in pairs], [target > 0.5 for _, target in pairs])
    except DataError:
        return float("nan")
