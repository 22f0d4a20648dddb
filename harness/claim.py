"""One run at a time on a sweep's folder: a claim that says who works there, by plain files, so on shared storage too.

A claim is `.claim-<number>`, created exclusively, and touched every few seconds while its process lives. A dead one
is taken over by creating the next number, which only one process can; whoever held it finds its file gone, and stops.
"""

import json
import os
import random
import socket
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from harness.errors import VtbenchError

BEAT = 10.0  # seconds between two touches
DEAD = 60.0  # seconds without one, after which a claim of another host is stale


class LostClaimError(VtbenchError):
    """Another run has taken the folder over: this one must not write there any more."""


class Claim:
    """A claim of a folder, held while the context lasts. Errors: VtbenchError that says who holds the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.own = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process_started": psutil.Process().create_time(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "token": f"{random.SystemRandom().getrandbits(64):016x}",
        }
        self.path = folder / ".claim-0"
        self._left = threading.Event()

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        while not self._taken():
            time.sleep(random.uniform(0.05, 0.2))
        threading.Thread(target=self._beat, name="claim", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        if self.held:
            self.path.unlink(missing_ok=True)

    @property
    def held(self) -> bool:
        """Whether the folder is still ours."""
        return _read(self.path).get("token") == self.own["token"]

    def check(self) -> None:
        """Return while the folder is ours. Errors: LostClaimError."""
        if not self.held:
            holders = [_read(path) for path in _claims(self.folder)]
            by = f" by {who(holders[-1])}" if holders else ""
            raise LostClaimError(
                f"{self.folder}: has been taken over{by}, so this run stops; nothing that it did is lost"
            )

    def _taken(self) -> bool:
        """Try to be the one claim there is; False when others try at the same moment."""
        there = _claims(self.folder)
        for path in there:
            if (age := self._age(path)) is not None and lives(holder := _read(path), age):
                raise VtbenchError(f"{self.folder}: {who(holder)} runs it; wait for its end, or stop it")
        self.path = self.folder / f".claim-{_number(there[-1]) + 1 if there else 1}"
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        try:
            os.write(file, json.dumps(self.own).encode())
            os.fsync(file)
        except OSError:
            self.path.unlink(missing_ok=True)
            raise
        finally:
            os.close(file)
        if set(_claims(self.folder)) - {*there, self.path}:  # one came in between, which may have seen nothing of us
            self.path.unlink(missing_ok=True)
            return False
        for path in there:
            path.unlink(missing_ok=True)
        return True

    def _age(self, path: Path) -> float | None:
        """Return the seconds since a claim was touched, by the storage's own clock; None if it has gone."""
        probe = self.folder / f".clock-{self.own['token']}"
        try:
            probe.touch()
            return probe.stat().st_mtime - path.stat().st_mtime
        except FileNotFoundError:
            return None
        finally:
            probe.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._left.wait(BEAT):
            with suppress(OSError):
                if not self.held:
                    return
                os.utime(self.path)


def _claims(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob(".claim-*") if path.name[7:].isdecimal()), key=_number)


def _number(path: Path) -> int:
    return int(path.name[7:])


def _read(path: Path) -> dict[str, object]:
    """Return what a claim says, nothing where it has gone or its process died writing it."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def who(holder: dict[str, object]) -> str:
    """Return in words whose claim it is."""
    if not holder:
        return "another process"
    return f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')},"


def lives(holder: dict[str, object], age: float) -> bool:
    """Whether a claim's process lives: looked for on its own host, by its heartbeat from another."""
    if holder.get("host") != socket.gethostname():
        return age < DEAD
    try:
        process = psutil.Process(int(str(holder.get("pid"))))
        same = abs(process.create_time() - float(str(holder.get("process_started")))) < 1
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError):
        return False
