"""Compute position ids in packed sequences: each token's depth in its tree, or M-RoPE positions if the model uses
them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmprm.backbone.token_tree import Ints


class Positions:
    """Computes position ids of a solution's tokens: one index per token, or three (time, height, width) with M-RoPE."""

    def __init__(self, model: nn.Module) -> None:
        self._rope_index = getattr(model, "get_rope_index", None)
        self._image_id = getattr(model.config, "image_token_id", None)
        self._names = getattr(model, "position_inputs", ("image_grid_thw",))
        self.axes = 1 if self._rope_index is None else 3
        self._to_image: dict[Hashable, Any] = {}

    def __call__(self, ids_D: Ints, grids: Mapping[str, Sequence[Tensor]]) -> Any:
        """Return the position ids of a solution's D tokens as position_XD, with one row per axis X.

        After the last image, positions continue from the highest one so far. Positions up to the last image are cached,
        because few different prefixes contain an image.
        """
        position_D = np.arange(len(ids_D))
        if self._rope_index is None or not grids:
            return np.broadcast_to(position_D, (self.axes, len(ids_D)))
        image_D = ids_D == self._image_id
        count = int(image_D.nonzero()[0][-1]) + 1
        key = (ids_D[:count].tobytes(), *(tuple(grid.tolist()) for each in grids.values() for grid in each))
        if key not in self._to_image:
            shapes = {name: torch.stack(list(each)) for name, each in grids.items()}
            self._to_image[key] = self.of_sequence(torch.from_numpy(ids_D[:count]).long(), shapes).numpy()
        before_XD = self._to_image[key]
        after_D = position_D[: len(ids_D) - count] + before_XD.max() + 1
        return np.concatenate([before_XD, np.broadcast_to(after_D, (self.axes, len(after_D)))], axis=1)

    def of_sequence(self, ids_T: Tensor, images: Mapping[str, Tensor]) -> Tensor:
        """Return the position ids of a sequence of T tokens as position_XT, with one row per axis X.

        `images` holds the processor's tensors of images, videos and audio.
        """
        grids = {name: images[name] for name in self._names if name in images}
        if self._rope_index is None or not grids:
            return torch.arange(len(ids_T)).expand(self.axes, -1)
        ids_1T = ids_T[None]
        image_1T = (ids_1T == self._image_id).int()
        found = self._rope_index(
            input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), mm_token_type_ids=image_1T, **grids
        )
        return found[0][:, 0]
