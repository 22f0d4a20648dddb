"""Ctrl-C and SIGTERM (`ray job stop`, Slurm's time limit): asked once a run ends in order, asked twice at once."""

import os
import signal
from types import FrameType

AGAIN = b"\nvtbench: stopping; running trials are dropped, finished ones are stored (once more: at once)\n"
SHOW_CURSOR = b"\x1b[?25h" if os.isatty(2) else b""


class Interrupts:
    """The signal that asked a run to stop, None so far, while the context lasts."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def listen(self) -> None:
        """Take the signals; again behind a library that has taken them."""
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(number, self._asked)
            self._before.setdefault(number, before)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            os.write(2, SHOW_CURSOR + b"\nvtbench: stopped at once\n")
            os._exit(128 + number)
        self.signal = number
        os.write(2, AGAIN)
