"""Where a number comes from: versions, commit, device."""

import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


@cache
def provenance(device: torch.device) -> dict[str, Any]:
    """Return record.json's "provenance" as far as it is the same for all trials of a process."""
    packages = {"vtbench": "vtbench", "torch": "torch", "transformers": "transformers", "lmms_eval": "lmms-eval"}
    return {
        **{key: _version(name) for key, name in (packages | {"fvcore": "fvcore"}).items()},
        "python": platform.python_version(),
        "git_commit": git_commit(),
        "device": device.type,
        "cpu_or_gpu_name": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "host_threads": torch.get_num_threads(),
        "node": node(),
    }


def _version(package: str) -> str | None:
    """Return None where it is not installed: a benchmark needs neither lmms-eval nor fvcore."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Return the commit of the code that runs, with `-dirty` where tracked files differ; None outside a clone.

    A Ray job's folder is none: there VTBENCH_COMMIT says what was submitted.
    """
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("VTBENCH_COMMIT")


def node() -> str | None:
    """Return Ray's id of the node that this process is on, None outside Ray."""
    ray = sys.modules.get("ray")
    return ray.get_runtime_context().get_node_id() if ray is not None and ray.is_initialized() else None


def cpu_name() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
