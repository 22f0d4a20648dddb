"""No pruning: the reference that every table compares with."""

from dataclasses import dataclass
from typing import ClassVar

from methods.interface import Method, Shape, Stage


@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """All visual tokens, the unpruned model."""

    name: ClassVar[str] = "full"
    paper: ClassVar[str] = "control"

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """Return no stage at all."""
        return ()
