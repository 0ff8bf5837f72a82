"""Load a multimodal or text model from a checkpoint, and write a model folder that appears whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from mmprm import files
from mmprm.errors import CheckpointError
from mmprm.training.checkpoints import writing
from mmprm.weights import model_errors

_RESCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A folder to write into that takes the place of `path` in one step at the end, or not at all."""
    with writing(Path(path), "free space or choose another folder"), files.whole_folder(path) as folder:
        yield folder


def check_logits(backbone: PreTrainedModel) -> None:
    """Raise CheckpointError unless the logits are the output layer's rows on the last hidden state, nothing more."""
    text_config = backbone.config.get_text_config()
    if not hasattr(backbone, "model") or any(getattr(text_config, name, None) for name in _RESCALED_LOGITS):
        raise CheckpointError(
            f"{type(backbone).__name__}: its logits are not its output layer on its last hidden state; use a "
            "Qwen-VL, InternVL, Qwen or Llama model"
        )


def load_backbone(name: str, dtype: torch.dtype | Literal["auto"], kind: Any = None) -> tuple[PreTrainedModel, Any]:
    """A model with its output layer (or of class `kind`), and its processor, by folder or hub id."""
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise CheckpointError(f"{name}: has no config.json, so it is no model folder")
    with model_errors(name):
        # The code that comes with some checkpoints is never run.
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        pictures = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        kind = kind or (AutoModelForImageTextToText if pictures else AutoModelForCausalLM)
        # safetensors only: the older weight files are pickles.
        model, loading = kind.from_pretrained(
            name, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])[0]
        raise CheckpointError(
            f"{name}: has no weights for {missing} of {type(model).__name__}, which would be random; this is another "
            "kind of checkpoint, or an incomplete one"
        )
    return model, processor
