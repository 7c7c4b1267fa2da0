from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from small_models import small_model
from torch import Tensor

from bsharp.models import packing as packing_module
from bsharp.models.network import Network, network_of
from bsharp.models.packing import Grid, Packing, pack

PROMPTS = [(1, 2, 3, 4, 5), (2,), (1, 2, 3, 4, 5), (3, 1, 4), (2,), (1, 2, 3, 4, 5), (4, 4)]
LENGTHS = [7, 3, 1, 12, 5, 4, 1]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    """Two query heads that share one of keys; sequences are dealt to several grids."""
    monkeypatch.setattr(packing_module, "LENGTH_STEP", 3)
    network = network_of(small_model("qwen3", vocab_size=30).model)
    assert network is not None
    return network


def responses_of(lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Token ids from 6 up, different at every place, and the mask; filled up with −7, which is no token."""
    width = max([*lengths, 1])
    mask = torch.arange(width)[None] < torch.tensor(lengths, dtype=torch.long)[:, None]
    ids = 6 + torch.arange(len(lengths) * width).view(-1, width) % 24
    return ids.masked_fill(~mask, -7), mask


def seen_by(packing: Packing, network: Network) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """For each packed token and query head: the packed tokens and key heads that attention lets it see."""
    seen: dict[tuple[int, int], list[tuple[int, int]]] = {}
    places: list[tuple[Grid, int]] = [(grid, place) for grid in packing.grids for place in range(len(grid.queries))]
    for query, place in enumerate(packing.query_places.tolist()):
        grid, inside = places[place]
        rows, asking, asked = grid.shape
        row, head, step = inside // (network.heads * asking), inside // asking % network.heads, inside % asking
        assert int(grid.queries[inside]) == query
        assert query % network.heads == head
        if grid.filler is not None:
            assert not grid.filler[row, 0, step, 0]
        allowed = grid.forbidden.expand(rows, 1, asking, asked)[row, 0, step] == 0.0
        key_head = head // (network.heads // network.kv_heads)
        keys = grid.keys.view(rows, network.kv_heads, asked)[row, key_head][allowed].tolist()
        seen[query // network.heads, head] = [(key // network.kv_heads, key % network.kv_heads) for key in keys]
    return seen


def texts(packing: Packing, prompts: Sequence[Sequence[int]], responses: Tensor, mask: Tensor) -> list[tuple[int, ...]]:
    """What each packed token stands behind, itself included, read from where rows are predicted."""
    found: dict[int, tuple[int, ...]] = {}
    width = responses.shape[1]
    for packed, place in zip(packing.predictor.tolist(), packing.places.tolist(), strict=True):
        row, step = divmod(place, width)
        found[packed] = (*prompts[row], *responses[row, :step].tolist())
    last = sorted(found)
    for packed in range(len(packing.token_ids)):
        if packed not in found:  # inside a prompt: its last token, which predicts, comes next among those that do
            end = next(other for other in last if other > packed)
            found[packed] = found[end][: len(found[end]) - (end - packed)]
    return [found[packed] for packed in range(len(packing.token_ids))]


def test_the_example_of_the_module_is_what_comes_out(network: Network) -> None:
    responses = torch.tensor([[3, 4, 1], [5, 1, 0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    found = pack(network, [(7, 8), (7, 8)], responses, mask)
    assert found.token_ids.tolist() == [7, 8, 3, 4, 5]
    assert found.positions.tolist() == [0, 1, 2, 3, 2]
    assert found.predictor.tolist() == [1, 2, 3, 1, 4]
    assert found.targets.tolist() == [3, 4, 1, 5, 1]
    assert found.places.tolist() == [0, 1, 2, 3, 4]
    assert found.parts == ((slice(0, 5), slice(0, 5)),)


@pytest.mark.parametrize("parts", [None, [[0, 2, 5], [1, 4], [3], [6]], [[3, 1, 0], [], [2, 6], [5, 4]]])
def test_every_distinct_prompt_of_a_part_and_every_response_but_its_last_token_is_packed_once(
    network: Network, parts: list[list[int]] | None
) -> None:
    responses, mask = responses_of(LENGTHS)
    found = pack(network, PROMPTS, responses, mask, parts)
    dealt = parts if parts is not None else [list(range(len(PROMPTS)))]
    assert len(found.parts) == len(dealt)
    for part, (tokens, predicted) in zip(dealt, found.parts, strict=True):
        own = sum(LENGTHS[row] - 1 for row in part)
        assert tokens.stop - tokens.start == sum(map(len, {PROMPTS[row] for row in part})) + own
        assert predicted.stop - predicted.start == sum(LENGTHS[row] for row in part)
        rows = torch.div(found.places[predicted], responses.shape[1], rounding_mode="floor")
        assert set(rows.tolist()) == set(part)
    assert len(found.token_ids) == found.parts[-1][0].stop == len(found.positions)
    assert len(found.targets) == found.parts[-1][1].stop == len(found.predictor)


def test_targets_are_the_response_tokens_and_each_is_predicted_by_what_comes_before_it(network: Network) -> None:
    responses, mask = responses_of(LENGTHS)
    found = pack(network, PROMPTS, responses, mask, [[3, 1, 0], [2, 6], [5, 4]])
    assert sorted(found.places.tolist()) == mask.flatten().nonzero()[:, 0].tolist()
    assert torch.equal(found.targets, responses.flatten()[found.places])
    for packed, text in enumerate(texts(found, PROMPTS, responses, mask)):
        assert found.token_ids[packed] == text[-1]
        assert found.positions[packed] == len(text) - 1


@pytest.mark.parametrize("family", ["qwen3", "four heads"])
@pytest.mark.parametrize("step", [1, 3, 100])
def test_every_query_sees_the_tokens_of_its_own_text_in_order_and_no_other(
    network: Network, family: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing_module, "LENGTH_STEP", step)
    if family != "qwen3":
        network = Network(**{name: getattr(network, name) for name in vars(network)} | {"heads": 4, "kv_heads": 2})
    responses, mask = responses_of(LENGTHS)
    found = pack(network, PROMPTS, responses, mask, [[3, 1, 0], [2, 6], [5, 4]])
    text = texts(found, PROMPTS, responses, mask)
    seen = seen_by(found, network)
    assert len(seen) == len(text) * network.heads
    for (packed, head), keys in seen.items():
        tokens = [token for token, _ in keys]
        assert [text[token] for token in tokens] == [text[packed][: end + 1] for end in range(len(text[packed]))]
        assert {key_head for _, key_head in keys} == {head // (network.heads // network.kv_heads)}
        inside = next(tokens for tokens, _ in found.parts if tokens.start <= packed < tokens.stop)
        assert all(inside.start <= token < inside.stop for token in tokens)


@pytest.mark.parametrize("step", [1, 3, 100])
def test_the_places_of_a_key_are_all_those_where_a_query_sees_it(
    network: Network, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing_module, "LENGTH_STEP", step)
    responses, mask = responses_of(LENGTHS)
    found = pack(network, PROMPTS, responses, mask, [[3, 1, 0], [2, 6], [5, 4]])
    keys = torch.cat([grid.keys for grid in found.grids])
    places, begins = found.key_places
    ends = [*begins.tolist()[1:], len(places)]
    # A text's grid row reads each of its keys at one place: a prompt's own row, and those of longer texts behind it.
    readers: list[set[int]] = [set() for _ in found.token_ids]
    for (packed, _), visible in seen_by(found, network).items():
        for token, _ in visible:
            readers[token].add(row_of(found, network, packed))
    for key, (begin, end) in enumerate(zip(begins.tolist(), ends, strict=True)):
        here = places[begin:end]
        assert len(here.unique()) == len(here) == len(readers[key // network.kv_heads])
        assert bool((keys[here] == key).all())


def row_of(packing: Packing, network: Network, packed: int) -> int:
    """Which row of all grids, one after the other, the token asks in."""
    place, before = int(packing.query_places[packed * network.heads]), 0
    for grid in packing.grids:
        rows, asking, _ = grid.shape
        if place < len(grid.queries):
            return before + place // (network.heads * asking)
        place, before = place - len(grid.queries), before + rows
    raise AssertionError("a token that asks nowhere")


def test_rows_without_tokens_add_nothing(network: Network) -> None:
    lengths = [4, 0, 2, 0]
    prompts = [(1, 2), (1, 2), (3,), (5, 5, 5)]
    responses, mask = responses_of(lengths)
    found = pack(network, prompts, responses, mask, [[0, 1], [3], [2]])
    assert found.token_ids.tolist() == [1, 2, *responses[0, :3].tolist(), 3, int(responses[2, 0])]
    assert found.parts == ((slice(0, 5), slice(0, 4)), (slice(5, 5), slice(4, 4)), (slice(5, 7), slice(4, 6)))


@pytest.mark.parametrize(("prompts", "lengths"), [([], []), ([(1, 2), (3,)], [0, 0])])
def test_where_no_row_has_a_token_nothing_is_packed(
    network: Network, prompts: list[tuple[int, ...]], lengths: list[int]
) -> None:
    found = pack(network, prompts, *responses_of(lengths))
    assert len(found.token_ids) == len(found.targets) == len(found.query_places) == 0
    assert found.grids == ()
    assert found.spread(torch.ones(0), (2, 1)).tolist() == [[0.0], [0.0]]


def test_an_empty_prompt_is_refused(network: Network) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        pack(network, [(1,), ()], *responses_of([2, 2]))


def test_values_of_predicted_tokens_are_spread_to_their_places_in_the_responses(network: Network) -> None:
    responses, mask = responses_of(LENGTHS)
    found = pack(network, PROMPTS, responses, mask, [[3, 1, 0], [2, 6], [5, 4]])
    spread = found.spread(found.targets.double(), (len(LENGTHS), responses.shape[1]))
    assert torch.equal(spread, responses.masked_fill(~mask, 0).double())
