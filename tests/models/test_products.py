from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bsharp.config import ConfigError
from bsharp.generation.step_program import onednn_linear
from bsharp.models import products
from bsharp.models.parallel import TINY_WEIGHTS
from bsharp.models.products import fast_products, product_library, set_product_library

BEFORE = torch.backends.mkldnn.matmul.fp32_precision
"""Torch's setting before any test."""


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No library chosen or measured before, and none afterwards; no test leaves torch's setting changed."""
    monkeypatch.setenv(products.VARIABLE, "")
    share = products._share_of_time
    share.cache_clear()
    yield
    share.cache_clear()
    assert setting() == BEFORE


@pytest.fixture(params=["default", "onednn"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "onednn" and not products._is_exact():
        pytest.skip("oneDNN rounds float32 products to bfloat16 on this processor")
    monkeypatch.setenv(products.VARIABLE, request.param)
    return request.param


def setting() -> str:
    return torch.backends.mkldnn.matmul.fp32_precision


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 200])
def test_products_are_those_of_float32_under_either_library(library: str, rows: int, with_bias: bool) -> None:
    inputs, weight = drawn(rows, 96, seed=1), drawn(130, 96, seed=2)
    bias = drawn(130, seed=3) if with_bias else None
    expected = functional.linear(inputs.double(), weight.double(), None if bias is None else bias.double())
    with fast_products():
        assert product_library() == library
        inside = functional.linear(inputs, weight, bias)
        other = inputs @ weight.T
        nested = torch.bmm(inputs[None], weight.T[None])[0]
    assert error(inside, expected) < products.EXACT
    if library == "onednn":
        assert error(onednn_linear(inputs, weight, bias), expected) < products.EXACT
    without = inputs.double() @ weight.double().T
    assert error(other, without) < products.EXACT
    assert error(nested, without) < products.EXACT


def test_the_setting_holds_inside_and_is_put_back(library: str) -> None:
    before = setting()
    with fast_products():
        inside = setting()
        with fast_products():
            assert setting() == inside
        assert setting() == inside
    assert setting() == before
    assert inside == ("bf16" if library == "onednn" else before)


@pytest.mark.usefixtures("library")
def test_the_setting_is_put_back_after_an_exception() -> None:
    before = setting()
    with pytest.raises(LookupError), fast_products():
        raise LookupError
    assert setting() == before


def test_finding_out_leaves_the_setting_as_it_was() -> None:
    before = setting()
    products._is_exact.__wrapped__()
    product_library()
    assert setting() == before


def test_onednn_is_refused_where_it_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_is_exact", lambda: False)
    set_product_library("default")
    with pytest.raises(ConfigError, match="round float32 products"):
        set_product_library("onednn")
    assert os.environ[products.VARIABLE] == "default"


def test_a_library_that_rounds_is_not_used_though_the_environment_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_is_exact", lambda: False)
    monkeypatch.setenv(products.VARIABLE, "onednn")
    assert product_library() == "default"


def test_a_product_rounded_to_bfloat16_does_not_count_as_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = products._matrices()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    rounded = error((left.bfloat16() @ right.bfloat16()).float(), left.double() @ right.double())
    assert rounded > 100 * products.EXACT
    monkeypatch.setattr(products, "EXACT", 0.0)
    assert not products._is_exact.__wrapped__()


@pytest.mark.parametrize("chosen", ["default", "onednn"])
def test_the_library_that_is_set_reaches_later_processes(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_is_exact", lambda: True)
    monkeypatch.setattr(products, "_share_of_time", lambda one_thread: pytest.fail("measured though it was set"))
    set_product_library(chosen)
    assert os.environ["BSHARP_PRODUCTS"] == chosen
    assert product_library() == chosen


@pytest.mark.parametrize(
    ("share", "tiny", "larger"),
    [(0.5, "onednn", "onednn"), (0.85, "default", "onednn"), (0.96, "default", "default"), (2.0, "default", "default")],
)
def test_the_choice_is_measured_once_and_falls_on_another_library_only_where_it_is_clearly_faster(
    share: float, tiny: str, larger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def seconds(left: Tensor, right: Tensor) -> float:
        measured.append(setting())
        return share if measured[-1] == "bf16" else 1.0

    monkeypatch.setattr(products, "_is_exact", lambda: True)
    monkeypatch.setattr(products, "_seconds", seconds)
    assert product_library() == tiny
    count = len(measured)
    assert measured.count("bf16") == count - measured.count("bf16") > 0
    assert product_library(TINY_WEIGHTS - 1) == tiny
    assert product_library(TINY_WEIGHTS) == larger
    assert len(measured) == 2 * count  # once for each kind
    for weight_bytes, expected in ((0, tiny), (TINY_WEIGHTS, larger)):
        before = setting()
        with fast_products(weight_bytes):
            assert setting() == ("bf16" if expected == "onednn" else before)
    assert len(measured) == 2 * count


def test_one_product_that_is_slow_does_not_hide_that_the_others_are_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = {(rows, inputs): share for (rows, inputs, _), share in zip(products.SHAPES, (1.2, 0.5, 0.5), strict=True)}
    monkeypatch.setattr(products, "_seconds", lambda left, _: shares[tuple(left.shape)] if setting() == "bf16" else 1.0)
    for one_thread in (True, False):
        assert products._share_of_time.__wrapped__(one_thread) == pytest.approx((1.2 * 0.5 * 0.5) ** (1 / 3))


def test_tiny_models_are_measured_on_one_thread_and_others_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work beside slows several threads of MKL, which wait for each other, more than it slows oneDNN's."""
    monkeypatch.setattr(products, "_is_exact", lambda: True)
    seen: set[int] = set()

    def seconds(*_: Tensor) -> float:
        seen.add(torch.get_num_threads())
        return 1.0

    monkeypatch.setattr(products, "_seconds", seconds)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for weight_bytes, threads in ((TINY_WEIGHTS - 1, {1}), (TINY_WEIGHTS, {3})):
            seen.clear()
            product_library(weight_bytes)
            assert seen == threads
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_nothing_is_measured_where_only_one_library_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_is_exact", lambda: False)
    monkeypatch.setattr(products, "_seconds", lambda *_: pytest.fail("measured"))
    assert product_library() == "default"
