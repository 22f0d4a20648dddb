"""What a method sees and returns.

Shapes: B images, N visual tokens that enter a cut, K that leave it, D width. Visual tokens only: the ViT's CLS token
and the LLM's text are the engine's business. A view holds no padding: images of a batch that have different numbers of
tokens are shown one at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

Seam = Literal["image", "vit", "input", "llm"]
Tokens = Annotated[int, "1 to all patches"]  # what a parameter allows is told by `vtbench methods`
Positions = Literal["original", "contiguous"]
Need = Literal[
    "cls",  # View.cls
    "keys",  # View.keys, of the last layer run
    "next_keys",  # View.keys, all heads joined, of the layer above: its norm and projection of the tokens at hand
    "value_norm",  # View.value_norm
    "random",  # View.random
    # View.attention in the last layer run, of …
    "cls_row",  # the CLS token
    "last_row",  # the last prompt token
    "rater_row",  # SparseVLM's raters, their mean
    "rider_row",  # the pseudo CLS
    # View.attention, computed from the tokens at hand with the norm and projections of the layer above, of …
    "next_cls_row",  # the CLS token, all heads as one of the whole width
    "next_last_row",  # the last prompt token
    # View.attention = the rollout over the layers since the previous cut, of …
    "cls_rollout",  # the CLS token
    "rider_rollout",  # the pseudo CLS
    # View.rows, of …
    "cls_rows",  # the CLS token
    "rider_rows",  # the pseudo CLS
]


class View(NamedTuple):
    """What a stage is shown at one cut; a field is None unless the stage `needs` it."""

    x: Tensor  # [B, N, D] hidden states
    size: Tensor  # [B, N] float32: how many patches each token stands for
    attention: Tensor | None = None  # [B, N] float32, post-softmax, head mean
    rows: Tensor | None = None  # [B, G, N] float32: attention in each of the G layers since the previous cut
    value_norm: Tensor | None = None  # [B, N] float32: L2 norm of v_proj's output in the last layer run, heads joined
    keys: Tensor | None = None  # [B, N, head width] float32: head-mean keys, before RoPE
    cls: Tensor | None = None  # [B, D] the hidden state of the CLS token, in the LLM of the pseudo CLS
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
    identity: bool = False  # a rollout begins with A + I at its first layer instead of A
    module: Callable[[int], nn.Module] | None = (
        None  # makes, from D, the trained part of a cut: [B, N, D], [B, T, D] text
    )


class Reading(NamedTuple):
    """How CLIP reads one image's question. S tokens without SOS, EOS and padding, P CLIP's joint width."""

    features: Tensor  # [S, P] text tokens after final layer norm and text projection
    spans: list[tuple[int, int]]  # S character ranges of the question
    cls: Tensor  # [P] the ViT's last CLS after post layer norm and visual projection
    lift: Callable[[Tensor], Tensor]  # [..., P] of the joint space → [..., D] of the LLM's width


class Words(NamedTuple):
    """One image's question, as a method's guidance sees it. T LLM tokens, D the LLM's width.

    T is 0 for a method that does not read it.
    """

    embeddings: Tensor  # [T, D] LLM input embeddings of the question's tokens
    spans: list[tuple[int, int]]  # T character ranges of the question
    projected_cls: Tensor  # [D] the CLS of the layer that the LLM reads, through the projector
    clip: Reading | None = None  # for a method that `reads_clip`


class PseudoCLS(NamedTuple):
    """What guides the cuts inside the LLM."""

    state: Tensor  # [D] as the LLM's input embeddings
    guides: list[tuple[int, int]]  # character ranges of the question whose words it is made of


@dataclass(frozen=True, kw_only=True)
class Method:
    """A token reduction method: its parameters are the fields, its algorithm is in `stages`.

    A subclass is one file and one line in `methods/__init__.py`; every one but `full` has a field `tokens`, the budget.
    positions: `original`, a token keeps the position id that it had; `contiguous`, ids are counted anew, as in released
    code that hands the LLM fewer features. `original` is ours where a method leaves the order as it is in the ViT or
    merges there, so that those compare with IVTP. Errors: a budget that the method cannot reach on a model's shape is a
    ValueError from `stages` that names the budgets it can.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    trained: ClassVar[bool] = False

    positions: Positions = "original"

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """Return the method's stages on a model of this shape, in the order of the data: ViT, input, LLM."""
        raise NotImplementedError

    @property
    def reads_question(self) -> bool:
        """Whether `guide` needs the question's words."""
        return False

    @property
    def reads_clip(self) -> bool:
        """Whether `guide` needs CLIP's reading of the question."""
        return False

    @property
    def inserts_pseudo_cls(self) -> bool:
        """Whether the pseudo CLS is a token of the sequence that later ones see, instead of riding beside it."""
        return False

    def guide(self, words: Words) -> PseudoCLS:
        """Return the pseudo CLS of one image, for stages in the LLM that need one."""
        raise NotImplementedError
