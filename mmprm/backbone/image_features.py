"""Cache the image features that a frozen vision tower computes.

Frozen features are the same in every pass: the log-probabilities of the policy and of the reference model, each update,
each epoch, each evaluation, and each solution of the same problem. They are computed once per image set, kept in host
memory, and have no gradient.

Shapes: F image feature (one per image token), H hidden.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmprm.training.ranks import Ranks

KEPT_FEATURE_BYTES = 2**31
"""Capacity of each rank's feature cache in bytes."""

RunTower = Callable[..., Any]
"""Function with the signature of a model's `get_image_features`."""


class ImageSet(NamedTuple):
    """Describes images whose features are cached together: one image of a batch, or all images of a prompt.

    `key` is a hash of their content, `features` is their number of features, and `rows` maps the name of each of the
    batch's image tensors to the number of rows that belong to them.
    """

    key: str
    features: int
    rows: Mapping[str, int]


class Features(NamedTuple):
    """Holds the features of an image set: the tower's output, and one tensor per deepstack layer (Qwen3-VL)."""

    output_FH: Tensor
    deepstack_FH: tuple[Tensor, ...]

    @property
    def bytes(self) -> int:
        """Return the total size of the tensors in bytes."""
        return sum(tensor.nbytes for tensor in (self.output_FH, *self.deepstack_FH))


def content_key(images: Mapping[str, Tensor]) -> str:
    """Hash the names, shapes, data types and values of a prompt's image tensors, such as pixels and grids."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(images.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def sets_of_images(images: Mapping[str, Tensor], tokens: Sequence[int]) -> tuple[ImageSet, ...]:
    """Return one ImageSet per image, given the number of image tokens of each.

    A tensor has either one row per image (Qwen-VL's grids) or rows in proportion to the image tokens (Qwen-VL's
    patches, InternVL's tiles).
    """
    total = sum(tokens)
    rows = {
        name: [1 if len(tensor) == len(tokens) else len(tensor) * count // total for count in tokens]
        for name, tensor in images.items()
    }
    parts = {name: tensor.split(rows[name]) for name, tensor in images.items()}
    return tuple(
        ImageSet(
            content_key({name: part[index] for name, part in parts.items()}),
            count,
            {name: each[index] for name, each in rows.items()},
        )
        for index, count in enumerate(tokens)
    )


def why_not_cached(backbone: nn.Module) -> str | None:
    """Return the reason why image features cannot be cached, or None if they can.

    They can if the vision tower and the projector have no trainable parameters, adapters included, and no dropout.
    """
    if hasattr(backbone.model, "audio_tower"):
        return "only features of images are cached, but the model also reads videos and audio"
    parts = [getattr(backbone.model, name, None) for name in ("visual", "vision_tower", "multi_modal_projector")]
    parts = [part for part in parts if part is not None]
    if not parts:
        return "the model has no vision tower"
    if any(parameter.requires_grad for part in parts for parameter in part.parameters()):
        return "the vision tower or the projector is trained"
    modules = [module for part in parts for module in part.modules()]
    rates = [module.p for module in modules if isinstance(module, nn.Dropout)]
    rates += [getattr(module, "attention_dropout", 0.0) for module in modules]
    if any(isinstance(rate, float) and rate > 0 for rate in rates):
        return "the vision tower uses dropout"
    return None


@dataclass
class FeatureCache:
    """Caches image features by content, and drops the least recently used ones beyond `capacity` bytes.

    If not `enabled`, the tower runs on every batch, with gradients if its weights are trained. With ZeRO-3, all ranks
    gather the tower's weights together, so if one rank runs the tower, all must. `any_rank` returns whether its
    argument is true on some rank; every rank calls it once per batch.
    """

    enabled: bool = False
    any_rank: Callable[[bool], bool] = bool
    capacity: int = KEPT_FEATURE_BYTES
    tower_calls: int = 0
    """Number of times that the vision tower has run."""
    _kept: OrderedDict[str, Features] = field(default_factory=OrderedDict)
    _bytes: int = 0
    """Total size of the cached features in bytes."""
    _one_per_image: bool = False
    """Whether the tower returns a tuple with one tensor per image (Qwen-VL)."""

    def __call__(self, tower: RunTower, images: Mapping[str, Tensor], sets: Sequence[ImageSet]) -> Any:
        """Return the features of a batch's image sets in the form that the model accepts.

        `images` holds the image tensors of all sets, concatenated in order. Without sets, `images` is a placeholder for
        a tower that must run because it runs on another rank; with `enabled`, the result is then None.
        """
        if not self.enabled:
            self.tower_calls += 1
            return tower(**images, return_dict=True)
        found = {each.key: self._kept[each.key] for each in sets if each.key in self._kept}
        missing = {each.key: index for index, each in enumerate(sets) if each.key not in found}
        if self.any_rank(bool(missing)):
            found |= self._computed(tower, images, sets, sorted(missing.values()))
        for key, features in found.items():
            self._keep(key, features)
        if not sets:
            return None
        return self._joined([found[each.key] for each in sets], next(iter(images.values())).device)

    def _computed(
        self, tower: RunTower, images: Mapping[str, Tensor], sets: Sequence[ImageSet], wanted: Sequence[int]
    ) -> dict[str, Features]:
        """Run the tower on the image sets with the indices `wanted`, and return their features by key.

        If `wanted` is empty, the tower runs on the first set or on the placeholder, and the result is empty.
        """
        self.tower_calls += 1
        if len(wanted) < len(sets):
            images = _rows_of(images, sets, wanted or (0,))
        with torch.no_grad():
            output = tower(**images, return_dict=True)
        counts = [sets[index].features for index in wanted]
        if not counts:
            return {}
        self._one_per_image = isinstance(output.pooler_output, tuple | list)
        outputs = _on_host(output.pooler_output, counts)
        layers = [_on_host(layer, counts) for layer in getattr(output, "deepstack_features", None) or ()]
        each = zip(wanted, outputs, *layers, strict=True)
        return {sets[index].key: Features(own, tuple(deepstack)) for index, own, *deepstack in each}

    def _joined(self, sets: Sequence[Features], device: torch.device) -> Any:
        output_FH = torch.cat([each.output_FH for each in sets]).to(device)
        layers = [torch.cat(layer).to(device) for layer in zip(*(each.deepstack_FH for each in sets), strict=True)]
        return SimpleNamespace(
            pooler_output=(output_FH,) if self._one_per_image else output_FH,
            deepstack_features=[(layer_FH,) for layer_FH in layers],
        )

    def _keep(self, key: str, features: Features) -> None:
        if key not in self._kept:
            self._kept[key] = features
            self._bytes += features.bytes
        self._kept.move_to_end(key)
        while self._bytes > self.capacity and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.bytes


def feature_cache(backbone: nn.Module, ranks: Ranks, zero_stage: int) -> FeatureCache:
    """Create a model's cache of image features, which is disabled if its vision tower or projector is trained."""

    def any_rank(flag: bool) -> bool:
        return ranks.sum(float(flag))[0] > 0

    sharded = ranks.count > 1 and zero_stage == 3
    return FeatureCache(why_not_cached(backbone) is None, any_rank if sharded else bool)


def _rows_of(images: Mapping[str, Tensor], sets: Sequence[ImageSet], wanted: Sequence[int]) -> dict[str, Tensor]:
    parts = {name: tensor.split([each.rows[name] for each in sets]) for name, tensor in images.items()}
    return {name: torch.cat([part[index] for index in wanted]) for name, part in parts.items()}


def _on_host(features: Any, counts: Sequence[int]) -> list[Tensor]:
    """Split features by image set, and copy each part to a separate host buffer, so that dropping a part frees it."""
    return [part.to("cpu", copy=True) for part in _flat(features).split(counts)]


def _flat(features: Any) -> Tensor:
    """Concatenate image features, given as a tuple (Qwen-VL) or a batch of tiles (InternVL), into one tensor_FH."""
    return torch.cat(tuple(features)) if isinstance(features, tuple | list) else features.flatten(0, -2)
