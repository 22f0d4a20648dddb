"""What both trainings share: Muon beside AdamW, a learning-rate schedule, a log and checkpoints that resume."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn


def schedule(step: int, steps: int) -> float:
    """Return the factor of the learning rate: 100 steps of warm-up, linear decay over the last 30 %."""
    return min(1.0, (step + 1) / 100, (steps - step) / (0.3 * steps))


class Optimizer:
    """Muon on the matrices that `is_matrix` names, AdamW on the rest; gradients are clipped to norm 1."""

    def __init__(self, model: nn.Module, *, muon: float, adamw: float, is_matrix: Callable[[str], bool]) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        matrices = [p for name, p in named if p.ndim == 2 and is_matrix(name)]
        rest = [p for name, p in named if not (p.ndim == 2 and is_matrix(name))]
        self.parameters = [p for _, p in named]
        self.rates = (muon, adamw)
        self.parts: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(matrices, lr=muon, weight_decay=0.01),
            torch.optim.AdamW(rest, lr=adamw, weight_decay=0.01, betas=(0.9, 0.98)),
        )

    def step(self, factor: float) -> None:
        """Apply and clear the gradients at this factor of the learning rates."""
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for part, rate in zip(self.parts, self.rates, strict=True):
            for group in part.param_groups:
                group["lr"] = rate * factor
            part.step()
            part.zero_grad(set_to_none=True)


class Log:
    """Appends the mean of each value to log.jsonl every 50 steps and prints it; drops what a resumed run does again."""

    def __init__(self, folder: Path, begun: int, steps: int) -> None:
        self.path, self.steps, self.began = folder / "log.jsonl", steps, time.monotonic()
        self.sums: dict[str, list[float]] = {}
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        self.path.write_text("".join(line for line in lines if json.loads(line)["step"] <= begun))

    def write(self, step: int, **values: Tensor) -> None:
        """Take a step's values."""
        for name, value in values.items():
            self.sums.setdefault(name, []).append(float(value.detach()))
        if (step + 1) % 50 == 0:
            line = {name: round(sum(v) / len(v), 4) for name, v in self.sums.items()}
            line |= {"step": step + 1, "seconds": round(time.monotonic() - self.began)}
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            shown = " ".join(f"{name} {value}" for name, value in line.items() if name not in ("step", "seconds"))
            print(f"{self.path.parent.name} {step + 1}/{self.steps} {line['seconds']}s {shown}", flush=True)
            self.sums.clear()


def checkpoint(folder: Path, model: nn.Module, optimizer: Optimizer, step: int) -> None:
    """Write a checkpoint, atomically."""
    state = {"step": step, "model": model.state_dict(), "optimizer": [part.state_dict() for part in optimizer.parts]}
    partial = folder / "checkpoint.pt.part"
    torch.save(state, partial)
    os.replace(partial, folder / "checkpoint.pt")


def resume(folder: Path, model: nn.Module, optimizer: Optimizer) -> int:
    """Load the folder's checkpoint, if there is one, and return the steps that it has behind it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "checkpoint.pt"
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for part, saved in zip(optimizer.parts, state["optimizer"], strict=True):
        part.load_state_dict(saved)
    return int(state["step"])
