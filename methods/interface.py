"""What a method sees and returns.

Shapes: B images, N visual tokens that enter a cut, K that leave it, D width. Visual tokens only: the ViT's CLS token
and the LLM's text are the engine's business. Where images of one batch hold different numbers of tokens, the shorter
ones are padded with tokens of size 0, which a `reduce` must neither keep nor read.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

Seam = Literal["vit", "input", "llm"]
Positions = Literal["original", "contiguous"]
Need = Literal[
    "cls",  # View.cls
    "keys",  # View.keys
    "value_norm",  # View.value_norm
    "random",  # View.random
    "cls_row",  # View.attention = the CLS token's attention in the last layer run
    "cls_rollout",  # View.attention = the CLS token's rollout over the layers since the previous cut
    "last_row",  # View.attention = the last prompt token's attention in the last layer run
    "rider_rollout",  # View.attention = the pseudo CLS's rollout over the layers since the previous cut
]


class View(NamedTuple):
    """What a stage is shown at one cut; a field is None unless the stage `needs` it."""

    x: Tensor  # [B, N, D] hidden states
    size: Tensor  # [B, N] float32: how many patches each token stands for, 0 = padding
    attention: Tensor | None = None  # [B, N] float32, post-softmax, head mean
    value_norm: Tensor | None = None  # [B, N] float32: L2 norm of v_proj's output in the last layer run, heads joined
    keys: Tensor | None = None  # [B, N, head width] float32: head-mean keys of the last layer run
    cls: Tensor | None = None  # [B, D] the CLS token's hidden state, ViT only
    random: Tensor | None = None  # [B, N] float32 in [0, 1), a function of the image, the seed and the layer alone


@dataclass(frozen=True)
class Reduced:
    """What stays after a cut, in the order in which it goes on."""

    index: Tensor  # [B, K] int64: the slot (0..N-1) whose patch and position each token keeps, -1 = padding, at the end
    x: Tensor | None = None  # [B, K, D]: new hidden states, only when merging
    size: Tensor | None = None  # [B, K]: new sizes, only when merging


class Cut(NamedTuple):
    """One cut of a schedule."""

    layer: int  # before this layer of the tower (0 = on the embeddings), or inside it for a stage that says so
    tokens: int  # visual tokens of an image that stay; adaptive stages take it as they document


class Shape(NamedTuple):
    """The shape of a model, as far as a schedule depends on it."""

    patches: int  # visual tokens of an unpruned image: 576
    vit_layers: int  # layers below the features that the LLM gets: 23 for LLaVA-1.5, whose 24th is not read
    llm_layers: int


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stateless reduction of the visual tokens at one seam, with the cuts at which it is applied."""

    seam: Seam
    reduce: Callable[[View, int], Reduced]
    cuts: tuple[Cut, ...]
    needs: frozenset[Need] = field(default_factory=frozenset)
    inside: bool = False  # cut between the layer's attention and its MLP instead of before the layer; ViT only
    proportional: bool = False  # add log(size) to the attention logits of every key (ToMe); ViT only
    adaptive: bool = False  # counts differ from image to image; only such a stage may bring padding in


class Words(NamedTuple):
    """One image's question, as IVTP's guidance reads it. T LLM tokens, S CLIP tokens, P CLIP's joint width."""

    embeddings: Tensor  # [T, D] LLM input embeddings of the question's tokens
    spans: list[tuple[int, int]]  # T character ranges of the question
    clip_features: Tensor  # [S, P] CLIP text tokens after final layer norm and text projection
    clip_spans: list[tuple[int, int]]  # S character ranges; SOS, EOS and padding are left out
    clip_cls: Tensor  # [P] the ViT's last CLS after post layer norm and visual projection
    projected_cls: Tensor  # [D] the CLS of the layer that the LLM reads, through the projector


@dataclass(frozen=True, kw_only=True)
class Method:
    """A token reduction method: its parameters are the fields, its algorithm is in `stages`.

    A subclass is one file and one line in `methods/__init__.py`; every one but `full` has a field `tokens`, the
    budget. Errors: a budget that the method cannot reach
    on a model's shape is a ValueError from `stages` that names the budgets it can.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    trained: ClassVar[bool] = False

    positions: Positions = "original"

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """Return the method's stages on a model of this shape, in the order of the data: ViT, input, LLM."""
        raise NotImplementedError

    def pseudo_cls(self, words: Words) -> Tensor:
        """Return the pseudo CLS [D] that rides through the LLM, for stages that need `rider_rollout`."""
        raise NotImplementedError
