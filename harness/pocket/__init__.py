"""Pocket LLaVA: the embedded model, its scenes, its training and its weights."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
