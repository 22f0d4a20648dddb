"""CLIP's text side, which tells how relevant a question's words are to an image (IVTP, Eqs. 5–6)."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPModel, PreTrainedTokenizerBase

from harness.errors import VtbenchError
from harness.model.look import OPEN_CLIP, RANDOM_CLIP, look_at_text_encoder
from harness.model.openclip import from_open_clip
from harness.model.shapes import clip_large
from harness.pocket import WEIGHTS

LLAVA_CLIP = "openai/clip-vit-large-patch14-336"


class TextEncoder:
    """A CLIP model's text tower and the projections into its joint space.

    Beyond the tower's context (77 tokens) a text is not read: those tokens have no features.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.encode = lru_cache(maxsize=4096)(self._encode)
        self._inverse: Tensor | None = None  # of the visual projection, [D, P]

    @torch.no_grad()
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
        """Return a ViT's last CLS [..., D] in the joint space [..., P]. Errors: VtbenchError for another width."""
        width = self.model.config.vision_config.hidden_size
        if cls.shape[-1] != width:
            raise VtbenchError(
                f"text_encoder: its CLIP has a vision width of {width}, the model's tower {cls.shape[-1]}"
            )
        cls = cls.to(self.model.visual_projection.weight)
        return self.model.visual_projection(self.model.vision_model.post_layernorm(cls))

    def unproject(self, joint: Tensor) -> Tensor:
        """Return joint-space vectors [..., P] in the space of the ViT's hidden states [..., D].

        The inverse of `project_cls` as far as there is one: the pseudo-inverse of the visual projection, then the
        post layer norm's affine part undone. What the norm itself took away, mean and scale, does not come back.
        """
        norm, weight = self.model.vision_model.post_layernorm, self.model.visual_projection.weight
        if self._inverse is None:
            self._inverse = torch.linalg.pinv(weight.float())
        return (joint.float() @ self._inverse.T - norm.bias) / norm.weight


def default_text_encoder(model_name: str) -> str:
    """Return the CLIP that belongs to a model: a `clip` folder beside its weights, else the one of LLaVA-1.5.

    Another random shape than the pocket's gets that one's shape with random weights.
    """
    if model_name in ("pocket", "random:pocket"):
        return str(WEIGHTS / "clip")
    if model_name.startswith("random:"):
        return RANDOM_CLIP
    beside = Path(model_name) / "clip"
    return str(beside) if beside.is_dir() else LLAVA_CLIP


def default_tokenizer(model_name: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model; a random shape reads the pocket's, to have words at all.

    Errors: VtbenchError when there is none.
    """
    try:
        source = WEIGHTS if model_name.startswith("random:") else model_name
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise VtbenchError(
            f"tokenizer: {model_name!r} has none that can be loaded; pass one to attach ({str(error).splitlines()[0]})"
        ) from None


@lru_cache(maxsize=2)
def load_text_encoder(name: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> TextEncoder:
    """Return a text encoder, one copy a process.

    name: a CLIP's hub id or local folder, `open_clip:ARCHITECTURE/PRETRAINED` (a tag, a checkpoint or a folder), or
    `random:clip-vit-large-patch14-336`. Errors: VtbenchError when there is none.
    """
    try:
        look_at_text_encoder(name)
    except VtbenchError as error:
        raise VtbenchError(f"text_encoder: {error}") from None
    model: Any
    tokenizer: Any
    try:
        if name.startswith(OPEN_CLIP):
            architecture, _, pretrained = name.removeprefix(OPEN_CLIP).partition("/")
            model, tokenizer = from_open_clip(architecture, pretrained)
        elif name == RANDOM_CLIP:
            model, tokenizer = _random(), AutoTokenizer.from_pretrained(WEIGHTS / "clip")
        else:
            model = CLIPModel.from_pretrained(name, dtype=dtype, use_safetensors=True)
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise VtbenchError(
            f"text_encoder: {name} cannot be loaded; allowed are a CLIP's hub id or local folder with safetensors, "
            f"open_clip:ARCHITECTURE/PRETRAINED, {RANDOM_CLIP} ({reason})"
        ) from None
    model.vision_model.encoder.layers = nn.ModuleList()  # only the tower's last norm and its projection are used
    return TextEncoder(model.to(device, dtype).eval(), tokenizer)


def _random() -> CLIPModel:
    """Return the shape of LLaVA-1.5's CLIP with random weights from seed 0, without the layers of its vision tower."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return CLIPModel(clip_large(vision_layers=0))
