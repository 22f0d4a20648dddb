"""FLOPs of a pruned model: fvcore counts the real modules on the meta device, conventions are sums of the parts.

A layer's cost depends only on the tokens that enter it and is linear in them, but for attention's products, one a
query and key. So fvcore's counts of every distinct layer at a few short lengths give its coefficients (`fitted`), and
the layers at their own lengths are added up: exactly what a trace of the whole pruned model counts. No weights are
needed. The unit is the multiply-add (MAC).

In: linear layers, the patch convolution, both attention products (all N², also where a causal kernel skips half),
fvcore's 5 operations per LayerNorm element (convention `macs` only), and a method's own matrix products (`overhead`).
Not in, as in the papers: softmax, activations, RMSNorm, rotary and token embeddings, sorting and gathering.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any

from transformers import CLIPTextConfig, PreTrainedConfig, PreTrainedModel

from harness.errors import VtbenchError
from harness.metrics.conventions import CONVENTIONS, PADDED_VOCABULARY, Convention, convention_of
from harness.metrics.counted import Counted, counted
from harness.metrics.overhead import method_cost
from harness.metrics.tracing import Layer
from methods.interface import Method, Stage
from methods.schedule import TokensPerLayer


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Cost of a prefill with lm_head on all positions, and of the first token decoded after it, in MACs.

    basis: which lengths were counted; text_tokens: prompt tokens that are not visual; vision, unread, decoder: a
    Layer each; visual: the decoder's layers if visual tokens went through alone; decode: for one new token; lm_head,
    decode_head: with the model's own vocabulary; unpadded: what part of them an unpadded vocabulary has; extra: a
    method's own cost by name.
    """

    basis: str
    text_tokens: float
    patch_embedding: int
    pre_norm: int
    vision: tuple[Layer, ...]
    unread: tuple[Layer, ...]
    projector: int
    decoder: tuple[Layer, ...]
    visual: tuple[Layer, ...]
    lm_head: int
    decode: tuple[Layer, ...]
    decode_head: int
    unpadded: Fraction
    extra: Mapping[str, int] = field(default_factory=dict)

    def parts(self, convention: str) -> dict[str, int]:
        """Return the prefill's parts in the convention's own unit; what it leaves out is 0. Errors: VtbenchError."""
        rule = convention_of(convention)
        vision = self.vision + (self.unread if rule.unread_layers else ())
        decoder = self.decoder if rule.text else self.visual
        macs = {
            "vision": self.patch_embedding + rule.norm * self.pre_norm + _sum(vision, rule),
            "projector": rule.projector * self.projector,
            "decoder_linear": sum(layer.linear - (not rule.gate) * layer.gate for layer in decoder),
            "decoder_attention": rule.attention * sum(layer.attention for layer in decoder),
            "lm_head": self._head(self.lm_head, rule),
            "extra": sum(self.extra.values()),
        }
        if rule.decoder_alone:
            macs |= dict.fromkeys(("vision", "projector", "lm_head", "extra"), 0)
        return {part: rule.per_mac * count for part, count in macs.items()}

    def total(self, convention: str) -> int:
        """Return the prefill's cost, the sum of its parts. Errors: VtbenchError for an unknown convention."""
        return sum(self.parts(convention).values())

    def per_decoded_token(self, convention: str) -> int:
        """Return the cost of the first decoded token, 0 where visual tokens alone count. Errors: as `total`."""
        rule = convention_of(convention)
        if not rule.text:
            return 0
        head = 0 if rule.decoder_alone else self._head(self.decode_head, rule)
        return rule.per_mac * (_sum(self.decode, rule) + head)

    def record(self) -> dict[str, Any]:
        """Return record.json's "flops": a convention's parts add up to its total.

        `extra` by name and `layers`, ViT layers that nothing reads among them, are 2 a multiply-add.
        """
        towers = {"vision": self.vision + self.unread, "decoder": self.decoder}
        return {
            "tokens_basis": self.basis,
            "text_tokens": self.text_tokens,
            "parts": {name: self.parts(name) for name in CONVENTIONS},
            "extra": {name: 2 * macs for name, macs in self.extra.items()},
            "layers": {name: [2 * (each.linear + each.attention) for each in tower] for name, tower in towers.items()},
            "total": {name: self.total(name) for name in CONVENTIONS},
            "per_decoded_token": {name: self.per_decoded_token(name) for name in CONVENTIONS},
        }

    def _head(self, macs: int, rule: Convention) -> int:
        return macs if rule.padded_vocabulary else round(macs * self.unpadded)


def _sum(layers: Iterable[Layer], rule: Convention) -> int:
    return sum(
        layer.linear - (not rule.gate) * layer.gate + rule.attention * layer.attention + rule.norm * layer.norm
        for layer in layers
    )


def count(
    model: PreTrainedModel | PreTrainedConfig,
    tokens: TokensPerLayer,
    text_tokens: int,
    *,
    method: Method | None = None,
    before_image: int = 0,
    text_encoder: CLIPTextConfig | None = None,
    extra: Mapping[str, int] | None = None,
) -> Flops:
    """Count a prompt with one image.

    tokens: visual tokens that enter each ViT layer that the LLM reads, and each LLM layer; text_tokens: all other
    prompt tokens, a pseudo CLS in the sequence among them; method: whose own cost is then counted too (`overhead`, with
    before_image and text_encoder), and whose stages say where it cuts the image, inside ViT layers or at the LLM's
    input; extra: further MACs by name.
    Errors: VtbenchError for layers that the model has not or an unknown architecture or an operation that
    nothing counts.
    """
    return _count(
        counted(model),
        (tuple(tokens.vit),),
        tuple(tokens.llm),
        text_tokens,
        method=method,
        before_image=before_image,
        text_encoder=text_encoder,
        extra=extra,
    )


def _count(
    modules: Counted,
    vit: tuple[tuple[int, ...], ...],
    llm: tuple[int, ...],
    text_tokens: int,
    *,
    method: Method | None,
    before_image: int,
    text_encoder: CLIPTextConfig | None,
    extra: Mapping[str, int] | None,
) -> Flops:
    """Count a prompt with any number of images: vit one row an image, llm all of them."""
    shape = modules.shape
    if len(llm) != shape.llm_layers or any(len(image) != shape.vit_layers for image in vit):
        raise VtbenchError(
            f"tokens: given for {', '.join(str(len(image)) for image in vit)} ViT and {len(llm)} LLM layers; "
            f"the model has {shape.vit_layers} and {shape.llm_layers}"
        )
    stages = method.stages(shape) if method else ()
    patches = min([shape.patches, *(cut.tokens for stage in stages if stage.seam == "image" for cut in stage.cuts)])
    projected = _leaving_vit(vit, llm[0], stages)
    towers = [_tower(modules, image, leaving, stages) for image, leaving in zip(vit, projected, strict=True)]
    layers = [sum(images, start=Layer()) for images in zip(*towers, strict=True)]
    if not vit:
        layers = [Layer()] * modules.all_layers
    lengths = [text_tokens + n for n in llm]
    return Flops(
        basis="one sample",
        text_tokens=text_tokens,
        patch_embedding=len(vit) * modules.patch_embedding(patches),
        pre_norm=len(vit) * modules.pre_norm(patches),
        vision=tuple(layers[: shape.vit_layers]),
        unread=tuple(layers[shape.vit_layers :]),
        projector=sum(modules.projector(n) for n in projected),
        decoder=tuple(modules.decoder_layer(i, n, n) for i, n in enumerate(lengths)),
        visual=tuple(modules.decoder_layer(i, n, n) if n else Layer() for i, n in enumerate(llm)),
        lm_head=modules.lm_head(lengths[-1]),
        decode=tuple(modules.decoder_layer(i, 1, n + 1) for i, n in enumerate(lengths)),
        decode_head=modules.lm_head(1),
        unpadded=Fraction(PADDED_VOCABULARY.get(modules.vocabulary, modules.vocabulary), modules.vocabulary),
        extra=(
            method_cost(
                modules,
                method,
                vit,
                llm,
                text_tokens,
                into_vit=patches,
                leaving_vit=projected,
                before_image=before_image,
                text_encoder=text_encoder,
            )
            if method and vit
            else {}
        )
        | dict(extra or {}),
    )


def _tower(modules: Counted, entering: tuple[int, ...], leaving: int, stages: Sequence[Stage]) -> list[Layer]:
    """Return the cost of every ViT layer that runs on an image, those that nothing reads at the end."""
    inside = {cut.layer for stage in stages if stage.seam == "vit" and stage.inside for cut in stage.cuts}
    unread = modules.all_layers - len(entering)
    lengths = [modules.cls + n for n in (*entering, *[leaving] * (unread + 1))]
    return [
        modules.vision_layer(layer, lengths[layer], lengths[layer + 1 if layer in inside else layer])
        for layer in range(modules.all_layers)
    ]


def _leaving_vit(vit: tuple[tuple[int, ...], ...], into_llm: int, stages: Sequence[Stage]) -> list[int]:
    """Return the visual tokens of each image that leave the ViT's last read layer: what the projector gets.

    Together they are those that enter the LLM, unless a stage cuts between the two; images share them evenly.
    """
    if any(cut.layer == 0 for stage in stages if stage.seam in ("input", "llm") for cut in stage.cuts):
        cuts = [(cut.layer + stage.inside, cut.tokens) for stage in stages if stage.seam == "vit" for cut in stage.cuts]
        return [min([image[-1], *(tokens for before, tokens in cuts if before == len(image))]) for image in vit]
    return [into_llm * (index + 1) // len(vit) - into_llm * index // len(vit) for index in range(len(vit))]


def count_samples(
    model: PreTrainedModel | PreTrainedConfig,
    observations: Iterable[Mapping[str, Any]],
    *,
    method: Method | None = None,
    before_image: int = 0,
    text_encoder: CLIPTextConfig | None = None,
    extra: Mapping[str, int] | None = None,
) -> Flops:
    """Return the mean over samples of what `count` says for each one's realised tokens.

    observations: mappings with "vit" (a list per image) and "llm", the visual tokens that enter each layer, and
    "text_tokens". Attention is quadratic, so the cost of mean lengths is not the mean cost. Each entry is rounded to an
    integer. Errors: as `count`; VtbenchError without samples.
    """
    distinct = Counter(
        (tuple(tuple(image) for image in o["vit"]), tuple(o["llm"]), int(o["text_tokens"])) for o in observations
    )
    samples = distinct.total()
    if not samples:
        raise VtbenchError("FLOPs: there are no samples to count")
    each = partial(
        _count, counted(model), method=method, before_image=before_image, text_encoder=text_encoder, extra=extra
    )
    counts = [(each(*lengths), weight) for lengths, weight in distinct.items()]

    def mean(values: Iterable[int]) -> int:
        return round(Fraction(sum(value * weight for value, (_, weight) in zip(values, counts, strict=True)), samples))

    def layers(name: str) -> tuple[Layer, ...]:
        rows = zip(*(getattr(flops, name) for flops, _ in counts), strict=True)
        return tuple(Layer(*(mean(kind) for kind in zip(*row, strict=True))) for row in rows)

    names = sorted({name for flops, _ in counts for name in flops.extra})
    return Flops(
        basis="every sample, then the mean",
        text_tokens=sum(text * weight for (_, _, text), weight in distinct.items()) / samples,
        patch_embedding=mean(flops.patch_embedding for flops, _ in counts),
        pre_norm=mean(flops.pre_norm for flops, _ in counts),
        vision=layers("vision"),
        unread=layers("unread"),
        projector=mean(flops.projector for flops, _ in counts),
        decoder=layers("decoder"),
        visual=layers("visual"),
        lm_head=mean(flops.lm_head for flops, _ in counts),
        decode=layers("decode"),
        decode_head=counts[0][0].decode_head,
        unpadded=counts[0][0].unpadded,
        extra={name: mean(flops.extra.get(name, 0) for flops, _ in counts) for name in names},
    )
