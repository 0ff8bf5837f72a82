"""Test atomic file writes, locks on output folders, and how a command ends on a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmprm.cli import main as cli
from mmprm.errors import CheckpointError, ConfigError, DataError
from mmprm.files import locked, parse_json, remove_folder, whole_file, whole_folder
from mmprm.signals import kept_handlers


def fail_within(block: AbstractContextManager[Any], action: Callable[[Any], object]) -> None:
    def fail() -> None:
        with block as opened:
            action(opened)
            raise KeyError

    with pytest.raises(KeyError):
        fail()


def test_writes_are_atomic(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with whole_file(path) as file:
        file.write("é")
    assert path.read_text(encoding="utf-8") == "é"
    fail_within(whole_file(path, "wb"), lambda file: file.write(b"half"))
    assert path.read_text(encoding="utf-8") == "é"
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]
    with pytest.raises(CheckpointError, match=r"a\.txt/b: cannot be written \(.*a.txt is not a folder\); try"):
        whole_file(path / "b", error=CheckpointError, way_out="try").__enter__()


def test_written_files_have_default_permissions(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a") as file:
        file.write("x")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_only_temporary_files_of_dead_writers_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    (tmp_path / ".a-1.tmp").touch()
    with whole_file(path):
        (own,) = tmp_path.glob(".a-*.tmp")
        code = "import sys; from mmprm.files import whole_file\nwith whole_file(sys.argv[1]) as f: f.write('other')"
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)
        assert own.exists()
        assert path.read_text() == "other"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_links_and_devices_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "a")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    for name in ("link", "pipe"):
        with whole_file(tmp_path / name) as file:
            file.write(name)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "a").read_text() == "link"
    assert os.read(reader, 10) == b"pipe"
    os.close(reader)


def test_a_file_system_without_locks_gives_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("mmprm.files.fcntl.flock", none)
    monkeypatch.setattr("mmprm.files.fcntl.lockf", none)
    with locked(tmp_path, "output"), whole_file(tmp_path / "a") as file:
        file.write("x")
    assert (tmp_path / "a").read_text() == "x"
    assert (
        "cannot be locked (Function not implemented); make sure that no other run writes there"
        in capsys.readouterr().err
    )


def test_a_folder_replaces_another_atomically(tmp_path: Path) -> None:
    path = tmp_path / "policy"
    for content in ("old", "new"):
        with whole_folder(path) as folder:
            folder.mkdir()
            (folder / "a").write_text(content)
    fail_within(whole_folder(path), Path.mkdir)
    assert (path / "a").read_text() == "new"
    remove_folder(path)
    assert not list(tmp_path.iterdir())


def test_only_one_process_can_hold_an_output(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from mmprm.files import locked\n"
    code += "with locked(Path(sys.argv[1]), 'output'): print('held', flush=True); sys.stdin.readline()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=rf"output=.*another run \(process {other.pid}\) is writing there"):
            locked(tmp_path, "output").__enter__()
        other.kill()
    with locked(tmp_path, "output"):
        pass


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a":' * 100_000, b"\xff"])
def test_invalid_json_is_one_error(text: str | bytes) -> None:
    with pytest.raises(DataError, match=r"^a\.json: is "):
        parse_json(text, "a.json")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_unwinds_on_a_signal(
    number: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unwound = []

    def run(arguments: object) -> None:
        try:
            os.kill(os.getpid(), number)
            signal.sigtimedwait([], 5)  # never takes this long
        finally:
            unwound.append(True)

    before = signal.getsignal(signal.SIGTERM)
    module = SimpleNamespace(__doc__="", add_arguments=lambda parser: None, run=run)
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: module)
    assert cli.main(["annotate"]) == code
    assert (unwound, signal.getsignal(signal.SIGTERM)) == ([True], before)
    assert "annotate: stopped; the same command resumes from what was saved" in capsys.readouterr().err
    cli.main(["score"])
    assert capsys.readouterr().err == "mmprm score: stopped\n"


def test_handlers_installed_by_a_library_are_removed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with kept_handlers():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is before
