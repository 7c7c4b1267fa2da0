"""Packed passes against the policy's own modules under autograd: the same gradients and the same figures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_models import small_model

from bsharp.config import AlgorithmConfig, SamplingConfig
from bsharp.models import packed
from bsharp.models.loading import LanguageModel
from bsharp.models.logprobs import response_logprobs
from bsharp.models.network import network_of, without_network
from bsharp.models.value_head import ValueHead
from bsharp.rollouts import RolloutBatch
from bsharp.training.accumulate import Critic, Update, accumulate_gradient
from bsharp.training.passes import trained_network

pytestmark = pytest.mark.usefixtures("small_bundles")

VOCABULARY, LONGEST = 11, 9
SIZES = (4, 3, 5, 2, 4)
SILENT = 2
"""A problem whose advantages are all 0."""
MICROBATCHES = (1, 3, 100)

Found = tuple[list[torch.Tensor | None], dict[str, float], list[torch.Tensor | None]]


def policy_of(family: str = "qwen3", dtype: torch.dtype = torch.float64, tied: bool = True) -> LanguageModel:
    """Norms far from 1 and biases far from 0: a term left out shows."""
    policy = small_model(family, vocab_size=VOCABULARY, seed=1, dtype=dtype, spread=0.4)
    draw = torch.Generator().manual_seed(5)
    model: Any = policy.model
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(
            0.4 * torch.randn(model.lm_head.weight.shape, generator=draw).to(dtype)
        )
        model.config.tie_word_embeddings = False
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw).to(dtype))
    assert network_of(model) is not None, "this would compare the modules with themselves"
    return policy


def batch_of(
    policy: LanguageModel, fixed_length: bool = False, temperature: float = 1.0, trainer: bool = False
) -> RolloutBatch:
    """Ragged responses, prompts of different lengths, a sampler up to 60 % off in a token's probability."""
    draw = torch.Generator().manual_seed(7)
    rows = sum(SIZES)
    groups = torch.tensor([group for group, size in enumerate(SIZES) for _ in range(size)])
    prompts = tuple(
        tuple((3 * group + place) % (VOCABULARY - 1) + 1 for place in range(1 + 2 * group)) for group in groups.tolist()
    )
    responses = torch.randint(1 if fixed_length else 0, VOCABULARY, (rows, LONGEST), generator=draw)
    lengths = torch.full((rows,), LONGEST) if fixed_length else torch.randint(1, LONGEST + 1, (rows,), generator=draw)
    mask = torch.arange(LONGEST) < lengths[:, None]
    with without_network():
        own = response_logprobs(policy, prompts, responses, mask, temperature, fixed_length)
    noise = 0.5 * torch.randn((2, rows, LONGEST), generator=draw).to(own.dtype)
    valid = torch.ones(rows, dtype=torch.bool)
    valid[[1, 14]] = False
    return RolloutBatch(
        prompt_token_ids=prompts,
        response_token_ids=responses,
        mask=mask,
        behaviour_logprobs=torch.where(mask, own + noise[0], torch.nan),
        rewards=torch.randn(rows, generator=draw),
        valid=valid,
        group_index=groups,
        truncated=torch.zeros(rows, dtype=torch.bool),
        trainer_logprobs=torch.where(mask, own + 0.6 * noise[1], torch.nan) if trainer else None,
    )


def advantages_for(batch: RolloutBatch) -> torch.Tensor:
    advantages = torch.randn(batch.rows, generator=torch.Generator().manual_seed(3))
    return advantages.masked_fill(batch.group_index == SILENT, 0.0)


def update_of(microbatch_rows: int = 100, sampling: dict[str, Any] | None = None, **algorithm: Any) -> Update:
    settings = SamplingConfig(max_new_tokens=LONGEST, **(sampling or {}))
    return Update(AlgorithmConfig(**algorithm), settings, 1e12, microbatch_rows)


def accumulated(
    policy: LanguageModel, batch: RolloutBatch, update: Update, with_critic: bool = False, advantages: Any = None
) -> Found:
    """Gradients, metrics and gradients of the value head."""
    for parameter in policy.model.parameters():
        parameter.grad = None
    advantages = advantages_for(batch) if advantages is None else advantages
    extra: tuple[Any, ...] = ()
    own: list[torch.Tensor | None] = []
    if with_critic:
        head = ValueHead(16)
        draw = torch.Generator().manual_seed(4)
        with torch.no_grad():
            head.outer.weight.normal_(0.0, 0.3, generator=draw)
        values, returns = (torch.randn(batch.mask.shape, generator=draw) for _ in range(2))
        critic = Critic(head, torch.optim.SGD(head.parameters(), lr=0.0))
        extra = (critic, 0.1 * values, returns)
    metrics = accumulate_gradient(policy, batch, advantages, update, range(batch.problems), *extra)
    if with_critic:
        own = [None if p.grad is None else p.grad.clone() for p in head.parameters()]
    gradients = [None if p.grad is None else p.grad.clone() for p in policy.model.parameters()]
    return gradients, metrics, own


def assert_same(found: Found, expected: Found, tolerance: float = 1e-5) -> None:
    for ours, theirs in ((found[0], expected[0]), (found[2], expected[2])):
        for one, other in zip(ours, theirs, strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                assert one.dtype == other.dtype
                assert float((one - other).norm()) <= tolerance * float(other.norm()) + 1e-12
    assert set(found[1]) == set(expected[1])
    for key, value in expected[1].items():
        if math.isnan(value):
            assert math.isnan(found[1][key]), key
        else:
            assert found[1][key] == pytest.approx(value, rel=10 * tolerance, abs=tolerance), key


def compare(policy: LanguageModel, batch: RolloutBatch, update: Update, tolerance: float = 1e-5, **extra: Any) -> Found:
    found = accumulated(policy, batch, update, **extra)
    with without_network():
        expected = accumulated(policy, batch, update, **extra)
    assert any(gradient is not None and float(gradient.norm()) > 0 for gradient in expected[0])
    assert_same(found, expected, tolerance)
    return found


@pytest.fixture
def threads() -> Iterator[Any]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("microbatch_rows", MICROBATCHES)
def test_packed_passes_give_the_gradient_of_the_models_own_modules(
    family: str, tied: bool, microbatch_rows: int
) -> None:
    policy = policy_of(family, tied=tied)
    _, metrics, _ = compare(policy, batch_of(policy), update_of(microbatch_rows))
    assert metrics["gradient/variance_trace"] > 0
    assert metrics["entropy/exact_nats_per_token"] > 0.1


@pytest.mark.parametrize("loss", ["reinforce", "ppo_clip"])
@pytest.mark.parametrize("reduction", ["sequence_sum", "sequence_mean", "token_mean", "constant_length"])
@pytest.mark.parametrize("importance_cap", [None, 1.2])
def test_so_they_do_under_every_loss_reduction_and_cap(loss: str, reduction: str, importance_cap: float | None) -> None:
    policy = policy_of()
    batch = batch_of(policy, trainer=importance_cap is not None)
    update = update_of(3, loss=loss, reduction=reduction, importance_cap=importance_cap, clip_high=0.3)
    _, metrics, _ = compare(policy, batch, update)
    assert metrics["clip_ratio/low_mean"] > 0.02
    assert metrics["clip_ratio/high_mean"] > 0.02
    assert metrics["sampling_logp_difference/max"] > 0.1


@pytest.mark.parametrize("loss", ["reinforce", "ppo_clip"])
@pytest.mark.parametrize(
    "sampling", [{"temperature": 0.6}, {"fixed_length": True}, {"temperature": 1.5, "fixed_length": True}]
)
@pytest.mark.parametrize("microbatch_rows", MICROBATCHES)
def test_so_they_do_at_other_temperatures_and_fixed_lengths(
    loss: str, sampling: dict[str, Any], microbatch_rows: int
) -> None:
    policy = policy_of()
    compare(policy, batch_of(policy, **sampling), update_of(microbatch_rows, sampling, loss=loss))


@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("microbatch_rows", MICROBATCHES)
def test_so_they_do_with_larger_parts_for_the_variance(parts: int, microbatch_rows: int) -> None:
    policy = policy_of()
    _, metrics, _ = compare(policy, batch_of(policy), update_of(microbatch_rows, variance_subbatches=parts))
    assert metrics["gradient/variance_trace"] > 0


@pytest.mark.parametrize("loss", ["reinforce", "ppo_clip"])
@pytest.mark.parametrize("microbatch_rows", MICROBATCHES)
def test_so_they_do_beside_a_critic(loss: str, microbatch_rows: int) -> None:
    policy = policy_of()
    batch = batch_of(policy)
    advantages = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(8))
    found = compare(
        policy, batch, update_of(microbatch_rows, advantage="gae", loss=loss), with_critic=True, advantages=advantages
    )
    assert found[1]["loss/value"] > 0
    assert all(gradient is not None and float(gradient.norm()) > 0 for gradient in found[2])


def test_single_precision_agrees_to_single_precision() -> None:
    for family in ("llama", "qwen2", "qwen3"):
        policy = policy_of(family, torch.float32)
        for rows in MICROBATCHES:
            compare(policy, batch_of(policy), update_of(rows, loss="ppo_clip"), tolerance=1e-4)


@pytest.mark.parametrize("frozen", ["embed_tokens", "layers.0", "mlp", "self_attn", "norm", "q_proj"])
def test_frozen_parameters_get_no_gradient_and_the_others_theirs(frozen: str) -> None:
    policy = policy_of("qwen2", tied=False)
    names = []
    for name, parameter in policy.model.named_parameters():
        parameter.requires_grad_(frozen not in name)
        names.append(name)
    gradients, _, _ = compare(policy, batch_of(policy), update_of(3))
    for name, gradient in zip(names, gradients, strict=True):
        assert (gradient is None) == (frozen in name), name


def test_a_frozen_tied_embedding_gets_none_from_either_end() -> None:
    policy = policy_of()
    policy.model.get_input_embeddings().weight.requires_grad_(False)
    compare(policy, batch_of(policy), update_of(3))


def test_what_is_cut_into_micro_batches_adds_up_to_the_whole() -> None:
    policy = policy_of()
    batch = batch_of(policy)
    whole = accumulated(policy, batch, update_of(100, loss="ppo_clip"))
    for rows in (1, 2, 3, 4, 7):
        assert_same(accumulated(policy, batch, update_of(rows, loss="ppo_clip")), whole, 1e-9)


def test_without_any_advantage_the_gradient_is_zero_and_everything_is_looked_at() -> None:
    policy = policy_of()
    batch = batch_of(policy)
    nothing = torch.zeros(batch.rows)
    gradients, metrics, _ = accumulated(policy, batch, update_of(3), advantages=nothing)
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    with without_network():
        expected = accumulated(policy, batch, update_of(3), advantages=nothing)
    assert_same((gradients, metrics, []), expected)


def test_one_thread_and_two_give_the_same_bits_where_they_add_in_the_same_order(threads: Any) -> None:
    # Two bundles of one problem each; of an untied model, so that every weight gets one piece from each problem.
    policy = policy_of(dtype=torch.float32, tied=False)
    batch, update = batch_of(policy), update_of(4, loss="ppo_clip")
    advantages = advantages_for(batch).masked_fill(~torch.isin(batch.group_index, torch.tensor([0, 4])), 0.0)
    found = []
    for count in (1, 2):
        threads(count)
        found.append(accumulated(policy, batch, update, advantages=advantages))
    assert found[0][1] == found[1][1]
    assert all(torch.equal(one, other) for one, other in zip(found[0][0], found[1][0], strict=True))


@pytest.mark.parametrize("microbatch_rows", MICROBATCHES)
def test_threads_change_nothing_but_rounding_and_equal_threads_nothing_at_all(
    threads: Any, microbatch_rows: int
) -> None:
    policy = policy_of()
    batch, update = batch_of(policy), update_of(microbatch_rows, loss="ppo_clip")
    alone = accumulated(policy, batch, update)
    for count in (2, 3):
        threads(count)
        first, second = (accumulated(policy, batch, update) for _ in range(2))
        assert_same(first, alone, 1e-9)
        assert first[1] == second[1]
        assert all(torch.equal(one, other) for one, other in zip(first[0], second[0], strict=True))


def test_a_policy_whose_blocks_are_recomputed_is_left_to_its_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of()
    batch, update = batch_of(policy), update_of(3)
    expected = accumulated(policy, batch, update)
    parameters = list(policy.model.parameters())
    assert trained_network(policy, parameters) is not None
    policy.model.activation_checkpointing_enable()
    assert trained_network(policy, parameters) is None
    monkeypatch.setattr(packed, "forward", lambda *_: pytest.fail("packed passes keep every activation"))
    assert_same(accumulated(policy, batch, update), expected)


def test_parameters_that_are_not_the_models_are_left_to_autograd() -> None:
    policy = policy_of()
    assert trained_network(policy, [*policy.model.parameters(), torch.nn.Parameter(torch.zeros(1))]) is None


def test_invalid_rows_change_nothing_whatever_they_hold() -> None:
    policy = policy_of()
    batch, update = batch_of(policy), update_of(3, loss="ppo_clip")
    other = batch.response_token_ids.clone()
    other[~batch.valid] = (other[~batch.valid] + 4) % VOCABULARY
    spoilt = dataclasses.replace(
        batch,
        response_token_ids=other,
        behaviour_logprobs=torch.where(batch.valid[:, None], batch.behaviour_logprobs, torch.nan),
    )
    assert_same(accumulated(policy, spoilt, update), accumulated(policy, batch, update), 1e-12)


def test_a_silent_problem_with_many_rows_is_looked_at_in_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of()
    batch, rows = batch_of(policy), []
    hidden_states = packed.hidden_states
    monkeypatch.setattr(
        packed,
        "hidden_states",
        lambda network, packing: rows.append(len(packing.targets)) or hidden_states(network, packing),
    )
    accumulated(policy, batch, update_of(1), advantages=torch.zeros(batch.rows))
    lengths = batch.mask[batch.valid].sum(-1)
    assert sorted(rows) == sorted(lengths.tolist())
