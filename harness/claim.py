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

from harness.errors import VtbenchError

BEAT = 10.0  # seconds between two touches
DEAD = 60.0  # seconds without one, after which a claim whose process cannot be looked for is stale


class LostClaimError(VtbenchError):
    """Another run has taken the folder over: this one must not write there any more."""


class Claim:
    """A claim of a folder, held while the context lasts. Errors: VtbenchError that says who holds the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.own = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _machine(),
            "started": _started(os.getpid()),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "token": f"{random.SystemRandom().getrandbits(64):016x}",
        }
        self.path = folder / ".claim-0"
        self._looked = time.monotonic()  # when the storage last said whose the folder is
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
            with suppress(OSError):  # it goes stale
                self.path.unlink(missing_ok=True)

    @property
    def held(self) -> bool:
        """Whether the folder is still ours; storage that fails for a moment takes nothing from us."""
        if (ours := self._ours()) is None:
            return time.monotonic() - self._looked < DEAD
        self._looked = time.monotonic()
        return ours

    def check(self) -> None:
        """Return while the folder is ours. Errors: LostClaimError."""
        if self.held:
            return
        if (silence := time.monotonic() - self._looked) >= DEAD:
            why = f"its claim could not be read for {silence:.0f} s"
        else:
            there = _claims(self.folder)
            why = f"has been taken over by {who(_holder(there[-1]))}" if there else "has been taken over"
        raise LostClaimError(f"{self.folder}: {why}, so this run stops; nothing that it did is lost")

    def _taken(self) -> bool:
        """Try to be the one claim there is; False when others try at the same moment."""
        there = _claims(self.folder)
        for path in there:
            holder, age = _holder(path), self._age(path)
            if age is not None and lives(holder, age):
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

    def _ours(self) -> bool | None:
        """Whether our claim is there, None where the storage does not say."""
        try:
            token = _read(self.path).get("token")
        except FileNotFoundError:
            return False
        except OSError:
            return None
        return None if token is None else token == self.own["token"]

    def _beat(self) -> None:
        while not self._left.wait(BEAT):
            with suppress(OSError):
                if self.held:
                    os.utime(self.path)


def _claims(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob(".claim-*") if path.name[7:].isdecimal()), key=_number)


def _number(path: Path) -> int:
    return int(path.name[7:])


def _read(path: Path) -> dict[str, object]:
    """Return what a claim says, nothing where its process died writing it. Errors: OSError."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _holder(path: Path) -> dict[str, object]:
    """Return what another's claim says, nothing where it cannot be read."""
    try:
        return _read(path)
    except OSError:
        return {}


def who(holder: dict[str, object]) -> str:
    """Return in words whose claim it is."""
    if not holder:
        return "another process"
    return f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')},"


def lives(holder: dict[str, object], age: float) -> bool:
    """Whether a claim's process lives: looked for where it can be, else by its heartbeat."""
    running = runs(holder)
    return age < DEAD if running is None else running


def runs(holder: dict[str, object]) -> bool | None:
    """Whether a claim's process runs, None where it cannot be looked for: on another machine, in another container."""
    machine = _machine()
    if machine is None or holder.get("machine") != machine:
        return None
    started = _started(holder.get("pid"))
    return started is not None and started == holder.get("started")


def _machine() -> str | None:
    """Return within what a process is known by its number: boot, PID namespace, and user, who may see only his own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {os.getuid()}"
    except OSError:
        return None


def _started(pid: object) -> int | None:
    """Return when a process started, in clock ticks since the machine did; None if there is none, or it has ended."""
    try:
        said = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = said.rpartition(")")[2].split()  # what is before it is the process's name
    return None if state in "ZX" else int(fields[18])
