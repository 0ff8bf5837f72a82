"""Compute log-probabilities, entropies and values of response tokens with the trained policy.

A row of a batch is a prompt followed by one response, or by several that share the prompt and their common prefixes.
Each response in such a row attends only to the prompt and its own tokens. Its positions continue from the end of the
prompt, as if it had its own row.

Shapes: B row, L token of a row, X axis of the positions (M-RoPE has three), N response of the batch, T token of a
response, M response token (of all responses), H hidden, V vocabulary, F image token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from mmprm.backbone.image_features import FeatureCache, ImageSet
from mmprm.backbone.load import check_logits
from mmprm.backbone.masks import attention_mask
from policy_rl.trainer.output_layer import at_least_float32, token_logprobs


@dataclass(frozen=True, slots=True)
class PolicyInputs:
    """Contains the input tensors of a micro-batch (see policy_rl.trainer.batch)."""

    input_ids_BL: Tensor
    position_ids: Tensor
    """Position ids of shape (B, L), or (X, B, L) if the model has several position axes (M-RoPE)."""
    end_BL: Tensor | None
    """For each token, the index of the last token in its row that attends to it. None if every row has one response."""
    present_BL: Tensor
    """Attention mask: True on tokens, False on padding."""
    read_NT: Tensor
    """Flat index, among all B·L tokens, of the token that predicts each response token (the one before it)."""
    token_NT: Tensor
    response_NT: Tensor
    """Mask of response tokens: False on padding and on tokens that are not trained on."""
    images: dict[str, Tensor]
    """Processor outputs for the images, each included once. Empty if the vision tower does not run."""
    feature_F: Tensor | None
    """Index of the image feature of each image token in the batch. None if every feature is used once, in order."""
    shows_images: bool
    """False if `images` is a placeholder for the vision tower, which must run on every rank if it runs on one. Its
    features are multiplied by 0."""
    image_sets: tuple[ImageSet, ...] = ()
    """Descriptions of the image inputs in `images`: one for each prompt with images, in order."""

    def to(self, device: torch.device) -> PolicyInputs:
        """Copy the inputs to a device."""
        return PolicyInputs(**{field.name: _moved(getattr(self, field.name), device) for field in fields(self)})


class PolicyOutput(NamedTuple):
    """Contains the policy's outputs per response token, with 0 on padding.

    `values_NT` are the critic's values of the states before each token.
    """

    logprobs_NT: Tensor
    entropy_NT: Tensor
    values_NT: Tensor | None


class Policy(nn.Module):
    """Computes log-probabilities of response tokens under the sampling distribution, softmax(logits / temperature).

    `banned` tokens have probability 0. `critic` adds a value head, initialized to 0, on the same hidden states.
    `float32_logits` is explained in `token_logprobs`.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        temperature: float = 1.0,
        critic: bool = False,
        banned: Sequence[int] = (),
        float32_logits: bool = True,
    ) -> None:
        super().__init__()
        check_logits(backbone)
        assert temperature > 0, "greedy samples have no log-probabilities to train on"
        self.backbone = backbone
        self.temperature = temperature
        self.banned = list(banned)
        self.float32_logits = float32_logits
        self.value_head = ValueHead(backbone.config.get_text_config().hidden_size, 1) if critic else None
        self.image_features = FeatureCache()
        self.detach_values = False
        """Whether the values' gradient stops at the hidden states, so that only the value head is trained."""
        if self.value_head is not None:
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
            self.value_head.to(backbone.dtype)

    def forward(self, inputs: PolicyInputs) -> PolicyOutput:
        """Return log-probabilities, entropies and values of the response tokens."""
        hidden_BLH = self._hidden(inputs)
        hidden_MH = hidden_BLH.flatten(0, 1)[inputs.read_NT[inputs.response_NT]]
        # Read the weight here, within a forward pass, so that ZeRO-3 gathers it.
        output = self.backbone.get_output_embeddings()
        logprobs_M, entropy_M = token_logprobs(
            hidden_MH,
            output.weight,
            output.bias,
            inputs.token_NT[inputs.response_NT],
            self.temperature,
            self.banned,
            self.float32_logits,
        )
        values_NT = None
        if self.value_head is not None:
            values_M = self.value_head(hidden_MH.detach() if self.detach_values else hidden_MH).squeeze(-1)
            values_NT = _spread(values_M.to(logprobs_M.dtype), inputs.response_NT)
        logprobs_NT, entropy_NT = _spread(logprobs_M, inputs.response_NT), _spread(entropy_M, inputs.response_NT)
        return PolicyOutput(logprobs_NT, entropy_NT, values_NT)

    def _hidden(self, inputs: PolicyInputs) -> Tensor:
        """Run the backbone and return its last hidden states.

        The vision tower runs first, even if its features are not used: under ZeRO-3 all ranks must gather the same
        weights in the same order.
        """
        images, stand_in = {}, 0.0
        if inputs.images:
            features = self.image_features(self.backbone.model.get_image_features, inputs.images, inputs.image_sets)
            if inputs.shows_images:
                images["mm_encoder_outputs"] = {"image": _repeated(features, inputs.feature_F)}
            elif features is not None:
                stand_in = sum(feature.sum() for feature in _each(features.pooler_output)) * 0.0
        hidden_BLH = self.backbone.model(
            input_ids=inputs.input_ids_BL,
            position_ids=inputs.position_ids,
            attention_mask=inputs.present_BL if inputs.end_BL is None else attention_mask(inputs.end_BL),
            use_cache=False,
            **images,
        ).last_hidden_state
        return hidden_BLH + stand_in


class ValueHead(nn.Linear):
    """Computes values W·h + b in float32 or better: near 0.5, bfloat16 has a resolution of only 0.002."""

    def forward(self, hidden_MH: Tensor) -> Tensor:
        """Return the value of each hidden state."""
        hidden_MH, weight_1H, bias_1 = (at_least_float32(each) for each in (hidden_MH, self.weight, self.bias))
        return linear(hidden_MH, weight_1H, bias_1)


@contextmanager
def without_adapters(backbone: nn.Module) -> Iterator[None]:
    """Disable LoRA adapters while the `with` block runs, so that the base model is used."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in backbone.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def _spread(values_M: Tensor, response_NT: Tensor) -> Tensor:
    return values_M.new_zeros(response_NT.shape).masked_scatter(response_NT, values_M)


def _each(features: Any) -> tuple[Tensor, ...]:
    """Return the image features as a tuple: one tensor per image (Qwen-VL), or one for all images (InternVL)."""
    return tuple(features) if isinstance(features, tuple | list) else (features,)


def _repeated(features: Any, feature_F: Tensor | None) -> Any:
    """Repeat the features of images that occur in several rows, including Qwen3-VL's deepstack features."""
    if feature_F is None:
        return features
    features.pooler_output = _chosen(features.pooler_output, feature_F)
    if getattr(features, "deepstack_features", None):
        features.deepstack_features = [_chosen(layer, feature_F) for layer in features.deepstack_features]
    return features


def _chosen(features: Any, feature_F: Tensor) -> Any:
    if isinstance(features, tuple | list):
        return (torch.cat(tuple(features))[feature_F],)
    return features.flatten(0, -2)[feature_F]


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: tensor.to(device, non_blocking=True) for name, tensor in value.items()}
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
