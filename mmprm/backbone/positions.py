"""Compute positions in packed sequences: a token's depth in its tree, with M-RoPE if the model uses it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmprm.backbone.token_tree import Ints


class Positions:
    """Computes the positions of a solution's tokens: by index, or on three axes within images for M-RoPE."""

    def __init__(self, model: nn.Module) -> None:
        self._rope_index = getattr(model, "get_rope_index", None)
        self._image_id = getattr(model.config, "image_token_id", None)
        self.axes = 1 if self._rope_index is None else 3
        self._to_image: dict[Hashable, Any] = {}

    def __call__(self, ids_D: Ints, grids: Mapping[str, Sequence[Tensor]]) -> Any:
        """Return position_XD.

        After the last image, positions continue from the highest one so far. Positions up to the last image are cached,
        because few different texts precede it.
        """
        position_D = np.arange(len(ids_D))
        if self._rope_index is None or not grids:
            return np.broadcast_to(position_D, (self.axes, len(ids_D)))
        image_D = ids_D == self._image_id
        count = int(image_D.nonzero()[0][-1]) + 1
        key = (ids_D[:count].tobytes(), *(tuple(grid.tolist()) for each in grids.values() for grid in each))
        if key not in self._to_image:
            ids_1D, image_1D = torch.from_numpy(ids_D[None, :count]).long(), torch.from_numpy(image_D[None, :count])
            shapes = {name: torch.stack(list(each)) for name, each in grids.items()}
            found = self._rope_index(
                input_ids=ids_1D, attention_mask=torch.ones_like(ids_1D), mm_token_type_ids=image_1D.int(), **shapes
            )
            self._to_image[key] = found[0][:, 0].numpy()
        before_XD = self._to_image[key]
        behind_D = position_D[: len(ids_D) - count] + before_XD.max() + 1
        return np.concatenate([before_XD, np.broadcast_to(behind_D, (self.axes, len(behind_D)))], axis=1)
