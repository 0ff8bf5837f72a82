"""Load a multimodal or text model from a checkpoint, and write model folders atomically."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from mmprm import files
from mmprm.backbone.omni import OMNI, OmniForConditionalGeneration, key_mapping
from mmprm.backbone.window_attention import use_window_batches
from mmprm.errors import CheckpointError
from mmprm.model_limits import check_loading
from mmprm.training.checkpoints import writing
from mmprm.weights import model_errors

_RESCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@contextmanager
def new_model_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `path` when the `with` block ends, or is deleted after an error."""
    with writing(Path(path), "free some disk space or choose another folder"), files.whole_folder(path) as folder:
        yield folder


def check_logits(backbone: PreTrainedModel) -> None:
    """Raise CheckpointError unless the logits are exactly the output layer applied to the last hidden state."""
    text_config = backbone.config.get_text_config()
    if not hasattr(backbone, "model") or any(getattr(text_config, name, None) for name in _RESCALED_LOGITS):
        raise CheckpointError(
            f"{type(backbone).__name__}: its logits are not the output layer applied to the last hidden state; use a "
            "Qwen-VL, InternVL, Qwen or Llama model"
        )


def class_of(config: Any) -> tuple[Any, Any]:
    """Return the class of a model with an output layer, and the part of its configuration that this class reads."""
    if config.model_type == OMNI:
        return OmniForConditionalGeneration, config.thinker_config
    images = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return (AutoModelForImageTextToText if images else AutoModelForCausalLM), config


def load_backbone(name: str, dtype: torch.dtype | Literal["auto"], kind: Any = None) -> tuple[PreTrainedModel, Any]:
    """Load a model and its processor from a folder or hub id.

    The model class is `kind`, by default the one with an output layer.
    """
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise CheckpointError(f"{name}: has no config.json, so it is not a model folder; give the folder of a model")
    with model_errors(name):
        # Code shipped with a checkpoint is never run.
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        check_loading(name, config.model_type)
        default, own = class_of(config)
        renamed = {"key_mapping": key_mapping()} if config.model_type == OMNI else {}
        kind = default if renamed else kind or default
        # Only safetensors: older weight files are pickles, which can run code.
        model, loading = kind.from_pretrained(
            name, config=own, dtype=dtype, use_safetensors=True, output_loading_info=True, **renamed
        )
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])[0]
        raise CheckpointError(
            f"{name}: has no weights for {missing} of {type(model).__name__}, which would be random; give a complete "
            "checkpoint of this kind"
        )
    _restore_rotary_frequencies(model)
    use_window_batches(model)
    return model, processor


def _restore_rotary_frequencies(model: PreTrainedModel) -> None:
    """Recompute every rotary-frequency buffer whose dtype is not float32.

    Under ZeRO-3, DeepSpeed converts each new tensor to the format of the weights; in bfloat16, the frequencies would be
    off by up to 1/256, and so would the angle at every position.
    """
    for module in model.modules():
        rounded = [name for name, buffer in module.named_buffers(recurse=False) if "inv_freq" in name]
        rounded = [name for name in rounded if getattr(module, name).dtype != torch.float32]
        for name in rounded:
            module.register_buffer(name, getattr(module, name).float(), persistent=False)
        if rounded:
            model._init_weights(module)
