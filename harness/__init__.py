"""vtbench: a benchmark harness for visual-token pruning and merging in large vision-language models."""

from harness import _torchvision

_torchvision.install()
