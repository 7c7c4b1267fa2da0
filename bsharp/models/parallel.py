"""Independent pieces of tensor work on the threads that torch may use, each piece on one of them.

torch deals every single operation to its threads. Where operations are small, waiting for each other costs more than the work:
then it is faster to deal whole pieces, each run by one thread from beginning to end. Which thread runs a piece changes nothing
in its result, and results come back in the order of the pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

__all__ = ["SMALL_WEIGHTS", "TINY_WEIGHTS", "run_pieces", "threads_for_pieces"]

P = TypeVar("P")
T = TypeVar("T")

TINY_WEIGHTS = 2**22
"""Bytes of weights below which operations are so short that their number counts and not their size."""
SMALL_WEIGHTS = 2**25
"""Bytes of weights up to which pieces are dealt: more would not stay in the caches, and every thread would read them all."""


def threads_for_pieces(weight_bytes: int) -> int:
    """Into how many pieces work on a model of this size is best cut: torch's number of threads, or 1."""
    return torch.get_num_threads() if weight_bytes <= SMALL_WEIGHTS else 1


def run_pieces(function: Callable[[P], T], pieces: Sequence[P]) -> list[T]:
    """`function` of every piece, side by side on as many threads as there are pieces; none of them records gradients."""
    if len(pieces) < 2:
        return [function(piece) for piece in pieces]
    inference = torch.is_inference_mode_enabled()

    def one(piece: P) -> T:
        # Settings of the thread that makes them, and of no other.
        torch.set_num_threads(1)
        with torch.inference_mode() if inference else torch.no_grad():
            return function(piece)

    with ThreadPoolExecutor(len(pieces)) as pool:
        return list(pool.map(one, pieces))
