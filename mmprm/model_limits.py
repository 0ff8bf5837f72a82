"""List the limitations of model types, with the reasons that error messages give.

A model type is the `model_type` of config.json. Types that are not listed have no known limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mmprm.errors import CheckpointError, ConfigError
from mmprm.weights import model_errors


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """Holds, for each feature, the reason why a model type does not support it, or None if the feature is supported."""

    packing: str | None = None
    """Packed rows with several solutions or responses, which need a custom attention mask in every layer."""
    planning: str | None = None
    """Memory and time estimates of `mmprm plan`."""
    loading: str | None = None
    """Training, and scoring with transformers."""
    cpu_engine: str | None = None
    """Sampling with vLLM on CPU."""
    cpu_reload: str | None = None
    """Loading new weights into a running vLLM engine on CPU, as in RL."""


_DELTA_NET = ModelLimits(
    packing="its gated delta-net layers are recurrent, so every token of a row reads all earlier ones",
    planning="the formulas assume that every layer attends, but most of its layers are gated delta-nets",
    cpu_engine="vLLM caches the prefixes of gated delta-nets only with chunked prefill, which is off on CPU",
)
_EXPERTS = ModelLimits(
    cpu_reload="vLLM packs the weights of experts for CPU when it starts, and misreads them when they are loaded again"
)
_OMNI = ModelLimits(
    packing="the positions of its videos and audio are computed for whole sequences",
)
_OMNI_3 = ModelLimits(
    loading="mmprm has a model class for Qwen2.5-Omni, but not for this one, which has experts, other towers and other "
    "positions",
    planning="the formulas have no audio tower together with experts",
)
LIMITS: Mapping[str, ModelLimits] = MappingProxyType(
    dict.fromkeys(("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next"), _DELTA_NET)
    | dict.fromkeys(("qwen3_moe", "qwen3_vl_moe"), _EXPERTS)
    | dict.fromkeys(("qwen2_5_omni", "qwen2_5_omni_thinker"), _OMNI)
    | dict.fromkeys(("qwen3_omni_moe", "qwen3_omni_moe_thinker"), _OMNI_3)
)
"""Maps each model type with limitations to its ModelLimits."""
_NONE = ModelLimits()


def limits_of(model_type: str) -> ModelLimits:
    """Return the known limits of a model type."""
    return LIMITS.get(model_type, _NONE)


def check_loading(model: str, model_type: str) -> None:
    """Raise CheckpointError if the model type can be neither trained nor used for scoring with transformers."""
    reason = limits_of(model_type).loading
    if reason is not None:
        raise CheckpointError(f"{model}: must not be of type {model_type}, because {reason}; use a Qwen2.5-Omni model")


def check_packing(model: str, packing: str) -> None:
    """Raise ConfigError if the model type cannot be trained with this `packing`. Only reads config.json."""
    if packing == "none":
        return
    model_type = _model_type(model)
    reason = limits_of(model_type).packing
    if reason is not None:
        raise ConfigError(
            f"packing={packing} must be none for a model of type {model_type}: {reason}; set packing=none"
        )


def check_planning(model: str, model_type: str, key: str) -> None:
    """Raise ConfigError if `mmprm plan` does not support the model type. `key` names the model's setting."""
    reason = limits_of(model_type).planning
    if reason is not None:
        raise ConfigError(
            f"{key}={model}: must not be of type {model_type} for mmprm plan, because {reason}; for a rough estimate, "
            f"name a published model of the same size, such as --set 'hardware.shapes={{{model}: "
            "Qwen3-VL-8B-Instruct}'"
        )


def check_cpu_engine(model: str) -> None:
    """Raise ConfigError if vLLM cannot sample from the model type on CPU. Only reads config.json."""
    model_type = _model_type(model)
    _check_on_cpu(
        f"engine.model={model}", model_type, limits_of(model_type).cpu_engine, "name a server in engine.servers"
    )


def check_cpu_reload(model: str) -> None:
    """Raise ConfigError if RL cannot send new weights of the model type to a vLLM engine on CPU."""
    model_type = _model_type(model)
    _check_on_cpu(f"mmprm rl: model={model}", model_type, limits_of(model_type).cpu_reload, "choose another model")


def _check_on_cpu(setting: str, model_type: str, reason: str | None, otherwise: str) -> None:
    if reason is not None:
        raise ConfigError(
            f"{setting}: must not be of type {model_type} on CPU, because {reason}; use a GPU, or {otherwise}"
        )


def _model_type(model: str) -> str:
    from transformers import AutoConfig

    with model_errors(model):
        return AutoConfig.from_pretrained(model, trust_remote_code=False).model_type
