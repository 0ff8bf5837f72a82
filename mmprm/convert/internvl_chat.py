"""Convert InternVL checkpoints in the older `internvl_chat` format (InternVL2, 2.5, 3, MM-PRM) to the native class.

The older format needs code from its repository. Its vision tower, projector and language model are those of
`InternVLForConditionalGeneration` under other names and with fused projections:

    vision_model.….attn.qkv        (3·H, …)          query, key, value
    language_model.….wqkv          (G·(Q + 2)·D, …)   InternLM2: G groups of Q query heads, a key head, a value head

InternLM2 is a Llama with fused projections. No remote code is run and no pickle is read.

Shapes: H hidden, D head size, G number of key-value heads, Q number of query heads per key-value head.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, InternVLConfig, InternVLForConditionalGeneration

from mmprm.backbone.load import new_model_folder
from mmprm.convert.internvl_processor import IMAGE_CONTEXT, TURN_END, native_processor
from mmprm.errors import CheckpointError
from mmprm.prm.info import PrmInfo, PrmTokens, write_info
from mmprm.weights import model_errors, shard_names

LANGUAGE_MODELS = {"InternLM2ForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "LlamaForCausalLM": "llama"}
"""Maps each language-model architecture of the older format to its model type in transformers."""

_LANGUAGE_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
)

_VISION_DEFAULTS = {
    "hidden_size": 3200,
    "num_hidden_layers": 48,
    "num_attention_heads": 25,
    "intermediate_size": 12800,
    "image_size": 224,
    "patch_size": 14,
    "num_channels": 3,
    "hidden_act": "gelu",
    "norm_type": "rms_norm",
    "layer_norm_eps": 1e-6,
    "qkv_bias": False,
    "qk_normalization": True,
    "attention_dropout": 0.0,
    "dropout": 0.0,
}
"""Defaults of the older class for keys that are missing in config.json."""
_VISION_KEYS = {"qkv_bias": "attention_bias", "qk_normalization": "use_qk_norm", "dropout": "projection_dropout"}

_VISION_NAMES = {
    "embeddings.class_embedding": "embeddings.cls_token",
    "embeddings.position_embedding": "embeddings.position_embeddings",
    "embeddings.patch_embedding.": "embeddings.patch_embeddings.projection.",
    "encoder.layers.": "encoder.layer.",
    ".attn.proj.": ".attention.projection_layer.",
    ".attn.": ".attention.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".ls1": ".lambda_1",
    ".ls2": ".lambda_2",
}
_PROJECTOR_NAMES = {"mlp1.0.": "layer_norm.", "mlp1.1.": "linear_1.", "mlp1.3.": "linear_2."}
_INTERNLM2_NAMES = {
    "tok_embeddings.": "embed_tokens.",
    ".attention.wqkv.": ".self_attn.qkv.",
    ".attention.wo.": ".self_attn.o_proj.",
    ".feed_forward.w1.": ".mlp.gate_proj.",
    ".feed_forward.w2.": ".mlp.down_proj.",
    ".feed_forward.w3.": ".mlp.up_proj.",
    ".attention_norm.": ".input_layernorm.",
    ".ffn_norm.": ".post_attention_layernorm.",
}


def convert_internvl_chat(source: str | Path, target: str | Path) -> InternVLConfig:
    """Convert `source` to a native checkpoint with its processor. The folder `target` is written atomically.

    Weights are loaded one file at a time. If the tokenizer has `<prm>`, the model is a process reward model and gets a
    prm.json.
    """
    source, target = Path(source), Path(target)
    if target.exists():
        raise CheckpointError(f"{target}: exists already; choose another folder or remove it")
    with model_errors(str(source)):
        old = read_config(source)
        files = weight_files(source)
        processor = native_processor(source, old)
        tokenizer = processor.tokenizer
        config = native_config(old, tokenizer.convert_tokens_to_ids(IMAGE_CONTEXT), processor.image_seq_length)
    with new_model_folder(target) as folder:
        folder.mkdir(parents=True)
        _write_weights(files, config, old, folder)
        config.save_pretrained(folder)
        GenerationConfig(
            bos_token_id=config.text_config.bos_token_id,
            eos_token_id=tokenizer.convert_tokens_to_ids(TURN_END),
            pad_token_id=tokenizer.pad_token_id,
        ).save_pretrained(folder)
        processor.save_pretrained(folder)
        tokens = PrmTokens()
        if tokens.marker in tokenizer.get_vocab():
            write_info(folder, PrmInfo(tokens=tokens, base=str(source)))
    return config


def read_config(source: Path) -> dict[str, Any]:
    """Read config.json of an `internvl_chat` folder. Raises CheckpointError if the model cannot be converted."""
    file = source / "config.json"
    try:
        old = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); give the folder of an internvl_chat model") from error
    if old.get("model_type") != "internvl_chat":
        raise CheckpointError(
            f"{file}: model_type={old.get('model_type')!r} must be 'internvl_chat'; give such a model (native models "
            "need no conversion)"
        )
    language, vision = old["llm_config"], _VISION_DEFAULTS | old["vision_config"]
    image_size = old.get("force_image_size") or vision["image_size"]
    rules = [
        ("llm_config.architectures", language["architectures"][0], tuple(LANGUAGE_MODELS)),
        ("ps_version", old.get("ps_version", "v1"), ("v2",)),
        ("select_layer", old.get("select_layer", -1), (-1,)),
        ("use_llm_lora", old.get("use_llm_lora", 0), (0,)),
        ("use_backbone_lora", old.get("use_backbone_lora", 0), (0,)),
        ("force_image_size", image_size, (vision["image_size"],)),
        ("llm_config.rope_pos_id_version", language.get("rope_pos_id_version", "default"), ("default",)),
        ("quantization_config", old.get("quantization_config"), (None,)),
    ]
    if vision["qk_normalization"]:
        rules.append(("vision_config.layer_norm_eps", vision["layer_norm_eps"], (1e-6,)))
    for key, found, allowed in rules:
        if found not in allowed:
            raise CheckpointError(
                f"{file}: {key}={found!r} must be {' or '.join(map(repr, allowed))}, which the native class requires; "
                "choose another model, because this one cannot be converted"
            )
    return old


def native_config(old: Mapping[str, Any], image_token_id: int, image_tokens: int) -> InternVLConfig:
    """Convert config.json to the configuration of the native class. `image_tokens` is the number of tokens per tile."""
    language, vision = old["llm_config"], _VISION_DEFAULTS | old["vision_config"]
    architecture = language["architectures"][0]
    text = {key: language[key] for key in _LANGUAGE_KEYS if key in language}
    if architecture == "InternLM2ForCausalLM":
        text["attention_bias"] = language.get("bias", True)
    tied = language.get("tie_word_embeddings", False)
    return InternVLConfig(
        architectures=["InternVLForConditionalGeneration"],
        text_config={**text, "model_type": LANGUAGE_MODELS[architecture], "tie_word_embeddings": tied},
        vision_config={_VISION_KEYS.get(key, key): vision[key] for key in _VISION_DEFAULTS},
        image_token_id=image_token_id,
        image_seq_length=image_tokens,
        downsample_ratio=old.get("downsample_ratio", 0.5),
        tie_word_embeddings=tied,
        dtype=old.get("torch_dtype") or old.get("dtype"),
    )


def native_tensors(name: str, tensor: Tensor, config: InternVLConfig, internlm2: bool) -> Iterator[tuple[str, Tensor]]:
    """Convert a tensor's name to the native class, and yield (name, tensor). Fused query, key and value weights are
    split into three tensors."""
    part, _, rest = name.partition(".")
    if part == "vision_model":
        new = f"model.vision_tower.{_renamed(rest, _VISION_NAMES)}"
        parts = tensor.chunk(3) if ".attention.qkv." in new else (tensor,)
    elif part == "mlp1":
        new, parts = f"model.multi_modal_projector.{_renamed(name, _PROJECTOR_NAMES)}", (tensor,)
    elif rest in ("lm_head.weight", "output.weight") and part == "language_model":
        new, parts = "lm_head.weight", (tensor,)
        if config.tie_word_embeddings:  # the native class has no separate weight for a tied output layer
            return
    elif rest.startswith("model.") and part == "language_model":
        new = f"model.language_model.{rest.removeprefix('model.')}"
        new = _renamed(new, _INTERNLM2_NAMES) if internlm2 else new
        parts = split_wqkv(tensor, config.text_config) if ".self_attn.qkv." in new else (tensor,)
    else:
        raise CheckpointError(f"{name}: is not a weight of an internvl_chat model; merge adapters before converting")
    names = [new] if len(parts) == 1 else [new.replace(".qkv.", f".{kind}_proj.") for kind in "qkv"]
    yield from zip(names, parts, strict=True)


def split_wqkv(fused: Tensor, text_config: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Split InternLM2's fused attention weight into the query, key and value weights.

    Their shapes are (G·(Q + 2)·D, …) for the fused weight, (G·Q·D, …) for the query, and (G·D, …) for key and value. G
    is the number of key-value heads, Q the number of query heads per key-value head, and D the head dimension. A bias
    has only the first dimension.
    """
    groups = text_config.num_key_value_heads
    queries = text_config.num_attention_heads // groups
    size = text_config.hidden_size // text_config.num_attention_heads
    # InternLM2 stores the queries of each group next to the group's key and value.
    heads = fused.reshape(groups, queries + 2, size, *fused.shape[1:])
    parts = heads[:, :queries], heads[:, queries], heads[:, queries + 1]
    query, key, value = (part.reshape(-1, *fused.shape[1:]) for part in parts)
    return query, key, value


def weight_files(source: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint folder, sorted by name."""
    index = source / "model.safetensors.index.json"
    if index.is_file():
        files = [source / name for name in sorted(set(shard_names(index).values()))]
    else:
        files = [source / "model.safetensors"]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        pickles = "; save the model as safetensors first, because its .bin files are pickles, which can run code"
        way_out = pickles if list(source.glob("*.bin")) else "; download the missing files"
        raise CheckpointError(f"{source}: {', '.join(missing)} does not exist{way_out}")
    return files


def _write_weights(files: list[Path], config: InternVLConfig, old: Mapping[str, Any], folder: Path) -> None:
    """Convert the weight files one by one. Raises CheckpointError if names or shapes differ from the native class."""
    with torch.device("meta"):
        model = InternVLForConditionalGeneration(config)
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    internlm2 = old["llm_config"]["architectures"][0] == "InternLM2ForCausalLM"
    weight_map: dict[str, str] = {}
    size = 0
    for number, file in enumerate(files, start=1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors" if len(files) > 1 else "model.safetensors"
        try:
            with safe_open(file, framework="pt") as stored:
                tensors = {
                    new: tensor.contiguous()
                    for key in stored.keys()  # noqa: SIM118 - not a dictionary
                    for new, tensor in native_tensors(key, stored.get_tensor(key), config, internlm2)
                }
        except SafetensorError as error:
            raise CheckpointError(f"{file}: is not a whole safetensors file ({error}); download it again") from error
        for key, tensor in tensors.items():
            if key not in expected or tensor.shape != expected[key]:
                raise CheckpointError(
                    f"{file}: {key} has shape {tuple(tensor.shape)}, but according to config.json "
                    f"{f'it must have {tuple(expected[key])}' if key in expected else 'it must not exist'}; take "
                    "config and weights from the same model"
                )
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        size += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    missing = sorted(expected.keys() - weight_map.keys())
    if missing:
        raise CheckpointError(
            f"{files[0].parent}: lacks {len(missing)} weights, for example {missing[0]}; download the whole model"
        )
    if len(files) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def _renamed(name: str, table: Mapping[str, str]) -> str:
    """Replace each occurrence of a key of `table` in a tensor's name with the key's value; earlier keys take
    precedence."""
    pattern = "|".join(map(re.escape, table))
    return re.sub(pattern, lambda match: table[match[0]], name)
