"""What every section is told: where models go, how often to repeat, which of them to measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from speed.processes import Lock

__all__ = ["Setting"]


@dataclass(frozen=True)
class Setting:
    folder: Path
    quick: bool = False
    models: Sequence[str] = ()  # none named means those of the section
    series: Sequence[str] = ()  # of growth-engine; none named means all
    lock: Lock = field(default_factory=Lock)
    reduced: bool = False

    def rounds(self, usual: int) -> int:
        """Repetitions where `usual` ones are the rule."""
        return max(1, usual // 3) if self.quick else usual
