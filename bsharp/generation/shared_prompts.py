"""Attention of decoding steps whose rows share prompts: keys and values of a prompt are stored, and read, once for its rows.

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
    """Keys and values of every block for the rows of a micro-batch, and the attention of one new token of each row.

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
        self._prompts = [
            (_gathered(keys.float(), tokens), _gathered(values.float(), tokens)) for keys, values in states
        ]  # (entries · G, L, K)
        nothing = key.new_empty((len(row_prompts), groups, 0, size), dtype=torch.float32)
        self._own = [(nothing, nothing) for _ in states]  # (rows, G, capacity, K), zeros behind what is stored
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
        self._asked: Int[Tensor, " slots*G"] = asked.flatten()
        entry, place = slots.of_rows // slots.height, slots.of_rows % slots.height
        found = (entry[:, None] * groups + group) * slots.height + place[:, None]
        self._found: Int[Tensor, " rows*G"] = found.flatten()

    def keep(self, indices: Int[Tensor, " kept"]) -> None:
        """Row i becomes what row indices[i] was; the others are dropped. Only rows that change place are copied."""
        count = len(indices)
        moved = (indices != torch.arange(count)).nonzero().squeeze(-1)
        sources, stored = indices[moved], self._stored
        for layer, buffers in enumerate(self._own):
            for buffer in buffers:
                buffer[moved, :, :stored] = buffer[sources, :, :stored]
            self._own[layer] = (buffers[0][:count], buffers[1][:count])
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
        self._prompts = [(keys[kept], values[kept]) for keys, values in self._prompts]
        if self._bias is not None:
            self._bias = self._bias[kept]

    def attend(
        self,
        layer: int,
        queries: Float[Tensor, "R H K"],
        keys: Float[Tensor, "R G K"],
        values: Float[Tensor, "R G K"],
        step: int,
    ) -> Float[Tensor, "R HK"]:
        """What block `layer` reads for its queries once the keys and values of the step-th own tokens are stored.

        softmax(q·k/√K) over the prompt and the own tokens 0 … step, times their values.
        """
        rows, heads, size = queries.shape
        groups, shared = self._groups, heads // self._groups
        prompt_keys, prompt_values = self._prompts[layer]
        own_keys, own_values = self._grown(layer, step)
        own_keys[:, :, step] = keys
        own_values[:, :, step] = values
        self._stored = step + 1
        columns, scale = prompt_keys.shape[1], size**-0.5
        asking = queries.float().reshape(rows * groups, shared, size)
        none = asking.new_zeros(1)
        by_entry = asking.index_select(0, self._asked).view(len(prompt_keys), -1, size)
        if self._bias is None:
            of_prompts = torch.baddbmm(none, by_entry, prompt_keys.mT, beta=0, alpha=scale)
        else:
            of_prompts = torch.baddbmm(self._bias, by_entry, prompt_keys.mT, alpha=scale)
        of_prompts = of_prompts.view(-1, shared, columns).index_select(0, self._found)
        of_own = torch.baddbmm(none, asking, own_keys.flatten(0, 1).mT, beta=0, alpha=scale)
        shares = torch.cat([of_prompts, of_own], -1)
        shares[:, :, columns + step + 1 :] = -torch.inf
        shares = shares.softmax(-1)
        # Whole rows are gathered, own columns too: one memory copy each.
        by_entry = shares.flatten(1).index_select(0, self._asked).view(len(prompt_keys), -1, shares.shape[-1])
        found = torch.bmm(by_entry[:, :, :columns], prompt_values).view(-1, shared, size).index_select(0, self._found)
        found.baddbmm_(shares[:, :, columns:], own_values.flatten(0, 1))
        return found.view(rows, heads * size)

    def _grown(self, layer: int, step: int) -> tuple[Tensor, Tensor]:
        """The buffers of a layer, with room for the step-th token."""
        keys, values = self._own[layer]
        if step < keys.shape[2]:
            return keys, values
        more = keys.new_zeros((*keys.shape[:2], max(GROWTH, step // 8), keys.shape[3]))
        self._own[layer] = torch.cat([keys, more], 2), torch.cat([values, more], 2)
        return self._own[layer]


def _gathered(states: Float[Tensor, "N G K"], tokens: Int[Tensor, "E L"]) -> Float[Tensor, "EG L K"]:
    return states[tokens].transpose(1, 2).flatten(0, 1)
