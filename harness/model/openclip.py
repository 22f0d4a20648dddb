"""Reads an open_clip model's text side into transformers' CLIPModel, so that there is one kind of text encoder."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

PAIRS = {"ln_1": "layer_norm1", "attn.out_proj": "self_attn.out_proj", "ln_2": "layer_norm2"} | {
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def from_open_clip(architecture: str, pretrained: str) -> tuple[CLIPModel, CLIPTokenizer]:
    """Return the model, whose vision tower has its two last modules only, and its tokenizer.

    pretrained is one of open_clip's tags, a checkpoint, or a folder with `open_clip_config.json`, whose architecture is
    then used. OpenAI's weights in a file need an architecture that ends in `-quickgelu`; for a tag that is seen to.
    Errors: ValueError when it is not a plain CLIP with a ViT; OSError or RuntimeError when it cannot be had.
    """
    if not pretrained:
        raise ValueError(f"it names no weights for {architecture}")
    import open_clip  # slow to import, and seldom wanted

    name = f"local-dir:{pretrained}" if Path(pretrained).is_dir() else architecture
    quick = bool((open_clip.get_pretrained_cfg(architecture, pretrained) or {}).get("quick_gelu"))
    tag = None if name != architecture else pretrained
    theirs: Any = open_clip.create_model(name, tag, force_quick_gelu=quick, require_pretrained=True, weights_only=True)
    simple: Any = open_clip.get_tokenizer(name)
    blocks = theirs.transformer.resblocks if isinstance(theirs, open_clip.CLIP) else []
    plain = (
        bool(blocks) and isinstance(blocks[0].attn, nn.MultiheadAttention) and isinstance(blocks[0].ls_1, nn.Identity)
    )
    towers = (
        plain
        and isinstance(theirs.text_projection, Tensor)
        and isinstance(getattr(theirs.visual, "proj", None), Tensor)
    )
    if not towers or not isinstance(simple, open_clip.SimpleTokenizer):
        raise ValueError(f"{architecture} is not a plain CLIP with a ViT")

    embedded, joint = theirs.text_projection.shape
    text = {
        "vocab_size": theirs.vocab_size,
        "hidden_size": embedded,
        "intermediate_size": blocks[0].mlp.c_fc.out_features,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": blocks[0].attn.num_heads,
        "max_position_embeddings": theirs.context_length,
        "hidden_act": "gelu" if isinstance(blocks[0].mlp.gelu, nn.GELU) else "quick_gelu",
        "layer_norm_eps": theirs.ln_final.eps,
        "projection_dim": joint,
        "bos_token_id": simple.sot_token_id,
        "eos_token_id": simple.eot_token_id,
    }
    vision = {
        "hidden_size": theirs.visual.proj.shape[0],
        "layer_norm_eps": theirs.visual.ln_post.eps,
        "num_hidden_layers": 0,
        "num_attention_heads": 1,  # none reads it, but it has to divide
    }
    model: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=joint))
    left_out = model.load_state_dict(_weights(theirs), strict=False)
    assert not left_out.unexpected_keys
    assert all(
        key.startswith(("vision_model.embeddings", "vision_model.pre", "logit")) for key in left_out.missing_keys
    )

    renamed = {simple.sot_token_id: "<|startoftext|>", simple.eot_token_id: "<|endoftext|>"}
    vocabulary = {renamed.get(index, token): index for token, index in simple.encoder.items()}
    return model, CLIPTokenizer(vocab=vocabulary, merges=list(simple.bpe_ranks))


def _weights(theirs: Any) -> dict[str, Tensor]:
    weights = {
        "text_model.embeddings.token_embedding.weight": theirs.token_embedding.weight,
        "text_model.embeddings.position_embedding.weight": theirs.positional_embedding,
        "text_projection.weight": theirs.text_projection.T,
        "visual_projection.weight": theirs.visual.proj.T,
    }
    modules = {"text_model.final_layer_norm": theirs.ln_final, "vision_model.post_layernorm": theirs.visual.ln_post}
    for index, block in enumerate(theirs.transformer.resblocks):
        layer = f"text_model.encoder.layers.{index}"
        modules |= {f"{layer}.{ours}": block.get_submodule(name) for name, ours in PAIRS.items()}
        for kind in ("weight", "bias"):
            joined = getattr(block.attn, f"in_proj_{kind}").chunk(3)
            weights |= {f"{layer}.self_attn.{p}_proj.{kind}": part for p, part in zip("qkv", joined, strict=True)}
    for name, module in modules.items():
        weights |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    return weights
