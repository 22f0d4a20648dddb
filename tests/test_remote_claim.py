import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import claim
from harness.claim import Claim, LostClaimError
from harness.errors import VtbenchError
from harness.remote import Remote
from harness.remote_claim import RemoteClaim
from tests.ftp import somewhere


@pytest.fixture(params=["memory", "ftp"])
def url(request, tmp_path) -> Iterator[str]:
    with somewhere(request.param, tmp_path) as there:
        yield there


def test_a_claim_at_a_url(url, monkeypatch):
    monkeypatch.setattr(claim, "BEAT", 0.1)
    remote = Remote(url) / "x"
    with RemoteClaim(remote) as held:
        with pytest.raises(VtbenchError) as refused, RemoteClaim(Remote(url) / "x"):
            pass
        assert re.search(rf"/x: process \d+ on {socket.gethostname()}, since .* runs it; wait for", str(refused.value))
        held.check()
        remote.remove(held.name)  # as who takes it over does
        end = time.monotonic() + 20
        while held.held and time.monotonic() < end:
            time.sleep(0.02)
        with pytest.raises(LostClaimError, match="has been taken over, so this run stops"):
            held.check()
    assert remote.listed() == []


def test_a_dead_claim_at_a_url_is_taken_over_and_a_living_one_is_not(url, monkeypatch):
    monkeypatch.setattr(claim, "BEAT", 0.1)
    monkeypatch.setattr(claim, "DEAD", 1.0)
    remote = Remote(url) / "x"

    def left(beat: int, **changed: object) -> None:
        said = {"host": "elsewhere", "pid": 1, "machine": "elsewhere", "since": "then", "beat": beat} | changed
        Remote(f"{url}/x").write(".claim-old", json.dumps(said).encode())

    for stale in (Claim(Path()).own | {"started": 0}, {"host": socket.gethostname()}, {}):
        left(3, **stale)
        with RemoteClaim(remote) as held:
            assert [name for name in remote.listed() if name.startswith(".claim")] == [held.name]
    left(3)
    beating = threading.Timer(0.4, left, [4])
    beating.start()
    with pytest.raises(VtbenchError, match="process 1 on elsewhere, since then, runs it"), RemoteClaim(remote):
        pass
    beating.join()
    assert remote.listed() == [".claim-old"]


def test_a_claim_that_cannot_be_renewed_ends_the_run(url, monkeypatch):
    def down(self: Remote) -> list[str]:
        raise OSError("connection refused")

    monkeypatch.setattr(claim, "BEAT", 0.4)
    monkeypatch.setattr(claim, "DEAD", 2.0)
    with RemoteClaim(Remote(url) / "x") as held:
        with monkeypatch.context() as broken:
            broken.setattr(Remote, "listed", down)
            held.check()
            time.sleep(2.2)
            assert not held.held
            with pytest.raises(LostClaimError, match=r"/x: its claim could not be renewed for \d s, so this run stops"):
                held.check()
        end = time.monotonic() + 20
        while not held.held and time.monotonic() < end:
            time.sleep(0.02)
        held.check()
    assert (Remote(url) / "x").listed() == []


def test_a_process_that_was_stopped_goes_on_if_its_next_beat_finds_its_claim(url, monkeypatch):
    monkeypatch.setattr(claim, "BEAT", 4.0)  # the first beat comes after a quarter
    with RemoteClaim(Remote(url) / "x") as held:
        held._renewed -= 100
        assert not held.held
        held.check()
        assert held.held


@pytest.mark.parametrize("silently", [False, True])
def test_a_connection_that_fails_is_made_anew(url, monkeypatch, silently):
    made, connect = [], Remote.__init__

    def note(self: Remote, *where: str, **options: bool) -> None:
        connect(self, *where, **options)
        if threading.current_thread().name == "claim":
            made.append(self)
            if len(made) == 1:
                monkeypatch.setattr(self, "listed", fail)

    def fail() -> list[str]:
        if not silently:
            raise OSError("broken pipe")
        return [listed_once.pop()] if listed_once else []  # as FTP does

    monkeypatch.setattr(claim, "BEAT", 0.1)
    monkeypatch.setattr(Remote, "__init__", note)
    remote = Remote(url) / "x"
    held = RemoteClaim(remote)
    listed_once = [held.name]
    with held:
        end = time.monotonic() + 20
        while json.loads(remote.read(held.name) or b"{}").get("beat", 0) < 3 and time.monotonic() < end:
            time.sleep(0.05)
        assert json.loads(remote.read(held.name) or b"{}").get("beat", 0) >= 3 and len(made) == 2
        held.check()


def test_a_claim_that_ends_as_it_is_looked_at_costs_no_wait(url, monkeypatch):
    monkeypatch.setattr(claim, "DEAD", 10.0)
    remote = Remote(url) / "x"
    remote.write(".claim-old", b"{}")
    monkeypatch.setattr(remote, "read", remote.remove)  # None
    began = time.monotonic()
    with RemoteClaim(remote) as held:
        assert time.monotonic() - began < 5 and held.held


def test_a_living_claim_that_cannot_be_read_for_a_moment_is_not_taken(url, monkeypatch):
    monkeypatch.setattr(claim, "BEAT", 0.1)
    remote = Remote(url) / "x"
    remote.write(".claim-old", b"{}")
    for said in ([None, None, b"1"], [b"1", None, b"2"]):
        monkeypatch.setattr(remote, "read", lambda name, left=said: left.pop(0))
        with pytest.raises(VtbenchError, match="another process runs it"), RemoteClaim(remote):
            pass
        assert remote.listed() == [".claim-old"]


def test_of_many_at_once_one_gets_the_claim(url, monkeypatch):
    got, refused, go, done = [], [], threading.Barrier(4), threading.Event()

    def run() -> None:
        remote = Remote(url) / "x"
        go.wait()
        try:
            with RemoteClaim(remote) as held:
                got.append(held.name)
                done.wait(60)
        except VtbenchError as error:
            refused.append(str(error))
            if len(refused) == 3:
                done.set()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and len(refused) == 3 and (Remote(url) / "x").listed() == []
