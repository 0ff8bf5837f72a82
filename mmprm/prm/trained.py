"""Convert a training checkpoint to a Hugging Face model folder: `mmprm convert RUN/checkpoints/step-00000010 FOLDER`.

Checkpoints of mmprm rl, sft and train hold the trained weights in DeepSpeed's format. They name the base model, which
provides everything else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmprm.backbone.experts import save_backbone
from mmprm.backbone.load import load_backbone
from mmprm.errors import CheckpointError, ConfigError
from mmprm.files import whole_folder
from mmprm.preflight import check_model
from mmprm.prm.info import PrmTokens
from mmprm.prm.model import Prm, initialize_prm, save_prm
from mmprm.prompts import PromptConfig
from mmprm.rendering import end_of_turn
from mmprm.training.checkpoints import read_checkpoint, trained_weights
from mmprm.training.lora import LoraConfig, add_adapters, plain_weights

_PREFIX = "backbone."


@dataclass(frozen=True, slots=True)
class Trained:
    """Describes the model folder that was written; `kind` is "policy" or "process reward model"."""

    kind: str
    step: int
    checkpoint: Path


def convert_checkpoint(source: str | Path, target: str | Path) -> Trained:
    """Convert a checkpoint, or the newest one in a run folder, to a Hugging Face folder; no GPU is needed.

    Raises ConfigError if the target exists, and CheckpointError if the checkpoint is damaged or its base model cannot
    be found.
    """
    target = Path(target)
    if target.exists():
        raise ConfigError(f"{target}: exists already; choose another folder")
    path, state = read_checkpoint(Path(source))
    resume_key = state["identity"]
    base = resume_key.get("base") or resume_key.get("model")
    if not isinstance(base, str):
        raise CheckpointError(
            f"{path}: does not name the base model of its run; give a checkpoint that mmprm rl, sft or train wrote"
        )
    try:
        check_model(base)
    except Exception as error:
        raise CheckpointError(
            f"{path}: cannot find the base model of its run: {error}; convert it on the machine of the run"
        ) from error
    optimization = resume_key.get("optimization", resume_key)
    dtype = torch.bfloat16 if optimization.get("precision") == "bf16" else torch.float32
    if "target" in resume_key:
        _write_prm(path, resume_key, base, dtype, target)
        return Trained("process reward model", state["step"], path)
    _write_policy(path, resume_key, base, dtype, target)
    return Trained("policy", state["step"], path)


def _write_policy(path: Path, resume_key: dict[str, Any], base: str, dtype: torch.dtype, target: Path) -> None:
    backbone, processor = load_backbone(base, dtype)
    weights = _merged(path, resume_key, backbone, (), ())
    prompt = PromptConfig(**{name: value for name, value in resume_key.get("prompt", {}).items() if value is not None})
    if "conversations" in resume_key:  # after SFT, a base model may end its turns with another token
        _stop_at_end_of_turn(backbone, processor, prompt)
    if prompt.chat_template is not None:
        processor.chat_template = prompt.chat_template
    with whole_folder(target) as folder:
        save_backbone(backbone, folder, weights)
        processor.save_pretrained(folder)


def _write_prm(path: Path, resume_key: dict[str, Any], base: str, dtype: torch.dtype, target: Path) -> None:
    prm = initialize_prm(base, PrmTokens(**resume_key["tokens"]), resume_key.get("add_missing_tokens", False), dtype)
    model = prm.model
    weights = _merged(path, resume_key, model.backbone, [model.marker_id], model.judgment_ids)
    info = prm.info.model_copy(update={"labels": dict(resume_key["target"])})
    save_prm(target, Prm(model, prm.renderer, info), weights)


def _merged(
    path: Path, resume_key: dict[str, Any], backbone: Any, input_rows: Sequence[int], output_rows: Sequence[int]
) -> dict[str, Tensor]:
    """Return the state dict of the backbone with the checkpoint's weights, after merging any LoRA adapters."""
    if resume_key.get("lora"):
        add_adapters(backbone, LoraConfig(**resume_key["lora"]), input_rows, output_rows)
    own = backbone.state_dict(keep_vars=True)
    trained = {name: tensor for name, tensor in trained_weights(path).items() if name.startswith(_PREFIX)}
    found = {name.removeprefix(_PREFIX): tensor for name, tensor in trained.items()}
    strange = sorted(found.keys() - own.keys())
    shapes = sorted(name for name in found.keys() & own.keys() if found[name].shape != own[name].shape)
    if strange or shapes or not found:
        what = f"unknown {strange[0]}" if strange else f"another shape of {shapes[0]}" if shapes else "no weights"
        raise CheckpointError(
            f"{path}: does not match the base model of its run: {what}; restore the base model of that run"
        )
    replaced: dict[int, Tensor] = {}  # by identity, so that tied tensors stay tied
    for name, tensor in found.items():
        replaced.setdefault(id(own[name]), tensor.detach().to(own[name].dtype).contiguous())
    merged = {name: replaced.setdefault(id(tensor), tensor.detach()) for name, tensor in own.items()}
    return plain_weights(backbone, merged)


def _stop_at_end_of_turn(backbone: Any, processor: Any, prompt: PromptConfig) -> None:
    """Add the chat template's end-of-turn token to the EOS tokens of the generation config."""
    tokenizer = getattr(processor, "tokenizer", processor)
    special = sorted(map(re.escape, tokenizer.all_special_tokens), key=len, reverse=True)
    end = re.search("|".join(special), end_of_turn(processor, prompt)) if special else None
    settings = backbone.generation_config
    known = settings.eos_token_id
    known = set() if known is None else {known} if isinstance(known, int) else set(known)
    settings.eos_token_id = sorted(known | ({tokenizer.convert_tokens_to_ids(end[0])} if end else set())) or None
