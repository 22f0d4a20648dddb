"""Answers come of numbers: logits that are NaN or infinite are an error, never a text."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from harness.errors import VtbenchError


@contextmanager
def finite_logits(model: Any, rows: Sequence[str]) -> Iterator[None]:
    """Look at the logits of every forward pass in the context; rows: what each row of the batch is called.

    The device is asked once, at the end, so that no token waits. Errors: VtbenchError that names the first row.
    """
    seen: list[Tensor] = []

    def look(module: object, inputs: object, logits: Tensor) -> None:
        seen.append(logits[:, -1].isfinite().all(dim=-1))

    hook = model.get_output_embeddings().register_forward_hook(look)
    try:
        yield
    finally:
        hook.remove()
    finite = torch.stack(seen) if seen else torch.ones(0, len(rows), dtype=torch.bool)
    if not finite.all():
        token, row = (int(place) for place in (~finite).nonzero()[0])
        raise VtbenchError(f"logits are NaN or infinite at token {token + 1} of the answer to {rows[row]}")
