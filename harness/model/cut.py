"""Makes a cut: shows a stage what is left of the images and returns what goes on.

Shapes: M images, N visual tokens of an image (the most of any, the rest is padding at the end), K what stays of them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.interface import Reduced, Stage, View


def reduced(stage: Stage, view: View, tokens: int, *, ragged: bool) -> Reduced:
    """Return what the stage leaves of the images; where their counts differ (`ragged`) it sees them one at a time."""
    if not ragged:
        return stage.reduce(view, tokens)
    counts = (view.size > 0).sum(dim=1).tolist()
    parts = [stage.reduce(_image(view, image, count), tokens) for image, count in enumerate(counts)]
    most = max(part.index.shape[1] for part in parts)
    new_x = new_size = None
    if any(part.x is not None for part in parts):
        new_x = torch.cat([_padded(_states(part, view.x[image]), most, 0) for image, part in enumerate(parts)])
    if any(part.size is not None for part in parts):
        new_size = torch.cat([_padded(_sizes(part, view.size[image]), most, 0) for image, part in enumerate(parts)])
    return Reduced(torch.cat([_padded(part.index, most, -1) for part in parts]), new_x, new_size)


def uneven(cut: Reduced) -> bool:
    """Return whether images differ in how many tokens stay. It asks the device, so only behind adaptive stages."""
    return bool((cut.index < 0).any())


def _image(view: View, image: int, count: int) -> View:
    one = slice(image, image + 1)

    def of(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[one, :count]

    return View(
        x=view.x[one, :count],
        size=view.size[one, :count],
        attention=of(view.attention),
        rows=None if view.rows is None else view.rows[one, :, :count],
        value_norm=of(view.value_norm),
        keys=of(view.keys),
        cls=None if view.cls is None else view.cls[one],
        random=of(view.random),
    )


def _states(part: Reduced, x: Tensor) -> Tensor:
    return x[part.index] if part.x is None else part.x


def _sizes(part: Reduced, size: Tensor) -> Tensor:
    return size[part.index] if part.size is None else part.size


def _padded(x: Tensor, length: int, value: float) -> Tensor:
    missing = length - x.shape[1]
    return F.pad(x, (0, 0, 0, missing) if x.ndim == 3 else (0, missing), value=value)
