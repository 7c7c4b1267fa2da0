from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bsharp.config import ConfigError, OptimizerConfig
from bsharp.training.optimizer import (
    MasterWeights,
    build_optimizer,
    learning_rate_factor,
    load_optimizer,
    save_optimizer,
)


def test_warm_up_rises_linearly_and_the_schedules_end_where_they_say() -> None:
    warm = OptimizerConfig(warmup_steps=4, warmup_start=0.2)
    assert [round(learning_rate_factor(step, 100, warm), 3) for step in (1, 2, 3, 4, 5, 50)] == [
        0.2,
        0.4,
        0.6,
        0.8,
        1,
        1,
    ]
    linear = OptimizerConfig(warmup_steps=0, schedule="linear")
    assert [learning_rate_factor(step, 4, linear) for step in (1, 2, 3, 4, 5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    cosine = OptimizerConfig(warmup_steps=0, schedule="cosine")
    assert learning_rate_factor(3, 4, cosine) == pytest.approx(0.5)
    assert learning_rate_factor(5, 4, cosine) == pytest.approx(0.0)


@pytest.mark.parametrize("name", ["AdamW", "SGD", "RMSprop", "Adam", "NAdam"])
def test_an_optimizer_goes_on_from_its_saved_state_bit_for_bit(name: str, tmp_path: Path) -> None:
    options = {"momentum": 0.9} if name == "SGD" else {}
    config = OptimizerConfig(name=name, learning_rate=0.1, options=options)

    def steps(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            optimizer.zero_grad()
            ((parameter - step) ** 2).sum().backward()
            optimizer.step()

    whole = nn.Parameter(torch.arange(3.0))
    steps(whole, build_optimizer([whole], config), 0, 6)
    first = nn.Parameter(torch.arange(3.0))
    optimizer = build_optimizer([first], config)
    steps(first, optimizer, 0, 3)
    save_optimizer(optimizer, tmp_path / "optimizer")
    second = nn.Parameter(first.detach().clone())
    resumed = build_optimizer([second], config)
    load_optimizer(resumed, tmp_path / "optimizer")
    steps(second, resumed, 3, 6)
    assert torch.equal(whole, second)


def gradient(step: int) -> torch.Tensor:
    return torch.randn(7, 7, generator=torch.Generator().manual_seed(step)) + 0.5


@pytest.mark.parametrize("name", ["AdamW", "fused AdamW", "SGD", "Adafactor"])
def test_steps_too_small_for_bfloat16_add_up_to_the_rounded_weights_of_a_float32_run(name: str, tmp_path: Path) -> None:
    options = {"SGD": {"momentum": 0.9}, "fused AdamW": {"fused": True}}.get(name, {})
    name = name.removeprefix("fused ")
    config = OptimizerConfig(name=name, learning_rate=1e-6, options=options)
    start = (torch.rand(7, 7, generator=torch.Generator().manual_seed(0)) * 0.8 + 1.1).bfloat16()
    whole, mixed, pure = (
        nn.Parameter(start.clone().to(dtype)) for dtype in (torch.float32, torch.bfloat16, torch.bfloat16)
    )
    optimizers = [build_optimizer([whole], config), build_optimizer([mixed], config)]
    optimizers.append(getattr(torch.optim, name)([pure], lr=1e-6, **dict(config.options)))
    assert isinstance(optimizers[1], MasterWeights)
    assert not isinstance(optimizers[0], MasterWeights)
    rounded = False
    for step in range(400):
        for parameter, optimizer in zip((whole, mixed, pure), optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = 4e-7 * (1 + step)
            if optimizer is optimizers[1]:
                parameter.grad_dtype = torch.float32
            parameter.grad = gradient(step).to(parameter.grad_dtype)
            optimizer.step()
        if step == 200:  # a kill between: everything comes from the files
            save_optimizer(optimizers[1], tmp_path / "optimizer")
            rounded = not torch.equal(mixed.float(), whole)
            mixed = nn.Parameter(mixed.detach().clone())
            optimizers[1] = build_optimizer([mixed], config)
            load_optimizer(optimizers[1], tmp_path / "optimizer")
    assert rounded
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, whole.bfloat16())
    assert torch.equal(optimizers[1].masters[0], whole)
    # At 1 to 2 the spacing of bfloat16 is 1/128: single updates of less than half of it are lost for good.
    assert (mixed != start).any()
    assert not (pure != start).any()


def test_master_weights_take_gradients_of_either_precision_and_leave_float32_parameters_as_they_are() -> None:
    half, single = nn.Parameter(torch.ones(2, dtype=torch.bfloat16)), nn.Parameter(torch.ones(2))
    optimizer = build_optimizer([half, single], OptimizerConfig(name="SGD", learning_rate=0.25, options={}))
    assert isinstance(optimizer, MasterWeights)
    assert optimizer.masters[1] is single
    half.grad, single.grad = torch.ones(2, dtype=torch.bfloat16), torch.ones(2)
    optimizer.step()
    assert half.tolist() == single.tolist() == [0.75, 0.75]
    optimizer.zero_grad()
    assert half.grad is None
    assert single.grad is None
    optimizer.step()
    assert half.tolist() == single.tolist() == [0.75, 0.75]
    with torch.no_grad():
        half.fill_(2.0)
    optimizer.restart()
    assert optimizer.masters[0].tolist() == [2.0, 2.0]


def test_unknown_optimizers_and_options_are_one_line() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    with pytest.raises(ConfigError, match=r"optimizer.name = 'Adamm' is not in torch.optim; known: .*AdamW"):
        build_optimizer([parameter], OptimizerConfig(name="Adamm"))
    with pytest.raises(ConfigError, match=r"do not fit torch.optim.SGD"):
        build_optimizer([parameter], OptimizerConfig(name="SGD", options={"betas": [0.9, 0.9]}))
    with pytest.raises(ConfigError, match=r"optimizer.name = 'LBFGS' evaluates the loss several times"):
        build_optimizer([parameter], OptimizerConfig(name="LBFGS", options={}))
