"""One run at a time on a sweep's folder at a URL: a claim there that says who works, and counts on while he lives.

File systems differ in what they can do exclusively and in their clocks, so this asks only that what has been written is
listed: whoever sees another's claim beside his own, just written, takes it back and tries again. A dead one is known by
its process on its own machine, elsewhere by a count that stands still. A run whose count cannot be written stops before
it counts as dead; one that stood still itself may write once more before it notices that it was taken over.
"""

import json
import random
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harness import claim
from harness.claim import Claim, LostClaimError
from harness.errors import VtbenchError
from harness.remote import Remote, RemoteStore
from harness.store import Store


class RemoteClaim:
    """A claim of a folder, held while the context lasts. Errors: VtbenchError that says who holds it, OSError."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self.own = Claim(Path()).own
        self.name = f".claim-{self.own['token']}"
        self._lost = False
        self._renewed = float("-inf")
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="claim", daemon=True)

    def __enter__(self) -> Self:
        while not self._taken():
            time.sleep(random.uniform(0.5, 2))
        self._renewed = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._thread.join(claim.BEAT)
        with suppress(OSError):  # it goes stale
            self.remote.remove(self.name)

    @property
    def held(self) -> bool:
        """Whether the folder is ours, as far as the latest beat knows."""
        return not self._lost and self._silence() < claim.DEAD

    def check(self) -> None:
        """Return while the folder is ours, as far as the latest beat knows. Errors: LostClaimError."""
        end = time.monotonic() + claim.BEAT
        while not self.held and not self._lost and time.monotonic() < end:
            time.sleep(claim.BEAT / 50)  # a process that was stopped beats as soon as it goes on
        if self.held:
            return
        why = "has been taken over" if self._lost else f"its claim could not be renewed for {self._silence():.0f} s"
        raise LostClaimError(f"{self.remote.shown}: {why}, so this run stops; nothing that it did is lost")

    def _taken(self) -> bool:
        """Try to be the one claim there is; False when others try at the same moment."""
        there = _claims(self.remote)
        for name in there:
            self._refuse_if_alive(name)
        self._write(self.remote, 0)
        if _claims(self.remote) - {*there, self.name}:
            self.remote.remove(self.name)
            return False
        for name in there:
            self.remote.remove(name)
        return True

    def _refuse_if_alive(self, name: str) -> None:
        first = self.remote.read(name)
        holder = _content(first)
        running = claim.runs(holder)
        if self._moves(name, first) if running is None else running:
            raise VtbenchError(f"{self.remote.shown}: {claim.who(holder)} runs it; wait for its end, or stop it")

    def _moves(self, name: str, first: bytes | None) -> bool:
        """Whether a claim changes before it counts as dead."""
        end = time.monotonic() + claim.DEAD
        while time.monotonic() < end:
            now = self.remote.read(name)
            if now is None and name not in _claims(self.remote):
                return False
            if now is not None and now != first:
                return True
            time.sleep(claim.BEAT / 4)
        return False

    def _beat(self) -> None:
        remote, beat = None, 0
        while not self._left.wait(claim.BEAT if remote else claim.BEAT / 4):
            began, known = time.monotonic(), remote
            try:
                remote = known or Remote(self.remote.url, fresh=True)  # a connection is one thread's
                if self.name in _claims(remote):
                    beat += 1
                    self._write(remote, beat)
                    self._renewed = began
                elif known:
                    remote = None  # FTP lists nothing over a connection that has failed: look again over a new one
                else:
                    self._lost = True
                    return
            except (OSError, VtbenchError):
                remote = None

    def _silence(self) -> float:
        """Return the seconds since the claim was known to be ours and was renewed."""
        return time.monotonic() - self._renewed

    def _write(self, remote: Remote, beat: int) -> None:
        remote.write(self.name, json.dumps(self.own | {"beat": beat}).encode())


def claimed(store: Store) -> Claim | RemoteClaim:
    """Return the claim of a store's folder, here or at its URL."""
    return RemoteClaim(store.remote) if isinstance(store, RemoteStore) else Claim(store.folder)


def _claims(remote: Remote) -> set[str]:
    return {name for name in remote.listed() if name.startswith(".claim-")}


def _content(said: bytes | None) -> dict[str, Any]:
    try:
        content = json.loads(said or b"{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
