from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bsharp.config import ConfigError, OptimizerConfig
from bsharp.training.optimizer import build_optimizer, learning_rate_factor, load_optimizer, save_optimizer


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


def test_unknown_optimizers_and_options_are_one_line() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    with pytest.raises(ConfigError, match=r"optimizer.name = 'Adamm' is not in torch.optim; known: .*AdamW"):
        build_optimizer([parameter], OptimizerConfig(name="Adamm"))
    with pytest.raises(ConfigError, match=r"do not fit torch.optim.SGD"):
        build_optimizer([parameter], OptimizerConfig(name="SGD", options={"betas": [0.9, 0.9]}))
    with pytest.raises(ConfigError, match=r"optimizer.name = 'LBFGS' evaluates the loss several times"):
        build_optimizer([parameter], OptimizerConfig(name="LBFGS", options={}))
