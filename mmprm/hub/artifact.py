"""Find the PRM, policy or labels in a folder, and select the files to push to the Hugging Face Hub.

Only listed kinds of files are selected, so optimizer states, logs and samples are never pushed. Names of local models
are removed from the files' settings. A file that still contains a local path or a secret raises an error.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mmprm.errors import CheckpointError, ConfigError
from mmprm.files import parse_json
from mmprm.labels.build import embed_images
from mmprm.labels.parquet import LabeledExample, read_metadata, read_parquet, write_parquet
from mmprm.preflight import check_weight_files
from mmprm.prm.info import INFO_FILE

ArtifactKind = Literal["prm", "policy", "labels"]

LABELS_FILE = "labels.parquet"
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "vocab.txt", "merges.txt")
"""Glob patterns of the files to push from a model folder."""
_NEVER_PUSHED = {"settings.json", "tracker.json", "summary.json", "trainer_state.json", "demo.json"}
_KINDS = {"prm": "prm", "policy": "policy", LABELS_FILE: "labels"}
"""Maps the name of a file or folder in a run folder to the kind of artifact stored there."""
_MODEL_KEYS = {"_name_or_path", "name_or_path", "base", "base_model_name_or_path", "tokenizer_file"}
_TOKEN_TABLES = {"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json"}
"""Vocabulary files, whose tokens may look like local paths."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w-]*/[A-Za-z0-9][\w.-]*")
_MACHINE_PATH = re.compile(r"(?<![\w./:])(?:~|/(?:home|root|Users|mnt|tmp|scratch|work|data|opt|var))/[\w.-]+")
_SECRET_NAME = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_SECRET = re.compile(r"\b(?:hf_|sk-|ghp_)[A-Za-z0-9_-]{16,}")


@dataclass(frozen=True, slots=True)
class Artifact:
    """Holds the files of a PRM, policy or labels to push to the Hub. `files` maps each file name in the repository to a
    local file or to new content.

    `run` is the folder with the metrics and settings of the run that produced it. `examples` holds the labels; it is
    empty for a model.
    """

    kind: ArtifactKind
    path: Path
    run: Path
    files: dict[str, Path | bytes]
    base: str = ""
    """Hub id of the base model; empty if it is not on the Hub."""
    base_folder: Path | None = None
    """Folder of the base model, or None if it is not local."""
    examples: tuple[LabeledExample, ...] = ()
    origin: dict[str, str] = field(default_factory=dict)
    """Source, format and license of imported labels."""

    @property
    def repo_type(self) -> Literal["model", "dataset"]:
        """Return the Hub repository type: dataset for labels, else model."""
        return "dataset" if self.kind == "labels" else "model"


def read_artifact(source: Path, temporary: Path) -> Artifact:
    """Read the PRM, policy or labels in `source` as an artifact to push. Labels are rewritten to the folder `temporary`
    with embedded images.

    Raises CheckpointError or DataError if the contents are incomplete. Raises ConfigError if the source holds no
    artifact or several, or if a file contains a local path or a secret.
    """
    path, kind = _found(source)
    artifact = _labels(path, temporary) if kind == "labels" else _model(path, kind)
    for name, content in artifact.files.items():
        check_public(_text(content), name, is_table=name in _TOKEN_TABLES)
    return artifact


def _found(source: Path) -> tuple[Path, ArtifactKind]:
    if source.is_file() and source.suffix == ".parquet":
        return source, "labels"
    if (source / "config.json").is_file():
        return source, "prm" if (source / INFO_FILE).is_file() else "policy"
    from mmprm.training.checkpoints import is_checkpoint  # loads torch

    found = [name for name in _KINDS if (source / name).exists()]
    if len(found) == 1:
        return source / found[0], _KINDS[found[0]]
    if not found and is_checkpoint(source):
        raise ConfigError(
            f"{source}: holds a checkpoint with the state of the optimizer, which is not pushed; write its model with "
            f"`mmprm convert {source} FOLDER`, and push that folder"
        )
    if found:
        raise ConfigError(f"{source}: holds {' and '.join(found)}; give one of them, such as {source / found[0]}")
    raise ConfigError(
        f"{source}: holds no model and no labels; give the folder of a finished run of mmprm train, sft or rl, a model "
        "folder, or the Parquet file of mmprm labels"
    )


def _model(folder: Path, kind: ArtifactKind) -> Artifact:
    check_weight_files(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise CheckpointError(f"{folder}: has no tokenizer (tokenizer.json); copy it again, or give another folder")
    run = folder.parent if (folder.parent / "metrics.jsonl").is_file() else folder
    base = _base(folder, run)
    paths = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)})
    files = {path.name: _cleaned(path) for path in paths if path.name not in _NEVER_PUSHED}
    local = Path(base).expanduser()
    return Artifact(kind, folder, run, files, hub_name(base), local if local.is_dir() else None)


def _labels(path: Path, temporary: Path) -> Artifact:
    """Write a labels file that embeds images instead of naming their paths, and return it as an artifact."""
    examples = tuple(
        replace(
            each,
            problem=embed_images(each.problem),
            judged_by=None if each.judged_by is None else hub_name(each.judged_by) or Path(each.judged_by).name,
        )
        for each in read_parquet(path)
    )
    origin = read_metadata(path)
    write_parquet(temporary / LABELS_FILE, examples, origin)
    files = {LABELS_FILE: temporary / LABELS_FILE}
    return Artifact("labels", path, path.parent, files, examples=examples, origin=origin)


def stored_settings(run: Path) -> dict[str, Any]:
    """Read the settings that a training run has stored, or return {} if an earlier version of mmprm stored none."""
    path = run / "settings.json"
    found = parse_json(path.read_bytes(), str(path)) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def _base(folder: Path, run: Path) -> str:
    """Return the hub id or folder of the base model, or "" if it is unknown."""
    info, settings = folder / INFO_FILE, stored_settings(run)
    named = parse_json(info.read_bytes(), str(info)).get("base") if info.is_file() else None
    engine = settings.get("engine")
    return str(named or settings.get("model") or (engine.get("model") if isinstance(engine, dict) else None) or "")


def hub_name(model: str) -> str:
    """Return `model` if it is a hub id, or "" for a local folder or any other text."""
    return model if _HUB_NAME.fullmatch(model) and not Path(model).exists() else ""


def _cleaned(path: Path) -> Path | bytes:
    """Remove the names of local models from a JSON file; return its new content, or its path if nothing changed."""
    if path.suffix != ".json" or path.name in _TOKEN_TABLES:
        return path
    value = parse_json(path.read_bytes(), str(path), CheckpointError)
    cleaned = _without_local_models(value)
    return path if cleaned == value else (json.dumps(cleaned, indent=2, ensure_ascii=False) + "\n").encode()


def _without_local_models(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_local_models(each) for each in value]
    if not isinstance(value, Mapping):
        return value
    return {
        key: hub_name(inner) if key in _MODEL_KEYS and isinstance(inner, str) else _without_local_models(inner)
        for key, inner in value.items()
    }


def check_public(text: str, name: str, is_table: bool = False) -> None:
    """Raise ConfigError if a text to be published contains a local path or a secret."""
    found = next(_secrets(text), None)
    if found is not None:
        raise ConfigError(f"{name}: contains {found}, which must not be published; remove it from the file")
    path = None if is_table else _MACHINE_PATH.search(text)
    if path is not None:
        raise ConfigError(
            f"{name}: contains {path[0]!r}, a path of this machine, which must not be published; remove it from the "
            "file"
        )


def _secrets(text: str) -> Iterator[str]:
    """Yield a description of each secret in a text, without the secret itself."""
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= 8 and value in text:
            yield f"the value of the environment variable {name}"
    if _SECRET.search(text):
        yield "an access token"


def _text(content: Path | bytes) -> str:
    """Return the text of a file, or only the header of a safetensors file, to check it for secrets and local paths."""
    if isinstance(content, bytes):
        return content.decode("utf-8", "replace")
    if content.suffix == ".parquet":  # mmprm wrote its columns from checked values
        return ""
    with content.open("rb") as file:
        if content.suffix != ".safetensors":
            return file.read().decode("utf-8", "replace")
        return file.read(int.from_bytes(file.read(8), "little")).decode("utf-8", "replace")
