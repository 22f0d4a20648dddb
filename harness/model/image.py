"""The image seam: the pixels themselves are reduced before the ViT sees them, patch by patch.

Shapes: M images, N patches of p×p pixels in rows, n = g·g of them after the cut.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.model.plan import Plan
from methods.interface import View


def shrink(plan: Plan, pixels: Tensor, p: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pixels [M, 3, g·p, g·p] after the plan's cuts, and the patch and the size [M, n] of what is left.

    A cut that keeps all leaves the pixels as they are.
    """
    M, N = len(pixels), (pixels.shape[2] // p) * (pixels.shape[3] // p)
    patch = torch.arange(N, device=pixels.device).expand(M, -1)
    size = torch.ones(M, N, device=pixels.device)
    for stage, cut in plan.before.get(0, []):
        left = stage.reduce(View(x=F.unfold(pixels, p, stride=p).transpose(1, 2), size=size), cut.tokens)
        if left.x is None or left.size is None:
            continue
        side = math.isqrt(left.index.shape[1]) * p
        pixels = F.fold(left.x.transpose(1, 2), side, p, stride=p).to(pixels.dtype)
        patch, size = patch.gather(1, left.index), left.size
    return pixels, patch, size
