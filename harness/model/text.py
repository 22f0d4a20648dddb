"""CLIP's text side, which tells how relevant a question's words are to an image (IVTP, Eqs. 5–6)."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel, PreTrainedTokenizerBase

from harness.errors import VtbenchError
from harness.pocket import WEIGHTS

LLAVA_CLIP = "openai/clip-vit-large-patch14-336"


class TextEncoder:
    """A CLIP model's text tower and the projections into its joint space.

    Beyond the tower's context (77 tokens) a text is not read: those tokens have no features.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.encode = lru_cache(maxsize=4096)(self._encode)

    @torch.inference_mode()
    def _encode(self, text: str) -> tuple[Tensor, list[tuple[int, int]]]:
        """Return the projected features [S, P] of a text's tokens and their character ranges.

        SOS, EOS and padding are left out.
        """
        context = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(text, return_offsets_mapping=True, truncation=True, max_length=context)
        ids = torch.tensor([tokens["input_ids"]], device=self.model.device)
        hidden = self.model.text_model(input_ids=ids).last_hidden_state[0]
        named = [index for index, (start, stop) in enumerate(tokens["offset_mapping"]) if start < stop]
        return self.model.text_projection(hidden[named]), [tuple(tokens["offset_mapping"][index]) for index in named]

    def project_cls(self, cls: Tensor) -> Tensor:
        """Return a ViT's last CLS [..., D] in the joint space [..., P]."""
        cls = cls.to(self.model.visual_projection.weight)
        return self.model.visual_projection(self.model.vision_model.post_layernorm(cls))


def default_text_encoder(model_name: str) -> str:
    """Return the CLIP that belongs to a model: a `clip` folder beside its weights, else the one of LLaVA-1.5."""
    if model_name in ("pocket", "random:pocket"):
        return str(WEIGHTS / "clip")
    beside = Path(model_name) / "clip"
    return str(beside) if beside.is_dir() else LLAVA_CLIP


@lru_cache(maxsize=2)
def load_text_encoder(name: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> TextEncoder:
    """Return a text encoder by hub id or folder, one copy a process. Errors: VtbenchError when there is none."""
    try:
        model: Any = CLIPModel.from_pretrained(name, dtype=dtype, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise VtbenchError(
            f"text_encoder: {name} cannot be loaded; allowed are a CLIP's hub id or local folder with safetensors "
            f"({str(error).splitlines()[0]})"
        ) from None
    return TextEncoder(model.to(device).eval(), tokenizer)
