"""KV-cache bytes by arithmetic, and the peak that a device or process reached."""

import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig


@dataclass(frozen=True, kw_only=True)
class Memory:
    """KV-cache bytes of a prompt in bfloat16 (visual tokens alone; all), and the peak, None where not measured.

    reserved_bytes: the most that torch's allocator held of the device, unused parts of its blocks included; CUDA only.
    """

    kv_visual_bytes: int
    kv_bytes: int
    peak_bytes: int | None = None
    peak_kind: str | None = None
    reserved_bytes: int | None = None

    def record(self) -> dict[str, Any]:
        """Return record.json's "memory"."""
        return {
            "kv_visual_bytes": self.kv_visual_bytes,
            "kv_bytes": self.kv_bytes,
            "peak_bytes": self.peak_bytes,
            "peak_kind": self.peak_kind,
            "reserved_bytes": self.reserved_bytes,
        }


class Peak:
    """What `peak` found; read it after the context has ended."""

    bytes: int
    kind: str
    reserved_bytes: int | None = None


def kv_bytes(lengths: Sequence[float], config: PreTrainedConfig, dtype: torch.dtype = torch.bfloat16) -> int:
    """Return the bytes of keys and values of these tokens.

    lengths: tokens in each LLM layer's cache; means over samples give the exact mean, for bytes are linear in them.
    config: the model's or its LLM's. Errors: ValueError for another number of layers.
    """
    lm = config.get_text_config()
    if len(lengths) != lm.num_hidden_layers:
        raise ValueError(f"lengths of {len(lengths)} layers given; the LLM has {lm.num_hidden_layers}")
    head_width = getattr(lm, "head_dim", None) or lm.hidden_size // lm.num_attention_heads
    return round(sum(lengths) * 2 * lm.num_key_value_heads * head_width * dtype.itemsize)


def memory(visual: Sequence[float], text_tokens: float, config: PreTrainedConfig, peak: Peak | None = None) -> Memory:
    """Return a trial's memory from the visual tokens of every LLM layer, the other prompt tokens and a peak."""
    return Memory(
        kv_visual_bytes=kv_bytes(visual, config),
        kv_bytes=kv_bytes([n + text_tokens for n in visual], config),
        peak_bytes=peak.bytes if peak else None,
        peak_kind=peak.kind if peak else None,
        reserved_bytes=peak.reserved_bytes if peak else None,
    )


@contextmanager
def peak(device: torch.device) -> Iterator[Peak]:
    """Measure the peak while the context runs.

    On CUDA: the most bytes that torch's tensors took on the device, weights included ("CUDA allocated"), and the most
    that its allocator reserved for them, from which what is idle at the start has been given back. Else the most
    physical memory of this process ("process RSS"), with libraries and whatever else it holds; on systems other than
    Linux, which cannot reset it, since the process began.
    """
    found = Peak()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        torch.cuda.synchronize(device)
        found.bytes, found.kind = torch.cuda.max_memory_allocated(device), "CUDA allocated"
        found.reserved_bytes = torch.cuda.max_memory_reserved(device)
    else:
        _reset_peak_rss()
        yield found
        found.bytes, found.kind = _peak_rss(), "process RSS"


def _reset_peak_rss() -> None:
    with suppress(OSError):  # not Linux, or not allowed: the peak is then that of the process's life
        Path("/proc/self/clear_refs").write_text("5")


def _peak_rss() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
