"""Read the rows of a data set in any supported format. All commands use this reader.

File:    .jsonl (.ndjson), .json (a list, or one object per line), .csv, .tsv, each also as .gz, .bz2 or .xz;
         .parquet, .arrow. A list in .jsonl and JSON lines in .json are also read; suffixes are case-insensitive.
Pattern: data/*.jsonl, several such files of one folder.
Folder:  of such files, in the layout of the hub (SUBSET/SPLIT-….parquet, SUBSET/SPLIT/0000.parquet, SPLIT.jsonl), or
         written by `save_to_disk`.
Hub id:  owner/name.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from mmprm.config import Config, PathText
from mmprm.data.cells import cut
from mmprm.data.folders import files_of_folder, form_of, names_split, split_word
from mmprm.data.json_rows import READING_ERRORS, Rows, json_rows, jsonl_rows, open_packed, without_bom
from mmprm.errors import DataError

_DEFAULT_SPLIT = "train"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_BATCH = 64


class RowsConfig(Config):
    """Configures which rows are read: the source, split, subset and limit."""

    path: PathText
    """Source of the rows: a file, a pattern of files (data/*.jsonl), a folder, or a hub id such as owner/name. Files
    are .jsonl, .json, .csv or .tsv (also compressed, as .gz), .parquet or .arrow. A folder contains such files or was
    written by save_to_disk.
    """
    split: str | None = None
    """Split of a hub data set, or of a folder whose files or subfolders are named after it; null means train. Several
    splits are joined by "+". A single file that is named after another split is rejected.
    """
    subset: str | None = None
    """Configuration name of a hub data set, or subfolder of a folder with the same layout."""
    limit: int | None = Field(None, ge=1)
    """Maximum number of rows to read, from the start; null reads all."""


def read_rows(config: RowsConfig) -> Rows:
    """Yield up to `limit` rows as they are stored, in file order.

    Raises DataError, naming the file and line, for missing or unreadable data.
    """
    return itertools.islice(_all_rows(config), config.limit)


def _all_rows(config: RowsConfig) -> Rows:
    path = Path(config.path)
    if os.path.isdir(path):  # returns False, like exists below, for strings that cannot be paths
        files = files_of_folder(path, config.split, config.subset)
        return itertools.chain.from_iterable(map(read_file, files))
    if form_of(path) is not None and ("*" not in path.name or os.path.exists(path)):
        _check_single(path, config)
        return read_file(path)
    if "*" in path.name and os.path.isdir(path.parent):
        return itertools.chain.from_iterable(map(read_file, _matching(path)))
    exists = os.path.exists(path)
    if exists or not _HUB_ID.fullmatch(config.path):
        problem = "has an unsupported suffix" if exists else "does not exist"
        raise DataError(
            f"{cut(path, 200)}: {problem}; give a .jsonl, .json, .csv, .parquet or .arrow file, a folder of these, or "
            "a hub id"
        )
    return _hub_rows(config)


def _matching(pattern: Path) -> list[Path]:
    """Return the files that match a glob pattern such as data/*.jsonl, sorted by name."""
    files = sorted(path for path in pattern.parent.glob(pattern.name) if form_of(path) is not None and path.is_file())
    if not files:
        raise DataError(f"{pattern}: names no .jsonl, .json, .csv, .parquet or .arrow file; correct the pattern")
    return files


def _check_single(path: Path, config: RowsConfig) -> None:
    """Raise DataError for a subset or split that a single file cannot provide, instead of ignoring it."""
    if config.subset is not None and config.subset not in path.parts:
        raise DataError(
            f"{path}: problems.subset={config.subset!r} applies to a folder or a hub id, not to a file; set "
            "problems.path to the folder, or problems.subset=null"
        )
    if config.split is None or names_split(path.parts[-3:], config.split):
        return
    other = split_word(path.parts[-1:])
    if other is not None:
        raise DataError(
            f"{path}: problems.split={config.split!r}, but the file is named after the split {other!r}; give the file "
            "of that split, or set problems.split=null"
        )
    print(f"{path}: problems.split={config.split} has no effect on a single file; all rows are read", file=sys.stderr)


def read_file(path: Path) -> Rows:
    """Yield the rows of a file, whose suffix determines its format. Files with unknown suffixes are read as JSON
    Lines."""
    if not os.path.exists(path) or os.path.isdir(path):
        reason = "a folder" if os.path.isdir(path) else "it does not exist"
        raise DataError(f"{path}: cannot be read ({reason}); name an existing file")
    return _READERS[form_of(path) or "jsonl"](path)


def _table_rows(path: Path) -> Rows:
    """Yield the rows of a CSV or TSV file with a header line. Every cell is a string."""
    csv.field_size_limit(sys.maxsize)  # the base64 of an image exceeds the default limit
    delimiter = "\t" if form_of(path) == "tsv" else ","
    try:
        with open_packed(path) as file:
            without_bom(file.read(2), path)
            file.seek(0)
            table = csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""), delimiter=delimiter, strict=True)
            names = next(table, [])
            if len(set(names)) < len(names):
                raise DataError(f"{path}:1: a column name is given twice ({cut(', '.join(names))}); rename one")
            for cells in table:
                if not cells:
                    continue
                if len(cells) != len(names):
                    raise DataError(
                        f"{path}:{table.line_num}: has {len(cells)} cells under {len(names)} column names; quote cells "
                        "that hold the delimiter"
                    )
                yield f"{path}:{table.line_num}", dict(zip(names, cells, strict=True))
    except (csv.Error, UnicodeDecodeError, *READING_ERRORS) as error:
        raise DataError(
            f"{path}: cannot be read as {form_of(path)} in UTF-8 ({error}); save it as UTF-8, or correct its suffix"
        ) from error


def _parquet_rows(path: Path) -> Rows:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield from _numbered((batch.to_pylist() for batch in file.iter_batches(batch_size=_BATCH)), str(path))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not readable Parquet ({error}); write it again, or correct its suffix") from error


def _arrow_rows(path: Path) -> Rows:
    """Yield the rows of an Arrow file, in the IPC stream format (written by `datasets`) or the IPC file format."""
    import pyarrow

    def batches() -> Iterator[list[dict[str, Any]]]:
        with pyarrow.OSFile(str(path)) as source:  # with memory mapping, a file that shrinks kills the process
            if source.read(6) == b"ARROW1":
                file = pyarrow.ipc.open_file(source)
                found = map(file.get_batch, range(file.num_record_batches))
            else:
                source.seek(0)
                found = iter(pyarrow.ipc.open_stream(source))
            for batch in found:
                batch.validate(full=True)  # the offsets of a damaged file could point outside its memory
                for start in range(0, batch.num_rows, _BATCH):
                    yield batch.slice(start, _BATCH).to_pylist()

    try:
        yield from _numbered(batches(), str(path))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not readable Arrow ({error}); write it again, or correct its suffix") from error


def _numbered(batches: Iterator[list[dict[str, Any]]], name: str) -> Rows:
    rows = itertools.chain.from_iterable(batches)
    return ((f"{name}: row {number}", row) for number, row in enumerate(rows, start=1))


def _hub_rows(config: RowsConfig) -> Rows:
    import datasets

    split = config.split or _DEFAULT_SPLIT
    try:
        table = datasets.load_dataset(config.path, config.subset, split=split)
    except Exception as error:  # The hub client has no common base for "no network", "no such set" and "no such split".
        raise DataError(
            f"{config.path} (split {split}): cannot be loaded from the hub: {error}; check the id, split and network, "
            "or give a local file"
        ) from error
    # Keep images (and audio, video) encoded, as Arrow stores them; they are decoded later, one at a time.
    batches = (batch.to_pylist() for batch in table.with_format("arrow").iter(_BATCH))
    return _numbered(batches, f"{config.path}[{split}]")


_READERS: dict[str, Callable[[Path], Rows]] = {
    "jsonl": jsonl_rows,
    "json": json_rows,
    "csv": _table_rows,
    "tsv": _table_rows,
    "parquet": _parquet_rows,
    "arrow": _arrow_rows,
}
