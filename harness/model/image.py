"""The image seam: the pixels themselves are reduced before the ViT sees them, patch by patch.

Shapes: M images, N patches of p×p pixels in rows, n = g·g of them after the cut.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.model.plan import Plan
from methods.interface import View
from methods.reduce import take


def shrink(plan: Plan, pixels: Tensor, p: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pixels [M, 3, g·p, g·p] after the plan's cuts, and the patch and the size [M, n] of what is left.

    A cut that keeps all leaves the pixels as they are.
    """
    M, N = len(pixels), (pixels.shape[2] // p) * (pixels.shape[3] // p)
    patch = torch.arange(N, device=pixels.device).expand(M, -1)
    size = torch.ones(M, N, device=pixels.device)
    for stage, cut in plan.before.get(0, []):
        view = View(x=F.unfold(pixels, p, stride=p).transpose(1, 2), size=size)
        left = stage.reduce(view, cut.tokens)
        if left.index.shape[1] == patch.shape[1]:
            continue
        x = take(view.x, left.index) if left.x is None else left.x
        side = math.isqrt(left.index.shape[1]) * p
        pixels = F.fold(x.transpose(1, 2), side, p, stride=p).to(pixels.dtype)
        patch = patch.gather(1, left.index)
        size = size.gather(1, left.index) if left.size is None else left.size
    return pixels, patch, size
