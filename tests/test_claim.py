import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from harness import claim, cli
from harness.claim import Claim, LostClaimError
from harness.errors import VtbenchError


def left(folder: Path, age: float = 0, **changed: object) -> Path:
    """Leave a claim as a process that was killed does, of this machine unless changed."""
    path = folder / ".claim-3"
    said = Claim(folder).own | {"started": 0, "since": "then", "token": "x"}
    path.write_text(json.dumps(said | changed))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_a_folder_is_claimed_while_the_context_lasts(tmp_path):
    folder = tmp_path / "results" / "x"
    with Claim(folder) as held:
        assert held.held and [path.name for path in folder.iterdir()] == [".claim-1"]
        with pytest.raises(VtbenchError) as refused, Claim(folder):
            pass
        held.check()
    who = rf"process {os.getpid()} on {socket.gethostname()}, since 20..-..-..T..:..:..\+00:00, runs it"
    assert refused.match(rf"^{folder}: {who}; wait for its end, or stop it$")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("age", "changed"),
    [
        (0, {"pid": 2**22 + 1}),  # no such process
        (0, {"started": 1}),  # its number is another's by now
        (61, {"machine": "elsewhere", "host": "elsewhere"}),
        (61, {"machine": "elsewhere"}),  # a container with our host's name, or before the machine was started again
        (0, {"pid": "?"}),
    ],
)
def test_a_dead_process_s_claim_is_taken_over(tmp_path, age, changed):
    stale = left(tmp_path, age, **changed)
    with Claim(tmp_path) as held:
        assert held.path.name == ".claim-4" and not stale.exists()


def test_a_killed_process_that_nobody_reaped_is_dead(tmp_path):
    script = "import sys, time; from pathlib import Path; from harness.claim import Claim\n"
    script += "Claim(Path(sys.argv[1])).__enter__(); print('held', flush=True); time.sleep(100)"
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(VtbenchError, match=f"process {process.pid} on"), Claim(tmp_path):
            pass
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with Claim(tmp_path) as held:
            assert held.path.name == ".claim-2"


@pytest.mark.parametrize(("age", "text"), [(50, None), (50, ""), (50, "{")])
def test_what_another_host_touches_is_alive(tmp_path, age, text):
    path = left(tmp_path, age, machine="elsewhere", host="elsewhere")
    if text is not None:
        path.write_text(text)
        os.utime(path, (time.time() - age,) * 2)
    who = "process .* on elsewhere, since then," if text is None else "another process"
    with pytest.raises(VtbenchError, match=f"{who} runs it"), Claim(tmp_path):
        pass
    assert path.exists()


def test_a_process_of_another_container_lives_by_its_heartbeat_though_the_host_has_one_name(tmp_path):
    path = left(tmp_path, 50, machine="another PID namespace", pid=2**22 + 1)
    with (
        pytest.raises(VtbenchError, match=f"process {2**22 + 1} on {socket.gethostname()}, .* runs it"),
        Claim(tmp_path),
    ):
        pass
    assert path.exists()


def test_a_clock_that_is_set_kills_nobody(tmp_path, monkeypatch):
    with Claim(tmp_path) as held:
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: 5.0)  # it moves with the clock
        os.utime(held.path, (0, 0))
        with pytest.raises(VtbenchError, match=f"process {os.getpid()} on"), Claim(tmp_path):
            pass


def test_where_processes_cannot_be_told_apart_the_heartbeat_decides(tmp_path, monkeypatch):
    def unknown(path: object) -> str:
        raise FileNotFoundError(errno.ENOENT, "no /proc", path)

    monkeypatch.setattr(os, "readlink", unknown)
    with Claim(tmp_path) as held:
        assert held.own["machine"] is None
        with pytest.raises(VtbenchError, match=f"process {os.getpid()} on"), Claim(tmp_path):
            pass
        os.utime(held.path, (time.time() - 61,) * 2)
        with Claim(tmp_path) as other:
            assert other.held and not held.held


def test_a_claim_is_touched_and_its_loss_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "BEAT", 0.02)
    with Claim(tmp_path) as held:
        assert touched(held)
        monkeypatch.setattr(claim, "lives", lambda holder, age: False)  # as seen from a host that was cut off
        with Claim(tmp_path) as other:
            assert other.held and not held.held
            with pytest.raises(LostClaimError, match=rf"taken over by process {os.getpid()} on .*, so this run stops"):
                held.check()
    assert list(tmp_path.iterdir()) == []


def touched(held: Claim) -> bool:
    """Whether a claim is touched within 10 s."""
    os.utime(held.path, (0, 0))
    end = time.monotonic() + 10
    while not held.path.stat().st_mtime and time.monotonic() < end:
        time.sleep(0.01)
    return held.path.stat().st_mtime > 0


def test_storage_that_cannot_be_read_for_a_moment_takes_no_folder(tmp_path, monkeypatch):
    reads = []

    def stale(path: Path, **options: object) -> str:
        reads.append(path)
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    monkeypatch.setattr(claim, "BEAT", 0.02)
    with Claim(tmp_path) as held:
        with monkeypatch.context() as broken:
            broken.setattr(Path, "read_text", stale)
            while len(reads) < 5:
                held.check()
                time.sleep(0.02)
            broken.setattr(claim, "DEAD", 0.0)
            with pytest.raises(LostClaimError, match="its claim could not be read for 0 s, so this run stops; nothing"):
                held.check()
        held.check()
        assert touched(held)
        held.path.write_text("")
        held.check()
        held.path.write_text(json.dumps(held.own | {"token": "another"}))
        with pytest.raises(LostClaimError, match="has been taken over by process"):
            held.check()


def test_of_many_at_once_one_gets_it(tmp_path):
    left(tmp_path, pid=2**22 + 1)
    got, refused, go, done = [], [], threading.Barrier(8), threading.Event()

    def run() -> None:
        go.wait()
        try:
            with Claim(tmp_path) as held:
                got.append(held.path.name)
                done.wait(30)
        except VtbenchError as error:
            refused.append(str(error))
            if len(refused) == 7:
                done.set()

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and len(refused) == 7 and list(tmp_path.iterdir()) == []


def test_a_second_run_says_who_has_the_folder_and_a_report_needs_no_claim(tmp_path, monkeypatch, capsys):
    file, out = tmp_path / "x.yaml", tmp_path / "out"
    file.write_text("model: llava-1.5-7b\ntext_tokens: 8\nmethods: full\n")

    def vtbench(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["vtbench", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    with Claim(out / "x"):
        assert vtbench("run", file, "--out", out) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"vtbench: {out}/x: process {os.getpid()} on ") and said.count("\n") == 1
        assert [path.name for path in (out / "x").iterdir()] == [".claim-1"]
        assert vtbench("report", "x", "--results", out) == 2
        assert "no results to report" in capsys.readouterr().err
