"""Flat weight vectors and saved differences to the base."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import small_model

from bsharp.models.loading import clone_model
from bsharp.models.weights import flat_weights, load_difference, save_difference, set_flat_weights

FAMILIES = ["qwen3", "qwen2", "llama", "gpt2"]


def moved(family: str, size: float, dtype: torch.dtype = torch.float32) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A policy and its base, `size` apart in the typical weight."""
    base = small_model(family, dtype=dtype)
    policy = clone_model(base)
    noise = torch.randn(len(flat_weights(base.model)), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    set_flat_weights(policy.model, flat_weights(base.model).double() + size * noise)
    return policy.model, base.model


@pytest.mark.parametrize("family", FAMILIES)
def test_setting_the_flat_weights_of_another_model_makes_the_two_equal(family: str) -> None:
    ours, theirs = small_model(family, seed=0), small_model(family, seed=1)
    tokens = torch.tensor([[1, 2, 3]])
    assert not torch.equal(ours.model(tokens).logits, theirs.model(tokens).logits)
    set_flat_weights(ours.model, flat_weights(theirs.model))
    assert torch.equal(ours.model(tokens).logits, theirs.model(tokens).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_tied_weights_are_in_the_vector_once(family: str) -> None:
    model = small_model(family).model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    storages = {parameter.data_ptr(): parameter.numel() for parameter in model.parameters()}
    assert len(flat_weights(model)) == sum(storages.values())


def test_the_flat_weights_are_a_copy() -> None:
    model = torch.nn.Linear(3, 1, bias=False)
    before = model.weight.detach().clone()
    flat_weights(model).zero_()
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("shape", [(5,), (7,), (2, 3), ()])
def test_weights_of_another_shape_are_refused_and_change_nothing(shape: tuple[int, ...]) -> None:
    model = torch.nn.Linear(3, 2, bias=False)
    before = flat_weights(model)
    with pytest.raises(ValueError, match="model of 6 parameters"):
        set_flat_weights(model, torch.zeros(shape))
    assert torch.equal(flat_weights(model), before)


def test_a_model_without_parameters_has_no_flat_weights() -> None:
    with pytest.raises(ValueError, match="no parameters"):
        flat_weights(torch.nn.ReLU())


@pytest.mark.parametrize("size", [1e-30, 1e-7, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_difference_of_any_size_is_kept_to_its_stated_error(tmp_path: Path, size: float, dtype: torch.dtype) -> None:
    policy, base = moved("qwen3", size, dtype)
    save_difference(policy, base, tmp_path / "snapshots" / "step_000005.safetensors")
    loaded = load_difference(tmp_path / "snapshots" / "step_000005.safetensors", base)
    start = 0
    for ours, theirs in zip(policy.parameters(), base.parameters(), strict=True):
        exact = (ours - theirs).detach().double().reshape(-1)
        error = (loaded[start : start + len(exact)].double() - exact).abs()
        bound = torch.maximum(exact.abs() * 2.0**-11, exact.abs().max() * 2.0**-24) * (1 + 1e-6)
        assert bool((error <= bound).all())
        start += len(exact)
    assert start == len(loaded)


def test_the_difference_points_from_the_base_to_the_policy(tmp_path: Path) -> None:
    base, policy = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(2, 1, bias=False)
    set_flat_weights(base, torch.tensor([1.0, 2.0]))
    set_flat_weights(policy, torch.tensor([1.25, 1.5]))
    save_difference(policy, base, tmp_path / "d")
    assert load_difference(tmp_path / "d", base).tolist() == [0.25, -0.5]


def test_a_policy_that_did_not_move_differs_by_zero(tmp_path: Path) -> None:
    policy, base = moved("llama", 0.0)
    save_difference(policy, base, tmp_path / "d")
    assert not load_difference(tmp_path / "d", base).any()


def test_sixteen_bit_weights_are_subtracted_without_further_rounding(tmp_path: Path) -> None:
    # 1 + 2⁻⁷ and 2⁻⁹ are bfloat16 numbers, their difference is none.
    base, policy = torch.nn.Linear(1, 1, bias=False).bfloat16(), torch.nn.Linear(1, 1, bias=False).bfloat16()
    set_flat_weights(base, torch.tensor([2.0**-9]))
    set_flat_weights(policy, torch.tensor([1 + 2.0**-7]))
    assert flat_weights(policy).dtype == torch.float32
    save_difference(policy, base, tmp_path / "d")
    assert load_difference(tmp_path / "d", base).item() == 1 + 2.0**-7 - 2.0**-9


def test_the_file_is_half_precision_with_tied_weights_once_and_nothing_else_is_left(tmp_path: Path) -> None:
    policy, base = moved("qwen3", 0.1)
    path = tmp_path / "step_000005.safetensors"
    path.write_bytes(b"an older file")
    save_difference(policy, base, path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    tensors = load_file(path)
    assert set(tensors) == {name for name, _ in policy.named_parameters()}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


def test_frozen_parameters_are_left_out_and_load_as_zero(tmp_path: Path) -> None:
    base, policy = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    set_flat_weights(base, torch.zeros(3))
    set_flat_weights(policy, torch.ones(3))
    policy.bias.requires_grad_(False)
    save_difference(policy, base, tmp_path / "d")
    assert set(load_file(tmp_path / "d")) == {"weight"}
    assert load_difference(tmp_path / "d", base).tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_difference_that_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    base, policy = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(2, 1, bias=False)
    set_flat_weights(policy, torch.tensor([1.0, value]))
    with pytest.raises(ValueError, match="not finite"):
        save_difference(policy, base, tmp_path / "d")
    assert not list(tmp_path.iterdir())


def test_another_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the base has shape \(1, 3\)"):
        save_difference(torch.nn.Linear(2, 1), torch.nn.Linear(3, 1), tmp_path / "d")
    with pytest.raises(ValueError, match="no such parameter"):
        save_difference(torch.nn.Linear(2, 1), torch.nn.ReLU(), tmp_path / "d")
    save_difference(torch.nn.Linear(2, 1), torch.nn.Linear(2, 1), tmp_path / "d")
    with pytest.raises(ValueError, match="not in this model"):
        load_difference(tmp_path / "d", torch.nn.Linear(3, 1))


def test_a_file_that_is_no_snapshot_costs_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken").write_bytes(b"no safetensors")
    save_file({"weight": torch.ones(1, 2)}, tmp_path / "plain")  # without the scales
    for name in ("broken", "plain", "missing"):
        with pytest.raises(ValueError, match="no snapshot of weights"):
            load_difference(tmp_path / name, torch.nn.Linear(2, 1))
