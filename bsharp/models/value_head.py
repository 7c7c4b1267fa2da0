"""The learned critic of classic PPO: one value per response token."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["ValueHead"]


class ValueHead(nn.Module):
    """V(x, y_<t): a two-layer perceptron on the policy's last hidden state, whose output layer starts at zero.

    It reads the hidden state without sending a gradient back, so that learning the critic cannot move the policy, and
    a fresh head predicts 0: with γ = λ = 1 the first update is REINFORCE exactly.
    """

    def __init__(self, hidden_size: int, width: int = 128, seed: int = 0) -> None:
        super().__init__()
        self.normalise = nn.LayerNorm(hidden_size, elementwise_affine=False)
        self.inner = nn.Linear(hidden_size, width)
        self.outer = nn.Linear(width, 1)
        weights = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.inner.weight.normal_(0.0, hidden_size**-0.5, generator=weights)
            self.inner.bias.zero_()
            self.outer.weight.zero_()
            self.outer.bias.zero_()

    def forward(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T"]:
        values: Tensor = self.outer(torch.relu(self.inner(self.normalise(hidden.detach().float())))).squeeze(-1)
        return values
