"""Files and folders that appear whole or not at all, locks on output folders, and checked JSON.

with whole_file(path) as file: file.write(text)            # replaces `path` at the end, or leaves it alone
with whole_folder(path) as folder: model.save(folder)
with locked(output, "output"): …                           # ConfigError while another process holds it
value = parse_json(text, "prm.json")                       # DataError for whatever is not JSON
for row in logged_rows(path): …                            # a log, without the lines that are damaged
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from mmprm.errors import ConfigError, DataError, MmprmError

LOCK_NAME = ".lock"
_DIGEST_THREADS = 8


@contextlib.contextmanager
def whole_file(
    path: str | Path,
    mode: str = "w",
    error: type[MmprmError] = DataError,
    way_out: str = "free space or choose another place",
) -> Iterator[IO[Any]]:
    """Yield a file that takes the place of `path` at the end of the block, or never.

    Two processes that write the same path do not disturb each other: the last one that ends counts. A link stays a
    link, and what is no regular file, such as /dev/stdout, is written to as it is. OSError, also of the block, becomes
    `error`, which names `path`.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}-{os.getpid()}.tmp")
    encoding = None if "b" in mode else "utf-8"
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            with path.open(mode, encoding=encoding) as file:
                yield file
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        with temporary.open(mode, encoding=encoding) as file:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except FileExistsError as caught:  # of mkdir
        raise error(f"{path}: cannot be written ({path.parent} is no folder); {way_out}") from caught
    except OSError as caught:
        raise error(f"{path}: cannot be written ({caught.strerror or caught}); {way_out}") from caught
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Remove what writers of `path` left behind that were killed. A living one holds a lock on its file."""
    for left_over in path.parent.glob(f".{glob.escape(path.name)}-*.tmp"):
        with contextlib.suppress(OSError), left_over.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left_over.unlink()


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yield a folder, not made yet, that takes the place of `path` at the end of the block, or never."""
    path = Path(path)
    temporary, replaced = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        yield temporary
        _share(temporary)
        if path.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            os.replace(path, replaced)
        os.replace(temporary, path)
    finally:
        for folder in (temporary, replaced):
            shutil.rmtree(folder, ignore_errors=True)


def _share(folder: Path) -> None:
    """Give every file the mode that this process's files have: safetensors writes its own for their owner alone."""
    status = Path("/proc/self/status")
    umask = re.search(r"^Umask:\s*(\d+)", status.read_text(), re.MULTILINE) if status.is_file() else None
    mode = 0o666 & ~int(umask[1], 8) if umask else 0o644
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(path.stat().st_mode | mode)


def remove_folder(path: Path) -> None:
    """Remove a folder so that a kill in between leaves nothing under its name: it is renamed first."""
    dropped = path.with_name(f".{path.name}.old")
    shutil.rmtree(dropped, ignore_errors=True)
    os.replace(path, dropped)
    shutil.rmtree(dropped)


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of each named file of `folder`."""

    def digest(name: str) -> str:
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    names = list(names)
    with ThreadPoolExecutor(_DIGEST_THREADS) as pool:  # hashing releases the interpreter's lock
        return dict(zip(names, pool.map(digest, names), strict=True))


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a value's JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def locked(folder: Path, key: str) -> Iterator[None]:
    """Hold `folder` for this process alone; `key` is its name in the configuration.

    A POSIX lock ends with its process and is not inherited by forked children. Raises ConfigError where another process
    holds it, or where `folder` cannot be written.
    """
    path = folder / LOCK_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(f"{key}={folder}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise ConfigError(
            f"{key}={folder}: another run (process {holder or 'unknown'}) is writing there; wait for it, stop it, or "
            "choose another folder"
        ) from error
    except OSError as error:
        print(f"{key}={folder}: cannot be locked ({error.strerror}); start no second run there", file=sys.stderr)
    try:
        with contextlib.suppress(OSError):  # only for the message above; the disk may be full
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def parse_json(text: str | bytes, place: str, error: type[MmprmError] = DataError) -> Any:
    """Return the value of a JSON text; `error` says what is wrong and where. Foreign JSON may be nested so deep that
    Python's parser gives up."""
    try:
        return json.loads(text)
    except RecursionError as caught:
        raise error(f"{place}: is nested too deep to be read as JSON; write it flatter") from caught
    except ValueError as caught:
        raise error(f"{place}: is not JSON: {caught}") from caught


def logged_rows(path: Path, keys: Iterable[str] = ("step",)) -> Iterator[dict[str, Any]]:
    """Yield the objects of a log of JSON lines that have `keys`, `step` as a whole number.

    A last line that is still being written, or was cut off, is left out in silence; other damaged lines are named on
    stderr and left out: a log is no reason to lose a run. OSError where the file cannot be read.
    """
    keys = tuple(keys)
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            return
        try:
            row = parse_json(line, str(path))
        except DataError:
            row = None
        if isinstance(row, dict) and all(key in row for key in keys) and type(row.get("step")) is int:
            yield row
        else:
            print(f"{path}: line {number} is damaged and left out", file=sys.stderr, flush=True)
