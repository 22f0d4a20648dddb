"""Shows how a sweep gets on: a live line on a terminal, else one flushed line a finished trial."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn


@dataclass
class Board:
    """Counts of trials. ETA: what is left at the rate since the first worker was there."""

    waiting: int
    console: Console
    done: int = 0
    failed: int = 0
    running: int = 0
    began: float | None = None
    bar: Progress | None = None
    task: TaskID = field(default=TaskID(0))

    def starts(self) -> None:
        """A trial starts."""
        self.began = self.began or time.monotonic()
        self.waiting -= 1
        self.running += 1
        self._show()

    def again(self) -> None:
        """A running trial goes back to the queue."""
        self.running -= 1
        self.waiting += 1
        self._show()

    def ends(self, label: str, seconds: float, error: str | None = None) -> None:
        """A trial ends, with its reason if it failed."""
        self.running -= 1
        self.failed += error is not None
        self.done += error is None
        ended, total = self.done + self.failed, self.done + self.failed + self.running + self.waiting
        outcome = f"FAILED: {error}" if error else f"{seconds:.1f} s"
        if self.bar is None:
            print(f"[{ended}/{total}] {label}: {outcome}{self._eta()}", flush=True)
        elif error:
            self.console.print(f"[red]failed[/] {label}: {error}", highlight=False, soft_wrap=True)
        self._show()

    def _show(self) -> None:
        if self.bar is not None:
            ended = self.done + self.failed
            text = f"{self.done} done · {self.running} running · {self.failed} failed · {self.waiting} waiting"
            self.bar.update(self.task, completed=ended, total=ended + self.running + self.waiting)
            self.bar.update(self.task, description=text + self._eta())

    def _eta(self) -> str:
        ended, left = self.done + self.failed, self.running + self.waiting
        if not ended or not left or self.began is None:
            return ""
        seconds = (time.monotonic() - self.began) / ended * left
        minutes, seconds = divmod(round(seconds), 60)
        return f" · {minutes}:{seconds:02d} left"


@contextmanager
def board(waiting: int) -> Iterator[Board]:
    """Show a board while the context lasts."""
    console = Console()
    if not console.is_terminal:
        yield Board(waiting, console)
        return
    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as bar:
        yield Board(waiting, console, bar=bar, task=bar.add_task("starting Ray", total=waiting))
