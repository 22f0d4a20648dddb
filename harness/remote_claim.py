"""One run at a time on a sweep's folder at a URL: a claim there that says who works, and counts on while he lives.

File systems differ in what they can do exclusively and in their clocks, so this asks only that what has been written is
listed: whoever sees another's claim beside his own, just written, takes it back and tries again. A dead one is known by
its process on its own machine, elsewhere by a count that stands still. A run that stood still itself may write once
more before it notices that it was taken over.
"""

import json
import random
import socket
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
        self.held = False
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="claim", daemon=True)

    def __enter__(self) -> Self:
        while not self._taken():
            time.sleep(random.uniform(0.5, 2))
        self.held = True
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._thread.join(claim.BEAT)
        if self.held:
            with suppress(OSError):  # it goes stale
                self.remote.remove(self.name)

    def check(self) -> None:
        """Return while the folder is ours, as far as the latest beat knows. Errors: LostClaimError."""
        if not self.held:
            raise LostClaimError(f"{self.remote.shown}: has been taken over, so this run stops; nothing it did is lost")

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
        here = holder.get("host") == socket.gethostname()
        if claim.lives(holder, age=0) if here else self._moves(name, first):
            raise VtbenchError(f"{self.remote.shown}: {claim.who(holder)} runs it; wait for its end, or stop it")

    def _moves(self, name: str, first: bytes | None) -> bool:
        """Whether a claim changes before it counts as dead."""
        end = time.monotonic() + claim.DEAD
        while time.monotonic() < end:
            time.sleep(claim.BEAT / 4)
            now = self.remote.read(name)
            if now != first:
                return now is not None
        return False

    def _beat(self) -> None:
        remote, beat = None, 0
        while not self._left.wait(claim.BEAT):
            with suppress(OSError, VtbenchError):
                remote = remote or Remote(self.remote.url)  # a connection is one thread's
                if self.name not in _claims(remote):
                    self.held = False
                    return
                beat += 1
                self._write(remote, beat)

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
