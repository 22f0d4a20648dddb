"""Which attention implementations the engine works with.

FlashAttention takes no mask but which keys are padding, [B, T], and position ids that jump would be read as several
sequences packed into one; so it gets neither a bias nor position ids.
"""

from typing import Any

from transformers.utils import is_flash_attn_2_available

from harness.errors import VtbenchError

FLASH = "flash_attention_2"


def attentions() -> tuple[str, ...]:
    """Return the implementations that are possible here."""
    return ("sdpa", "eager", *([FLASH] if is_flash_attn_2_available() else []))


def check_attention(name: str) -> None:
    """Refuse what is not possible. Errors: VtbenchError that names what is."""
    if name not in attentions():
        reason = "not installed here" if name == FLASH else "not possible under attach"
        raise VtbenchError(f"attention: {name} is {reason}; allowed are {', '.join(attentions())}")


def is_flash(module: Any) -> bool:
    """Return whether a module with a config runs FlashAttention."""
    implementation: str = module.config._attn_implementation
    return implementation == FLASH
