"""Run a command on a Ray cluster of several machines; start this script on each of them.

    python deploy/ray_node.py --rank 0 --nodes 2 --head 10.0.0.1 -- \
        mmprm annotate --config configs/annotate/internvl3-8b.yaml
    python deploy/ray_node.py --rank 1 --nodes 2 --head 10.0.0.1

Rank 0 starts the Ray head node, waits for the other machines, runs the command with RAY_ADDRESS set, and then stops
Ray. The other ranks are workers until the head is gone. SIGTERM or Ctrl-C to rank 0 is passed only to the command,
which saves and exits. Unlike `ray stop`, the script does not stop other Ray clusters on the machine. Unknown options,
such as --num-gpus=8, are passed to `ray start`. The exit code is that of the command, or 2 if the cluster does not form
within --wait seconds.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

NOTICE_SECONDS = 30
POLL_SECONDS = 2
MAX_REFUSALS = 5
"""Number of consecutive failures to reach the head, `POLL_SECONDS` apart, after which a worker exits."""
STOP_SECONDS = 40
"""Seconds that `ray start` has to stop its processes after SIGTERM. Ray itself drains a node for up to 30 s."""


class ClusterError(Exception):
    """Signals that the cluster did not form or that Ray ended early."""


def main(words: Sequence[str] | None = None) -> int:
    """Run this machine as the head or as a worker, depending on its rank; return the exit code."""
    arguments = parse(sys.argv[1:] if words is None else words)
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # without it, anyone who reaches the head can run code
    # With Ray's default of 15, other busy processes would leave engines and ranks hardly any CPU time.
    os.environ.setdefault("RAY_worker_niceness", "0")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return lead(arguments) if arguments.rank == 0 else serve(arguments)
    except ClusterError as error:
        print(f"ray_node: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        return 130


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. `ray_start` holds the options for `ray start`, `command` the words after `--`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--rank", type=int, required=True, help="number of this machine, from 0; rank 0 is the head")
    parser.add_argument("--nodes", type=int, required=True, help="number of machines")
    parser.add_argument("--head", required=True, help="name or address of the head that the others can reach")
    parser.add_argument("--port", type=int, default=6379, help="port of the head (default: 6379)")
    parser.add_argument("--wait", type=float, default=600, help="seconds to wait for the others (default: 600)")
    parser.add_argument("--temp-dir", default=f"/tmp/ray-{os.getuid()}", help="folder of Ray's sockets and logs")
    split = list(words).index("--") if "--" in words else len(words)
    found, ray_start = parser.parse_known_args(words[:split])
    found.ray_start, found.command = ray_start, words[split + 1 :]
    if found.rank == 0 and not found.command:
        parser.error("rank 0 needs a command after --")
    return found


def lead(arguments: argparse.Namespace) -> int:
    """Start the head, wait for the other machines, and run the command; return its exit code."""
    host = own_address(arguments.head)
    address = f"{host}:{arguments.port}"
    if os.environ["RAY_AUTH_MODE"] == "token":
        _make_token()
    options = [f"--node-ip-address={host}", f"--port={arguments.port}", "--include-dashboard=false"]
    with _ray_start(arguments, ["--head", *options]) as ray_start:
        _wait_for_head(ray_start, host, arguments)
        _wait_for_nodes(ray_start, address, arguments)
        print(f"ray_node: {arguments.nodes} machines at {address}; logs are in {_logs(arguments)}", flush=True)
        return _run(arguments.command, os.environ | {"RAY_ADDRESS": address})


def own_address(name: str) -> str:
    """Resolve this machine's host name to an address that the other machines can reach."""
    found = socket.gethostbyname(name)
    if not found.startswith("127."):
        return found
    from ray.util import get_node_ip_address  # Debian maps a machine's own name to 127.0.1.1

    return get_node_ip_address()


def serve(arguments: argparse.Namespace) -> int:
    """Join the cluster as a worker and wait until the head is gone; return the exit code."""
    host = socket.gethostbyname(arguments.head)
    _wait_for_head(None, host, arguments)
    with _ray_start(arguments, [f"--address={host}:{arguments.port}"]) as ray_start:
        refusals = 0
        while refusals < MAX_REFUSALS:
            if ray_start.poll() is not None:
                raise ClusterError(f"Ray has ended on this machine; see above and the logs in {_logs(arguments)}")
            time.sleep(POLL_SECONDS)
            refusals = 0 if _answers(host, arguments.port) else refusals + 1
        ray_start.kill()  # SIGTERM would drain the node through the head, which is gone; Ray's reaper ends the rest
    return 0


@contextmanager
def _ray_start(arguments: argparse.Namespace, options: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run `ray start --block` while the `with` block runs."""
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    further = [f"--temp-dir={arguments.temp_dir}", *arguments.ray_start]
    # Start a new session, so that a signal to this script's process group does not reach Ray.
    process = subprocess.Popen([*ray, *options, *further], start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()  # Ray's reaper then ends the others


def _make_token() -> None:
    """Generate the user's Ray authentication token if there is none, readable only by the user."""
    umask = os.umask(0o077)
    try:
        command = [sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    finally:
        os.umask(umask)


def _wait_for_head(ray_start: subprocess.Popen[bytes] | None, host: str, arguments: argparse.Namespace) -> None:
    what = f"the head at {host}:{arguments.port}"
    for _ in _until(arguments.wait, what, "start rank 0, and check --head, --port and the firewall"):
        if ray_start is not None and ray_start.poll() is not None:
            raise ClusterError(f"the head did not start; see above and the logs in {_logs(arguments)}")
        if _answers(host, arguments.port):
            return


def _wait_for_nodes(ray_start: subprocess.Popen[bytes], address: str, arguments: argparse.Namespace) -> None:
    import ray

    what, way_out = f"{arguments.nodes} machines to join {address}", "see the output of those that did not"
    ray.init(address, log_to_driver=False, logging_level="ERROR")
    try:
        for _ in _until(arguments.wait, what, way_out):
            joined = sum(node["Alive"] for node in ray.nodes())
            if joined >= arguments.nodes:
                return
            if ray_start.poll() is not None:
                raise ClusterError(f"the head has ended when {joined} of {arguments.nodes} machines had joined")
    finally:
        ray.shutdown()


def _until(seconds: float, what: str, way_out: str) -> Iterator[None]:
    """Yield repeatedly for `seconds`, then raise ClusterError; print every 30 s what the script is waiting for."""
    started = noticed = time.monotonic()
    while time.monotonic() < started + seconds:
        yield
        time.sleep(POLL_SECONDS)
        if time.monotonic() - noticed > NOTICE_SECONDS:
            noticed = time.monotonic()
            print(f"ray_node: waiting for {what} ({noticed - started:.0f} s)", file=sys.stderr, flush=True)
    raise ClusterError(f"timed out after {seconds:g} s waiting for {what}: {way_out}")


def _run(command: Sequence[str], environment: dict[str, str]) -> int:
    """Run the command and return its exit code; pass SIGTERM and Ctrl-C to it."""
    with subprocess.Popen(command, env=environment, start_new_session=True) as child:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: child.send_signal(number))
        code = child.wait()
    return code if code >= 0 else 128 - code


def _answers(host: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((host, port), timeout=5):
        return True
    return False


def _logs(arguments: argparse.Namespace) -> str:
    return f"{arguments.temp_dir}/session_latest/logs"


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
