"""Random numbers that depend on an image, the seed and the place in the model alone."""

import hashlib

import torch
from torch import Tensor


def digest(pixels: Tensor) -> list[bytes]:
    """Return the sha256 of every image's pixel values [M, 3, H, W] as float32."""
    images = pixels.detach().to("cpu", torch.float32).contiguous().numpy()
    return [hashlib.sha256(image.tobytes()).digest() for image in images]


def uniform(digests: list[bytes], seed: int, place: str, count: int) -> Tensor:
    """Return numbers in [0, 1) [M, count]; an image's first ones are the same whatever the count."""
    rows = []
    for image in digests:
        mixed = hashlib.sha256(f"{seed}/{place}/".encode() + image).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(mixed[:8], "big") >> 1)
        rows.append(torch.rand(count, generator=generator))
    return torch.stack(rows)
