import io
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from harness import progress
from harness.progress import Board, clock
from harness.spec import Trial, load_sweep


@pytest.fixture
def trials(tmp_path) -> list[Trial]:
    path = Path(tmp_path / "x.yaml")
    path.write_text("model: [a, b]\ntasks: t\nmethods: [full, {topk: {tokens: [4, 9]}}]\n")
    return load_sweep(path).trials()


@pytest.fixture
def clocked(monkeypatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def of(trials: list[Trial]) -> Board:
    return Board(Counter(map(progress._kind, trials)))


def test_a_line_a_finished_trial(trials, clocked, capsys):
    board = of(trials[:3])
    board.starts(trials[0])
    board.starts(trials[1])
    board.again(trials[1])
    assert (board.waiting.total(), len(board.running)) == (2, 1)
    board.ends(trials[0], 1.26)
    board.starts(trials[1])
    board.ends(trials[1], 2.0, "no")
    assert (board.done, board.failed, len(board.running), board.waiting.total()) == (1, 1, 0, 1)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "[1/3] full on t: 1.3 s · 0:01 left" and second == "[2/3] topk 4 on t: FAILED: no · 0:01 left"


def test_what_is_left_is_reckoned_by_model_and_task(trials, clocked):
    board = of(trials)
    assert board._eta() == ""
    board.starts(trials[0])
    board.starts(trials[3])
    board.ends(trials[0], 10.0)
    board.ends(trials[3], 100.0)
    assert board._eta() == " · 1:50 left"  # (2 × 10 s + 2 × 100 s) for the two workers there were
    board.starts(trials[1])
    board.starts(trials[4])
    clocked[0] += 30
    assert board._eta() == " · 1:30 left"  # the late one is taken for nearly done: (0 + 70 + 10 + 100) / 2
    for trial in (trials[1], trials[4]):
        board.ends(trial, 30.0)
    board.starts(trials[2])
    board.starts(trials[5])
    assert board._eta() == " · 1:05 left"  # no sooner than the longest
    board.ends(trials[2], 1.0)
    board.ends(trials[5], 1.0)
    assert board._eta() == ""


def test_the_table_has_what_runs_for_how_long(trials, clocked):
    board = of(trials)
    file = io.StringIO()
    console = Console(file=file, width=80)
    console.print(board)
    board.starts(trials[1])
    clocked[0] += 75
    board.starts(trials[0])
    console.print(board)
    none, starting, counts, longest, last = file.getvalue().splitlines()
    assert none.endswith("  0 done · 0 running · 0 failed · 6 waiting") and starting.strip() == "starting Ray"
    assert counts.endswith("  0 done · 2 running · 0 failed · 4 waiting")
    assert [longest.split(), last.split()] == [["1:15", "topk", "4", "on", "t"], ["0:00", "full", "on", "t"]]


def test_a_failure_is_printed_above_the_table(trials, monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda: Console(file=file, width=80, force_terminal=True, color_system=None)
    )
    with progress.board(trials[:1]) as board:
        board.starts(trials[0])
        board.ends(trials[0], 1.0, "[red] is no markup")
    assert "failed full on t: [red] is no markup\n" in file.getvalue()


def test_a_reason_is_no_text_for_the_terminal_to_obey(trials, monkeypatch, capsys):
    board = of(trials[:1])
    board.starts(trials[0])
    board.ends(trials[0], 1.0, "\x1b]0;title\x07\n\udcff" + "x" * 10_000)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(r"[1/1] full on t: FAILED: \x1b]0;title\x07 \udcffxxx") and len(line) < 600
    file = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda: Console(file=file, width=80, force_terminal=True, color_system=None)
    )
    with progress.board(trials[:1]) as live:
        live.starts(trials[0])
        live.ends(trials[0], 1.0, "\x1b]0;title\x07")
    assert "failed full on t: \\x1b]0;title\\x07\n" in file.getvalue()


def test_long_times():
    assert [clock(seconds) for seconds in (0.4, 75, 3600, 100000)] == ["0:00", "1:15", "1:00:00", "27:46:40"]
