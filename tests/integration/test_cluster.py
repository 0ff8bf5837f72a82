"""Test the scripts in deploy/ on one machine: two raylets, two torchrun agents, and stand-ins for ssh, srun and
scontrol.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray.util import get_node_ip_address

from mmprm.cli.main import main
from mmprm.problems import write_problems
from mmprm.tiny.world import make_problems

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("bash") is None, reason="the scripts are for bash"),
]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
STAND_INS = {
    "ssh": """while [[ $1 == -o ]]; do shift 2; done
shift
exec bash -c "$*"
""",
    "scontrol": 'tr "," "\\n" <<<"$3"\n',
    "srun": """tasks=1
while [[ $1 == --* ]]; do
  [[ $1 == --ntasks=* ]] && tasks=${1#*=}
  shift
done
started=()
for rank in $(seq 0 $((tasks - 1))); do SLURM_NODEID=$rank "$@" & started+=("$!"); done
code=0
for process in "${started[@]}"; do wait "$process" || code=$?; done
exit "$code"
""",
}
WAITING = """trap 'echo saved; exit 0' TERM
echo "joined $RAY_ADDRESS: $*"
for _ in $(seq 1200); do sleep 0.1; done
exit 3
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]


def write_script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}")
    path.chmod(0o755)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    """Create a site folder with links to deploy/ and configs/, and an environment whose `mmprm` tests may replace."""
    for name in ("deploy", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("python", "mmprm", "torchrun"):
        module = {"python": "", "mmprm": "-m mmprm", "torchrun": "-m torch.distributed.run"}[name]
        write_script(tmp_path / ".venv/bin" / name, f'exec {BIN / "python"} {module} "$@"\n')
    for name, text in STAND_INS.items():
        write_script(tmp_path / "stand-ins" / name, text)
    with tempfile.TemporaryDirectory(prefix="mmprm-", dir="/tmp", ignore_cleanup_errors=True) as ray:
        (tmp_path / "ray").symlink_to(ray)  # the paths of Ray's sockets must be short
        yield tmp_path
        assert until(lambda: not processes_of(Path(ray)), 60), "Ray is still running"


def processes_of(folder: Path) -> list[str]:
    """Return the command lines that mention this folder."""
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(command.read_bytes().decode(errors="replace"))
    return [command for command in found if f"{folder}/" in command or f"={folder}\0" in command]


def until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True


def environment(site: Path, **values: str) -> dict[str, str]:
    """Return environment variables with one core per raylet, a separate home with a token, and no engine settings."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "LOCAL_RANK"))}
    address = get_node_ip_address()
    own = {
        "HOME": str(site),
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),  # operators built earlier
        "PATH": f"{site / 'stand-ins'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOSTS": f"{address} {address}",
        "SLURM_SUBMIT_DIR": str(site),
        "SLURM_JOB_NODELIST": f"{address},{address}",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_ID": "7",
        "RAY_PORT": str(free_port()),
        "RAY_OPTIONS": f"--num-cpus=1 --object-store-memory=100000000 --temp-dir={(site / 'ray').resolve()}",
        "PORT": str(free_port()),
        "RANKS": "1",
        "LOGS": str(site / "logs"),
        "OMP_NUM_THREADS": "1",
    }
    return outside | own | values


def run(site: Path, *command: str, **values: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=site, env=environment(site, **values), capture_output=True, text=True, timeout=540, check=False
    )


def test_annotate_on_two_raylets_started_by_ssh(site: Path) -> None:
    write_problems(site / "problems.jsonl", [tiny.problem for tiny in make_problems(24, 5, "annotate")])
    keys = [f"output={site / 'run'}", f"problems.path={site / 'problems.jsonl'}", "search.max_rollouts=320"]
    sets = [word for key in keys for word in ("--set", key)]
    done = run(site, "deploy/ssh/run.sh", "ray", "annotate", "--config", "configs/annotate/tiny.yaml", *sets)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ray_node: 2 machines at" in done.stdout
    summary = json.loads((site / "run/summary.json").read_text())
    assert summary["problems"] == {"open": 0, "done": 24, "failed": 0}
    assert summary["workers"] == 2, "each raylet has a core for one engine"
    assert (site / ".ray/auth_token").stat().st_mode & 0o777 == 0o600


def test_sigterm_to_the_batch_script_reaches_the_command_alone(site: Path) -> None:
    write_script(site / ".venv/bin/mmprm", WAITING)
    command = ["bash", "deploy/slurm/ray.sbatch", "rl", "--config", "x.yaml"]
    with subprocess.Popen(command, cwd=site, env=environment(site), stdout=subprocess.PIPE, text=True) as batch:
        lines = iter(batch.stdout.readline, "")
        joined = next(line for line in lines if line.startswith("joined"))
        assert joined.endswith(": rl --config x.yaml\n")
        batch.send_signal(signal.SIGTERM)
        assert "saved\n" in lines
        assert batch.wait(120) == 0


def test_sft_on_two_torchrun_agents_started_by_slurm(site: Path) -> None:
    solved = site / "solved.jsonl"
    assert main(["tiny", "problems", "--out", str(solved), "--count", "32", "--split", "train", "--solutions"]) == 0
    keys = [f"data.path={solved}", f"output={site / 'run'}", "held_out=null", "training.batch_size=8"]
    sets = [word for key in keys for word in ("--set", key)]
    done = run(site, "bash", "deploy/slurm/torchrun.sbatch", "sft", "--config", "configs/sft/tiny.yaml", *sets)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    rows = [json.loads(line) for line in (site / "run/metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if row["kind"] == "train"]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) in (4, 5), "32 conversations, packed into rows, about 8 per step"
    assert (site / "run/policy/config.json").is_file()
    ranks = sorted(path.parent.name for path in (site / "logs").rglob("stdout.log"))
    assert len(ranks) == 2, "one rank per agent"


def test_ssh_starts_one_agent_per_machine_and_the_first_opens_the_port(site: Path) -> None:
    write_script(site / ".venv/bin/torchrun", 'printf "%s|" "$@"\necho\n')
    done = run(site, "deploy/ssh/run.sh", "torchrun", "train", "--set", "output=a folder")
    assert done.returncode == 0, done.stderr
    (remote,) = (site / "logs").glob("*.log")
    here, there = (text.strip().split("|") for text in (done.stdout, remote.read_text()))
    assert here[-6:] == there[-6:] == ["-m", "mmprm", "train", "--set", "output=a folder", ""]
    different = [pair for pair in zip(here, there, strict=True) if pair[0] != pair[1]]
    waits = "join_timeout=600,read_timeout=600"
    assert different == [(f"{waits},is_host=true", f"{waits},is_host=false")]


def test_an_agent_without_peers_ends_with_an_error(site: Path) -> None:
    started = time.monotonic()
    alone = {"NODES": "2", "NODE_RANK": "0", "HEAD": "localhost", "RUN_ID": "7", "WAIT": "3"}
    done = run(site, "bash", "-c", "source deploy/env.sh; exec deploy/torchrun_node.sh train", **alone)
    assert done.returncode != 0
    assert "RendezvousTimeoutError" in done.stderr
    assert time.monotonic() - started < 120


@pytest.mark.parametrize(("rank", "missing"), [(0, "(2 machines to join|the head at)"), (1, "the head at")])
def test_a_cluster_that_does_not_form_ends_with_exit_code_2(site: Path, rank: int, missing: str) -> None:
    own = environment(site)
    options = ["--rank", str(rank), "--nodes", "2", "--head", own["HOSTS"].split()[0], "--port", own["RAY_PORT"]]
    command = [".venv/bin/python", "deploy/ray_node.py", *options, "--wait", "20" if rank == 0 else "3"]
    done = run(site, *command, *own["RAY_OPTIONS"].split(), "--", "true")
    assert done.returncode == 2
    assert re.search(f"timed out after .* s waiting for {missing}", done.stderr)
