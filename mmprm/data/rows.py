"""Rows of a data set, whatever its form: the one reader of all commands.

A file:    .jsonl (.ndjson), .json (a list, or an object a line), .csv, .tsv, each also as .gz, .bz2 or .xz; .parquet,
           .arrow. A list under .jsonl and JSON lines under .json are read, too; suffixes in any case.
A folder:  of such files, laid out as on the hub (SUBSET/SPLIT-….parquet, SUBSET/SPLIT/0000.parquet, SPLIT.jsonl), or
           written by `save_to_disk`.
A hub id:  owner/name.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import Field

from mmprm.config import Config, PathText
from mmprm.data.cells import cut
from mmprm.data.folders import files_of_folder, form_of, names_split, split_word
from mmprm.errors import DataError

Rows = Iterator[tuple[str, dict[str, Any]]]
"""Pairs (place for error messages, row)."""

DEFAULT_SPLIT = "train"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_BATCH = 64
_BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")
_READING_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)


class RowsConfig(Config):
    path: PathText
    """A file (.jsonl, .json, .csv, .tsv, also as .gz; .parquet, .arrow), a folder of such files or of save_to_disk, or
    a hub id such as owner/name."""
    split: str | None = None
    """Split of a hub data set or of a folder (files or folders named after it); null: train. A file that is named after
    another split is refused."""
    subset: str | None = None
    """Configuration name of a hub data set, or subfolder of a folder that is laid out alike."""
    limit: int | None = Field(None, ge=1)
    """Read only so many rows from the start."""


def read_rows(config: RowsConfig) -> Rows:
    """Yield the rows in file order, as they are stored, at most `limit` of them.

    Raises DataError, naming file and line, for what is missing or not readable.
    """
    return itertools.islice(_all_rows(config), config.limit)


def _all_rows(config: RowsConfig) -> Rows:
    path = Path(config.path)
    if path.is_dir():
        files = files_of_folder(path, config.split, config.subset)
        return itertools.chain.from_iterable(map(read_file, files))
    if form_of(path) is not None:
        _check_single(path, config)
        return read_file(path)
    if path.exists() or not _HUB_ID.fullmatch(config.path):
        raise DataError(
            f"{path}: must be a .jsonl, .json, .csv, .parquet or .arrow file, a folder of these, or a hub id"
            + ("" if path.exists() else "; there is no such file or folder")
        )
    return _hub_rows(config)


def _check_single(path: Path, config: RowsConfig) -> None:
    """A subset or split that is asked of a file must not be passed over."""
    if config.subset is not None and config.subset not in path.parts:
        raise DataError(
            f"{path}: problems.subset={config.subset!r} goes with a folder or a hub id, not with a file; set "
            "problems.path to the folder, or problems.subset=null"
        )
    if config.split is None or names_split(path.parts[-3:], config.split):
        return
    other = split_word(path.parts[-1:])
    if other is not None:
        raise DataError(
            f"{path}: problems.split={config.split!r}, but the file is named after the split {other!r}; name the "
            "file of that split, or set problems.split=null"
        )
    print(f"{path}: problems.split={config.split} chooses nothing in a single file; all rows are read", file=sys.stderr)


def read_file(path: Path) -> Rows:
    """Yield the rows of one file, by the form that its suffix names; JSON lines under any other name."""
    if not path.exists() or path.is_dir():
        reason = "a folder" if path.is_dir() else "no such file"
        raise DataError(f"{path}: cannot be read ({reason}); name an existing file")
    return _READERS[form_of(path) or "jsonl"](path)


def parse_json(text: bytes | str, place: str) -> Any:
    """Return the value of a JSON text. Raises DataError for no JSON, nesting too deep, a name that is given twice with
    different values, and half of a surrogate pair, which no file or tokenizer can take."""
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except _GivenTwiceError as error:
        raise DataError(f"{place}: {error} is given twice, with different values; keep one of them") from None
    except RecursionError:
        raise DataError(f"{place}: is not JSON that can be read: it is nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{place}: is not JSON: {cut(error, 200)}") from error
    encoded = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if _HALF_PAIR.search(encoded) and (path := _half_pair(value)) is not None:
        raise DataError(f"{place}: {path or 'the text'} holds half of a surrogate pair, which is no text; remove it")
    return value


class _GivenTwiceError(Exception):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        for name, value in pairs:
            if found[name] != value:
                raise _GivenTwiceError(repr(cut(name)))
    return found


def _half_pair(value: Any, path: str = "") -> str | None:
    """Return where a text holds half of a surrogate pair; None where none does."""
    if isinstance(value, str):
        return path if any("\ud800" <= letter <= "\udfff" for letter in value) else None
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        if isinstance(name, str) and _half_pair(name) is not None:
            return "the name of a column"
        if (found := _half_pair(inner, f"{path}.{name}".lstrip("."))) is not None:
            return found
    return None


def _opened(path: Path) -> BinaryIO:
    """Open for reading, unpacked."""
    packed: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return packed.get(path.suffix.lower(), lambda name: name.open("rb"))(path)


def _jsonl_rows(path: Path) -> Rows:
    try:
        with _opened(path) as file:
            for number, line in enumerate(file, start=1):
                line = _without_bom(line, path) if number == 1 else line
                if not line.strip():
                    continue
                place = f"{path}:{number}"
                if line.lstrip().startswith(b"["):
                    yield from _listed_rows(line + file.read(), path, place)
                    return
                yield place, _row(parse_json(line, place), place)
    except _READING_ERRORS as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _listed_rows(text: bytes, path: Path, place: str) -> Rows:
    """A list of objects under a name that stands for JSON lines."""
    items = parse_json(text, place)
    if not any(isinstance(item, dict) for item in items):
        raise DataError(f"{place}: must be an object, got list; write one object a line")
    return _items(items, path)


def _json_rows(path: Path) -> Rows:
    try:
        with _opened(path) as file:
            text = _without_bom(file.read(), path)
    except _READING_ERRORS as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if text.lstrip().startswith(b"{") and not _is_json(text):
        # Of JSON lines with a damaged one the line is to be named.
        lines = _is_json(text.lstrip().partition(b"\n")[0])
        return _jsonl_rows(path) if lines else _objects(text, path)
    items = parse_json(text, str(path))
    if isinstance(items, dict):
        items = _rows_inside(items, path)
    if not isinstance(items, list):
        raise DataError(f"{path}: must hold a list of objects, or one object a line, got {type(items).__name__}")
    return _items(items, path)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except RecursionError:  # told by parse_json
        return True
    except ValueError:
        return False
    return True


def _objects(text: bytes, path: Path) -> Rows:
    """Objects that are written one after the other, over several lines each."""
    decoder, whole, start, number = json.JSONDecoder(), text.decode("utf-8-sig", "replace"), 0, 0
    while start < len(whole) and whole[start:].strip():
        start += len(whole[start:]) - len(whole[start:].lstrip())
        number += 1
        place = f"{path}: item {number}"
        try:
            _, end = decoder.raw_decode(whole, start)
        except ValueError as error:
            raise DataError(f"{place}: is not JSON: {error}") from error
        yield place, _row(parse_json(whole[start:end], place), place)
        start = end


def _rows_inside(wrapper: dict[str, Any], path: Path) -> Any:
    """One row, or the rows under the only key of an object."""
    lists = {name: value for name, value in wrapper.items() if _is_rows(value)}
    if len(wrapper) == 1 and lists:
        return next(iter(lists.values()))
    if not wrapper or len(lists) == len(wrapper) or all(isinstance(value, dict) for value in wrapper.values()):
        raise DataError(
            f"{path}: must hold a list of objects, or one object a line, got an object of "
            f"{cut(', '.join(wrapper)) or '{}'}; write what is under one of its keys to a file of its own"
        )
    return [wrapper]


def _is_rows(value: Any) -> bool:
    """Whether a list holds rows, and not the messages of one."""
    items = value if isinstance(value, list) else []
    return bool(items) and all(isinstance(item, dict) and not item.keys() & {"role", "from"} for item in items)


def _items(items: list[Any], path: Path) -> Rows:
    for number, item in enumerate(items, start=1):
        place = f"{path}: item {number}"
        yield place, _row(item, place)


def _row(item: Any, place: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise DataError(f"{place}: must be an object, got {type(item).__name__}")
    return item


def _without_bom(text: bytes, path: Path) -> bytes:
    if text.startswith(_UTF_16):
        raise DataError(f"{path}: is UTF-16; save it as UTF-8")
    return text.removeprefix(_BOM)


def _table_rows(path: Path) -> Rows:
    """Comma- or tab-separated values under a line of column names; every cell is text, or empty."""
    csv.field_size_limit(sys.maxsize)  # base64 of an image is longer than the default
    delimiter = "\t" if form_of(path) == "tsv" else ","
    try:
        with _opened(path) as file:
            _without_bom(file.read(2), path)
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
    except (csv.Error, UnicodeDecodeError, *_READING_ERRORS) as error:
        raise DataError(f"{path}: cannot be read as {form_of(path)} in UTF-8 ({error})") from error


def _parquet_rows(path: Path) -> Rows:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield from _numbered((batch.to_pylist() for batch in file.iter_batches(batch_size=_BATCH)), str(path))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not readable Parquet ({error})") from error


def _arrow_rows(path: Path) -> Rows:
    """Arrow's stream form, as `datasets` writes it, or its file form."""
    import pyarrow

    def batches() -> Iterator[list[dict[str, Any]]]:
        with pyarrow.memory_map(str(path)) as source:
            if source.read(6) == b"ARROW1":
                file = pyarrow.ipc.open_file(source)
                found = map(file.get_batch, range(file.num_record_batches))
            else:
                source.seek(0)
                found = iter(pyarrow.ipc.open_stream(source))
            for batch in found:
                for start in range(0, batch.num_rows, _BATCH):
                    yield batch.slice(start, _BATCH).to_pylist()

    try:
        yield from _numbered(batches(), str(path))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not readable Arrow ({error})") from error


def _numbered(batches: Iterator[list[dict[str, Any]]], name: str) -> Rows:
    rows = itertools.chain.from_iterable(batches)
    return ((f"{name}: row {number}", row) for number, row in enumerate(rows, start=1))


def _hub_rows(config: RowsConfig) -> Rows:
    import datasets

    split = config.split or DEFAULT_SPLIT
    try:
        table = datasets.load_dataset(config.path, config.subset, split=split)
    except Exception as error:  # The hub client has no common base for "no network", "no such set" and "no such split".
        raise DataError(f"{config.path} (split {split}): cannot be loaded from the hub: {error}") from error
    # Arrow holds images (and audio, video) as they were stored; they are decoded later, one by one.
    batches = (batch.to_pylist() for batch in table.with_format("arrow").iter(_BATCH))
    return _numbered(batches, f"{config.path}[{split}]")


_READERS: dict[str, Callable[[Path], Rows]] = {
    "jsonl": _jsonl_rows,
    "json": _json_rows,
    "csv": _table_rows,
    "tsv": _table_rows,
    "parquet": _parquet_rows,
    "arrow": _arrow_rows,
}
