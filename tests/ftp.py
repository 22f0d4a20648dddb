"""An FTP server in a process of its own, `python tests/ftp.py <folder>`: shared storage that fsspec knows."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec

PASSWORD = "se-cret"


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Yield the URL, with name and password, at which a folder is served; the user `guest` may only read it."""
    command = [sys.executable, __file__, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"ftp://me:{PASSWORD}@127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()


@contextmanager
def somewhere(kind: str, folder: Path) -> Iterator[str]:
    """Yield the URL of an empty folder: `memory`, in this process, or `ftp`, on a server."""
    if kind == "memory":
        yield "memory://results"
        memory = fsspec.filesystem("memory")
        if memory.exists("/results"):
            memory.rm("/results", recursive=True)
        return
    (folder / "served").mkdir()
    with served(folder / "served") as there:
        yield f"{there}/results"


def serve(folder: str) -> None:
    """Serve a folder and print the port."""
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import FTPHandler
    from pyftpdlib.servers import ThreadedFTPServer

    users = DummyAuthorizer()
    users.add_user("me", PASSWORD, folder, perm="elradfmwMT")
    users.add_user("guest", PASSWORD, folder, perm="elr")
    server = ThreadedFTPServer(("127.0.0.1", 0), type("Handler", (FTPHandler,), {"authorizer": users}))
    print(server.socket.getsockname()[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve(sys.argv[1])
