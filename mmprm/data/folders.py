"""Select the data files of a subset and split in a folder laid out like a Hub data set or written by `save_to_disk`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from mmprm.errors import DataError

FORMS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".parq": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
_PACKED = (".gz", ".bz2", ".xz")
_PACKABLE = ("jsonl", "json", "csv", "tsv")
_SPLITS = (
    *("train", "training", "test", "testing", "testmini", "validation", "valid", "val", "dev", "eval", "evaluation"),
    *("held_out", "heldout"),
)
_DEFAULT_SPLIT = "train"


def form_of(path: Path) -> str | None:
    """Return a file's format by its suffix: jsonl, json, csv, tsv, parquet or arrow, or None for other suffixes."""
    *_, before, last = ["", "", *(suffix.lower() for suffix in path.suffixes)]
    if last not in _PACKED:
        return FORMS.get(last)
    form = FORMS.get(before)
    return form if form in _PACKABLE else None


def names_split(parts: Sequence[str], split: str) -> bool:
    """Return whether a file is named after the given split (train.csv, train-00000.parquet, x_train.csv,
    train/0.parquet)."""
    *folders, name = (part.lower() for part in parts)
    split = split.lower()
    return split in folders or re.search(rf"(?:\A|[-_.]){re.escape(split)}(?:[-_.]|(?<!\d)\d|\Z)", name) is not None


def split_word(parts: Sequence[str]) -> str | None:
    """Return the common split name (train, test, …) in a file's name, or None if it contains none."""
    return next((word for word in _SPLITS if names_split(parts, word)), None)


def files_of_folder(folder: Path, split: str | None, subset: str | None) -> list[Path]:
    """Return the files of one split (default: train) and subset, sorted by name.

    Splits can be joined by "+", as on the Hub. Files with the Hub's own names (SPLIT-00000-of-00001.parquet) take
    precedence. If no file name mentions a split, all files belong to train. Raises DataError for a missing split or
    subset (listing what exists), for several subsets when none is chosen, and for a split in several formats.
    """
    if split is not None and "+" in split:
        return [file for part in split.split("+") for file in files_of_folder(folder, part.strip(), subset)]
    base = _subset_folder(folder, subset)
    if is_saved(base) or (base / "dataset_dict.json").is_file():
        return saved_files(base, split)
    files = sorted(path for path in base.rglob("*") if form_of(path) is not None and _holds_rows(path, base))
    wanted = split or _DEFAULT_SPLIT
    chosen = [path for path in files if names_split(path.relative_to(base).parts, wanted)]
    chosen = [path for path in chosen if _belongs(path.relative_to(base).parts, wanted)]
    shard = re.compile(rf"{re.escape(wanted)}-\d{{5}}-of-\d{{5}}\.", re.IGNORECASE)
    chosen = [path for path in chosen if shard.match(path.name)] or chosen  # image is also a part of non_image
    if not chosen and split is None and not any(split_word(path.relative_to(base).parts) for path in files):
        chosen = files
    if not chosen:
        splits = sorted({word for path in files if (word := split_word(path.relative_to(base).parts))})
        there = (
            f"it has {', '.join(splits)}; set problems.split"
            if splits
            else "name its files SPLIT.jsonl or SPLIT-….parquet"
        )
        raise DataError(f"{base}: holds no file of the split {wanted} (.jsonl, .json, .csv, .parquet, .arrow); {there}")
    found = {_subset_of(path.relative_to(base).parts) for path in chosen}
    if subset is None and len(found) > 1:
        names = ", ".join(sorted(name or "(none)" for name in found))
        raise DataError(
            f"{base}: holds several subsets: {names}; set problems.subset, or problems.path to one folder or file"
        )
    forms = sorted({form_of(path) or "" for path in chosen})
    if len(forms) > 1:
        raise DataError(
            f"{base}: holds {wanted} in several formats ({', '.join(forms)}); set problems.path to one file"
        )
    return chosen


def _belongs(parts: Sequence[str], split: str) -> bool:
    """Return whether a file's name contains the given split name, or no split name at all.

    A file name takes precedence over its folder: test/part-train.jsonl belongs to train.
    """
    return names_split(parts[-1:], split) or split_word(parts[-1:]) is None


def _holds_rows(path: Path, base: Path) -> bool:
    parts = path.relative_to(base).parts
    if any(part.startswith((".", "__")) for part in parts) or not path.is_file():
        return False
    # Folders also contain .json files with metadata, so a .json file must be named after a split to count as rows.
    return form_of(path) != "json" or split_word(parts) is not None


def _subset_of(parts: Sequence[str]) -> str | None:
    first = parts[0] if len(parts) > 1 else None
    return None if first is None or first.lower() == "data" or split_word((first, "")) else first


def _subset_folder(folder: Path, subset: str | None) -> Path:
    if subset is None:
        return folder
    for base in (folder / subset, folder / "data" / subset):
        if base.is_dir() and base.resolve().is_relative_to(folder.resolve()):
            return base
    parts = [path.relative_to(folder).parts for path in sorted(folder.rglob("*")) if form_of(path) is not None]
    there = sorted({name for name in map(_subset_of, parts) if name is not None and not name.startswith(".")})
    there_is = (
        f"set problems.subset to one of {', '.join(there)}" if there else "it has no subsets; set problems.subset=null"
    )
    raise DataError(f"{folder}: has no subset {subset!r}; {there_is}")


def is_saved(folder: Path) -> bool:
    """Return whether a folder was written by `Dataset.save_to_disk` of the `datasets` library."""
    return (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()


def saved_files(folder: Path, split: str | None) -> list[Path]:
    """Return the Arrow files of a Dataset, or of one split of a DatasetDict, written by save_to_disk."""
    name = "state.json" if is_saved(folder) else "dataset_dict.json"
    try:
        state = json.loads((folder / name).read_bytes())
        if name == "state.json":
            _check_saved_split(folder, state.get("_split"), split)
            return [folder / Path(file["filename"]).name for file in state["_data_files"]]
        splits = state["splits"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{folder / name}: was not written by save_to_disk ({type(error).__name__}: {error}); save the data set "
            "again"
        ) from error
    wanted = split or _DEFAULT_SPLIT
    if wanted not in splits:
        raise DataError(f"{folder}: has no split {wanted!r}; it has {', '.join(splits)}; set problems.split")
    return saved_files(folder / wanted, None)


def _check_saved_split(folder: Path, saved: str | None, split: str | None) -> None:
    if split is None or split == saved or names_split(folder.parts[-1:], split):
        return
    if saved is not None:
        raise DataError(f"{folder}: holds the split {saved!r}, not problems.split={split!r}; set problems.split=null")
    print(f"{folder}: problems.split={split} has no effect on a single data set; all rows are read", file=sys.stderr)
