"""Writes the trained model as Hugging Face folders: LLaVA and its processor; CLIP and its tokenizer in `clip/`."""

from pathlib import Path

from transformers import CLIPImageProcessor, CLIPModel, LlavaForConditionalGeneration, LlavaProcessor
from transformers import PreTrainedTokenizerFast as Tokenizer

from harness.pocket.scenes import PATCH, SIZE

# LLaVA-1.5's own form, so that nothing downstream has to know that this is pocket.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'].upper() }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }} {% endif %}{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def write(
    llava: LlavaForConditionalGeneration, words: Tokenizer, clip: CLIPModel, pieces: Tokenizer, out: Path
) -> None:
    """Write both folders, weights in half precision."""
    images = CLIPImageProcessor(
        size={"height": SIZE, "width": SIZE}, crop_size={"height": SIZE, "width": SIZE}, do_convert_rgb=True
    )
    processor = LlavaProcessor(
        images,
        words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    llava.generation_config.update(
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id
    )
    llava.half().save_pretrained(out)
    processor.save_pretrained(out)
    clip.half().save_pretrained(out / "clip")
    pieces.save_pretrained(out / "clip")
    llava.float(), clip.float()
