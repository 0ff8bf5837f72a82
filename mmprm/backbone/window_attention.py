"""Compute the attention of a Qwen-VL vision tower with few calls per layer, at most one per window length.

The patches of all images are one sequence, in which a patch attends only to its own window (Qwen2.5-VL) or image.
With SDPA, transformers calls the attention function once per window: 2,272 times for an image of one megapixel. Here,
the windows of a layer are one batch, in which shorter windows are padded, or one batch per length (see MAX_PADDING).

Shapes: S patch of all images, W window, L patch of a window, H head, D head dimension.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

WINDOWS = "mmprm_flash_windows"
"""Name of the registered attention function. transformers passes the window boundaries to the function, instead of
calling it once per window, if the name contains "flash"."""

MAX_PADDING = {"cuda": 128, "cpu": 0}
"""Maximum number of (query, key) pairs per patch that padding may add, by device type. Beyond it, as for images of very
different sizes, there is one call per distinct length. On CPU, calls are cheap and padding is not."""


class WindowBatch(NamedTuple):
    """Describes the windows computed in one call: the indices of their patches, and the slots of the patches in padded
    windows."""

    index_S: Tensor
    slot_S: Tensor
    """Index of each patch among the W·L slots of the padded batch, which has W windows of L slots."""
    shape_WL: tuple[int, int]
    mask_W11L: Tensor | None
    """Mask that is False on padding, or None if there is no padding."""


def use_window_batches(backbone: PreTrainedModel) -> None:
    """Make a Qwen-VL vision tower that uses SDPA compute each layer in few calls; leave other models unchanged."""
    vision = getattr(backbone.config, "vision_config", None)
    if not hasattr(getattr(backbone, "model", backbone), "visual") or vision._attn_implementation != "sdpa":
        return
    AttentionInterface.register(WINDOWS, attend_in_windows)
    backbone.set_attn_implementation({"vision_config": WINDOWS})


def attend_in_windows(
    module: nn.Module,
    query_1HSD: Tensor,
    key_1HSD: Tensor,
    value_1HSD: Tensor,
    attention_mask: Tensor | None,
    cu_seq_lens_q: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return the attention output_1SHD, in which each patch attends to the patches of its window.

    `cu_seq_lens_q` holds the window boundaries, from 0 to S. Without them, this is ordinary SDPA.
    """
    options = {name: options[name] for name in ("dropout", "scaling", "is_causal") if name in options}
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query_1HSD, key_1HSD, value_1HSD, attention_mask, **options)
    batches = window_batches(cu_seq_lens_q)
    inputs_SHD = [tensor[0].transpose(0, 1) for tensor in (query_1HSD, key_1HSD, value_1HSD)]
    outputs = []
    for batch in batches:
        inputs_WHLD = [_placed(tensor_SHD, batch, len(batches) == 1) for tensor_SHD in inputs_SHD]
        output_WLHD, _ = sdpa_attention_forward(module, *inputs_WHLD, batch.mask_W11L, **options)
        output_SHD = output_WLHD.flatten(0, 1)
        outputs.append(output_SHD if batch.mask_W11L is None else output_SHD.index_select(0, batch.slot_S))
    if len(batches) == 1:
        return outputs[0][None], None
    index_S = torch.cat([batch.index_S for batch in batches])
    return torch.empty_like(inputs_SHD[0]).index_copy(0, index_S, torch.cat(outputs))[None], None


@lru_cache(maxsize=2)  # the layers of a tower use the same two tensors: limits of windows and of images
def window_batches(limits: Tensor) -> tuple[WindowBatch, ...]:
    """Group windows into as few batches as MAX_PADDING allows."""
    first_W, last_W = limits[:-1].long().cpu(), limits[1:].long().cpu()
    length_W = last_W - first_W
    added_keys = len(length_W) * int(length_W.max()) ** 2 - int(length_W.square().sum())
    most = MAX_PADDING.get(limits.device.type, 0) * int(length_W.sum())
    lengths = [None] if added_keys <= most else length_W.unique().tolist()
    batches = []
    for length in lengths:
        own = slice(None) if length is None else length_W == length
        batches.append(_batch(first_W[own], length_W[own], limits.device))
    return tuple(batches)


def _batch(first_W: Tensor, length_W: Tensor, device: torch.device) -> WindowBatch:
    shape = len(length_W), int(length_W.max())
    offset_L = torch.arange(shape[1])
    present_WL = offset_L < length_W[:, None]
    index_S = (first_W[:, None] + offset_L)[present_WL].to(device)
    mask_W11L = None if present_WL.all() else present_WL[:, None, None].to(device)
    return WindowBatch(index_S, present_WL.flatten().nonzero()[:, 0].to(device), shape, mask_W11L)


def _placed(tensor_SHD: Tensor, batch: WindowBatch, has_all: bool) -> Tensor:
    """Arrange the windows of a batch as tensor_WHLD, padded with zeros. If `has_all`, the batch contains all
    windows."""
    if not has_all:
        tensor_SHD = tensor_SHD.index_select(0, batch.index_S)
    if batch.mask_W11L is not None:
        windows, width = batch.shape_WL
        slots = tensor_SHD.new_zeros(windows * width, *tensor_SHD.shape[1:])
        tensor_SHD = slots.index_copy(0, batch.slot_S, tensor_SHD)
    return tensor_SHD.unflatten(0, batch.shape_WL).transpose(1, 2)
