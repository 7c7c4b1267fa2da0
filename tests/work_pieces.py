"""Work for processes of their own, in a module that they can import."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass

# Whether whoever imports this module has bsharp's own imports behind it.
IMPORTED_BEFORE = "bsharp.experiment.jobs" in sys.modules

__all__ = ["Seen", "process_after", "seen_by_worker", "square_after"]


@dataclass(frozen=True)
class Seen:
    """What a worker finds around it."""

    imported_before: bool
    package: str
    environment: dict[str, str]


def seen_by_worker() -> Seen:
    import bsharp

    assert bsharp.__file__ is not None
    return Seen(IMPORTED_BEFORE, os.path.dirname(bsharp.__file__), dict(os.environ))


def process_after(seconds: float) -> int:
    """Number of the process that has waited so long."""
    time.sleep(seconds)
    return os.getpid()


def square_after(seconds: float, number: int) -> int:
    """number² after a while; a negative number has none."""
    time.sleep(seconds)
    if number < 0:
        raise ValueError(f"{number} has no square here")
    return number * number
