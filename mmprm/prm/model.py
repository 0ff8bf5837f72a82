"""The process reward model: a language model whose output is read at the step markers, two logits each.

Shapes: B solution, T token, M marker (all markers of a batch, solution by solution), H hidden, 2 [Yes, No].
"""

from __future__ import annotations

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

from mmprm.backbone.load import check_logits, load_backbone, whole_folder
from mmprm.backbone.processor import tokenizer_of
from mmprm.errors import CheckpointError
from mmprm.prm.format import Renderer
from mmprm.prm.info import FORMAT, PrmInfo, PrmTokens, read_info, write_info
from mmprm.training.sharding import whole
from mmprm.weights import model_errors


class StepJudge(nn.Module):
    """Logits of [Yes, No] at every marker. Only these rows of the output layer are multiplied, so no B×T×vocabulary
    tensor exists; equal to the full logits at the marker positions."""

    def __init__(self, backbone: PreTrainedModel, renderer: Renderer) -> None:
        super().__init__()
        check_logits(backbone)
        self.backbone = backbone
        self.marker_id = renderer.marker_id
        self.judgement_ids = [renderer.yes_id, renderer.no_id]

    def forward(self, input_ids: Tensor, **inputs: Any) -> Tensor:
        """input_ids_BT and what else the processor made → logits_M2."""
        hidden_BTH = self.backbone.model(input_ids=input_ids, use_cache=False, **inputs).last_hidden_state
        hidden_MH = hidden_BTH[input_ids == self.marker_id]
        # Reading the weight here, within a forward, lets ZeRO-3 gather it.
        return linear(hidden_MH, self.backbone.get_output_embeddings().weight[self.judgement_ids])


@dataclass(frozen=True, slots=True)
class Prm:
    """`renderer` makes the inputs of `model`, which gives one pair of logits a step."""

    model: StepJudge
    renderer: Renderer
    info: PrmInfo

    @property
    def processor(self) -> Any:
        return self.renderer.processor


def initialise_prm(
    base: str, tokens: PrmTokens, add_missing_tokens: bool = False, dtype: torch.dtype = torch.float32
) -> Prm:
    """A PRM from any vision-language or language model, by folder or hub id.

    The marker becomes a special token; Yes and No must be tokens already unless `add_missing_tokens`. Embeddings of new
    tokens, in and out, start as the mean of all others.
    """
    backbone, processor = load_backbone(base, dtype)
    with model_errors(base):
        return _initialised(backbone, processor, base, tokens, add_missing_tokens)


def _initialised(
    backbone: PreTrainedModel, processor: Any, base: str, tokens: PrmTokens, add_missing_tokens: bool
) -> Prm:
    tokenizer = tokenizer_of(processor)
    known = len(tokenizer)
    tokenizer.add_tokens([AddedToken(tokens.marker, normalized=False)], special_tokens=True)
    if add_missing_tokens:
        missing = [t for t in (tokens.yes, tokens.no) if len(tokenizer.encode(t, add_special_tokens=False)) != 1]
        tokenizer.add_tokens([AddedToken(token, single_word=True, normalized=False) for token in missing])
    _extend_embeddings(backbone, known, len(tokenizer))
    return _assemble(backbone, processor, PrmInfo(tokens=tokens, base=base))


def load_prm(path: str | Path, dtype: torch.dtype | Literal["auto"] = torch.float32) -> Prm:
    """A folder written by `save_prm`, in evaluation mode. Raises CheckpointError for any other folder."""
    info = read_info(path)
    if info.format != FORMAT:
        raise CheckpointError(f"{path}: format {info.format!r} can be scored with; for this it must be {FORMAT!r}")
    backbone, processor = load_backbone(str(path), dtype)
    with model_errors(str(path)):
        prm = _assemble(backbone, processor, info)
    prm.model.eval()
    return prm


def save_prm(path: str | Path, prm: Prm, weights: dict[str, Tensor] | None = None) -> None:
    """Write a plain Hugging Face checkpoint with processor and prm.json; the folder appears whole or not at all.

    `weights` are the backbone's, where they were gathered from several ranks.
    """
    with whole_folder(path) as folder:
        prm.model.backbone.save_pretrained(folder, state_dict=weights)
        prm.processor.save_pretrained(folder)
        write_info(folder, prm.info)


def _assemble(backbone: PreTrainedModel, processor: Any, info: PrmInfo) -> Prm:
    renderer = Renderer(processor, info.tokens)
    return Prm(StepJudge(backbone, renderer), renderer, info)


def _extend_embeddings(backbone: PreTrainedModel, known: int, wanted: int) -> None:
    """Rows known…wanted become the mean of the rows before. Many vocabularies have spare rows, which are kept."""
    if wanted > backbone.get_input_embeddings().num_embeddings:
        backbone.resize_token_embeddings(wanted, mean_resizing=False)
    tables = {id(t.weight): t.weight for t in (backbone.get_input_embeddings(), backbone.get_output_embeddings())}
    with torch.no_grad(), whole(tables.values(), changed=True):
        for weight_VH in tables.values():
            weight_VH[known:wanted] = weight_VH[:known].mean(dim=0)
