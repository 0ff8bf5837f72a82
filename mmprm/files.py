"""Write files and folders atomically, lock output folders, and parse JSON with error checking.

with whole_file(path) as file: file.write(text)            # replaces `path` at the end, or leaves it unchanged
with whole_folder(path) as folder: model.save(folder)
with locked(output, "output"): …                           # ConfigError while another process holds it
value = parse_json(text, "prm.json")                       # DataError for anything that is not JSON
for row in logged_rows(path): …                            # a log, without its damaged lines
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
import uuid
from collections.abc import Callable, Iterable, Iterator
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
    way_out: str = "free some space or choose another path",
) -> Iterator[IO[Any]]:
    """Yield a file that atomically replaces `path` at the end of the block; if the block fails, `path` is unchanged.

    Two processes can safely write the same path: the last one to finish wins. A symbolic link stays a link, and
    anything other than a regular file, such as /dev/stdout, is written directly. OSError, including one raised in the
    block, is converted to `error`, which names `path`.
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
    except FileExistsError as caught:  # raised by mkdir
        raise error(f"{path}: cannot be written ({path.parent} is not a folder); {way_out}") from caught
    except OSError as caught:
        raise error(f"{path}: cannot be written ({caught.strerror or caught}); {way_out}") from caught
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_new(path: Path, data: bytes) -> None:
    """Write a file of a folder that may not exist yet. A process that is killed leaves no part of it under its name.

    For many small files that can be written again: unlike `whole_file`, it does not wait for the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Remove the temporary files of processes that were killed while writing `path`. A running writer holds a lock on
    its file."""
    for left_over in path.parent.glob(f".{glob.escape(path.name)}-*.tmp"):
        with contextlib.suppress(OSError), left_over.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left_over.unlink()


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yield a path for a new folder that atomically replaces `path` at the end of the block.

    The folder is not created yet. If the block fails, `path` is unchanged.
    """
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
    """Set the default permissions on all files, because safetensors makes them readable by their owner only."""
    status = Path("/proc/self/status")
    umask = re.search(r"^Umask:\s*(\d+)", status.read_text(), re.MULTILINE) if status.is_file() else None
    mode = 0o666 & ~int(umask[1], 8) if umask else 0o644
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(path.stat().st_mode | mode)


def remove_folder(path: Path) -> None:
    """Rename a folder, then delete it, so that an interruption leaves nothing under its original name."""
    dropped = path.with_name(f".{path.name}.old")
    shutil.rmtree(dropped, ignore_errors=True)
    os.replace(path, dropped)
    shutil.rmtree(dropped)


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Compute the SHA-256 hash of each named file in `folder`."""

    def digest(name: str) -> str:
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    names = list(names)
    with ThreadPoolExecutor(_DIGEST_THREADS) as pool:  # hashing releases the GIL
        return dict(zip(names, pool.map(digest, names), strict=True))


def digest_of(value: Any) -> str:
    """Return the SHA-256 hash of a value's JSON representation, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def locked(folder: Path, key: str) -> Iterator[None]:
    """Lock `folder` for this process during the block. `key` names the folder's setting in error messages.

    A POSIX lock ends with its process and is not inherited by forked children. Raises ConfigError if another process
    holds it, or if `folder` is not writable.
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
        print(
            f"{key}={folder}: cannot be locked ({error.strerror}); make sure that no other run writes there",
            file=sys.stderr,
        )
    try:
        with contextlib.suppress(OSError):  # only used in the message above, so ignore a full disk
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def parse_json(
    text: str | bytes,
    location: str,
    error: type[MmprmError] = DataError,
    object_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """Parse a JSON text; on failure, raise `error` with `location` and the reason.

    JSON that is nested too deeply for Python's parser also raises `error`. `object_hook` receives the key-value pairs
    of each object.
    """
    try:
        return json.loads(text, object_pairs_hook=object_hook)
    except RecursionError as caught:
        raise error(f"{location}: is nested too deeply to be read as JSON; flatten it") from caught
    except ValueError as caught:
        raise error(f"{location}: is not JSON: {caught}; correct it") from caught


def logged_rows(path: Path, keys: Iterable[str] = ("step",)) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON Lines log that have all of `keys`, with `step` as an integer.

    An incomplete last line is skipped silently. Other damaged lines are skipped with a warning on stderr, because a
    damaged log must not end a run. Raises OSError if the file cannot be read.
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
            print(f"{path}: line {number} is damaged and is skipped", file=sys.stderr, flush=True)
