"""How matrix products on the CPU are computed: the library that this machine's processor is fastest with.

torch hands float32 products to MKL, which does not use the wide vectors of every processor (on AMD's it reaches half of what
oneDNN does). Asking torch for bfloat16 products inside float32 ones lets oneDNN compute them; where the processor has no unit
for that, oneDNN computes them in float32 all the same, exactly. Whether it does is found out by computing one product.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from bsharp.config import ConfigError

__all__ = ["ProductLibrary", "fast_products", "linear", "product_library", "set_product_library"]

ProductLibrary = Literal["default", "onednn"]
"""torch's own choice, or oneDNN."""

VARIABLE = "BSHARP_PRODUCTS"
"""Environment variable that tells processes started from here which library to use."""
EXACT = 4e-6
"""Relative error up to which a product counts as one of float32; bfloat16's is a thousand times larger."""
GAIN = 0.8
"""Share of the time of torch's own choice below which another library is taken, so that noise does not decide."""


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


def product_library() -> ProductLibrary:
    """The library in use: the one that was set, else the faster one of those that are exact, measured once a process."""
    chosen = os.environ.get(VARIABLE)
    if chosen == "onednn" and _is_exact():
        return "onednn"
    return "default" if chosen == "default" else _faster()


@contextmanager
def fast_products() -> Iterator[None]:
    """Float32 products inside go to `product_library()`, on all threads. May be entered within itself."""
    if product_library() != "onednn":
        yield
        return
    with _onednn():
        yield


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` by `product_library()`, without `fast_products`, which counts for all threads at once."""
    if inputs.dtype != torch.float32 or product_library() != "onednn":
        return functional.linear(inputs, weight, bias)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return product


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
def _faster() -> ProductLibrary:
    if not _is_exact():
        return "default"
    left, right = _matrices()
    default, onednn = [], []
    for _ in range(9):  # in turn, so that whatever else runs here slows both
        default.append(_seconds(left, right))
        with _onednn():
            onednn.append(_seconds(left, right))
    return "onednn" if min(onednn) < GAIN * min(default) else "default"


def _matrices() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn((512, 256), generator=draw), torch.randn((256, 512), generator=draw)


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
