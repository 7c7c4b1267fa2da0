"""Work for processes of their own, in a module that they can import."""

from __future__ import annotations

import time

__all__ = ["square_after"]


def square_after(seconds: float, number: int) -> int:
    """number² after a while; a negative number has none."""
    time.sleep(seconds)
    if number < 0:
        raise ValueError(f"{number} has no square here")
    return number * number
