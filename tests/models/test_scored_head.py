from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bsharp.models import scored_head
from bsharp.models.network import Linear
from bsharp.models.scored_head import Scored, score_and_differentiate, score_tokens

M, D, V = 11, 5, 17
PARTS = [slice(0, 4), slice(4, 4), slice(4, 5), slice(5, 11)]


class Sums:
    """Adds up what a sink is handed, by part."""

    def __init__(self, parts: Sequence[slice] = PARTS) -> None:
        self.parts = parts
        self.weights = torch.zeros(len(parts), V, D, dtype=torch.float64)
        self.biases = torch.zeros(len(parts), V, dtype=torch.float64)
        self.order: list[int] = []

    def head_product(self, part: int | None, of_logits: Tensor, hidden: Tensor) -> None:
        for number, tokens in enumerate(self.parts) if part is None else [(part, slice(None))]:
            self.weights[number] += of_logits[tokens].double().T @ hidden[tokens].double()
            self.order.append(number)

    def head_bias(self, part: int | None, of_logits: Tensor) -> None:
        for number, tokens in enumerate(self.parts) if part is None else [(part, slice(None))]:
            self.biases[number] += of_logits[tokens].double().sum(0)


def drawn(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def layer(
    dtype: torch.dtype = torch.float64, with_bias: bool = True, count: int = M
) -> tuple[Tensor, Linear, Tensor, Tensor]:
    """Hidden states, output layer, targets (none of which is masked below) and what each log-probability counts."""
    head = Linear(
        drawn(V, D, seed=2, dtype=dtype).requires_grad_(),
        drawn(V, seed=3, dtype=dtype).requires_grad_() if with_bias else None,
    )
    targets = torch.randint(V - 3, (count,), generator=torch.Generator().manual_seed(9))
    return (
        drawn(count, D, seed=1, dtype=dtype).requires_grad_(),
        head,
        targets,
        drawn(count, seed=4, dtype=torch.float64),
    )


def plainly(
    hidden: Tensor, head: Linear, targets: Tensor, temperature: float, masked: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The definition: all logits at once, of the type of the hidden states, everything after them wider."""
    logits = functional.linear(hidden, head.weight, head.bias)
    logits = (logits if logits.dtype == torch.float64 else logits.float()) / temperature
    logprobs = logits.index_fill(-1, torch.tensor(masked, dtype=torch.long), -torch.inf).log_softmax(-1)
    return logprobs.gather(-1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs.clamp(min=-1e9)).sum(-1)


def close(scored: Scored, expected: tuple[Tensor, Tensor], tolerance: float) -> None:
    assert scored.entropy is not None
    for found, other in zip((scored.logprobs, scored.entropy), expected, strict=True):
        assert not found.requires_grad
        torch.testing.assert_close(found, other.detach(), rtol=tolerance, atol=tolerance)


@pytest.fixture(params=[(32, 2**23, 2**26), (1, 0, 0), (2, 0, 8 * V * 5), (1, 8 * V * 4, 8 * V * 3), (3, 0, 2**20)])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int, int]:
    """All at once; one by one; two by two with gradients of five; of four; three by three with gradients of a part."""
    for name, value in zip(("LEAST_TOKENS", "LOGIT_BYTES", "PRODUCT_BYTES"), request.param, strict=True):
        monkeypatch.setattr(scored_head, name, value)
    monkeypatch.setattr(scored_head, "SCORED_BYTES", request.param[2])
    return request.param


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("temperature", "masked"), [(1.0, ()), (0.6, ()), (1.7, (15, 14)), (1.0, (16,))])
@pytest.mark.usefixtures("chunks")
def test_values_and_gradients_are_those_of_the_whole_softmax(
    temperature: float, masked: tuple[int, ...], with_bias: bool
) -> None:
    hidden, head, targets, counts = layer(with_bias=with_bias)
    expected = plainly(hidden, head, targets, temperature, masked)
    close(score_tokens(hidden, head, targets, temperature, masked, with_entropy=True), expected, 1e-12)
    sums, seen = Sums(), []

    def coefficient(tokens: slice, logprobs: Tensor) -> Tensor:
        torch.testing.assert_close(logprobs, expected[0].detach()[tokens], rtol=1e-12, atol=1e-12)
        seen.extend(range(M)[tokens])
        return counts[tokens]

    scored, of_hidden = score_and_differentiate(hidden, head, targets, coefficient, PARTS, sums, temperature, masked)
    close(scored, expected, 1e-12)
    assert seen == list(range(M))
    assert sums.order == sorted(sums.order)
    for number, tokens in enumerate(PARTS):
        inputs = [hidden, head.weight] + ([] if head.bias is None else [head.bias])
        loss = (expected[0] * counts)[tokens].sum()
        gradients = torch.autograd.grad(loss, inputs, retain_graph=True)
        found = [of_hidden[tokens], sums.weights[number], sums.biases[number]]
        for one, other in zip(found, [gradients[0][tokens], *gradients[1:]], strict=False):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("chunks")
def test_a_coefficient_that_depends_on_the_log_probability_is_that_of_the_loss() -> None:
    hidden, head, targets, counts = layer()
    logprobs, _ = plainly(hidden, head, targets, 0.7, ())
    (expected,) = torch.autograd.grad((counts * logprobs.exp()).sum(), hidden)
    _, found = score_and_differentiate(
        hidden, head, targets, lambda tokens, known: counts[tokens] * known.exp(), PARTS, Sums(), 0.7
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.usefixtures("chunks")
def test_bfloat16_logits_are_rounded_as_the_models_and_all_behind_them_is_float32(with_bias: bool) -> None:
    hidden, head, targets, counts = layer(torch.bfloat16, with_bias)
    expected = plainly(hidden, head, targets, 0.8, (16,))
    (of_hidden, of_weight, *of_bias) = torch.autograd.grad(
        (expected[0] * counts).sum(), [hidden, head.weight, *([] if head.bias is None else [head.bias])]
    )
    sums = Sums()
    scored, found = score_and_differentiate(
        hidden, head, targets, lambda tokens, _: counts[tokens], PARTS, sums, 0.8, (16,)
    )
    close(scored, expected, 2e-6)
    assert scored.logprobs.dtype == torch.float32
    assert found.dtype == torch.bfloat16
    near = 0.02
    assert float((found - of_hidden).float().norm()) < near * float(of_hidden.float().norm())
    assert float((sums.weights.sum(0) - of_weight).norm()) < near * float(of_weight.float().norm())
    for bias in of_bias:
        assert float((sums.biases.sum(0) - bias).norm()) < near * float(bias.float().norm())


def test_large_logits_lose_nothing() -> None:
    hidden, head, targets, _ = layer(torch.float32)
    hidden = 1e4 * hidden.detach()
    with torch.no_grad():
        expected = plainly(hidden, head, targets, 1.0, ())
    scored = score_tokens(hidden, head, targets, with_entropy=True)
    torch.testing.assert_close(scored.logprobs, expected[0], rtol=1e-5, atol=1e-2)
    assert scored.entropy is not None
    assert bool(scored.entropy.isfinite().all())
    every = torch.stack([score_tokens(hidden, head, torch.full((M,), token)).logprobs for token in range(V)])
    torch.testing.assert_close(every.exp().sum(0), torch.ones(M))


def test_a_masked_token_has_probability_zero_and_no_gradient() -> None:
    hidden, head, _, counts = layer()
    targets = torch.full((M,), 2)
    assert score_tokens(hidden, head, targets, masked_token_ids=(2,)).logprobs.tolist() == [-torch.inf] * M
    sums = Sums()
    score_and_differentiate(hidden, head, targets, lambda tokens, _: counts[tokens], PARTS, sums, masked_token_ids=(2,))
    assert not sums.weights[:, 2].any()
    assert not sums.biases[:, 2].any()


@pytest.mark.parametrize("frozen", ["weight", "bias", "both"])
@pytest.mark.usefixtures("chunks")
def test_a_frozen_output_layer_is_handed_nothing(frozen: str) -> None:
    hidden, head, targets, counts = layer()
    assert head.bias is not None
    head.weight.requires_grad_(frozen == "bias")
    head.bias.requires_grad_(frozen == "weight")
    sums = Sums()
    _, of_hidden = score_and_differentiate(hidden, head, targets, lambda tokens, _: counts[tokens], PARTS, sums)
    assert bool(of_hidden.any(-1).all())
    assert bool(sums.weights.any()) == (frozen == "bias")
    assert bool(sums.biases.any()) == (frozen == "weight")


@pytest.mark.usefixtures("chunks")
def test_no_tokens_give_nothing() -> None:
    hidden, head, targets, _ = layer(count=0)
    scored = score_tokens(hidden, head, targets)
    assert scored.logprobs.shape == (0,)
    assert scored.entropy is None
    scored, of_hidden = score_and_differentiate(
        hidden, head, targets, lambda *_: pytest.fail("asked for a token that is not there"), [slice(0, 0)], Sums()
    )
    assert scored.entropy is not None
    assert scored.entropy.shape == (0,)
    assert of_hidden.shape == (0, D)


def test_one_product_makes_the_logits_of_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product reads the whole layer: by twos, as the logits are scored, they would read it thrice as often."""
    for name, value in (("LEAST_TOKENS", 1), ("LOGIT_BYTES", 8 * V * 2), ("SCORED_BYTES", 8 * V * 6)):
        monkeypatch.setattr(scored_head, name, value)
    monkeypatch.setattr(scored_head, "PRODUCT_BYTES", 8 * V * 5)
    products: list[int] = []
    linear = functional.linear

    def spy(inputs: Tensor, *rest: Any) -> Tensor:
        products.append(len(inputs))
        return linear(inputs, *rest)

    monkeypatch.setattr(functional, "linear", spy)
    hidden, head, targets, counts = layer()
    score_tokens(hidden, head, targets)
    assert products == [6, 5]
    products.clear()
    score_and_differentiate(hidden, head, targets, lambda tokens, _: counts[tokens], PARTS, Sums())
    assert products == [4, 1, 5, 1]
