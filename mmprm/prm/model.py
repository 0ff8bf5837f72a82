"""Define the process reward model: a language model whose Yes and No logits are read at each step marker.

Shapes: B solution, T token, M marker (all markers of a batch, solution by solution), H hidden, 2 [Yes, No].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import (
    AddedToken,
    PreTrainedModel,
)

from mmprm.backbone.experts import save_backbone
from mmprm.backbone.image_features import FeatureCache, ImageSet
from mmprm.backbone.load import check_logits, load_backbone, new_model_folder
from mmprm.backbone.processor import tokenizer_of
from mmprm.errors import CheckpointError
from mmprm.prm.info import FORMAT, PrmInfo, PrmTokens, read_info, write_info
from mmprm.prm.mm_prm_format import NO_LIMITS, Renderer
from mmprm.training.sharding import whole
from mmprm.weights import model_errors


class PrmModel(nn.Module):
    """Computes the [Yes, No] logits at every marker token.

    Only these two rows of the output layer are used, so no B×T×vocabulary tensor is created. The result equals the full
    logits at the marker positions.
    """

    def __init__(self, backbone: PreTrainedModel, renderer: Renderer) -> None:
        super().__init__()
        check_logits(backbone)
        self.backbone = backbone
        self.marker_id = renderer.marker_id
        self.judgment_ids = [renderer.yes_id, renderer.no_id]
        self.image_features = FeatureCache()

    def forward(self, input_ids: Tensor, image_sets: Sequence[ImageSet] = (), **inputs: Any) -> Tensor:
        """Return logits_M2: the logits of the two judgments at each of the M step markers in the input.

        With `image_sets`, the features of the images come from the cache.
        """
        if image_sets:
            images = {name: inputs[name] for name in image_sets[0].rows}
            features = self.image_features(self.backbone.model.get_image_features, images, image_sets)
            del inputs["pixel_values"]  # the grids remain, because positions depend on them
            inputs["mm_encoder_outputs"] = {"image": features}
        hidden_BTH = self.backbone.model(input_ids=input_ids, use_cache=False, **inputs).last_hidden_state
        hidden_MH = hidden_BTH[input_ids == self.marker_id]
        # ZeRO-3 gathers the weight only if it is read here, within a forward pass.
        return linear(hidden_MH, self.backbone.get_output_embeddings().weight[self.judgment_ids])


@dataclass(frozen=True, slots=True)
class Prm:
    """Holds a PRM with the renderer that builds its inputs and the contents of its prm.json.

    The model returns one pair of logits per step.
    """

    model: PrmModel
    renderer: Renderer
    info: PrmInfo

    @property
    def processor(self) -> Any:
        return self.renderer.processor


def initialize_prm(
    base: str,
    tokens: PrmTokens,
    add_missing_tokens: bool = False,
    dtype: torch.dtype = torch.float32,
    pixel_limits: Mapping[str, int] = NO_LIMITS,
) -> Prm:
    """Create a PRM from a language or vision-language model, given as a folder or hub id.

    The marker becomes a special token. Yes and No must already be single tokens unless `add_missing_tokens` is set.
    Input and output embeddings of new tokens are initialized with the mean of the existing ones. `pixel_limits` are
    those of prm.json.
    """
    backbone, processor = load_backbone(base, dtype)
    info = PrmInfo(tokens=tokens, base=base, **pixel_limits)
    with model_errors(base):
        return _initialized(backbone, processor, info, add_missing_tokens)


def _initialized(backbone: PreTrainedModel, processor: Any, info: PrmInfo, add_missing_tokens: bool) -> Prm:
    tokenizer, tokens = tokenizer_of(processor), info.tokens
    known = len(tokenizer)  # embeddings may have more rows, because they are padded to round sizes
    tokenizer.add_tokens([AddedToken(tokens.marker, normalized=False)], special_tokens=True)
    if add_missing_tokens:
        missing = [t for t in (tokens.yes, tokens.no) if len(tokenizer.encode(t, add_special_tokens=False)) != 1]
        tokenizer.add_tokens([AddedToken(token, single_word=True, normalized=False) for token in missing])
    _extend_embeddings(backbone, known, len(tokenizer))
    return _assemble(backbone, processor, info)


def load_prm(path: str | Path, dtype: torch.dtype | Literal["auto"] = torch.float32) -> Prm:
    """Load a PRM written by `save_prm`, in evaluation mode; raise CheckpointError for any other folder."""
    info = read_info(path)
    if info.format != FORMAT:
        raise CheckpointError(
            f"{path}: has format {info.format!r}, which only supports scoring, but this command needs {FORMAT!r}; use "
            "a model trained by mmprm train"
        )
    backbone, processor = load_backbone(str(path), dtype)
    with model_errors(str(path)):
        prm = _assemble(backbone, processor, info)
    prm.model.eval()
    return prm


def save_prm(path: str | Path, prm: Prm, weights: dict[str, Tensor] | None = None) -> None:
    """Write the PRM atomically as a plain Hugging Face checkpoint with processor and prm.json.

    `weights` is the backbone's state dict if it was gathered from several ranks.
    """
    with new_model_folder(path) as folder:
        save_backbone(prm.model.backbone, folder, weights)
        prm.processor.save_pretrained(folder)
        write_info(folder, prm.info)


def _assemble(backbone: PreTrainedModel, processor: Any, info: PrmInfo) -> Prm:
    renderer = Renderer(processor, info.tokens, info.pixel_limits)
    return Prm(PrmModel(backbone, renderer), renderer, info)


def _extend_embeddings(backbone: PreTrainedModel, known: int, wanted: int) -> None:
    """Extend the embeddings to at least `wanted` rows, and set rows `known` to `wanted` - 1 to the mean of all earlier
    rows."""
    if wanted > backbone.get_input_embeddings().num_embeddings:
        backbone.resize_token_embeddings(wanted, mean_resizing=False)
    # Keyed by identity, because tied embeddings share one table.
    tables = {id(t.weight): t.weight for t in (backbone.get_input_embeddings(), backbone.get_output_embeddings())}
    with torch.no_grad(), whole(tables.values(), changed=True):
        for weight_VH in tables.values():
            weight_VH[known:wanted] = weight_VH[:known].mean(dim=0)
