"""Downsampling: the image itself at a lower resolution, the control that users ask for first."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch.nn.functional as F

from methods.interface import Cut, Method, Positions, Reduced, Shape, Stage, View
from methods.reduce import cell_centres, keep_all
from methods.schedule import check_square


@dataclass(frozen=True, kw_only=True)
class Downsample(Method):
    """The image is resized to g×g patches before the ViT, whose positions are interpolated; only n = g² can be reached.

    The processor's image, 336 px for LLaVA-1.5, is resized to 14·g px, bicubic and antialiased as the processor's own
    resize. Under `original` positions a token stands where the patch at its cell's centre stood.
    """

    name: ClassVar[str] = "downsample"
    paper: ClassVar[str] = "control"

    tokens: Annotated[int, "squares, 1 to all patches"]
    positions: Positions = "contiguous"

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """Return one stage on the image. Errors: ValueError that names the nearest squares."""
        check_square(self.tokens, shape, self.name)
        return (Stage(seam="image", reduce=shrink, cuts=(Cut(0, self.tokens),)),)


def shrink(view: View, n: int) -> Reduced:
    """Resize the image of N patches, x [B, N, 3·p·p], to n, itself a square."""
    B, N, D = view.x.shape
    if n == N:
        return keep_all(view)
    before, after, p = math.isqrt(N), math.isqrt(n), math.isqrt(D // 3)
    image = F.fold(view.x.float().transpose(1, 2), before * p, kernel_size=p, stride=p)
    image = F.interpolate(image, size=after * p, mode="bicubic", antialias=True)
    return Reduced(
        index=cell_centres(before, after, view.x.device).expand(B, -1),
        x=F.unfold(image, kernel_size=p, stride=p).transpose(1, 2).to(view.x.dtype),
        size=view.size.new_full((B, n), N / n),
    )
