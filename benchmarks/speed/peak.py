"""What the machine can do at a model's own shapes: the best time of every matrix product, and the memory bandwidth.

Each product (tokens, k) × (k, n), its input gradient and its weight gradient are timed on random numbers in every way that
torch offers: plain `torch.mm`, and for float32 also with `torch.backends.mkldnn.matmul.fp32_precision` at bf16 and tf32, which
on processors without AMX is an exact product by another library. Such a way counts only where its error against float64 is
that of a plain float32 product.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from speed.flops import Layout, Phase, Product

__all__ = ["PeakTimer", "bandwidth", "best_seconds", "ways"]

PIECES = (1024, 2048)
"""Tokens per product where a phase has more: what is cut stays in the caches better."""
TOLERANCE = 8.0
"""A float32 product may have so many times the error of the plain one, whose order of summation differs; operands rounded to
bfloat16 would have hundreds of times that."""
SECONDS = 0.02


@contextmanager
def fp32_precision(value: str | None) -> Iterator[None]:
    """torch's setting for float32 products in oneDNN, inside; None leaves it."""
    if value is None:
        yield
        return
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = value
    try:
        yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def ways(dtype: torch.dtype) -> dict[str, str | None]:
    """The ways to multiply on this machine: all in bfloat16, in float32 those whose error is that of float32."""
    found: dict[str, str | None] = {"plain": None}
    if dtype != torch.float32:
        return found
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(512, 512, generator=generator) for _ in range(2))
    exact = left.double() @ right.double()
    plain = float((torch.mm(left, right) - exact).abs().max())
    for value in ("tf32", "bf16"):
        try:
            with fp32_precision(value):
                error = float((torch.mm(left, right) - exact).abs().max())
        except (RuntimeError, ValueError, AttributeError):
            continue
        if error <= TOLERANCE * plain:
            found[value] = value
    return found


def best_seconds(multiply: Callable[[], Any], settings: Mapping[str, str | None]) -> tuple[float, str]:
    """The shortest time of one call in any of the ways, and which one."""
    best: tuple[float, str] = (float("inf"), "")
    for name, value in settings.items():
        with fp32_precision(value):
            multiply()
            spent, calls = 0.0, 0
            while spent < SECONDS or calls < 2:
                started = time.perf_counter()
                multiply()
                seconds = time.perf_counter() - started
                spent, calls = spent + seconds, calls + 1
                best = min(best, (seconds, name))
    return best


class PeakTimer:
    """Best times of the products of one model in one precision; every round may only lower them."""

    def __init__(self, layout: Layout, dtype: torch.dtype) -> None:
        self.layout, self.dtype = layout, dtype
        self.ways = ways(dtype)
        self.best: dict[tuple[int, int, int, str], tuple[float, str]] = {}
        self._timed: set[tuple[int, int, int, str]] = set()

    def begin_round(self) -> None:
        """Time all products again; within a round those of equal shape are timed once."""
        self._timed.clear()

    def phase_seconds(self, phase: Phase, together: int | None = None) -> float:
        """Seconds of all linear layers of a phase at their best, from what has been measured.

        `together` tokens go through a layer at once: the rows of a decoding step. Otherwise any size of piece may be the best.
        """
        total = 0.0
        for product in (*self.layout.products, self.layout.head):
            tokens = phase.predictions if product.name == "head" else phase.tokens
            for kind in ("forward",) if phase.passes == 1 else ("forward", "input", "weight"):
                total += product.count * min(
                    self.best[size, product.k, product.n, kind][0] * tokens / size
                    for size in self.sizes(tokens, together)
                )
        return total

    @staticmethod
    def sizes(tokens: int, together: int | None) -> list[int]:
        """Tokens per product that are tried."""
        if together is not None:
            return [together]
        return [size for size in PIECES if size < tokens] or [tokens]

    def measure(self, phase: Phase, together: int | None = None) -> None:
        for product in (*self.layout.products, self.layout.head):
            tokens = phase.predictions if product.name == "head" else phase.tokens
            for size in self.sizes(tokens, together):
                for kind in ("forward",) if phase.passes == 1 else ("forward", "input", "weight"):
                    key = (size, product.k, product.n, kind)
                    if key in self._timed:
                        continue
                    self._timed.add(key)
                    found = best_seconds(_multiplication(product, size, kind, self.dtype), self.ways)
                    self.best[key] = min(found, self.best.get(key, found))


def _multiplication(product: Product, tokens: int, kind: str, dtype: torch.dtype) -> Callable[[], Tensor]:
    inputs = torch.randn(tokens, product.k).to(dtype)
    weight = torch.randn(product.n, product.k).to(dtype)
    gradient = torch.randn(tokens, product.n).to(dtype)
    if kind == "forward":
        return lambda: torch.mm(inputs, weight.t())
    if kind == "input":
        return lambda: torch.mm(gradient, weight)
    return lambda: torch.mm(gradient.t(), inputs)


def bandwidth(megabytes: int = 512, repeats: int = 5, device: str = "cpu") -> float:
    """Bytes read from memory per second, the best of summing and copying a block far larger than the caches.

    A copy counts what it reads and what it writes.
    """
    block = torch.ones(megabytes * 2**18, device=device)
    other = torch.empty_like(block)
    size = block.numel() * block.element_size()
    best = 0.0
    for _ in range(repeats):
        for count, run in ((1, lambda: block.sum()), (2, lambda: other.copy_(block))):
            if block.is_cuda:
                torch.cuda.synchronize()
            started = time.perf_counter()
            run()
            if block.is_cuda:
                torch.cuda.synchronize()
            best = max(best, count * size / (time.perf_counter() - started))
    return best
