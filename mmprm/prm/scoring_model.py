"""Load a PRM of any family for scoring: the backbone, and the head that computes step scores.

Shapes: B solution, T token, M position at which a score is read (all of a batch, solution by solution), H hidden,
C output of the head: 2 for [incorrect, correct], 1 for a value.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModel
from transformers.utils import logging
from transformers.utils.hub import cached_file

from mmprm.backbone.load import check_logits, load_backbone
from mmprm.errors import CheckpointError
from mmprm.prm.formats import Format, open_format
from mmprm.prm.info import PrmInfo
from mmprm.weights import model_errors, shard_names

_HEADS = {"two_classes": ("score.", 2), "value": ("v_head.summary.", 1)}
"""Maps each kind of head to the name prefix of its weights in the checkpoint and its number of outputs."""


class ScoringModel(nn.Module):
    """Computes the log-odds that a step is correct: logit_correct − logit_incorrect, or the head's single output.

    P(correct) = sigmoid(log-odds), which for two logits equals softmax([correct, incorrect])[0]. The head runs
    in float32 and only at the positions where scores are read, so no B×T×vocabulary tensor is created.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head.float()

    def forward(self, read_BT: Tensor, **inputs: Any) -> Tensor:
        """Return log_odds_M, the log-odds of each step, for the outputs of `Format.encode`."""
        hidden_BTH = self.backbone(use_cache=False, **inputs).last_hidden_state
        logits_MC = self.head(hidden_BTH[read_BT].float())
        return logits_MC[:, 1] - logits_MC[:, 0] if logits_MC.shape[1] == 2 else logits_MC[:, 0]


def load_scoring_model(path: str, info: PrmInfo, dtype: torch.dtype = torch.float32) -> tuple[ScoringModel, Format]:
    """Load a PRM checkpoint of any family, given as a folder or hub id, in evaluation mode.

    Some families ship their own model code (Qwen2.5-Math-PRM, Skywork-o1). For these, the native backbone is loaded and
    the head is read from the weight files, so no remote code runs. Raises CheckpointError if the checkpoint does not
    match the family.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # loading a backbone would report the head's weights as unexpected
    try:
        return _load(path, info, dtype)
    finally:
        logging.set_verbosity(verbosity)


def _load(path: str, info: PrmInfo, dtype: torch.dtype) -> tuple[ScoringModel, Format]:
    with model_errors(path):
        if info.format in ("qwen", "trl", "skywork"):
            backbone, processor = load_backbone(path, dtype, AutoModel)
            form = open_format(processor, info)
            model = ScoringModel(backbone, _stored_head(path, info, *_HEADS[form.head]))
        else:
            whole, processor = load_backbone(path, dtype)
            check_logits(whole)
            form = open_format(processor, info)
            rows_2H = whole.get_output_embeddings().weight[[form.no_id, form.yes_id]]
            model = ScoringModel(whole.model, linear(rows_2H))
        return model.eval(), form


def linear(weight_OI: Tensor, bias_O: Tensor | None = None) -> nn.Linear:
    """Build a linear layer with copies of the given weights."""
    layer = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=bias_O is not None, dtype=weight_OI.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight_OI)
        if bias_O is not None:
            layer.bias.copy_(bias_O)
    return layer


def _stored_head(path: str, info: PrmInfo, prefix: str, outputs: int) -> nn.Module:
    """Load a head: one linear layer (`score.weight`), or several with ReLU in between (`score.0.weight`, …)."""
    weights = _weights(path, prefix)
    layers = [
        linear(weights[name], weights.get(name.removesuffix("weight") + "bias"))
        for name in sorted(weights)
        if name.endswith("weight")
    ]
    if not layers or layers[-1].out_features != outputs:
        found = f"{layers[-1].out_features} outputs" if layers else "none"
        raise CheckpointError(
            f"{path}: a {info.format} process reward model has a head {prefix}* with {outputs} outputs, but the "
            f"checkpoint has {found}; check scorer.format"
        )
    between = [module for layer in layers[1:] for module in (nn.ReLU(), layer)]
    return nn.Sequential(layers[0], *between)


def _weights(path: str, prefix: str) -> dict[str, Tensor]:
    """Load the weights whose names start with `prefix`, with the prefix removed from their names."""
    index = cached_file(path, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False)
    files = {"model.safetensors"}
    if index is not None:
        shards = shard_names(Path(index))
        files = {file for name, file in shards.items() if name.startswith(prefix)}
    weights = {}
    for file in files:
        with safe_open(cached_file(path, file), framework="pt") as tensors:
            names = [name for name in tensors.keys() if name.startswith(prefix)]  # noqa: SIM118 - not a mapping
            weights |= {name.removeprefix(prefix): tensors.get_tensor(name) for name in names}
    return weights
