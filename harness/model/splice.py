"""The LLM's input: image features put where their placeholders stand, minus those that were cut.

Shapes: B rows, L slots, M images of P placeholders each, N visual tokens of an image that left the ViT, D width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from harness.errors import VtbenchError
from harness.model.anatomy import Anatomy
from harness.model.cut import reduced, uneven
from harness.model.ledger import Frame
from harness.model.plan import Planned
from methods.interface import Reduced, View
from methods.reduce import take


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
    frame: Frame,
    embeddings: Tensor,
    features: Tensor,
    patch: Tensor,
    size: Tensor,
    cuts: list[Planned],
    uniform: Callable[[str, Tensor], Tensor],
    *,
    contiguous: bool,
    ragged: bool,
) -> tuple[Frame, Tensor]:
    """Return frame 0, of the prompt's as it came, and the embeddings [B, L', D] that enter the LLM.

    features [M, N, D] come from the projector; patch [M, N] and size [M, N] say what they stand for. Cuts at the input
    seam reduce them further; uniform draws for those that need random numbers; ragged: whether images may differ in
    their counts. Under `original` positions a token keeps that of its own patch's placeholder.
    """
    for stage, cut in cuts if len(features) else []:
        random = uniform(f"input {cut.layer}", size) if "random" in stage.needs else None
        left = reduced(stage, View(x=features, size=size, random=random), cut.tokens, ragged=ragged)
        ragged = uneven(left) if stage.adaptive else ragged
        index, stays = left.index.clamp(min=0), left.index >= 0
        features = left.x if left.x is not None else take(features, index)
        size = (left.size if left.size is not None else size.gather(1, index)).masked_fill(~stays, 0)
        patch = patch.gather(1, index).masked_fill(~stays, -1)
    return frame.repack(embeddings, Reduced(index=patch, x=features, size=size), contiguous=contiguous, ragged=ragged)


def insert(
    embeddings: Tensor, mask: Tensor, slots: Tensor, rows: Tensor, states: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return embeddings, mask and slots with a token of its own, states [M, D], right behind every image.

    Rows with fewer images than another are padded on the left.
    """
    B, L, D = embeddings.shape
    device = mask.device
    counts = torch.zeros(B, dtype=torch.long, device=device).index_add(0, rows, torch.ones_like(rows))
    most = int(counts.max())
    behind = torch.zeros(B, L + 1, dtype=torch.long, device=device)
    behind = behind.index_put((rows, slots[:, -1] + 1), torch.ones_like(rows), accumulate=True).cumsum(dim=1)[:, :L]
    moved = torch.arange(L, device=device) + (most - counts)[:, None] + behind
    wide = embeddings.new_zeros(B, L + most, D).scatter(1, moved.unsqueeze(-1).expand(-1, -1, D), embeddings)
    seen = mask.new_zeros(B, L + most).scatter(1, moved, mask)
    slots = moved[rows].gather(1, slots)
    token = (rows, slots[:, -1] + 1)
    return wide.index_put(token, states.to(wide)), seen.index_put(token, seen.new_ones(len(rows))), slots
