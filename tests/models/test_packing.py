from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from small_models import small_model
from torch import Tensor

from bsharp.models import packing as packing_module
from bsharp.models.network import Network, network_of
from bsharp.models.packing import Grid, Packing, bundles, pack

PROMPTS = [(1, 2, 3, 4, 5), (2,), (1, 2, 3, 4, 5), (3, 1, 4), (2,), (1, 2, 3, 4, 5), (4, 4)]
LENGTHS = [7, 3, 1, 12, 5, 4, 1]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    """Two query heads that share one of keys; sequences are dealt to several grids."""
    monkeypatch.setattr(packing_module, "LENGTH_STEP", 3)
    network = network_of(small_model("qwen3", vocab_size=30).model)
    assert network is not None
    return network


def responses_of(lengths: Sequence[int], alike: bool = False) -> tuple[Tensor, Tensor]:
    """Token ids from 6 up, different at every place, and the mask; filled up with −7, which is no token.

    With `alike` most of them begin with some of the same tokens, some are the beginning of others, and two are equal.
    """
    width = max([*lengths, 1])
    mask = torch.arange(width)[None] < torch.tensor(lengths, dtype=torch.long)[:, None]
    ids = 6 + torch.arange(len(lengths) * width).view(-1, width) % 24
    if alike:
        ids = (6 + torch.arange(width) % 24).repeat(len(lengths), 1)
        for row, parts_at in enumerate((99, 2, 0, 5, 3, 1, 99)[: len(lengths)]):
            ids[row, parts_at:] = 7 + row
    return ids.masked_fill(~mask, -7), mask


def beginnings(prompts: Sequence[Sequence[int]], ids: Tensor, rows: Sequence[int]) -> int:
    """How many tokens a tree of all texts has: distinct prompts, and distinct beginnings of what follows each."""
    found = {(tuple(prompts[row]), tuple(ids[row, :end].tolist())) for row in rows for end in range(1, LENGTHS[row])}
    return sum(map(len, {tuple(prompts[row]) for row in rows})) + len(found)


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
    responses = torch.tensor([[3, 4, 1, 0], [5, 1, 0, 0], [3, 4, 6, 1]])
    mask = torch.tensor([[True, True, True, False], [True, True, False, False], [True, True, True, True]])
    found = pack(network, [(7, 8)] * 3, responses, mask)
    assert found.token_ids.tolist() == [7, 8, 3, 4, 6, 5]
    assert found.positions.tolist() == [0, 1, 2, 3, 4, 2]
    assert found.predictor.tolist() == [1, 2, 3, 1, 2, 3, 4, 1, 5]
    assert found.targets.tolist() == [3, 4, 1, 3, 4, 6, 1, 5, 1]
    assert found.places.tolist() == [0, 1, 2, 8, 9, 10, 11, 4, 5]
    assert found.parts == ((slice(0, 6), slice(0, 9)),)


def test_rows_that_share_nothing_stay_in_their_order(network: Network) -> None:
    responses = torch.tensor([[9, 1], [3, 1], [5, 1]])
    found = pack(network, [(7, 8)] * 3, responses, torch.ones((3, 2), dtype=torch.bool))
    assert found.token_ids.tolist() == [7, 8, 9, 3, 5]
    assert found.places.tolist() == [0, 1, 2, 3, 4, 5]


def test_bundles_hold_every_part_in_order_and_no_more_than_so_many_rows_or_their_tokens(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing_module, "TINY_WEIGHTS", 0)
    monkeypatch.setattr(packing_module, "LEAST_BUNDLE", 1)
    draw = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 9, (40,), generator=draw).tolist()
    parts = [list(range(sum(sizes[:part]), sum(sizes[: part + 1]))) for part in range(40)]
    rows, longest = sum(sizes), 20
    lengths = torch.randint(1, longest + 1, (rows, 1), generator=draw)
    lengths[60:120] = 1
    mask = torch.arange(longest) < lengths
    prompts = [(part, 1, 2) for part, size in enumerate(sizes) for _ in range(size)]
    for microbatch_rows in (1, 4, 16, 64, 1000):
        for threads in (1, 2, 3):
            found = bundles(network, prompts, mask, parts, microbatch_rows, threads)
            assert [place for bundle in found for place in bundle] == list(range(40))
            for bundle in found:
                together = [row for place in bundle for row in parts[place]]
                tokens = int(lengths[together].sum()) + 3 * len(bundle)
                assert len(bundle) == 1 or len(together) <= microbatch_rows or tokens <= microbatch_rows * longest
            if microbatch_rows == 1000:
                assert len(found) == threads
    most = max(len(bundle) for bundle in bundles(network, prompts, mask, parts, 16, 1))
    assert most > 6, "short responses go more at once"


def test_tiny_models_are_not_run_in_bundles_too_short_to_pay(network: Network) -> None:
    mask = torch.ones((200, 10), dtype=torch.bool)
    prompts = [(1, 2, 3)] * 200
    parts = [[row] for row in range(200)]
    assert [len(bundles(network, prompts[:count], mask[:count], parts[:count], 4, 2)) for count in (10, 90, 200)] == [
        1,
        1,
        2,
    ]
    large = Network(**{name: getattr(network, name) for name in vars(network)} | {"blocks": network.blocks * 10_000})
    assert len(bundles(large, prompts, mask, parts, 4, 1)) >= 50


def test_bundles_that_are_dealt_to_threads_stay_small(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing_module, "TINY_WEIGHTS", 0)
    mask, prompts = torch.ones((40, 400), dtype=torch.bool), [(1, 2)] * 40
    found = bundles(network, prompts, mask, [[row] for row in range(40)], 1000, 1)
    assert max(len(bundle) for bundle in found) * 400 <= packing_module.TINY_BUNDLE
    large = Network(**{name: getattr(network, name) for name in vars(network)} | {"blocks": network.blocks * 10_000})
    assert len(bundles(large, prompts, mask, [[row] for row in range(40)], 1000, 1)) == 1


def test_no_parts_make_no_bundles(network: Network) -> None:
    assert bundles(network, [], torch.ones((0, 1), dtype=torch.bool), [], 4, 2) == []


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("parts", [None, [[0, 2, 5], [1, 4], [3], [6]], [[3, 1, 0], [], [2, 6], [5, 4]]])
def test_every_distinct_prompt_of_a_part_and_every_beginning_of_its_responses_is_packed_once(
    network: Network, parts: list[list[int]] | None, alike: bool
) -> None:
    responses, mask = responses_of(LENGTHS, alike)
    found = pack(network, PROMPTS, responses, mask, parts)
    dealt = parts if parts is not None else [list(range(len(PROMPTS)))]
    assert len(found.parts) == len(dealt)
    for part, (tokens, predicted) in zip(dealt, found.parts, strict=True):
        assert tokens.stop - tokens.start == beginnings(PROMPTS, responses, part)
        assert predicted.stop - predicted.start == sum(LENGTHS[row] for row in part)
        rows = torch.div(found.places[predicted], responses.shape[1], rounding_mode="floor")
        assert set(rows.tolist()) == set(part)
    assert len(found.token_ids) == found.parts[-1][0].stop == len(found.positions)
    assert len(found.targets) == found.parts[-1][1].stop == len(found.predictor)


@pytest.mark.parametrize("alike", [False, True])
def test_targets_are_the_response_tokens_and_each_is_predicted_by_what_comes_before_it(
    network: Network, alike: bool
) -> None:
    responses, mask = responses_of(LENGTHS, alike)
    found = pack(network, PROMPTS, responses, mask, [[3, 1, 0], [2, 6], [5, 4]])
    assert sorted(found.places.tolist()) == mask.flatten().nonzero()[:, 0].tolist()
    assert torch.equal(found.targets, responses.flatten()[found.places])
    for packed, text in enumerate(texts(found, PROMPTS, responses, mask)):
        assert found.token_ids[packed] == text[-1]
        assert found.positions[packed] == len(text) - 1


@pytest.mark.parametrize("family", ["qwen3", "four heads"])
@pytest.mark.parametrize("step", [1, 3, 100])
@pytest.mark.parametrize("alike", [False, True])
def test_every_query_sees_the_tokens_of_its_own_text_in_order_and_no_other(
    network: Network, family: str, alike: bool, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing_module, "LENGTH_STEP", step)
    if family != "qwen3":
        network = Network(**{name: getattr(network, name) for name in vars(network)} | {"heads": 4, "kv_heads": 2})
    responses, mask = responses_of(LENGTHS, alike)
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
@pytest.mark.parametrize("alike", [False, True])
def test_the_places_of_a_key_are_all_those_where_a_query_sees_it(
    network: Network, alike: bool, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing_module, "LENGTH_STEP", step)
    responses, mask = responses_of(LENGTHS, alike)
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
