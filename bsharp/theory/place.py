"""A world with what a statement needs beside it: policies, tables and perturbations drawn from named streams."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bsharp.seeding import generator
from bsharp.theory.world import FiniteWorld, tabular_token_logprobs

__all__ = ["Place"]


@dataclass(frozen=True)
class Place:
    """A world with what the statements need beside it, drawn from named streams."""

    name: str
    world: FiniteWorld
    seed: int

    def _normal(self, what: str, *shape: int) -> Tensor:
        rng = generator(self.seed, "check", f"{what} {self.name}")
        return torch.as_tensor(rng.normal(size=shape))

    def table(self) -> Float[Tensor, "K V"]:
        """A table of next-token logits away from the base's."""
        return self.world.base_table() + 0.7 * self._normal("table", self.world.num_prefixes, self.world.vocab_size)

    def delta(self, size: float = 1.0) -> Float[Tensor, " N"]:
        """A perturbation of l_ref that leaves the base autoregressive: normal logits added to every prefix."""
        noise = self._normal("delta", self.world.num_prefixes, self.world.vocab_size)
        moved = tabular_token_logprobs(self.world, self.world.base_table() + size * noise).sum(-1)
        return moved - self.world.base_logprob

    def policies(self) -> Float[Tensor, "5 N"]:
        """Log-probabilities: one near the base, two of full support further off, two near vertices."""
        noise = self._normal("policies", 4, self.world.size)
        rows = [0.1 * noise[0] + self.world.base_logprob, noise[1], 5 * noise[2], 50 * noise[3]]
        return torch.log_softmax(torch.stack([*rows, 400 * noise[0]]), -1)

    def token_distribution(self) -> Float[Tensor, " V"]:
        """Log-probabilities of the next token of a memoryless base."""
        return torch.log_softmax(self._normal("token", self.world.vocab_size), -1)

    @property
    def fixed_length(self) -> bool:
        """Whether all responses have the same number of tokens."""
        return bool((self.world.lengths == self.world.lengths[0]).all())

    @property
    def binary(self) -> bool:
        """Whether every reward is 0 or 1."""
        return bool(((self.world.rewards == 0) | (self.world.rewards == 1)).all())

    @property
    def ends_with_eos(self) -> bool:
        """Whether the responses are all those of an EOS of 0 up to a length limit."""
        longest = int(self.world.lengths.max())
        branches = self.world.vocab_size - 1
        return longest > 1 and self.world.size == branches**longest + sum(branches**t for t in range(longest))

    def gap(self, rho: float) -> float:
        """Distance from the best to the second-best l_ref / T^rho."""
        best, second = (self.world.base_logprob / self.world.lengths**rho).topk(2).values.tolist()
        return float(best - second)
