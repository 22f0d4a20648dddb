"""What goes wrong in a trial, told in one line; and what is out of memory."""

import traceback
from typing import TYPE_CHECKING

from harness.errors import VtbenchError

if TYPE_CHECKING:
    import torch

    from harness.spec import Trial

LONGEST = 500  # characters of a reason


def describe(error: Exception, trial: "Trial") -> str:
    """Return what happened in a trial in one line: its method is named where the error comes from the method's code."""
    from methods import METHODS

    home = METHODS[trial.method].__module__.partition(".")[0]
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    where = f"in {trial.method}: " if any(name.partition(".")[0] == home for name in frames) else ""
    kind = "" if isinstance(error, VtbenchError) else f"{type(error).__name__}: "
    return in_one_line(f"{where}{kind}{error}")


def in_one_line(reason: str) -> str:
    """Return anybody's text as one line that can be printed, escaped as errors are and cut after LONGEST characters."""
    line = str(VtbenchError(" ".join(reason.split())))
    return line if len(line) <= LONGEST else line[:LONGEST] + " …"


def out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed: on the GPU, in Python, or in torch on the CPU, which says so in words alone."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def shortage(error: Exception, device: "torch.device") -> str:
    """Return what an out-of-memory error says, and on CUDA what was taken of the device."""
    said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if device.type != "cuda":
        return said
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return f"{said} ({torch.cuda.memory_allocated(device)} bytes allocated, {free} free of {total})"
