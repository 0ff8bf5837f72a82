"""Validate responses for training, pack them into micro-batches, and collate the micro-batches into tensors.

Nothing is truncated: `Limits.check` rejects a response that does not fit, so that the caller can count and skip it.

Shapes: B row, L token of a row, X axis of the positions, F image token, N response, T token of a response or of a row's
responses together, K response of a group.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmprm.backbone.image_features import ImageSet
from mmprm.backbone.masks import on_grid
from mmprm.backbone.omni import with_stand_ins
from mmprm.backbone.token_tree import common_prefix, lexicographic_key, token_tree
from mmprm.errors import DataError, TrainingError
from mmprm.training.batches import MicroBatch, micro_batches
from policy_rl.algorithms.losses import LossConfig, denominator
from policy_rl.trainer.policy import PolicyInputs
from policy_rl.trainer.prompt_encoder import EncodedPrompt, PromptEncoder
from policy_rl.types import ARRAYS, TrainingSample


@dataclass(frozen=True, slots=True)
class Limits:
    """Describes the model's limits: its context length in tokens, and the token ids that only a prompt may contain."""

    context: int
    reserved: frozenset[int]

    def check(self, sample: TrainingSample) -> None:
        """Raise DataError, naming the problem, for a response that cannot be trained on."""
        name = f"problem {sample.problem.id}"
        if not len(sample.token_ids):
            raise DataError(f"{name}: a response without tokens has nothing to learn from; leave it out")
        if sample.length > self.context:
            raise DataError(
                f"{name}: a prompt of {sample.prompt_tokens} tokens and a response of {len(sample.token_ids)} "
                f"exceed the model's context of {self.context}; leave the problem out, or scale its images down"
            )
        own = sample.token_ids[sample.counted]  # observations may hold images
        found = own[np.isin(own, list(self.reserved))]
        if len(found):
            raise DataError(f"{name}: a response contains token {min(found)}, which represents an image; leave it out")


@dataclass(frozen=True, slots=True)
class CollatedRows:
    """Contains one rank's micro-batch: its rows, the model inputs, and per-token arrays, keyed by the names in ARRAYS.

    A padding micro-batch repeats rows with a weight of 0.
    """

    rows: list[PromptRow]
    is_padding: bool
    inputs: PolicyInputs
    arrays: dict[str, Tensor | None]


def tokens_of_groups(samples: Iterable[TrainingSample]) -> Counter[int]:
    """Count the response tokens that enter the loss (`counted`), per group."""
    tokens: Counter[int] = Counter()
    for sample in samples:
        tokens[sample.group] += int(sample.counted.sum())
    return tokens


def loss_denominator(samples: Sequence[TrainingSample], config: LossConfig) -> Tensor:
    """Return the denominator of the loss, summed over the responses of all ranks."""
    tokens, total = tokens_of_groups(samples), torch.zeros(())
    for sample in samples:
        mask_1T = torch.from_numpy(np.array(sample.counted))[None]
        total = total + denominator(mask_1T, config, torch.tensor([tokens[sample.group]]))
    return total


def check_finite(samples: Sequence[TrainingSample]) -> None:
    """Raise TrainingError, naming the problem, if a value at a token to train on is NaN or infinite.

    Such a value would corrupt the weights.
    """
    for sample in samples:
        for name in ARRAYS:
            array = getattr(sample, name)
            if array is None:
                continue
            assert len(array) == len(sample.token_ids), f"{name}: one value per response token"
            if not np.isfinite(array[sample.counted]).all():
                raise TrainingError(
                    f"problem {sample.problem.id}: {name} of a response is not finite, so no update is made from it; "
                    "check what its reward functions and its engine returned"
                )


def minibatches(
    samples: Sequence[TrainingSample], updates: int, seed: str, epochs: int = 1
) -> list[list[TrainingSample]]:
    """Shuffle the groups and split them into `updates` minibatches of nearly equal size, once per epoch.

    The seed determines the order. With fewer groups than `updates`, each group is its own minibatch.
    """
    groups = sorted({sample.group for sample in samples})
    count = min(updates, len(groups))
    made: list[list[TrainingSample]] = []
    for epoch in range(epochs):
        order = list(groups)
        if updates > 1:
            random.Random(f"{seed}/{epoch}" if epoch else seed).shuffle(order)
        share_of = {group: index * count // len(order) for index, group in enumerate(order)}
        shares: list[list[TrainingSample]] = [[] for _ in range(count)]
        for sample in samples:
            shares[share_of[sample.group]].append(sample)
        made += shares
    return made


PromptRow = tuple[int, ...]
"""Indices of the samples that share a prompt and are packed into one row."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Describes how a batch is packed into rows and micro-batches. Each round has one micro-batch per rank."""

    rows: tuple[PromptRow, ...]
    rounds: tuple[tuple[MicroBatch, ...], ...]

    def rows_of(self, rank: int) -> list[tuple[list[PromptRow], bool]]:
        """Return (rows, is_padding) for each micro-batch of a rank."""
        own = [micro[rank] for micro in self.rounds]
        return [([self.rows[row] for row in micro.samples], micro.is_padding) for micro in own]


def plan(
    samples: Sequence[TrainingSample],
    token_budget: int,
    ranks: int,
    share_prompt: bool,
    attention_cost: float = 0.0,
) -> Plan:
    """Pack responses into micro-batches of at most `token_budget` tokens including padding, equally many for each rank.

    A row longer than the budget gets its own micro-batch. With `share_prompt`, responses of a group are placed in one
    row after their prompt, and a prefix that several of them share is stored once. Rows are chosen for minimal cost
    within the budget (see `cheapest_rows`). Each row of an episode is a row of the plan.
    """
    groups: dict[int, list[int]] = {}
    for position, sample in enumerate(samples):
        groups.setdefault(sample.group, []).append(position)
    rows: list[PromptRow] = []
    lengths: list[int] = []
    for members in groups.values():
        head = samples[members[0]]
        if head.rows:  # observations differ, and so do the positions of M-RoPE after their images
            rows += [(position,) for position in members]
            lengths += [samples[position].length for position in members]
            continue
        assert all(samples[position].problem == head.problem for position in members), "a group has one problem"
        # Lexicographic order makes responses with long common prefixes neighbors.
        members = sorted(members, key=lambda position: (lexicographic_key(samples[position].token_ids), position))
        paths = [samples[position].token_ids for position in members]
        shared = [common_prefix(*pair) for pair in itertools.pairwise(paths)]
        sizes = [len(path) for path in paths]
        most = len(members) if share_prompt else 1
        for cut in cheapest_rows(head.prompt_tokens, sizes, shared, token_budget, attention_cost, most):
            rows.append(tuple(members[cut]))
            lengths.append(head.prompt_tokens + sum(sizes[cut]) - sum(shared[cut.start : cut.stop - 1]))
    return Plan(tuple(rows), tuple(micro_batches(range(len(rows)), lengths, token_budget, ranks)))


def cheapest_rows(
    prompt_tokens: int,
    sizes_K: Sequence[int],
    shared_K: Sequence[int],
    token_budget: int,
    attention_cost: float,
    most: int,
) -> list[slice]:
    """Find the partition of a group's responses into rows of at most `most` that makes the forward pass cheapest.

    The responses are in lexicographic order, and a row holds consecutive ones. The cost is the sum of L·(1 + c·L) over
    the rows. L = prompt + responses − tokens shared by neighbors in the row; it is at most `token_budget`, except
    for a single response in its own row.

    Response k has sizes_K[k] tokens and shares the first shared_K[k] of them with response k + 1. `attention_cost` c is
    the cost of a pair of tokens relative to that of one token: about 1 / (6 · hidden size) if the full attention matrix
    is computed, 0 if masked blocks are skipped.
    """
    # Dynamic programming: best[k] is the lowest cost of the first k responses, with their rows.
    best: list[tuple[float, list[slice]]] = [(0.0, [])]
    for stop in range(1, len(sizes_K) + 1):
        found, length = [], prompt_tokens
        for start in range(stop - 1, max(-1, stop - 1 - most), -1):
            length += sizes_K[start] - (shared_K[start] if start < stop - 1 else 0)
            if length > token_budget and start < stop - 1:
                break
            cost, cuts = best[start]
            found.append((cost + length * (1 + attention_cost * length), [*cuts, slice(start, stop)]))
        best.append(min(found, key=lambda choice: choice[0]))
    return best[-1][1]


def collate_rows(
    rows: Sequence[PromptRow], samples: Sequence[TrainingSample], encoder: PromptEncoder, stand_in: bool = False
) -> PolicyInputs:
    """Collate a micro-batch into tensors, with the responses in the order of the rows.

    With `stand_in`, a micro-batch without images gets a minimal placeholder image, so that the vision tower runs.
    """
    heads = [samples[row[0]] for row in rows]
    prompts = [encoder.row(head) if head.rows else encoder(head.problem, head.prompt_tokens) for head in heads]
    trees = [token_tree([samples[position].token_ids for position in row]) for row in rows]
    width = max(len(prompt.ids_P) + len(tree) for prompt, tree in zip(prompts, trees, strict=True))
    shares_rows = any(len(row) > 1 for row in rows)
    if shares_rows:
        width = on_grid(width)
    ids_BL = torch.full((len(rows), width), encoder.padding)
    position_XBL = torch.zeros((encoder.axes, len(rows), width), dtype=torch.long)
    end_BL = torch.arange(width).repeat(len(rows), 1)
    present_BL = torch.zeros((len(rows), width), dtype=torch.bool)
    reads, tokens = [], []
    for b, (prompt, tree, row) in enumerate(zip(prompts, trees, rows, strict=True)):
        head, stop = len(prompt.ids_P), len(prompt.ids_P) + len(tree)
        ids_BL[b, :head], position_XBL[:, b, :head] = prompt.ids_P, prompt.position_XP
        # All responses of the row attend to the prompt.
        end_BL[b, :head], present_BL[b, :stop] = stop - 1, True
        ids_BL[b, head:stop] = torch.from_numpy(tree.ids_T)
        end_BL[b, head:stop] = torch.from_numpy(tree.end_T) + head
        if prompt.position_XT is None:
            position_XBL[:, b, head:stop] = torch.from_numpy(tree.depth_T) + prompt.position_XP.max() + 1
        else:
            position_XBL[:, b, head:stop] = prompt.position_XT
        for position, stands_T in zip(row, tree.indices_PL, strict=True):
            # A token is predicted by the logits of the token before it, the first one by those of the prompt's end.
            before_T = torch.from_numpy(stands_T).long().roll(1) + head
            before_T[0] = head - 1
            reads.append(before_T + b * width)
            tokens.append(torch.tensor(samples[position].token_ids, dtype=torch.int64))
    images, feature_F, image_sets = _images(rows, samples, prompts, encoder.media_ids)
    shows_images = bool(images)
    if stand_in and not shows_images:
        images = encoder.stand_in
    elif stand_in and encoder.reads_clips:
        images = with_stand_ins(images, encoder.stand_in)
    return PolicyInputs(
        input_ids_BL=ids_BL,
        position_ids=position_XBL if encoder.axes > 1 else position_XBL[0],
        end_BL=end_BL if shares_rows else None,
        present_BL=present_BL,
        read_NT=pad_sequence(reads, batch_first=True),
        token_NT=pad_sequence(tokens, batch_first=True),
        response_NT=padded(rows, samples, "counted", torch.bool),
        images=images,
        feature_F=feature_F,
        shows_images=shows_images,
        image_sets=image_sets,
    )


def _images(
    rows: Sequence[PromptRow],
    samples: Sequence[TrainingSample],
    prompts: Sequence[EncodedPrompt],
    media_ids: Sequence[int],
) -> tuple[dict[str, Tensor], Tensor | None, tuple[ImageSet, ...]]:
    """Collect a micro-batch's image inputs, once per group; return (inputs, feature index per image token, image sets).

    The feature indices are None unless several rows use the images of the same group, or the model reads several kinds
    of media. There is one ImageSet per group with images. Each row of an episode has images of its own, and counts as a
    group here.
    """
    groups = [-1 - index if samples[row[0]].rows else samples[row[0]].group for index, row in enumerate(rows)]
    first: dict[int, int] = {}
    shown: dict[int, EncodedPrompt] = {}
    count = 0
    features: list[Tensor] = []
    for group, prompt in zip(groups, prompts, strict=True):
        if prompt.images and group not in shown:
            shown[group], first[group] = prompt, count
            count += prompt.image_tokens
        if prompt.images:
            features.append(torch.arange(first[group], first[group] + prompt.image_tokens))
    if not shown:
        return {}, None, ()
    names = dict.fromkeys(name for prompt in shown.values() for name in prompt.images)
    images = {
        name: torch.cat([prompt.images[name] for prompt in shown.values() if name in prompt.images]) for name in names
    }
    sets = tuple(each for prompt in shown.values() for each in prompt.image_sets)
    if len(media_ids) > 1:
        return images, _features_by_kind(groups, prompts, shown, media_ids), sets
    return images, torch.cat(features) if len(features) > len(shown) else None, sets


def _features_by_kind(
    groups: Sequence[int],
    prompts: Sequence[EncodedPrompt],
    shown: Mapping[int, EncodedPrompt],
    media_ids: Sequence[int],
) -> Tensor:
    """Return the index of the feature of each media token, row by row.

    The features are sorted by kind, then by group in the order of `shown`, then by token.
    """
    starts: dict[tuple[int, int], int] = {}
    count = 0
    for media_id in media_ids:
        for group, prompt in shown.items():
            starts[group, media_id] = count
            count += int((prompt.ids_P == media_id).sum())
    features = []
    for group, prompt in zip(groups, prompts, strict=True):
        ids_F = prompt.ids_P[torch.isin(prompt.ids_P, torch.tensor(media_ids))]
        index_F = torch.empty_like(ids_F)
        for media_id in media_ids:
            own_F = ids_F == media_id
            index_F[own_F] = starts.get((group, media_id), 0) + torch.arange(int(own_F.sum()))
        features.append(index_F)
    return torch.cat(features)


def padded(
    rows: Sequence[PromptRow], samples: Sequence[TrainingSample], name: str, dtype: torch.dtype = torch.float32
) -> Tensor | None:
    """Stack a per-token array of all samples into a zero-padded tensor of shape (N, T), in the order of the rows.

    `name` is the array's field, or `counted`. Returns None if the array is None for all responses.
    """
    arrays = [getattr(samples[position], name) for row in rows for position in row]
    if all(array is None for array in arrays):
        return None
    assert all(array is not None for array in arrays), f"{name} must be given for all responses of an update or none"
    return pad_sequence([torch.as_tensor(np.array(array), dtype=dtype) for array in arrays], batch_first=True)
