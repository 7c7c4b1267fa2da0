"""How much is computed, counted and not timed: a slow way of doing it would not change a figure and show here only."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from small_models import small_model
from torch.utils._python_dispatch import TorchDispatchMode

from bsharp.algorithm import parse_objective
from bsharp.config import EMBEDDED_MODEL, AlgorithmConfig, SamplingConfig
from bsharp.generation import Decoder, GenerationRequest, SamplingParams
from bsharp.generation.network_steps import NetworkSteps
from bsharp.models import packed, scored_head
from bsharp.models.loading import LanguageModel, load_language_model
from bsharp.models.logprobs import response_logprobs
from bsharp.models.network import network_of
from bsharp.rollouts import RolloutBatch
from bsharp.training.accumulate import Update, accumulate_gradient
from bsharp.training.step import training_step

pytestmark = pytest.mark.usefixtures("small_bundles")

LARGE = 20_000
SIZES = (3, 4, 2, 4)


def batch_of(vocabulary: int, sizes: tuple[int, ...] = SIZES, longest: int = 9) -> RolloutBatch:
    draw = torch.Generator().manual_seed(1)
    rows = sum(sizes)
    groups = [group for group, size in enumerate(sizes) for _ in range(size)]
    mask = torch.arange(longest) < torch.randint(1, longest + 1, (rows, 1), generator=draw)
    return RolloutBatch(
        prompt_token_ids=tuple((1 + group % 3,) * (group + 2) for group in groups),
        response_token_ids=torch.randint(1, vocabulary, (rows, longest), generator=draw),
        mask=mask,
        behaviour_logprobs=torch.zeros(mask.shape),
        rewards=torch.randn(rows, generator=draw),
        valid=torch.ones(rows, dtype=torch.bool),
        group_index=torch.tensor(groups),
        truncated=torch.zeros(rows, dtype=torch.bool),
    )


def least_tokens(batch: RolloutBatch) -> int:
    """Every distinct prompt once, and every distinct beginning of its responses but their last token, which predicts nothing."""
    lengths = batch.mask.sum(-1).tolist()
    rows = zip(batch.prompt_token_ids, batch.response_token_ids.tolist(), lengths, strict=True)
    beginnings = {(prompt, tuple(row[:end])) for prompt, row, length in rows for end in range(1, length)}
    return sum(len(prompt) for prompt in set(batch.prompt_token_ids)) + len(beginnings)


def update_of(microbatch_rows: int = 100, **algorithm: Any) -> Update:
    return Update(AlgorithmConfig(**algorithm), SamplingConfig(max_new_tokens=9), 1e12, microbatch_rows)


@pytest.fixture
def tokens_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens of every packed pass from now on."""
    seen: list[int] = []
    forward = packed._forward

    def spy(network: Any, packing: Any, *rest: Any) -> Any:
        seen.append(len(packing.token_ids))
        return forward(network, packing, *rest)

    monkeypatch.setattr(packed, "_forward", spy)
    return seen


def read_model(**settings: Any) -> LanguageModel:
    model = small_model(dtype=torch.float32, **settings)
    assert network_of(model.model) is not None  # looked at once, before anything is counted
    return model


@contextmanager
def counted_forwards(monkeypatch: pytest.MonkeyPatch, model: Any) -> Iterator[list[str]]:
    """Every forward pass of the classes of a transformers model and of its backbone."""
    seen: list[str] = []
    with monkeypatch.context() as patch:
        for kind in {type(model), type(model.model)}:

            def spy(self: Any, *rest: Any, forward: Any = kind.forward, **named: Any) -> Any:
                seen.append(type(self).__name__)
                return forward(self, *rest, **named)

            patch.setattr(kind, "forward", functools.wraps(kind.forward)(spy))
        yield seen


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operation inside gives."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        found = operation(*arguments, **(named or {}))
        for one in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(one, torch.Tensor):
                self.bytes = max(self.bytes, one.numel() * one.element_size())
        return found


def test_scoring_runs_every_prompt_once_and_no_padding(tokens_run: list[int]) -> None:
    model, batch = read_model(), batch_of(6)
    assert len(set(batch.mask.sum(-1).tolist())) > 3
    tokens_run.clear()
    response_logprobs(model, batch.prompt_token_ids, batch.response_token_ids, batch.mask)
    assert tokens_run == [least_tokens(batch)]


def test_scoring_in_micro_batches_keeps_the_rows_of_a_prompt_together(tokens_run: list[int]) -> None:
    model, batch = read_model(), batch_of(6, sizes=(4, 4, 4))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    tokens_run.clear()
    prompts = [batch.prompt_token_ids[row] for row in order]
    response_logprobs(model, prompts, batch.response_token_ids[order], batch.mask[order], microbatch_rows=4)
    assert len(tokens_run) == 3
    assert sum(tokens_run) == least_tokens(batch)


@pytest.mark.parametrize("microbatch_rows", [4, 8, 100])
@pytest.mark.parametrize("loss", ["reinforce", "ppo_clip"])
def test_an_update_runs_every_token_forward_once(microbatch_rows: int, loss: str, tokens_run: list[int]) -> None:
    model, batch = read_model(), batch_of(6)
    advantages = torch.randn(batch.rows, generator=torch.Generator().manual_seed(2)).masked_fill(
        batch.group_index == 1, 0.0
    )
    tokens_run.clear()
    accumulate_gradient(model, batch, advantages, update_of(microbatch_rows, loss=loss), range(batch.problems))
    assert sum(tokens_run) == least_tokens(batch)


def test_a_step_runs_every_token_once_for_the_base_and_once_an_update(tokens_run: list[int]) -> None:
    policy, base, batch = read_model(seed=1), read_model(seed=2), batch_of(6)
    _, objective = parse_objective("tempered(alpha=3)")
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.0)
    tokens_run.clear()
    training_step(policy, base, objective, batch, optimizer, update_of())
    assert sum(tokens_run) == 2 * least_tokens(batch)
    tokens_run.clear()
    training_step(policy, base, objective, batch, optimizer, update_of(epochs=3))
    assert sum(tokens_run) == 4 * least_tokens(batch)
    tokens_run.clear()
    training_step(policy, base, objective, batch, optimizer, update_of(importance_cap=20.0))
    assert sum(tokens_run) == 3 * least_tokens(batch)  # the policy scores its rollouts too


def test_decoding_runs_every_prompt_once_and_few_rows_that_have_ended(
    tokens_run: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = read_model()
    rows: list[int] = []
    step_of = NetworkSteps.next_logits

    def spy(self: NetworkSteps, token_ids: torch.Tensor, step: int) -> torch.Tensor:
        rows.append(len(token_ids))
        return step_of(self, token_ids, step)

    monkeypatch.setattr(NetworkSteps, "next_logits", spy)
    prompts = [(1, 2), (3, 4, 5), (1, 2), (5,)]
    requests = [GenerationRequest(prompt, 6, seed=index) for index, prompt in enumerate(prompts)]
    tokens_run.clear()
    groups = Decoder(model).generate(requests, SamplingParams(20))
    assert tokens_run == [sum(map(len, set(prompts)))]
    lengths = [len(one.token_ids) for group in groups for one in group]
    # The token drawn last, of every row, is never fed back.
    going = [sum(length > step for length in lengths) for step in range(1, max(lengths))]
    assert len(rows) == len(going)
    assert all(run >= needed and 8 * (run - needed) < run for run, needed in zip(rows, going, strict=True))
    assert len(set(rows)) > 3


def test_once_the_model_has_been_looked_at_no_forward_of_its_own_modules_is_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, base = (load_language_model(EMBEDDED_MODEL) for _ in range(2))
    _, objective = parse_objective("tempered(alpha=3)")
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=1e-3)
    with counted_forwards(monkeypatch, policy.model) as seen:
        assert all(network_of(model.model) is not None for model in (policy, base))
        assert seen, "the spy does not see"
        seen.clear()
        for step in range(2):
            prompts = [tuple(policy.encode(text)) for text in ("3 + 4 = ?", "8 * 2 = ?")]
            requests = [GenerationRequest(prompt, 3, seed=step) for prompt in prompts]
            groups = Decoder(policy).generate(requests, SamplingParams(9))
            batch = batch_of(policy.vocab_size, sizes=(3, 3))
            training_step(policy, base, objective, batch, optimizer, update_of())
            assert len(groups) == 2
        assert seen == []


@pytest.mark.parametrize("tied", [True, False])
def test_no_tensor_is_near_the_size_of_all_logits(tied: bool) -> None:
    model: Any = read_model(family="llama", vocab_size=LARGE)
    if not tied:
        model.model.lm_head.weight = torch.nn.Parameter(model.model.lm_head.weight.detach().clone())
    batch = batch_of(LARGE, sizes=(8,) * 24, longest=20)
    all_logits = 4 * int(batch.mask.sum()) * LARGE
    with Largest() as scoring:
        response_logprobs(model, batch.prompt_token_ids, batch.response_token_ids, batch.mask, microbatch_rows=64)
    assert scoring.bytes <= max(scored_head.SCORED_BYTES, 4 * scored_head.LEAST_TOKENS * LARGE) < all_logits / 8
    with Largest() as updating:
        advantages = torch.randn(batch.rows, generator=torch.Generator().manual_seed(2))
        accumulate_gradient(model, batch, advantages, update_of(64), range(batch.problems))
    assert updating.bytes < all_logits / 8


def test_what_is_held_of_one_large_problem_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scored_head, "LOGIT_BYTES", 2**20)
    monkeypatch.setattr(scored_head, "PRODUCT_BYTES", 2**23)
    model, batch = read_model(family="llama", vocab_size=LARGE), batch_of(LARGE, sizes=(60,), longest=20)
    assert 4 * int(batch.mask.sum()) * LARGE > 4 * 2**23
    with Largest() as largest:
        advantages = torch.randn(batch.rows, generator=torch.Generator().manual_seed(2))
        accumulate_gradient(model, batch, advantages, update_of(64), range(1))
    assert largest.bytes <= 2**23


@pytest.mark.parametrize(
    ("objective", "scored"),
    [
        ("task_reward", False),
        ("entropy_minimisation", False),
        ("sharpening", True),
        ("tilted(alpha=1,beta_inv=2)", True),
    ],
)
@pytest.mark.parametrize("advantage", ["leave_one_out", "none"])
def test_a_step_without_the_base_learns_the_same_and_reads_the_base_only_where_the_objective_does(
    objective: str, scored: bool, advantage: Any, tokens_run: list[int]
) -> None:
    batch, base = batch_of(6), read_model(seed=2)
    _, parsed = parse_objective(objective)
    metrics, weights = [], []
    for score_base in (True, False):
        policy = read_model(seed=1)
        optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.1)
        tokens_run.clear()
        update = update_of(advantage=advantage)
        metrics.append(training_step(policy, base, parsed, batch, optimizer, update, score_base=score_base))
        assert sum(tokens_run) == (2 if score_base or scored else 1) * least_tokens(batch)
        weights.append([parameter.detach().clone() for parameter in policy.model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))
    with_base, without = metrics
    missing = set() if scored else {key for key in with_base if key.startswith(("kl(policy||base)/", "base_logprob/"))}
    assert set(with_base) - set(without) == missing
    assert scored or len(missing) == 5
    assert {key: with_base[key] for key in without if with_base[key] == with_base[key]} == {
        key: value for key, value in without.items() if value == value
    }
