import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig

from harness.model.text import TextEncoder
from harness.pocket.tokenization import clip_tokenizer
from tests.model.tiny import QUESTIONS, VISION


@pytest.fixture(scope="session")
def encoder() -> TextEncoder:
    tokenizer = clip_tokenizer(QUESTIONS)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=VISION, projection_dim=16)
    return TextEncoder(CLIPModel(config).eval(), tokenizer)
