"""The LLM's input: image features put where their placeholders stand, minus those that were cut.

Shapes: B rows, L slots, M images of P placeholders each, N visual tokens of an image that left the ViT, D width.
"""

from collections.abc import Callable

from torch import Tensor

from harness.errors import VtbenchError
from harness.model.anatomy import Anatomy
from harness.model.ledger import Frame, uncut
from harness.model.plan import Planned
from methods.interface import Reduced, View


def placeholders(anatomy: Anatomy, input_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the placeholder slots of each image [M, P] and the row that holds it [M], in the order of the prompt.

    Errors: VtbenchError when a row's placeholders are no whole number of images side by side.
    """
    P = anatomy.shape.patches
    rows, slots = (input_ids == anatomy.image_token).nonzero(as_tuple=True)
    if len(slots) % P == 0:
        slots, rows = slots.view(-1, P), rows.view(-1, P)
        if bool(((slots[:, -1:] - slots[:, :1] == P - 1) & (rows[:, -1:] == rows[:, :1])).all()):
            return slots, rows[:, 0]
    raise VtbenchError(f"prompt: {slots.numel()} image tokens; allowed is {P} side by side for every image")


def splice(
    anatomy: Anatomy,
    embeddings: Tensor,
    mask: Tensor,
    slots: Tensor,
    rows: Tensor,
    features: Tensor,
    patch: Tensor,
    size: Tensor,
    cuts: list[Planned],
    uniform: Callable[[str, Tensor], Tensor],
    *,
    contiguous: bool,
) -> tuple[Frame, Tensor]:
    """Return frame 0 and the embeddings [B, L', D] that enter the LLM.

    features [M, N, D] come from the projector; patch [M, N] and size [M, N] say what they stand for. Cuts at the
    input seam reduce them further; uniform draws for those that need random numbers. Under `original` positions a
    token keeps that of its own patch's placeholder.
    """
    for stage, cut in cuts if len(features) else []:
        random = uniform(f"input {cut.layer}", size) if "random" in stage.needs else None
        reduced = stage.reduce(View(x=features, size=size, random=random), cut.tokens)
        index = reduced.index.clamp(min=0)
        stays = reduced.index >= 0
        features = reduced.x if reduced.x is not None else take(features, index)
        size = (reduced.size if reduced.size is not None else size.gather(1, index)).masked_fill(~stays, 0)
        patch = patch.gather(1, index).masked_fill(~stays, -1)
    frame = uncut(mask, slots, rows)
    return frame.repack(embeddings, Reduced(index=patch, x=features, size=size), contiguous=contiguous)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Return x [M, N, D] at index [M, K]: [M, K, D]."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
