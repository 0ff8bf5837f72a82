"""Export a trained process reward model to the format of another PRM implementation, for tools that expect it.

Shapes: C class [incorrect, correct], H hidden, V vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AddedToken, AutoModelForTokenClassification, Qwen2Config, Qwen2Model, Qwen2PreTrainedModel

from mmprm.backbone.load import new_model_folder
from mmprm.backbone.processor import reads_images, tokenizer_of
from mmprm.errors import CheckpointError, ConfigError
from mmprm.prm.info import TOKENS, PrmInfo, PrmTokens, write_info
from mmprm.prm.model import Prm, load_prm, save_prm
from mmprm.prm.scoring_model import linear
from mmprm.types import Problem, Solution

ExportFormat = Literal["mm-prm", "qwen", "trl"]

_QUESTION, _PROCESS = "\ue000", "\ue001"
"""Private-use characters that mark where the question and the steps appear in a rendered text."""
_LABELS = {"id2label": {0: "incorrect", 1: "correct"}, "label2id": {"incorrect": 0, "correct": 1}}


def export_prm(path: str | Path, target: str | Path, format: ExportFormat) -> PrmInfo:
    """Export the PRM at `path` to the folder `target` in another format, and return its new prm.json.

    - mm-prm: the plain checkpoint with the tokens `<prm>`, Yes and No, including images.
    - qwen: the class and protocol of Qwen2.5-Math-PRM, for Qwen2 text backbones. `<extra_0>` gets the embedding of the
      marker, and the two classes of the head are the output rows of No and Yes. The chat template renders a user turn
      and an assistant turn as in training, so the scores do not change. Its system prompt is omitted.
    - trl: a token classification model, for any text backbone with such a class in transformers. The head has the same
      rows as for qwen, and the marker separates steps. TRL renders neither a chat template nor `Question:` and
      `Process:`, so the scores differ. An aggregator or threshold chosen before is dropped and must be chosen again.

    The weights keep their dtype. Raises CheckpointError if the backbone does not support the format, and
    ConfigError if the target exists.
    """
    if Path(target).exists():
        raise ConfigError(f"{target}: exists already; choose another folder")
    prm = load_prm(path, "auto")
    if format != "mm-prm" and reads_images(prm.processor):
        raise CheckpointError(f"{path}: reads images, which format={format} does not support; use format=mm-prm")
    return {"mm-prm": _own, "qwen": _qwen, "trl": _trl}[format](prm, Path(target))


class Qwen2ForProcessRewardModel(Qwen2PreTrainedModel):
    """Defines a model with the parameter names of the published Qwen2.5-Math-PRM: `model`, and a two-layer `score`."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        self.model = Qwen2Model(config)
        hidden = config.hidden_size
        self.score = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2))
        self.post_init()


def two_layer_head(rows_CH: Tensor) -> nn.Sequential:
    """Build a Linear-ReLU-Linear head that maps a hidden state h to exactly the logits rows_CH · h.

    Each logit x is computed as relu(x) − relu(−x), so only four of the H hidden units are used.
    """
    hidden = rows_CH.shape[1]
    inner_HH, outer_CH = rows_CH.new_zeros(hidden, hidden), rows_CH.new_zeros(2, hidden)
    for row in range(2):
        inner_HH[2 * row], inner_HH[2 * row + 1] = rows_CH[row], -rows_CH[row]
        outer_CH[row, 2 * row], outer_CH[row, 2 * row + 1] = 1, -1
    return nn.Sequential(linear(inner_HH, rows_CH.new_zeros(hidden)), nn.ReLU(), linear(outer_CH, rows_CH.new_zeros(2)))


def _own(prm: Prm, target: Path) -> PrmInfo:
    if prm.info.tokens != PrmTokens():
        raise CheckpointError(
            f"format=mm-prm needs the tokens <prm>, Yes and No, but the model was trained with {prm.info.tokens}; use "
            "another format, or train with the default tokens"
        )
    save_prm(target, prm)
    return prm.info


def _qwen(prm: Prm, target: Path) -> PrmInfo:
    backbone, tokens = prm.model.backbone, TOKENS["qwen"]
    if not isinstance(backbone.config, Qwen2Config):
        raise CheckpointError(f"{type(backbone).__name__}: format=qwen supports only Qwen2 text models; use format=trl")
    rows_CH = _rows(prm)
    _add_marker(prm, tokens.marker)
    prm.processor.chat_template = _template(prm)
    model = _model(Qwen2ForProcessRewardModel, prm, two_layer_head(rows_CH))
    return _save(target, model, prm, prm.info.model_copy(update={"format": "qwen", "tokens": tokens}))


def _trl(prm: Prm, target: Path) -> PrmInfo:
    rows_CH = _rows(prm)
    try:
        model = _model(AutoModelForTokenClassification.from_config, prm, linear(rows_CH, rows_CH.new_zeros(2)))
    except ValueError as error:
        name = type(prm.model.backbone).__name__
        raise CheckpointError(
            f"{name}: transformers has no token classification class for it; use format=mm-prm"
        ) from error
    tokens = TOKENS["trl"].model_copy(update={"marker": prm.info.tokens.marker})
    dropped = {"aggregator": None, "aggregator_evidence": None, "threshold": None}
    return _save(target, model, prm, prm.info.model_copy(update={"format": "trl", "tokens": tokens, **dropped}))


def _rows(prm: Prm) -> Tensor:
    no_yes = [prm.renderer.no_id, prm.renderer.yes_id]
    return prm.model.backbone.get_output_embeddings().weight[no_yes].detach().clone()


def _add_marker(prm: Prm, marker: str) -> None:
    """Add a token with the same embedding as the trained marker."""
    tokenizer, backbone = tokenizer_of(prm.processor), prm.model.backbone
    tokenizer.add_tokens([AddedToken(marker, normalized=False)], special_tokens=True)
    if len(tokenizer) > backbone.get_input_embeddings().weight.shape[0]:
        backbone.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    weight_VH = backbone.get_input_embeddings().weight
    with torch.no_grad():
        weight_VH[tokenizer.convert_tokens_to_ids(marker)] = weight_VH[prm.renderer.marker_id]


def _template(prm: Prm) -> str:
    """Return a chat template that renders a user turn and an assistant turn exactly like the MM-PRM renderer."""
    text = prm.renderer.render(Solution(Problem("", _QUESTION, ""), (_PROCESS,)))
    # Rendering two characters that occur nowhere else shows what surrounds question and steps.
    before, rest = text.split(_QUESTION)
    between, after = rest.split(_PROCESS + prm.renderer.tokens.marker)
    user = f"{json.dumps(before)} + message['content'] + {json.dumps(between)}"
    assistant = f"message['content'] + {json.dumps(after)}"
    return (
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ " + user + " }}"
        "{% elif message['role'] == 'assistant' %}{{ " + assistant + " }}{% endif %}"
        "{% endfor %}"
    )


def _model(kind: Any, prm: Prm, head: nn.Module) -> nn.Module:
    """Build a model of the class `kind` that shares the PRM's decoder and uses `head`."""
    backbone = prm.model.backbone
    config = type(backbone.config).from_dict({**backbone.config.to_dict(), **_LABELS})
    # The meta device allocates no memory: the decoder is shared with the PRM, and `head` replaces the one built here.
    with torch.device("meta"):
        model = kind(config)
    setattr(model, model.base_model_prefix, backbone.model)
    model.score = head
    return model


def _save(target: Path, model: Any, prm: Prm, info: PrmInfo) -> PrmInfo:
    with new_model_folder(target) as folder:
        model.save_pretrained(folder)
        prm.processor.save_pretrained(folder)
        write_info(folder, info)
    return info
