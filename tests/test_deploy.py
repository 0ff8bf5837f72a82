"""Test that the files for clusters and containers match what mmprm, torchrun and other tools accept."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from test_docs import Parser

from mmprm.cli.main import COMMANDS
from mmprm.config import load
from policy_rl.stages import read_stages

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
SCRIPTS = sorted([*DEPLOY.rglob("*.sh"), *DEPLOY.rglob("*.sbatch")])
DOCKERFILES = [ROOT / "Dockerfile", ROOT / "Dockerfile.cpu"]
TEXTS = sorted([*(path for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".pyc"), *DOCKERFILES])
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LAUNCHERS = r"(?:^|-- |-m |mmprm:\w+ )mmprm|\.sbatch|run\.sh (?:ray|torchrun)|torchrun_node\.sh|COMMAND[:=]"
COMMAND_LINE = re.compile(rf'(?:{LAUNCHERS}) "?((?:{"|".join(map(re.escape, COMMANDS))})(?= |$).*)', re.MULTILINE)
TORCHRUN_LINE = re.compile(r"^torchrun (--.*)", re.MULTILINE)
IMAGE_ROOT = "/opt/mmprm/"


def text_of(path: Path) -> str:
    """Return the text without comment marks and with continued lines joined."""
    text = re.sub(r"^# ?", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return re.sub(r"^ +", "", re.sub(r"\\\n\s*(?:# *)?", "", text), flags=re.MULTILINE)


def commands_in(path: Path) -> Iterator[str]:
    for line in COMMAND_LINE.findall(text_of(path)):
        yield line.partition('"')[0] if line.count('"') % 2 else line
    if path.name == "rayjob.yaml":
        yield yaml.safe_load(path.read_text())["spec"]["entrypoint"].removeprefix("mmprm ")
    if path.name == "torchrun-job.yaml":
        yield shlex.join(torchrun_pod(path)["args"])


def torchrun_pod(path: Path) -> dict[str, Any]:
    _, job = yaml.safe_load_all(path.read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return container


EXAMPLES = [
    (path.relative_to(ROOT).as_posix(), line)
    for path in [*TEXTS, *CONFIGS, ROOT / "docs/cluster.md"]
    for line in commands_in(path)
]
TORCHRUN = [
    (path.relative_to(ROOT).as_posix(), line)
    for path in [*CONFIGS, *PAGES, DEPLOY / "torchrun_node.sh"]
    for line in TORCHRUN_LINE.findall(text_of(path).replace("exec torchrun", "torchrun"))
]


@pytest.mark.parametrize(("file", "line"), EXAMPLES, ids=lambda value: value[:60])
def test_commands_are_accepted_and_their_configurations_load(file: str, line: str) -> None:
    command, *words = shlex.split(line, comments=True)
    if "$@" in words or "…" in line:
        return
    parser = Parser(prog=command)
    importlib.import_module(f"mmprm.cli.{command}").add_arguments(parser)
    arguments = parser.parse_args(words)
    config = getattr(arguments, "config", None)
    if config is None:
        return
    path = ROOT / config.removeprefix(IMAGE_ROOT)
    assert path.is_file(), f"{file}: no {config}"
    if command == "stages":
        assert read_stages(path)
    else:
        assert load(parser.config_model, path, arguments.set)


def strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from strings_in(each)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("file", ["deploy/kuberay/rayjob.yaml", "deploy/kuberay/torchrun-job.yaml"])
def test_commands_in_pods_read_and_write_shared_storage(file: str) -> None:
    """A relative path would refer to a folder in the container image."""
    # A folded YAML line is found twice, the first time without its continuation.
    lines = [line for name, line in EXAMPLES if name == file and "--set" in line]
    assert lines
    for line in lines:
        command, *words = shlex.split(line)
        parser = Parser(prog=command)
        importlib.import_module(f"mmprm.cli.{command}").add_arguments(parser)
        arguments = parser.parse_args(words)
        config = load(parser.config_model, ROOT / arguments.config.removeprefix(IMAGE_ROOT), arguments.set)
        found = list(strings_in(config.model_dump(mode="json")))
        assert [text for text in found if text.startswith(("runs/", "models/"))] == [], line
        assert any(text.startswith("/shared/") for text in found)


def test_the_commands_are_found() -> None:
    """A pattern without matches would make the other tests pass trivially."""
    files = {file for file, _ in EXAMPLES}
    scripts = {"ray.sbatch", "torchrun.sbatch", "run.sh", "rayjob.yaml", "torchrun-job.yaml", "skypilot.yaml"}
    assert scripts | {"Dockerfile", "Dockerfile.cpu", "cluster.md"} <= {Path(file).name for file in files}
    assert ("deploy/skypilot.yaml", "annotate --config configs/annotate/internvl3-8b.yaml") in EXAMPLES


def with_values(line: str) -> str:
    """Return the line as the shell expands it, using defaults and sample values for variables set by the caller."""
    line = (
        line.replace("$NODES", "2")
        .replace("$HEAD", "10.0.0.1")
        .replace("$RUN_ID", "1")
        .replace("$wait_s", "600")
        .replace("$is_host", "true")
    )
    return re.sub(r"\$\{\w+:-(.*?)\}", r"\1", line).replace("gpu", "1")


@pytest.mark.parametrize(("file", "line"), TORCHRUN, ids=lambda value: value[:60])
def test_torchrun_on_several_machines_has_a_rendezvous_and_a_limit(file: str, line: str) -> None:
    from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint
    from torch.distributed.run import config_from_args, parse_args

    arguments = parse_args(shlex.split(with_values(line), comments=True))
    assert (arguments.module, arguments.training_script) == (True, "mmprm")
    if arguments.nnodes in ("1", "1:1"):
        return
    config, *_ = config_from_args(arguments)
    assert config.rdzv_backend == "c10d", f"{file}: each machine would wait for a second one on its own"
    host, port = parse_rendezvous_endpoint(config.rdzv_endpoint, default_port=0)
    assert host not in ("localhost", "127.0.0.1")
    assert port
    assert config.run_id != "none", f"{file}: --rdzv-id must distinguish two runs"
    assert config.rdzv_configs.keys() >= {"join_timeout", "read_timeout"}


def test_the_torchrun_lines_are_found() -> None:
    several = {file for file, line in TORCHRUN if "--nnodes" in line}
    assert {"docs/cluster.md", "deploy/torchrun_node.sh", "configs/train/internvl3-38b.yaml"} <= several


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid_and_stop_at_the_first_error(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    if script.name != "env.sh":  # the other scripts source it
        assert script.read_text().startswith("#!/usr/bin/env bash\n")
        assert "\nset -euo pipefail\n" in script.read_text()
        assert script.stat().st_mode & 0o111, "must be executable"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run(["shellcheck", "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def ray_node() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ray_node", DEPLOY / "ray_node.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_head_is_reachable_even_if_its_name_resolves_to_loopback(
    ray_node: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"debian": "127.0.1.1", "other": "10.0.0.2"}
    monkeypatch.setattr(ray_node.socket, "gethostbyname", names.__getitem__)
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "10.0.0.1")
    assert ray_node.own_address("debian") == "10.0.0.1"
    assert ray_node.own_address("other") == "10.0.0.2"


def test_options_of_ray_start_and_the_command_are_told_apart(ray_node: ModuleType) -> None:
    own = ["--rank", "0", "--nodes", "2", "--head", "h"]
    found = ray_node.parse([*own, "--num-gpus=4", "--", "mmprm", "rl", "--set", "seed=1"])
    assert (found.ray_start, found.command) == (["--num-gpus=4"], ["mmprm", "rl", "--set", "seed=1"])
    with pytest.raises(SystemExit):
        ray_node.parse([*own, "--num-gpus=4"])


def test_torchrun_waits_for_exactly_its_pods() -> None:
    path = DEPLOY / "kuberay/torchrun-job.yaml"
    service, job = yaml.safe_load_all(path.read_text())
    spec, pod, container = job["spec"], job["spec"]["template"]["spec"], torchrun_pod(path)
    values = {each["name"]: each["value"] for each in container["env"]}
    assert (spec["completions"], spec["parallelism"]) == (int(values["NODES"]),) * 2
    name, subdomain = job["metadata"]["name"], pod["subdomain"]
    assert subdomain == service["metadata"]["name"]
    assert values["HEAD"] == f"{name}-0.{subdomain}", "the name of the first pod of an indexed Job"
    assert service["spec"]["selector"] == {"job-name": name}
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
    assert (ROOT / container["command"][0]).is_file()


def test_the_pods_of_ray_have_its_version_a_token_and_their_volumes() -> None:
    spec = yaml.safe_load((DEPLOY / "kuberay/rayjob.yaml").read_text())["spec"]["rayClusterSpec"]
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"ray[default]=={spec['rayVersion']}" in pins
    assert spec["authOptions"] == {"mode": "token"}
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
        assert "/dev/shm" in {each["mountPath"] for each in container["volumeMounts"]}
        assert container["workingDir"] == IMAGE_ROOT.rstrip("/")
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_the_scripts_in_the_skypilot_file_are_valid() -> None:
    task = yaml.safe_load((DEPLOY / "skypilot.yaml").read_text())
    assert task["num_nodes"] > 1
    for name in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[name], text=True, check=True)
    assert {"LAUNCHER", "COMMAND"} <= task["envs"].keys()
    for folder in ("runs", "models"):  # relative paths of the configurations
        assert f"ln -sfn /shared/{folder} {folder}" in task["setup"]


def instructions(path: Path) -> list[tuple[str, str]]:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_have_a_pinned_base_and_small_layers(path: Path) -> None:
    found = instructions(path)
    assert {word for word, _ in found} == {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "CMD"} | (
        {"ARG"} if path.suffix else set()
    )
    assert re.fullmatch(r"[\w./]+:\d+\.\d+\.\d+-[\w.-]+", found[0][1]), "an exact version"
    for word, rest in found:
        if word == "RUN":
            subprocess.run(["bash", "-n"], input=rest, text=True, check=True)
        if "apt-get install" in rest:
            assert "--no-install-recommends" in rest
            assert rest.endswith("rm -rf /var/lib/apt/lists/*")
    assert ("WORKDIR", IMAGE_ROOT.rstrip("/")) in found
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "runs"} <= set(ignored)


@pytest.mark.parametrize(("path", "extra"), [(DOCKERFILES[0], " EXTRA=gpu"), (DOCKERFILES[1], "")], ids=["gpu", "cpu"])
def test_dockerfiles_use_the_install_command_of_the_readme(path: Path, extra: str) -> None:
    (setup,) = (rest for word, rest in instructions(path) if rest.startswith("make setup"))
    command, _, python = setup.partition(" && ")[0].partition(" PYTHON=")
    assert command == f"make setup{extra}"
    assert re.search(rf"^{re.escape(command)} ", (ROOT / "README.md").read_text(), re.MULTILINE)
    minor = int(python.removeprefix("python3."))
    assert 11 <= minor < 13, "requires-python"
    assert python in path.read_text().partition("make setup")[0] or f"python:3.{minor}." in path.read_text()
