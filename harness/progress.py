"""Shows how a sweep gets on: a live table on a terminal, else one flushed line a finished trial."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.faults import in_one_line
from harness.spec import Trial

ROWS = 12  # running trials that are listed, those that run longest


@dataclass
class Board:
    """Trials by what becomes of them. ETA: trials left at the mean seconds of finished ones of their model and task."""

    waiting: Counter[object]  # by model and task
    console: Console | None = None
    done: int = 0
    failed: int = 0
    running: dict[str, tuple[Trial, float]] = field(default_factory=dict)  # by id, with the start
    workers: int = 0  # the most that ran at once
    seconds: dict[object, list[float]] = field(default_factory=lambda: defaultdict(list))
    live: Live | None = None

    def starts(self, trial: Trial) -> None:
        """A trial starts."""
        self.waiting[_kind(trial)] -= 1
        self.running[trial.id] = trial, time.monotonic()
        self.workers = max(self.workers, len(self.running))

    def again(self, trial: Trial) -> None:
        """A running trial goes back to the queue."""
        del self.running[trial.id]
        self.waiting[_kind(trial)] += 1

    def ends(self, trial: Trial, seconds: float, error: str | None = None) -> None:
        """A trial ends, with its reason if it failed."""
        del self.running[trial.id]
        self.failed += error is not None
        self.done += error is None
        self.seconds[_kind(trial)].append(seconds)
        if error is not None:
            error = in_one_line(error)
        outcome = f"FAILED: {error}" if error else f"{seconds:.1f} s"
        if self.live is None:
            ended, total = self._counts()
            print(f"[{ended}/{total}] {trial.label}: {outcome}{self._eta()}", flush=True)
        elif error:
            self.live.console.print(
                f"failed {trial.label}: {error}", style="red", markup=False, highlight=False, soft_wrap=True
            )

    def __rich__(self) -> Group:
        """Return the table as it is now."""
        ended, total = self._counts()
        counts = (
            f"{self.done} done · {len(self.running)} running · {self.failed} failed · {self.waiting.total()} waiting"
        )
        table = Table.grid(padding=(0, 2))
        table.add_column(justify="right")
        longest = sorted(self.running.values(), key=lambda each: each[1])
        for trial, began in longest[:ROWS]:
            table.add_row(clock(time.monotonic() - began), Text(trial.label, overflow="ellipsis", no_wrap=True))
        if len(longest) > ROWS:
            table.add_row("", f"and {len(longest) - ROWS} more")
        if not self.running:
            table.add_row("", "starting Ray" if not ended else "waiting for a worker")
        head = Table.grid(padding=(0, 2))
        head.add_row(ProgressBar(total=max(total, 1), completed=ended, width=20), Text(counts + self._eta()))
        return Group(head, table)

    def _counts(self) -> tuple[int, int]:
        ended = self.done + self.failed
        return ended, ended + len(self.running) + self.waiting.total()

    def _eta(self) -> str:
        known = [seconds for each in self.seconds.values() for seconds in each]
        if not known or not (self.running or self.waiting.total()):
            return ""
        mean = {kind: fmean(each) for kind, each in self.seconds.items()}
        overall, now = fmean(known), time.monotonic()
        running = [max(0.0, mean.get(_kind(trial), overall) - (now - began)) for trial, began in self.running.values()]
        waiting = sum(count * mean.get(kind, overall) for kind, count in self.waiting.items())
        left = (sum(running) + waiting) / self.workers
        return f" · {clock(max(left, *running, 0.0))} left"  # the longest one ends no sooner with many workers


def clock(seconds: float) -> str:
    """Write 75 as `1:15`, 3700 as `1:01:40`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _kind(trial: Trial) -> object:
    return trial.model, trial.task


@contextmanager
def board(waiting: Iterable[Trial]) -> Iterator[Board]:
    """Show a board while the context lasts."""
    console = Console()
    shown = Board(Counter(map(_kind, waiting)), console)
    if not console.is_terminal:
        yield shown
        return
    with Live(shown, console=console, transient=True, refresh_per_second=2) as shown.live:
        yield shown
