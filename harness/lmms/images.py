"""Pictures: preprocessed for the model once, and as people see what it saw."""

import hashlib
import io
from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

IMAGE_CACHE_BYTES = 1 << 30
QUALITY = 85


class ImageCache:
    """Preprocessed images by content, so that the trials of a warm worker share them; the least used go first.

    Also what tells a document's images, as long as its data set is there.
    """

    def __init__(self) -> None:
        self.kept: OrderedDict[str, torch.Tensor] = OrderedDict()
        self.bytes = 0
        self.shown: dict[str, bytes] = {}
        self._contents: WeakKeyDictionary[Any, dict[int, tuple[str, ...]]] = WeakKeyDictionary()

    def contents(self, docs: Any, document: int, read: Callable[[], list[Image.Image]]) -> tuple[str, ...]:
        """Return what tells a document's images (`content`), which are read once."""
        try:
            known = self._contents.setdefault(docs, {})
        except TypeError:  # a plain list, to which there are no weak references
            known = {}
        if document not in known:
            known[document] = tuple(map(content, read()))
        return known[document]

    def pixels(self, processor: Any, image: Image.Image) -> torch.Tensor:
        """Return the image's pixel values [3, H, W]."""
        key = content(image)
        if key not in self.kept:
            pixels = processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
            self.kept[key] = pixels
            self.bytes += pixels.nbytes
            while self.bytes > IMAGE_CACHE_BYTES and len(self.kept) > 1:
                self.bytes -= self.kept.popitem(last=False)[1].nbytes
        self.kept.move_to_end(key)
        return self.kept[key]

    def webp(self, processor: Any, image: Image.Image) -> bytes:
        """Return what the model sees of an image as a small file for people."""
        key = content(image)
        if key not in self.shown:
            file = io.BytesIO()
            seen = unnormalised(self.pixels(processor, image), processor)
            Image.fromarray(seen).save(file, "webp", quality=QUALITY, method=4)
            self.shown[key] = file.getvalue()
        return self.shown[key]


def content(image: Image.Image) -> str:
    """Return what tells a picture from every other: a hash of its size and RGB values."""
    return hashlib.blake2b(repr(image.size).encode() + image.convert("RGB").tobytes(), digest_size=16).hexdigest()


def unnormalised(pixels: Tensor, processor: Any) -> NDArray[np.uint8]:
    """Return the picture [H, W, 3] that the model saw, from its pixel values [3, H, W]."""
    picture = pixels.float().cpu().permute(1, 2, 0)
    if processor.do_normalize:
        picture = picture * torch.tensor(processor.image_std) + torch.tensor(processor.image_mean)
    if processor.do_rescale:
        picture = picture / processor.rescale_factor
    seen: NDArray[np.uint8] = picture.round().clamp(0, 255).to(torch.uint8).numpy()
    return seen
