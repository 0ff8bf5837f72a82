"""Test the cache of image features: what is computed, kept, dropped, and run for other ranks."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from mmprm.backbone.image_features import FeatureCache, ImageSet, content_key, sets_of_images, why_not_cached


class Tower:
    """Returns ten times the first pixel of each row, and records the pixels of each call."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def __call__(self, pixels: Tensor, return_dict: bool) -> SimpleNamespace:
        self.seen.append(pixels[:, 0].tolist())
        return SimpleNamespace(pooler_output=(10 * pixels,), deepstack_features=[(pixels + 1,), (pixels + 2,)])


def batch(*values: Sequence[float]) -> tuple[dict[str, Tensor], list[ImageSet]]:
    """Return image tensors and image sets: one set per argument, with one feature per value."""
    tensors = [torch.tensor([[value] * 4 for value in each]) for each in values]
    sets = [ImageSet(content_key({"pixels": each}), len(each), {"pixels": len(each)}) for each in tensors]
    return {"pixels": torch.cat(tensors)}, sets


def test_only_images_that_are_new_are_computed() -> None:
    tower, cache = Tower(), FeatureCache(enabled=True)
    cache(tower, *batch([1.0, 2.0], [3.0]))
    found = cache(tower, *batch([3.0], [4.0], [1.0, 2.0], [4.0]))
    cache(tower, *batch([4.0], [3.0]))
    assert tower.seen == [[1.0, 2.0, 3.0], [4.0]]
    assert cache.tower_calls == 2
    assert found.pooler_output[0][:, 0].tolist() == [30, 40, 10, 20, 40]
    assert [layer[0][:, 0].tolist() for layer in found.deepstack_features] == [[4, 5, 2, 3, 5], [5, 6, 3, 4, 6]]


def test_a_disabled_cache_always_runs_the_tower() -> None:
    tower, cache = Tower(), FeatureCache()
    for _ in range(2):
        assert cache(tower, *batch([1.0])).pooler_output[0][:, 0].tolist() == [10]
    assert (len(tower.seen), cache.tower_calls) == (2, 2)


def test_the_least_recently_used_images_are_dropped() -> None:
    """One feature with two layers takes 3 · 4 values of 4 bytes, so two sets fit into the cache."""
    tower, cache = Tower(), FeatureCache(enabled=True, capacity=2 * 48)
    for value in (1.0, 2.0, 1.0, 3.0, 1.0, 2.0):
        cache(tower, *batch([value]))
    assert tower.seen == [[1.0], [2.0], [3.0], [2.0]]
    assert cache(tower, *batch([5.0], [6.0], [7.0])).pooler_output[0][:, 0].tolist() == [50, 60, 70]


def test_dropped_features_free_their_memory() -> None:
    """Features that were computed together do not keep each other in memory."""
    cache = FeatureCache(enabled=True)
    cache(Tower(), *batch([1.0, 2.0], [3.0]))
    for features in cache._kept.values():
        for tensor in (features.output_FH, *features.deepstack_FH):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
    assert cache._bytes == 3 * 48


def test_the_rows_of_each_image() -> None:
    """Qwen-VL has 4 patches per token and a grid per image; InternVL has tiles of 256 tokens each."""
    patches, grid = torch.arange(36.0)[:, None], torch.tensor([[1, 2, 6], [1, 4, 6]])
    first, second = sets_of_images({"pixel_values": patches, "image_grid_thw": grid}, [3, 6])
    assert (first.features, first.rows) == (3, {"pixel_values": 12, "image_grid_thw": 1})
    assert (second.features, second.rows) == (6, {"pixel_values": 24, "image_grid_thw": 1})
    assert second.key == content_key({"pixel_values": patches[12:], "image_grid_thw": grid[1:]})
    tiles = sets_of_images({"pixel_values": torch.zeros(4, 3, 2, 2)}, [256, 768])
    assert [each.rows for each in tiles] == [{"pixel_values": 1}, {"pixel_values": 3}]
    assert sets_of_images({}, []) == ()


def test_every_rank_runs_the_tower_if_one_does() -> None:
    flags, asked = iter([True, True, False, True]), []

    def any_rank(flag: bool) -> bool:
        asked.append(flag)
        return flag or next(flags)

    tower, cache = Tower(), FeatureCache(enabled=True, any_rank=any_rank)
    first = batch([1.0], [2.0])
    cache(tower, *first)
    assert cache(tower, *first).pooler_output[0][:, 0].tolist() == [10, 20]
    assert cache(tower, {"pixels": torch.zeros(1, 4)}, ()) is None
    cache(tower, *first)
    assert asked == [True, False, False, False]
    assert tower.seen == [[1.0, 2.0], [1.0], [0.0]]


def test_keys_depend_on_values_shapes_and_types() -> None:
    pixels, grid = torch.arange(8.0).view(2, 4), torch.tensor([[1, 2, 4]])
    images = {"pixels": pixels, "grid": grid}
    others = [
        {"pixels": pixels, "grid": torch.tensor([[1, 4, 2]])},
        {"pixels": pixels.view(4, 2), "grid": grid},
        {"pixels": pixels.double(), "grid": grid},
        {"pixels": pixels + 1, "grid": grid},
    ]
    assert len({content_key(each) for each in (images, *others)}) == 5
    assert content_key({"grid": grid.clone(), "pixels": pixels.clone()}) == content_key(images)
    assert content_key({"pixels": pixels.bfloat16()}) == content_key({"pixels": pixels.bfloat16()})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: None, None),
        (lambda model: model.visual[0].weight.requires_grad_(True), "the vision tower or the projector is trained"),
        (lambda model: model.visual.append(nn.Dropout(0.1)), "the vision tower uses dropout"),
        (lambda model: model.visual.append(nn.Dropout(0.0)), None),
        (lambda model: model.__delattr__("visual"), "the model has no vision tower"),
    ],
)
def test_why_features_are_not_cached(change, reason) -> None:
    model = nn.Module()
    model.visual, model.language_model = nn.Sequential(nn.Linear(2, 2)).requires_grad_(False), nn.Linear(2, 2)
    change(model)
    assert why_not_cached(SimpleNamespace(model=model)) == reason
