"""Time to the first token, of image encoding in it, of a decoded token, and of a method's own work, on a device that
nothing else uses.

ATP-LLaVA's definition: image encoding and the transformer's forward pass, so no preprocessing and no sampling. The
model's own forward is called, not `generate`, whose set-up would be timed too: a prefill, then single tokens on its
cache. That is what `generate` calls, so what `attach` installs runs as it does there, a method's own cost included.
"""

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from operator import sub
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from transformers import DynamicCache

from harness.errors import VtbenchError
from harness.lock import device_to_itself
from harness.model.anatomy import anatomy
from harness.model.replay import recorded
from methods.full import Full
from methods.interface import Method

# The share of the machine's cores that others may use before a CPU time counts as not exclusive.
QUIET = 0.05

FULL = Full()


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Raw times in milliseconds, in the order measured.

    clock: "CUDA events", or "CPU time": wall-clock time of work on a CPU. exclusive: as far as can be told, nothing
    else used the device meanwhile. vision_ms: the part of each prefill that the vision tower and the projector take, 0
    for a prompt without an image. pruner_ms: each prefill less that of the same repeat with the same patches kept
    without choosing them (`Replay`); below 0 where that is less than the noise; None for a method that cuts nothing.
    """

    clock: str
    exclusive: bool
    warmup: int
    prefill_ms: tuple[float, ...]
    decode_ms: tuple[float, ...]
    vision_ms: tuple[float, ...]
    pruner_ms: tuple[float, ...] | None = None

    def record(self) -> dict[str, Any]:
        """Return record.json's "latency"."""
        return {
            "clock": self.clock,
            "exclusive": self.exclusive,
            "warmup": self.warmup,
            "prefill_ms": spread(self.prefill_ms),
            "decode_ms": spread(self.decode_ms),
            "vision_ms": spread(self.vision_ms),
            "pruner_ms": None if self.pruner_ms is None else spread(self.pruner_ms),
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
    method: Method = FULL,
    attached: Callable[[Method], AbstractContextManager[object]] = nullcontext,
    warmup: int = 3,
    repeats: int = 10,
    decoded: int = 4,
    forget: Callable[[], object] = lambda: None,
) -> Latency:
    """Time a prompt's prefill `repeats` times, and after each one `decoded` greedy tokens one by one.

    model: a Hugging Face VLM; inputs: its processor's, batch 1, moved to its device here. method: timed as `attached`
    attaches it, which is entered anew, untimed, for every prefill; by default the model runs as it is. Every repeat
    times the method's replay as well, every other one before the method, so that a drift hits both alike.
    warmup: runs before that, of the same kind; forget: called before every prefill, untimed, to drop what an earlier
    run of the same prompt would spare this one (IVTP's reading of the question: `guide.forget`). Waits until no
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
    replayed_ms: list[float] = []
    decode_ms: list[float] = []
    vision_ms: list[float] = []
    with device_to_itself(device), _vision(model) as seen:

        def run(each: Method, steps: int) -> tuple[float, list[float]]:
            forget()
            with attached(each):
                return timed_prompt(model, prompt, steps)

        noted = recorded(method)
        run(noted, 0)
        timed = [(method, decoded, prefill_ms)]
        if noted.cuts:
            timed.append((noted.replay(), 0, replayed_ms))
        for _ in range(warmup):
            for each, steps, _times in timed:
                run(each, steps)
        used_by_others = watch(device)
        for repeat in range(repeats):
            for each, steps, times in timed[:: -1 if repeat % 2 else 1]:
                seen.clear()
                prefill, decoding = run(each, steps)
                times.append(prefill)
                decode_ms.extend(decoding)
                if each is method:
                    vision_ms.append(_between(*seen) if seen else 0.0)
        exclusive = not used_by_others()
    return Latency(
        clock="CUDA events" if device.type == "cuda" else "CPU time",
        exclusive=exclusive,
        warmup=warmup,
        prefill_ms=tuple(prefill_ms),
        decode_ms=tuple(decode_ms),
        vision_ms=tuple(vision_ms),
        pruner_ms=tuple(map(sub, prefill_ms, replayed_ms)) if replayed_ms else None,
    )


@torch.no_grad()
def timed_prompt(model: Any, prompt: Mapping[str, Tensor], decoded: int = 0) -> tuple[float, list[float]]:
    """Run a prompt on the model's device: the milliseconds of its prefill and of each greedy token after it."""
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
        torch.cuda.synchronize(device)
    start = _now(device)
    value = call()
    end = _now(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return _between(start, end), value


def _now(device: torch.device) -> Any:
    """Return this point in the device's work; on CUDA an event, for which nothing waits."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _between(start: Any, end: Any) -> float:
    """Return the milliseconds between two points that the device has passed."""
    elapsed: float = (end - start) * 1000 if isinstance(start, float) else start.elapsed_time(end)
    return elapsed


@contextmanager
def _vision(model: Any) -> Iterator[list[Any]]:
    """Note when the vision tower starts and when the projector has then run, in an empty list; `_between` reads it."""
    parts = anatomy(model)
    seen: list[Any] = []

    def start(*_: object) -> None:
        seen[:] = [_now(model.device)]

    def end(*_: object) -> None:
        if len(seen) == 1:  # later ones project a pseudo CLS, which is the method's work
            seen.append(_now(model.device))

    hooks = [
        parts.vision.register_forward_pre_hook(start, prepend=True),
        parts.projector.register_forward_hook(end),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def watch(device: torch.device) -> Callable[[], bool]:
    """Start to watch; the returned function says whether, as far as can be told, others used the device since."""
    return _others_on_gpu(device) if device.type == "cuda" else _others_on_cpu()


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

    A container sees other process numbers than the driver, so they are counted: one is ours. Where it lists none, ours
    is missing, and so may be others.
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
        return not (before == listed() == 1)

    return others
