"""Attention over prompts that are stored once and own tokens that are stored by row, against attention over one row of both."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from bsharp.generation.batching import fill_holes
from bsharp.generation.shared_prompts import GROWTH, SharedPrompts, Slots
from bsharp.generation.step_program import attention

GROUPS, SHARED, SIZE, LAYERS = 2, 3, 8, 2

ROW_PROMPTS: dict[str, list[int]] = {
    "equal groups": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    "one row each": [0, 1, 2, 3, 4],
    "one prompt": [0] * 7,
    "uneven": [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 3],
    "a large one among small ones": [0, 1, *[2] * 40, 3, 4, 5, 5],
    "out of order": [3, 0, 1, 0, 3, 3, 2, 1, 0],
}


@pytest.mark.parametrize("name", ROW_PROMPTS)
def test_every_row_has_a_slot_of_its_own_at_its_prompt_and_at_most_half_are_empty(name: str) -> None:
    row_prompts = torch.tensor(ROW_PROMPTS[name])
    slots = Slots.dealt(row_prompts)
    assert len(set(slots.of_rows.tolist())) == len(row_prompts)
    assert torch.equal(slots.prompts[slots.of_rows // slots.height], row_prompts)
    assert slots.count <= 2 * len(row_prompts)
    assert slots.prompts.tolist() == sorted(slots.prompts.tolist())


def test_equal_groups_leave_no_slot_empty() -> None:
    assert Slots.dealt(torch.tensor(ROW_PROMPTS["equal groups"])).count == 9


def test_prompts_whose_rows_have_gone_get_no_slots() -> None:
    assert Slots.dealt(torch.tensor([4, 4, 1])).prompts.tolist() == [1, 4]


class Rows:
    """Keys and values of every row in one piece, in float64: the plain way."""

    def __init__(self, lengths: Sequence[int], row_prompts: Sequence[int], draw: torch.Generator) -> None:
        total = sum(lengths)
        self.states = [
            (torch.randn((total, GROUPS, SIZE), generator=draw), torch.randn((total, GROUPS, SIZE), generator=draw))
            for _ in range(LAYERS)
        ]
        ends = torch.tensor(lengths).cumsum(0).tolist()
        begins = [end - length for end, length in zip(ends, lengths, strict=True)]
        self.rows = [
            [
                (keys[begins[prompt] : ends[prompt]].double(), values[begins[prompt] : ends[prompt]].double())
                for prompt in row_prompts
            ]
            for keys, values in self.states
        ]

    def keep(self, indices: list[int]) -> None:
        self.rows = [[layer[index] for index in indices] for layer in self.rows]

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        found = []
        for row in range(len(queries)):
            before = self.rows[layer][row]
            now = tuple(
                torch.cat([old, new[row].double()[None]]) for old, new in zip(before, (keys, values), strict=True)
            )
            self.rows[layer][row] = now  # type: ignore[call-overload]
            repeated = [states.repeat_interleave(SHARED, 1) for states in now]
            scores = torch.einsum("hk,thk->ht", queries[row].double(), repeated[0]) / SIZE**0.5
            found.append(torch.einsum("ht,thk->hk", scores.softmax(-1), repeated[1]).flatten())
        return torch.stack(found)


@pytest.mark.parametrize("ragged", [False, True], ids=["equal prompts", "ragged prompts"])
@pytest.mark.parametrize("ending", [0.0, 0.08, 0.5], ids=["together", "now and then", "fast"])
@pytest.mark.parametrize("name", ROW_PROMPTS)
def test_attention_is_that_over_prompt_and_own_tokens_in_one_row(name: str, ending: float, ragged: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    row_prompts = ROW_PROMPTS[name]
    lengths = [3 + 2 * index if ragged else 5 for index in range(max(row_prompts) + 1)]
    plain = Rows(lengths, row_prompts, draw)
    shared = SharedPrompts(plain.states, torch.tensor(lengths), torch.tensor(row_prompts))
    rows = len(row_prompts)
    for step in range(2 * GROWTH + 3):
        shared.make_room(step)
        for layer in range(LAYERS):
            # As views into one tensor and with large scores: no layout and no scale is taken for granted.
            drawn = torch.randn((rows, GROUPS * (SHARED + 2), SIZE), generator=draw)
            queries, keys, values = drawn.split([GROUPS * SHARED, GROUPS, GROUPS], 1)
            found = attention(shared.stored[layer], shared.asked, 4 * queries, keys, values, step)
            torch.testing.assert_close(
                found.double(), plain.attend(layer, 4 * queries, keys, values), atol=3e-6, rtol=0
            )
        ended = torch.rand(rows, generator=draw) < ending
        if bool(ended.all()):
            return
        if bool(ended.any()):
            kept = fill_holes(ended)
            shared.keep(kept)
            plain.keep(kept.tolist())
            rows = len(kept)
    assert ending < 0.5


def test_rows_may_leave_before_anything_is_stored() -> None:
    draw = torch.Generator().manual_seed(1)
    plain = Rows([4, 2], [0, 0, 1, 1], draw)
    shared = SharedPrompts(plain.states, torch.tensor([4, 2]), torch.tensor([0, 0, 1, 1]))
    shared.keep(torch.tensor([3, 1]))
    plain.keep([3, 1])
    queries, keys, values = torch.randn((2, GROUPS * (SHARED + 2), SIZE), generator=draw).split(
        [GROUPS * SHARED, GROUPS, GROUPS], 1
    )
    shared.make_room(0)
    found = attention(shared.stored[0], shared.asked, queries, keys, values, 0)
    torch.testing.assert_close(found.double(), plain.attend(0, queries, keys, values), atol=3e-6, rtol=0)


def test_prompts_are_stored_once_not_once_a_row() -> None:
    states = [(torch.randn((100, GROUPS, SIZE)), torch.randn((100, GROUPS, SIZE)))]
    shared = SharedPrompts(states, torch.tensor([50, 50]), torch.tensor([0] * 64 + [1] * 64))
    stored = sum(tensor.numel() for layer in shared.stored for tensor in layer)
    assert stored == 2 * 100 * GROUPS * SIZE


def test_prompts_whose_rows_have_left_are_not_kept_for_ever() -> None:
    states = [(torch.randn((80, GROUPS, SIZE)), torch.randn((80, GROUPS, SIZE)))]
    shared = SharedPrompts(states, torch.full((8,), 10), torch.arange(8).repeat_interleave(4))
    shared.keep(torch.tensor([0, 1, 30]))
    assert len(shared.stored[0].prompt_keys) == 2 * GROUPS
