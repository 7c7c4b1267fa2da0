"""Named, independent random streams. Seeds are never added up: a stream is a key, not an offset."""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["generator", "stream_seed"]


def stream_seed(run_seed: int, stream: str, *index: int | str) -> int:
    """A 63-bit seed for the stream named `stream` at `index` of the run `run_seed`.

    BLAKE2b of the unambiguous key `run_seed/stream/index…`, so that two different keys are independent for every
    practical purpose, on every platform and in every process (unlike `hash`).
    """
    key = repr((run_seed, stream, *index)).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def generator(run_seed: int, stream: str, *index: int | str) -> np.random.Generator:
    """A NumPy generator on the named stream; `stream_seed` gives the same stream to torch."""
    return np.random.Generator(np.random.Philox(stream_seed(run_seed, stream, *index)))
