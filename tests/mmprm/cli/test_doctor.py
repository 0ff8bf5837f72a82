import pytest

from mmprm.cli import doctor
from mmprm.cli.main import main
from mmprm.errors import SetupError


def test_a_missing_or_broken_package_is_reported(tmp_path, monkeypatch):
    (tmp_path / "broken_wheel.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    missing = doctor.package("never", "never-made-distribution")
    broken = doctor.package("broken", "pytest", "broken_wheel")
    assert "ModuleNotFoundError" in missing.found
    assert "libcudart.so.13" in broken.found
    assert missing.remedy
    assert broken.remedy
    assert doctor.package("pytest", "pytest").remedy == ""


def test_too_little_memory_stops_the_demo(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "DEMO_MEMORY_GIB", 10**6)
    monkeypatch.setattr(doctor, "package", lambda name, *_: doctor.Finding(name, "1.0"))
    assert main(["doctor"]) == 2
    printed = capsys.readouterr()
    assert "free memory" in printed.err
    assert "torch," not in printed.err
    assert "GiB" in printed.out


def test_packages_that_the_demo_does_not_need_are_optional(monkeypatch):
    monkeypatch.setattr(doctor, "package", lambda name, *_: doctor.Finding(name, "1.0"))
    monkeypatch.setattr(doctor, "memory", lambda: doctor.Finding("free memory", "64 GiB"))
    monkeypatch.setattr(
        doctor, "program", lambda name, *_: doctor.Finding(name, "not found", "install it", needed=False)
    )
    doctor.run(None)
    monkeypatch.setattr(doctor, "disk", lambda: doctor.Finding("free disk", "0 GiB", "make room"))
    with pytest.raises(SetupError, match="free disk"):
        doctor.run(None)
