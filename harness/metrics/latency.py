"""Time to the first token and of a decoded token, on a device that nothing else uses.

ATP-LLaVA's definition: image encoding and the transformer's forward pass, so no preprocessing and no sampling. The
model's own forward is called, not `generate`, whose set-up would be timed too: a prefill, then single tokens on its
cache. That is what `generate` calls, so what `attach` installs runs as it does there, a method's own cost included.
"""

import fcntl
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from transformers import DynamicCache

from harness.errors import VtbenchError

# The share of the machine's cores that others may use before a CPU time counts as not exclusive.
QUIET = 0.05


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Raw times in milliseconds, in the order measured.

    clock: "CUDA events", or "CPU time": wall-clock time of work on a CPU. exclusive: as far as can be told, nothing
    else used the device meanwhile.
    """

    clock: str
    exclusive: bool
    warmup: int
    prefill_ms: tuple[float, ...]
    decode_ms: tuple[float, ...]

    def record(self) -> dict[str, Any]:
        """Return record.json's "latency"."""
        return {
            "clock": self.clock,
            "exclusive": self.exclusive,
            "warmup": self.warmup,
            "prefill_ms": spread(self.prefill_ms),
            "decode_ms": spread(self.decode_ms),
        }


def spread(raw: tuple[float, ...]) -> dict[str, Any]:
    """Return median and quartiles (linear interpolation) beside the raw values."""
    q25, median, q75 = (float(q) for q in np.quantile(raw, (0.25, 0.5, 0.75)))
    return {"median": median, "q25": q25, "q75": q75, "raw": list(raw)}


@torch.no_grad()
def measure(
    model: Any,
    inputs: Mapping[str, Tensor],
    *,
    warmup: int = 3,
    repeats: int = 10,
    decoded: int = 4,
    forget: Callable[[], object] = lambda: None,
) -> Latency:
    """Time a prompt's prefill `repeats` times, and after each one `decoded` greedy tokens one by one.

    model: a Hugging Face VLM, attached or not; inputs: its processor's, batch 1, moved to its device here.
    warmup: runs before that, of the same kind; forget: called before every prefill, untimed, to drop what an earlier
    run of the same prompt would spare this one (IVTP's text features: `encoder.encode.cache_clear`). Waits until no
    other timed section of this machine uses the device.
    Errors: VtbenchError for another batch size or device, or counts that measure nothing.
    """
    if (batch := inputs["input_ids"].shape[0]) != 1:
        raise VtbenchError(f"latency: measured at batch 1, not {batch}")
    if warmup < 0 or repeats < 1 or decoded < 1:
        raise VtbenchError(f"latency: warmup {warmup}, repeats {repeats}, decoded {decoded}; allowed are 0+, 1+, 1+")
    device = model.device
    if device.type not in ("cpu", "cuda"):
        raise VtbenchError(f"latency: cannot time a {device.type!r} device; allowed are cpu, cuda")
    prompt = {
        name: value.to(device, model.dtype if value.is_floating_point() else None) for name, value in inputs.items()
    }
    prefill_ms: list[float] = []
    decode_ms: list[float] = []
    with device_to_itself(device):
        for _ in range(warmup):
            forget()
            _prompt(model, prompt, decoded)
        others = _others_on_gpu(device) if device.type == "cuda" else _others_on_cpu()
        for _ in range(repeats):
            forget()
            prefill, steps = _prompt(model, prompt, decoded)
            prefill_ms.append(prefill)
            decode_ms.extend(steps)
        exclusive = not others()
    return Latency(
        clock="CUDA events" if device.type == "cuda" else "CPU time",
        exclusive=exclusive,
        warmup=warmup,
        prefill_ms=tuple(prefill_ms),
        decode_ms=tuple(decode_ms),
    )


def _prompt(model: Any, prompt: Mapping[str, Tensor], decoded: int) -> tuple[float, list[float]]:
    """Run and time one prefill and the tokens after it."""
    ids = prompt["input_ids"]
    mask = prompt.get("attention_mask", torch.ones_like(ids))
    forward = partial(model, use_cache=True, logits_to_keep=1)
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    start = partial(forward, **{**prompt, "attention_mask": mask, "past_key_values": cache})
    prefill_ms, output = _timed(ids.device, start)
    steps = []
    for _ in range(decoded):
        mask = torch.cat([mask, mask.new_ones(1, 1)], dim=1)
        token = output.logits[:, -1:].argmax(dim=-1)
        step = partial(forward, input_ids=token, attention_mask=mask, past_key_values=cache)
        step_ms, output = _timed(ids.device, step)
        steps.append(step_ms)
    return prefill_ms, steps


def _timed(device: torch.device, call: Callable[[], Any]) -> tuple[float, Any]:
    """Return a call's milliseconds and its value. On CUDA the device is idle at the start, so launching counts too."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        with torch.cuda.device(device):
            start.record()
            value = call()
            end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end), value
    began = time.perf_counter()
    value = call()
    return (time.perf_counter() - began) * 1000, value


@contextmanager
def device_to_itself(device: torch.device, *, alone: bool = True) -> Iterator[None]:
    """Hold this machine's lock of a device, on which every timed section of vtbench waits for its turn.

    Work that is not timed holds it together with others like it (`alone=False`), so that timed sections wait for it.
    The lock is advisory and goes with the process that holds it, also when that dies.
    """
    name = f"cuda-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else device.type
    path = Path(tempfile.gettempdir()) / f"vtbench-{name}.lock"
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except PermissionError:  # another user's file in a sticky folder; a lock needs no right to write
        lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
    finally:
        os.close(lock)


def _others_on_cpu() -> Callable[[], bool]:
    """Start to watch; the returned function says whether other processes used more than QUIET of the cores since."""

    def busy() -> float:
        times, own = psutil.cpu_times()._asdict(), psutil.Process().cpu_times()
        # Linux counts a guest's time in `user` as well
        idle = sum(times.get(kind, 0.0) for kind in ("idle", "iowait", "guest", "guest_nice"))
        return sum(times.values()) - idle - own.user - own.system

    before, began = busy(), time.perf_counter()

    def others() -> bool:
        seconds = time.perf_counter() - began
        # the system counts in ticks of 10 ms, so a shorter watch tells nothing below one tick
        return busy() - before > max(QUIET * seconds * (psutil.cpu_count() or 1), 0.02)

    return others


def _others_on_gpu(device: torch.device) -> Callable[[], bool]:
    """Return a function that says whether the driver lists processes beside this one on the GPU, or cannot tell.

    A container sees other process numbers than the driver, so they are counted: one is ours.
    """
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"

    def listed() -> int | None:
        query = ["nvidia-smi", f"--id={uuid}", "--query-compute-apps=pid", "--format=csv,noheader"]
        try:
            answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout
        except (OSError, subprocess.SubprocessError):
            return None
        return len(answer.split())

    before = listed()

    def others() -> bool:
        after = listed()
        return before is None or after is None or max(before, after) > 1

    return others
