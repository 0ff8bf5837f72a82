"""Detect predictable failures before engines, models or clusters start, and report each with its configuration key.

owner = check_policy(engine, sampling, prompt, problems, samples=8)     # processor or tokenizer; None for servers
check_prm(scorer); check_output(folder, "output")
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmprm.data.media_inputs import why_unread
from mmprm.errors import CheckpointError, ConfigError, DataError, SamplingError
from mmprm.hub_models import HUB_ID, check_hub_model
from mmprm.prompts import PromptConfig
from mmprm.rendering import check_rendering, render
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.types import Problem
from mmprm.weights import check_weights, shard_names


def check_policy(
    engine: EngineConfig,
    sampling: SamplingConfig,
    prompt: PromptConfig,
    problems: Sequence[Problem],
    samples: int = 1,
    key: str = "samples",
) -> Any:
    """Run the preflight checks of a policy, and return its processor or tokenizer, or None for a policy on servers.

    Raises ConfigError, DataError, CheckpointError or SamplingError if all problems would fail, or if a configuration
    key would make a single one fail. `samples` is the number of completions per prompt; `key` names its setting for
    error messages.
    """
    if sampling.temperature == 0 and samples > 1:
        raise ConfigError(
            f"sampling.temperature=0 must be above 0 with {key}={samples}, because all samples of a prompt would be "
            f"equal; try 1.0, or {key}=1"
        )
    _check_media_counts(engine, problems)
    if engine.servers is not None:
        _check_served(engine, prompt)
        return None
    check_model(engine.model)
    owner = load_template_owner(engine.model)
    for problem in problems:
        if reason := why_unread(owner, problem.media):
            raise DataError(f"problem {problem.id}: {reason} (engine.model={engine.model})")
    check_rendering(owner, problems, prompt, engine.model)
    _check_length(engine, sampling, prompt, problems, owner)
    return owner


def check_model(model: str) -> None:
    """Raise SamplingError or CheckpointError if `model` is neither a complete model folder nor a hub id."""
    folder = Path(model)
    if not folder.is_dir():
        if not HUB_ID.fullmatch(model):
            raise SamplingError(
                f"{model}: does not exist; give the folder of a checkpoint or a hub id such as owner/name"
            )
        check_hub_model(model)
        return
    if not (folder / "config.json").is_file():
        raise SamplingError(
            f"{model}: is not a model folder (it has no config.json); give a Hugging Face checkpoint, or convert a "
            "checkpoint of mmprm rl, sft or train with mmprm convert"
        )
    check_weight_files(folder)


def check_weight_files(folder: Path) -> None:
    """Raise CheckpointError if a model folder has no weights, or lacks a weight file listed in its index."""
    check_weights(str(folder))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = set(shard_names(index).values())
        missing = sorted(name for name in named if not (folder / name).is_file())
        if missing:
            raise CheckpointError(f"{folder}: lacks {missing[0]}, one of its {len(named)} weight files; copy it again")
    elif not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder}: holds no weights (*.safetensors); copy it again, or give another folder")
    for file in sorted(folder.glob("*.safetensors")):
        _check_header(file)


def _check_header(file: Path) -> None:
    """Read the header of a weight file; raise CheckpointError if the file is truncated or not in safetensors format."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np"):
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: is damaged ({error}); copy it again") from error


def load_template_owner(model: str) -> Any:
    """Load the model's processor, or the tokenizer of a text-only model, without loading weights."""
    if Path(model).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # transformers raises many exception types for incomplete folders
        raise CheckpointError(
            f"{model}: its processor or tokenizer cannot be loaded; give a complete model folder "
            f"({type(error).__name__}: {error})"
        ) from error


def check_prm(prm: str) -> None:
    """Raise CheckpointError if a PRM folder lacks required files, or if a hub id is not available."""
    folder = Path(prm)
    if not folder.is_dir():
        check_hub_model(prm)
    if not prm or not folder.is_dir():
        return
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{prm}: has no config.json; give the folder of a process reward model")
    check_weight_files(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise CheckpointError(f"{prm}: has no tokenizer (tokenizer.json); copy it again, or give another folder")


def check_prm_reads(prm: str, problems: Sequence[Problem]) -> None:
    """Raise DataError if problems have images but the process reward model in this folder is text-only."""
    folder = Path(prm)
    with_image = next((problem for problem in problems if problem.media), None)
    names = ("preprocessor_config.json", "processor_config.json")
    if with_image is not None and prm and folder.is_dir() and not any((folder / name).is_file() for name in names):
        raise DataError(
            f"problem {with_image.id}: has images, but scorer.prm={prm} reads text only; choose another one, or "
            "problems without images"
        )


def check_output(folder: str | Path, key: str, file: bool = False) -> None:
    """Raise ConfigError if `folder` is not writable.

    With `file=True`, `folder` is the path of a file, and its parent folder is checked.
    """
    path = Path(folder)
    inside = path.parent if file else path
    try:
        inside.mkdir(parents=True, exist_ok=True)
        if file and path.is_dir():
            raise IsADirectoryError(None, "is a folder")
        with tempfile.TemporaryFile(dir=inside) as probe:
            probe.write(b"x" * 4096)
    except OSError as error:
        raise ConfigError(
            f"{key}={folder}: cannot be written ({error.strerror or error}); choose another path"
        ) from error


def check_disk_space(folder: str | Path, key: str, model: str) -> None:
    """Raise ConfigError if the disk has too little free space to save the model."""
    check_output(folder, key)
    needed = sum(file.stat().st_size for file in Path(model).glob("*.safetensors"))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"{key}={folder}: has {free / 2**30:.1f} GiB free, but the model to be written there takes "
            f"{needed / 2**30:.1f} GiB, and checkpoints take more; free some space or choose another folder"
        )


def _check_media_counts(engine: EngineConfig, problems: Sequence[Problem]) -> None:
    for name, plural in (("images", "images"), ("videos", "videos"), ("audios", "audio recordings")):
        limit = getattr(engine, f"{name}_per_prompt")
        counts = {problem.id: len(getattr(problem, name)) for problem in problems}
        over = [problem_id for problem_id, count in counts.items() if count > limit]
        if over:
            most = max(over, key=counts.__getitem__)
            raise ConfigError(
                f"engine.{name}_per_prompt={limit}: {len(over)} of {len(problems)} problems have more {plural} (up to "
                f"{counts[most]}, in {most}); set it to {counts[most]}, or remove these problems"
            )


def _check_served(engine: EngineConfig, prompt: PromptConfig) -> None:
    assert engine.servers is not None, "the caller has checked that"
    if prompt.template == "raw":
        raise ConfigError(
            "prompt.template=raw needs engines of this run, because servers apply their own chat template; remove "
            "engine.servers, or give the server a template (vllm serve --chat-template)"
        )
    if prompt.chat_template is not None:
        raise ConfigError(
            "engine.chat_template applies to engines of this run only; give it to the server (vllm serve "
            "--chat-template)"
        )
    if prompt.template_options and engine.servers.dialect == "openai":
        raise ConfigError("prompt.template_options cannot be sent with engine.servers.dialect=openai; use dialect=vllm")


def _check_length(
    engine: EngineConfig, sampling: SamplingConfig, prompt: PromptConfig, problems: Sequence[Problem], owner: Any
) -> None:
    """Raise ConfigError if even the shortest prompt fills the model's context.

    Prints a note if completions must end before max_tokens.
    """
    from transformers import AutoConfig

    try:
        text_config = AutoConfig.from_pretrained(engine.model, trust_remote_code=False).get_text_config()
    except Exception as error:  # see load_template_owner
        raise CheckpointError(
            f"{engine.model}: config.json cannot be read; give a complete model folder ({type(error).__name__}: "
            f"{error})"
        ) from error
    declared = getattr(text_config, "max_position_embeddings", None)
    limit, name = engine.max_model_len, f"the tokens of engine.max_model_len={engine.max_model_len}"
    if limit is None:
        if declared is None or _stretches(text_config):
            return
        limit, name = declared, f"the {declared} tokens that {engine.model} reads"
    elif declared is not None and limit > declared and not _stretches(text_config):
        raise ConfigError(
            f"engine.max_model_len={limit} must be at most {declared}, the number of positions of {engine.model}; "
            "lower it, or leave it out"
        )
    shortest = min(problems, key=lambda problem: len(problem.question))
    tokenizer = getattr(owner, "tokenizer", owner)
    tokens = len(tokenizer(render(owner, shortest, "", prompt), add_special_tokens=False).input_ids)
    available = limit - tokens
    if available <= 0:
        raise ConfigError(
            f"{name} leave no room for a completion: the shortest prompt has {tokens} tokens; shorten the prompt, or "
            "raise engine.max_model_len if the model allows it"
        )
    if sampling.max_tokens > available:
        print(
            f"sampling.max_tokens={sampling.max_tokens} exceeds what {name} leave after the shortest prompt; "
            f"completions end after at most {available} tokens",
            file=sys.stderr,
        )


def _stretches(text_config: Any) -> bool:
    """Return whether RoPE scaling extends the context beyond the model's declared maximum."""
    scaling = getattr(text_config, "rope_parameters", None) or getattr(text_config, "rope_scaling", None) or {}
    return bool(scaling.get("factor")) if isinstance(scaling, dict) else True
