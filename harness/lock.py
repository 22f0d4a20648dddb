"""The lock of a device, by which timed sections of this machine's processes take turns. Needs no torch for the CPU."""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


POLL = 0.05  # seconds between two tries


@contextmanager
def device_to_itself(
    device: "torch.device | str", *, alone: bool = True, patience: float | None = None
) -> Iterator[None]:
    """Hold this machine's lock of a device, on which every timed section of vtbench waits for its turn.

    Work that is not timed holds it together with others like it (`alone=False`), so that timed sections wait for it.
    The lock is advisory and goes with the process that holds it, also when that dies.
    patience: seconds to wait for it, and then to go on without it; by default as long as it takes.
    """
    path = Path(tempfile.gettempdir()) / f"vtbench-{_name(device)}.lock"
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except PermissionError:  # another user's file in a sticky folder; a lock needs no right to write
        lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _take(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH, patience)
        yield
    finally:
        os.close(lock)


def _take(lock: int, how: int, patience: float | None) -> None:
    """Wait for a lock, so many seconds at most."""
    if patience is None:
        fcntl.flock(lock, how)
        return
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(lock, how | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= end:
                return
            time.sleep(POLL)


def _name(device: "torch.device | str") -> str:
    kind = str(device).partition(":")[0]
    if kind != "cuda":
        return kind
    import torch

    return f"cuda-{torch.cuda.get_device_properties(device).uuid}"
