"""Load the frozen models of a trainer: the reference model and the distillation teacher."""

from __future__ import annotations

import torch
from torch import nn

from mmprm.backbone.load import load_backbone
from mmprm.backbone.masks import use_block_masks
from mmprm.backbone.processor import tokenizer_of
from mmprm.errors import ConfigError
from mmprm.preflight import check_model, load_template_owner
from mmprm.training.engine import for_inference
from mmprm.training.ranks import Ranks
from mmprm.training.sharding import loading_in_parts
from policy_rl.trainer.config import TrainerConfig, reference_sharding
from policy_rl.trainer.policy import Policy


def frozen_policy(
    model: str, like: Policy, config: TrainerConfig, ranks: Ranks, block_masks: bool, shares_features: bool
) -> nn.Module:
    """Load a frozen model that computes log-probabilities in the same way as `like`, and shard it for inference.

    Set `block_masks` if its rows hold several responses and it runs on a GPU. With `shares_features`, it uses the
    policy's image features, because it has the same vision tower.
    """
    sharding = reference_sharding(config)
    dtype = torch.bfloat16 if config.optimization.precision == "bf16" else torch.float32
    with loading_in_parts(sharding):
        backbone = load_backbone(model, dtype)[0]
    if block_masks:
        use_block_masks(backbone)
    frozen = Policy(backbone, like.temperature, False, like.banned, like.float32_logits)
    if shares_features:
        frozen.image_features = like.image_features
    return for_inference(frozen, sharding, ranks)


def check_teacher(model: str, teacher: str) -> None:
    """Raise an error if the teacher is not a complete model, or ConfigError if it cannot score the policy's tokens.

    Only configurations and tokenizers are loaded.
    """
    from transformers import AutoConfig

    check_model(teacher)
    kinds = [AutoConfig.from_pretrained(each, trust_remote_code=False).model_type for each in (model, teacher)]
    if kinds[0] != kinds[1]:
        raise ConfigError(
            f"trainer.distillation.teacher={teacher} is a {kinds[1]} model, but engine.model={model} is a {kinds[0]} "
            "model; both read the same inputs, so use a teacher of the same architecture"
        )
    words = [_vocabulary(each) for each in (model, teacher)]
    if words[0] != words[1]:
        raise ConfigError(
            f"trainer.distillation.teacher={teacher} has another tokenizer than engine.model={model}, so their token "
            "probabilities cannot be compared; use a teacher of the same model family"
        )


def _vocabulary(model: str) -> dict[str, int]:
    owner = load_template_owner(model)
    return tokenizer_of(owner).get_vocab()
