"""Keys and values of decoding steps whose rows share prompts: those of a prompt are stored, and read, once for its rows.

Prompts stand in *entries* of equally many *slots*, one slot for each row that continues the prompt; a prompt with many more
rows than the others has several entries. The queries of all slots of an entry meet its keys in one product. What a row has
drawn itself stands in a buffer of its own, which grows by some tokens at a time: products read whole buffers, as memory read
with gaps comes at a quarter of the speed. One softmax runs over both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bsharp.generation.step_program import Asked, Stored

__all__ = ["SharedPrompts", "Slots"]

GROWTH = 16
"""Tokens by which the buffers of rows grow at least, and the share, an eighth, of what they hold."""


@dataclass(frozen=True, eq=False)
class Slots:
    """Which prompt each entry holds and which slot each row has."""

    prompts: Int[Tensor, " entries"]
    height: int  # slots of an entry
    of_rows: Int[Tensor, " rows"]

    @classmethod
    def dealt(cls, row_prompts: Int[Tensor, " rows"]) -> Slots:
        """Every row gets a slot at its prompt. At most half of the slots are empty; a prompt without rows has none."""
        rows = len(row_prompts)
        counts = row_prompts.bincount()
        height = int(counts.max())
        while int((counts + height - 1).div(height, rounding_mode="floor").sum()) * height > 2 * rows:
            height = -(-height // 2)
        entries = (counts + height - 1).div(height, rounding_mode="floor")
        order = row_prompts.argsort(stable=True)
        ranks = torch.empty_like(order)
        ranks[order] = torch.arange(rows)
        ranks -= (counts.cumsum(0) - counts)[row_prompts]
        # The slots of a prompt's entries follow each other.
        of_rows = (entries.cumsum(0) - entries)[row_prompts] * height + ranks
        return cls(torch.repeat_interleave(entries), height, of_rows)

    @property
    def count(self) -> int:
        return len(self.prompts) * self.height

    def kept(self, indices: Int[Tensor, " kept"]) -> Slots:
        """Of the rows `indices`, in that order; their slots stay theirs."""
        return Slots(self.prompts, self.height, self.of_rows[indices])


class SharedPrompts:
    """Keys and values of every block for the rows of a micro-batch (`bsharp.generation.step_program` has their attention).

    `states` are the rotated keys and the values of each block, (N, G, K), of all prompts packed one behind the other, `lengths`
    tokens each. `row_prompts` says which prompt a row continues. Both are kept in float32: keys because the trainer
    compares them so, values because products of one query are no faster in lower precision.
    """

    def __init__(
        self,
        states: Sequence[tuple[Float[Tensor, "N G K"], Float[Tensor, "N G K"]]],
        lengths: Int[Tensor, " prompts"],
        row_prompts: Int[Tensor, " rows"],
    ) -> None:
        self._row_prompts = row_prompts
        self._slots = Slots.dealt(row_prompts)
        self._dealt_rows = len(row_prompts)
        key = states[0][0]
        groups, size = key.shape[1:]
        self._groups, self._stored = groups, 0
        # Aligned on the left; what is behind a shorter prompt is masked.
        columns = torch.arange(int(lengths.max()))
        begins = lengths.cumsum(0) - lengths
        tokens = (begins[:, None] + columns).clamp(max=len(key) - 1)[self._slots.prompts]
        nothing = key.new_empty((len(row_prompts), groups, 0, size), dtype=torch.float32)
        self.stored = [  # of every block
            Stored(_gathered(keys.float(), tokens), _gathered(values.float(), tokens), nothing, nothing)
            for keys, values in states
        ]
        behind = columns >= lengths[self._slots.prompts][:, None]
        self._bias: Float[Tensor, "EG 1 L"] | None = None
        if bool(behind.any()):
            bias = torch.zeros(behind.shape, dtype=torch.float32).masked_fill_(behind, -torch.inf)
            self._bias = bias.repeat_interleave(groups, 0)[:, None]
        self._point()

    def _point(self) -> None:
        """Index tensors: which row's heads each slot asks for, and at which slot each row's heads are found."""
        slots, groups = self._slots, self._groups
        group = torch.arange(groups)
        rows = torch.zeros(slots.count, dtype=torch.long)  # an empty slot asks for row 0, and nobody reads its answer
        rows[slots.of_rows] = torch.arange(len(slots.of_rows))
        asked = rows.view(len(slots.prompts), 1, slots.height) * groups + group[:, None]
        entry, place = slots.of_rows // slots.height, slots.of_rows % slots.height
        found = (entry[:, None] * groups + group) * slots.height + place[:, None]
        self.asked = Asked(asked.flatten(), found.flatten(), self._bias)

    def keep(self, indices: Int[Tensor, " kept"]) -> None:
        """Row i becomes what row indices[i] was; the others are dropped. Only rows that change place are copied."""
        count = len(indices)
        moved = (indices != torch.arange(count)).nonzero().squeeze(-1)
        sources, stored = indices[moved], self._stored
        for layer, block in enumerate(self.stored):
            for buffer in (block.own_keys, block.own_values):
                buffer[moved, :, :stored] = buffer[sources, :, :stored]
            self.stored[layer] = block._replace(own_keys=block.own_keys[:count], own_values=block.own_values[:count])
        self._row_prompts = self._row_prompts[indices]
        if 2 * count <= self._dealt_rows:
            self._deal_again()
        else:
            self._slots = self._slots.kept(indices)
        self._point()

    def _deal_again(self) -> None:
        """Fewer entries, or lower ones, once half of the rows have gone."""
        before, self._slots = self._slots, Slots.dealt(self._row_prompts)
        self._dealt_rows = len(self._row_prompts)
        if torch.equal(before.prompts, self._slots.prompts):
            return
        # Entries are in the order of their prompts, and every prompt that has rows had an entry.
        entries = torch.searchsorted(before.prompts, self._slots.prompts)
        kept = (entries[:, None] * self._groups + torch.arange(self._groups)).flatten()
        self.stored = [
            block._replace(prompt_keys=block.prompt_keys[kept], prompt_values=block.prompt_values[kept])
            for block in self.stored
        ]
        if self._bias is not None:
            self._bias = self._bias[kept]

    def make_room(self, step: int) -> None:
        """Give the step-th own tokens of the rows a place, and count them as stored: they are written next."""
        self._stored = step + 1
        for layer, block in enumerate(self.stored):
            if step >= block.own_keys.shape[2]:
                keys, values = _grown(block.own_keys, step), _grown(block.own_values, step)
                self.stored[layer] = block._replace(own_keys=keys, own_values=values)


def _grown(buffer: Float[Tensor, "R G T K"], step: int) -> Float[Tensor, "R G capacity K"]:
    more = buffer.new_zeros((*buffer.shape[:2], max(GROWTH, step // 8), buffer.shape[3]))
    return torch.cat([buffer, more], 2)


def _gathered(states: Float[Tensor, "N G K"], tokens: Int[Tensor, "E L"]) -> Float[Tensor, "EG L K"]:
    return states[tokens].transpose(1, 2).flatten(0, 1)
