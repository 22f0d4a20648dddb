"""What published numbers count, and what they call one multiply-add (MAC): conventions over a count's parts."""

from dataclasses import dataclass

from harness.errors import VtbenchError
from harness.reading import suggest


@dataclass(frozen=True, kw_only=True)
class Convention:
    """Which parts a published number adds up, and what it calls one multiply-add."""

    source: str
    per_mac: int = 2
    decoder_alone: bool = False  # no vision, projector, lm_head and extra
    unread_layers: bool = False  # ViT layers above the one that the LLM reads: LLaVA runs its 24th and ignores it
    projector: bool = False
    attention: bool = True
    norm: bool = False
    padded_vocabulary: bool = True
    text: bool = True  # in the decoder; without it visual tokens go through alone
    gate: bool = True  # the third matrix of LLaMA's MLP


CONVENTIONS: dict[str, Convention] = {
    "macs": Convention(
        source="fvcore's total: multiply-adds and LayerNorm; layers that nothing reads are left out",
        per_mac=1,
        projector=True,
        norm=True,
    ),
    "flops": Convention(
        source="every matrix product that a forward pass runs, 2 a multiply-add, as torch's FlopCounterMode",
        unread_layers=True,
        projector=True,
    ),
    "ivtp": Convention(
        source="IVTP (ECCV 2024), Tables 3 and 9: no projector, only ViT layers that are read, unpadded vocabulary",
        padded_vocabulary=False,
    ),
    "lvpruning": Convention(
        source="LVPruning, Table 1: linear layers and convolutions only, no attention products; all ViT layers",
        unread_layers=True,
        projector=True,
        attention=False,
    ),
    # d the width, m the MLP's: the multiply-adds of n tokens in a decoder layer. Grouped keys make keys and values
    # narrower than d: the layer has, and these count, fewer than the formula's 4nd².
    "fastv": Convention(
        source="FastV (ECCV 2024), DivPrune: 4nd² + 2n²d + 2ndm a decoder layer, n all tokens; 1 a multiply-add",
        per_mac=1,
        decoder_alone=True,
        gate=False,
    ),
    "sparsevlm": Convention(
        source="SparseVLM, PyramidDrop: 4nd² + 2n²d + 3ndm a decoder layer, n visual tokens alone; 1 a multiply-add",
        per_mac=1,
        decoder_alone=True,
        text=False,
    ),
}

# Hugging Face pads LLaVA's vocabulary from LLaMA's 32000 to 32064, and no other model's that we count.
PADDED_VOCABULARY = {32064: 32000}


def convention_of(name: str) -> Convention:
    """Return a convention. Errors: VtbenchError for an unknown one."""
    if name not in CONVENTIONS:
        raise VtbenchError(f"convention: {name!r} is unknown; {suggest(name, CONVENTIONS)}")
    return CONVENTIONS[name]
