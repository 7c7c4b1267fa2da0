"""How matrix products on the CPU are computed: the library that this machine's processor is fastest with.

torch hands float32 products to MKL, which does not use the wide vectors of every processor (on AMD's it reaches half of what
oneDNN does). Asking torch for bfloat16 products inside float32 ones lets oneDNN compute them; where the processor has no unit
for that, oneDNN computes them in float32 all the same, exactly. Whether it does is found out by computing one product.
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from bsharp.config import ConfigError
from bsharp.models.parallel import TINY_WEIGHTS

__all__ = ["ProductLibrary", "fast_products", "product_library", "set_product_library"]

ProductLibrary = Literal["default", "onednn"]
"""torch's own choice, or oneDNN."""

VARIABLE = "BSHARP_PRODUCTS"
"""Environment variable that tells processes started from here which library to use."""
EXACT = 4e-6
"""Relative error up to which a product counts as one of float32; bfloat16's is a thousand times larger."""
SHAPES = ((512, 256, 512), (64, 512, 2048), (64, 2048, 512))
"""Rows, inputs and outputs of the products that are timed: many rows, as in training, and few, as in decoding."""
GAIN, GAIN_TINY = 0.95, 0.8
"""Share of the time of torch's own choice, in the geometric mean over SHAPES, below which another library is taken, so that
noise does not decide; and that for tiny models. oneDNN makes a kernel for every new shape, in half a millisecond, and to them
that is as much as the products take."""


def set_product_library(library: ProductLibrary) -> None:
    """Use this library from now on, here and in processes started later.

    Raises ConfigError for onednn on a processor where it rounds float32 products to bfloat16.
    """
    if library == "onednn" and not _is_exact():
        raise ConfigError(
            "weights.products = 'onednn' would round float32 products to bfloat16 on this processor; choose default, and a "
            "new directory for a run that was begun elsewhere"
        )
    os.environ[VARIABLE] = library


def product_library(weight_bytes: int = 0) -> ProductLibrary:
    """The library in use for a model with so many bytes of weights.

    It is the one that was set, else the faster one of those that are exact, measured once a process.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen == "onednn" and _is_exact():
        return "onednn"
    if chosen == "default" or not _is_exact():
        return "default"
    tiny = weight_bytes < TINY_WEIGHTS
    return "onednn" if _share_of_time(one_thread=tiny) < (GAIN_TINY if tiny else GAIN) else "default"


@contextmanager
def fast_products(weight_bytes: int = 0) -> Iterator[None]:
    """Float32 products inside go to `product_library(weight_bytes)`, on all threads. May be entered within itself."""
    if product_library(weight_bytes) != "onednn":
        yield
        return
    with _onednn():
        yield


@functools.cache
def _is_exact() -> bool:
    """Whether oneDNN, asked for bfloat16 products inside float32 ones, computes in float32 here."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    left, right = _matrices()
    with _onednn():
        found = left @ right
    exact = left.double() @ right.double()
    return float((found - exact).abs().max() / exact.abs().max()) < EXACT


@functools.cache
def _share_of_time(one_thread: bool) -> float:
    """What oneDNN needs of the time of torch's own choice, in the geometric mean over SHAPES.

    With `one_thread`, as the products of tiny models run, each piece of their work on a thread. There something else that
    computes here slows both alike; several threads of MKL wait for each other then, and would seem slower than they are.
    """
    if not one_thread:
        return _ratio()
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as thread:
            return thread.submit(_ratio).result()
    finally:
        torch.set_num_threads(threads)  # MKL's is one for the whole process


def _ratio() -> float:
    ratios = []
    for shape in SHAPES:
        left, right = _matrices(*shape)
        default, onednn = [], []
        for _ in range(9):  # in turn, so that whatever else runs here slows both
            default.append(_seconds(left, right))
            with _onednn():
                onednn.append(_seconds(left, right))
        ratios.append(min(onednn) / min(default))
    return math.prod(ratios) ** (1 / len(ratios))


def _matrices(rows: int = 512, inputs: int = 256, outputs: int = 512) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn((rows, inputs), generator=draw), torch.randn((inputs, outputs), generator=draw)


def _seconds(left: Tensor, right: Tensor) -> float:
    started = time.perf_counter()
    torch.mm(left, right)
    return time.perf_counter() - started


@contextmanager
def _onednn() -> Iterator[None]:
    settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
