"""A trained process reward model in the form of another family, for tools that expect that one.

Shapes: C class [wrong, right], H hidden, V vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AddedToken, AutoModelForTokenClassification, Qwen2Config, Qwen2Model, Qwen2PreTrainedModel

from mmprm.backbone.load import whole_folder
from mmprm.backbone.processor import reads_pictures, tokenizer_of
from mmprm.errors import CheckpointError, ConfigError
from mmprm.prm.info import TOKENS, PrmInfo, PrmTokens, write_info
from mmprm.prm.judge import linear
from mmprm.prm.model import Prm, load_prm, save_prm
from mmprm.types import Problem, Solution

ExportFormat = Literal["mm-prm", "qwen", "trl"]

_QUESTION, _PROCESS = "\ue000", "\ue001"
"""Characters without meaning, to find their places in a rendered text."""
_LABELS = {"id2label": {0: "wrong", 1: "right"}, "label2id": {"wrong": 0, "right": 1}}


def export_prm(path: str | Path, target: str | Path, format: ExportFormat) -> PrmInfo:
    """Write the PRM in `path` to the folder `target` in another form, and return the prm.json that stands there.

    mm-prm: the plain checkpoint with the tokens `<prm>`, Yes and No; pictures as before.
    qwen: the class and the protocol of Qwen2.5-Math-PRM, from a Qwen2 text backbone: `<extra_0>` has the embedding of
    the marker, the head's two classes are the output rows of No and Yes, and the chat template renders a user's and an
    assistant's turn as training did, so that the scores stay the same (its system prompt is left out).
    trl: a token classification model, from any text backbone that transformers has one for, with the same rows as head
    and the marker as step separator. TRL's rendering has neither chat template nor `Question:` and `Process:`, so the
    scores differ from the original's, and an aggregator or threshold chosen before is dropped: choose them again.

    The number format of the weights stays. Raises CheckpointError where the backbone has no such form, and
    ConfigError where the target exists.
    """
    if Path(target).exists():
        raise ConfigError(f"{target}: exists already; choose another folder")
    prm = load_prm(path, "auto")
    if format != "mm-prm" and reads_pictures(prm.processor):
        raise CheckpointError(f"{path}: reads pictures, for which the form {format!r} has no place; use mm-prm")
    return {"mm-prm": _own, "qwen": _qwen, "trl": _trl}[format](prm, Path(target))


class Qwen2ForProcessRewardModel(Qwen2PreTrainedModel):
    """The published class by its parameters alone: `model`, and `score` of two layers."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        self.model = Qwen2Model(config)
        hidden = config.hidden_size
        self.score = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2))
        self.post_init()


def two_layer_head(rows_CH: Tensor) -> nn.Sequential:
    """Linear, ReLU, Linear with the logits rows_CH · h, exactly: x = relu(x) − relu(−x) for each of the two.

    Four of the H hidden units are used."""
    hidden = rows_CH.shape[1]
    inner_HH, outer_CH = rows_CH.new_zeros(hidden, hidden), rows_CH.new_zeros(2, hidden)
    for row in range(2):
        inner_HH[2 * row], inner_HH[2 * row + 1] = rows_CH[row], -rows_CH[row]
        outer_CH[row, 2 * row], outer_CH[row, 2 * row + 1] = 1, -1
    return nn.Sequential(linear(inner_HH, rows_CH.new_zeros(hidden)), nn.ReLU(), linear(outer_CH, rows_CH.new_zeros(2)))


def _own(prm: Prm, target: Path) -> PrmInfo:
    if prm.info.tokens != PrmTokens():
        raise CheckpointError(
            f"the form mm-prm has the tokens <prm>, Yes and No; this model was trained with {prm.info.tokens}"
        )
    save_prm(target, prm)
    return prm.info


def _qwen(prm: Prm, target: Path) -> PrmInfo:
    backbone, tokens = prm.model.backbone, TOKENS["qwen"]
    if not isinstance(backbone.config, Qwen2Config):
        raise CheckpointError(f"{type(backbone).__name__}: the form 'qwen' is for Qwen2 text models; use trl")
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
        raise CheckpointError(f"{name}: transformers has no token classification model of its kind") from error
    tokens = TOKENS["trl"].model_copy(update={"marker": prm.info.tokens.marker})
    dropped = {"aggregator": None, "aggregator_evidence": None, "threshold": None}
    return _save(target, model, prm, prm.info.model_copy(update={"format": "trl", "tokens": tokens, **dropped}))


def _rows(prm: Prm) -> Tensor:
    no_yes = [prm.renderer.no_id, prm.renderer.yes_id]
    return prm.model.backbone.get_output_embeddings().weight[no_yes].detach().clone()


def _add_marker(prm: Prm, marker: str) -> None:
    """A token with the same embedding as the one that was trained."""
    tokenizer, backbone = tokenizer_of(prm.processor), prm.model.backbone
    tokenizer.add_tokens([AddedToken(marker, normalized=False)], special_tokens=True)
    if len(tokenizer) > backbone.get_input_embeddings().weight.shape[0]:
        backbone.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    weight_VH = backbone.get_input_embeddings().weight
    with torch.no_grad():
        weight_VH[tokenizer.convert_tokens_to_ids(marker)] = weight_VH[prm.renderer.marker_id]


def _template(prm: Prm) -> str:
    """A chat template that writes a user's and an assistant's turn as the MM-PRM renderer writes a solution."""
    text = prm.renderer.render(Solution(Problem("", _QUESTION, ""), (_PROCESS,)))
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
    """A model of another class around the same decoder."""
    backbone = prm.model.backbone
    config = type(backbone.config).from_dict({**backbone.config.to_dict(), **_LABELS})
    with torch.device("meta"):
        model = kind(config)
    setattr(model, model.base_model_prefix, backbone.model)
    model.score = head
    return model


def _save(target: Path, model: Any, prm: Prm, info: PrmInfo) -> PrmInfo:
    with whole_folder(target) as folder:
        model.save_pretrained(folder)
        prm.processor.save_pretrained(folder)
        write_info(folder, info)
    return info
