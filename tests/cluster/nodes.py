"""A Ray cluster of real `ray start` processes on this machine, and a checkout to submit to it."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
WAIT = 180.0  # seconds that a node may take to come up


def free_ports(count: int) -> list[int]:
    """Return ports that nobody has. Nodes on one machine need their own."""
    sockets = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def agent_ports() -> list[str]:
    """Return `ray start`'s options for the ports that nodes on one machine would share."""
    names = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export")
    return [f"--{name}-port={port}" for name, port in zip(names, free_ports(len(names)), strict=True)]


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[dict[str, str]]:
    """Yield the environment for clients of a head without CPUs and so many worker nodes of one CPU.

    folder: short, as Ray's sockets lie there.
    """
    gcs, dashboard, client_server = free_ports(3)
    # as on a node of its own: no trace of this checkout but the installed vtbench
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "PYTHON", "PYTEST"))}
    env = kept | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    env["PATH"] = f"{BIN}{os.pathsep}{env['PATH']}"
    head = ["--head", f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    with ExitStack() as stack:
        head += ["--num-cpus=0", f"--ray-client-server-port={client_server}"]
        stack.enter_context(_node(folder / "h", env, *head))
        _await(lambda: _listens(dashboard), "the head's dashboard")
        client = env | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
        for number in range(workers):  # one by one, as Ray gives a node but 30 s to come up
            node = _node(folder / f"w{number}", env, f"--address=127.0.0.1:{gcs}", "--num-cpus=1")
            stack.enter_context(node)
            _await(lambda wanted=number + 2: _nodes(client) == wanted, f"node {number + 2}")
        yield client


def checkout(folder: Path) -> Path:
    """Copy this checkout to a folder of its own, with what git ignores as it comes to lie there."""
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    for ignored in (".venv/lib/torch.so", "results/older/big.bin"):
        (folder / ignored).parent.mkdir(parents=True, exist_ok=True)
        with (folder / ignored).open("wb") as file:
            file.write(os.urandom(1))
            file.truncate(200 * 2**20)  # beyond what Ray takes
    return folder


@contextmanager
def _node(folder: Path, env: dict[str, str], *options: str) -> Iterator[None]:
    folder.mkdir()
    command = [str(BIN / "ray"), "start", "--block", f"--temp-dir={folder}", *agent_ports(), *options]
    command += [f"--object-store-memory={100 * 2**20}", "--disable-usage-stats"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _await(there: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + WAIT
    while not there():
        assert time.monotonic() < end, f"{what} did not come up"
        time.sleep(0.5)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _nodes(env: dict[str, str]) -> int:
    command = [str(BIN / "ray"), "list", "nodes", "--format=json", "--filter=state=ALIVE"]
    found = subprocess.run(
        command, env=env | {"RAY_ADDRESS": env["RAY_API_SERVER_ADDRESS"]}, capture_output=True, text=True
    )
    return found.stdout.count('"node_id"') if not found.returncode else 0
