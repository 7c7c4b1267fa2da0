"""The noise of a step's gradient against brute force: every problem's gradient from plain rows and autograd alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from small_models import every_response, plain_logprob, small_model
from torch import nn

from bsharp import algorithm
from bsharp.algorithm import ScoreInputs, parse_objective
from bsharp.config import AlgorithmConfig, SamplingConfig
from bsharp.masking import pad_right
from bsharp.models.logprobs import response_logprobs
from bsharp.rollouts import RolloutBatch
from bsharp.training.gradients import PartGradients
from bsharp.training.step import Update, training_step

pytestmark = pytest.mark.usefixtures("small_bundles")

RESPONSES = every_response(3, 3, (0,))
PROMPTS = ((1, 2), (2,), (1, 1, 2), (2, 2, 1, 1), (1,))


def make_batch(policy, sizes=(3, 3, 3, 3, 3), invalid=()) -> RolloutBatch:
    groups = [group for group, size in enumerate(sizes) for _ in range(size)]
    rows = [RESPONSES[(4 * row + row**2) % len(RESPONSES)] for row in range(len(groups))]
    token_ids, mask = pad_right(rows, policy.pad_token_id)
    prompts = tuple(PROMPTS[group] for group in groups)
    return RolloutBatch(
        prompt_token_ids=prompts,
        response_token_ids=token_ids,
        mask=mask,
        behaviour_logprobs=response_logprobs(policy, prompts, token_ids, mask),
        rewards=torch.tensor([float(row * 7 % 3 == 0) for row in range(len(rows))], dtype=torch.float64),
        valid=torch.tensor([row not in invalid for row in range(len(rows))]),
        group_index=torch.tensor(groups),
        truncated=torch.tensor([row[-1] != 0 for row in rows]),
    )


def brute_force(policy, base, objective, batch: RolloutBatch, config: AlgorithmConfig, problems) -> tuple[float, float]:
    """tr Cov(ĝ) and ‖E ĝ‖² from the definition: Σ over pairs of different problems of ⟨g_p, g_q⟩."""
    base_logprobs = response_logprobs(base, batch.prompt_token_ids, batch.response_token_ids, batch.mask)
    scores = objective.score(ScoreInputs(batch.rewards, base_logprobs, batch.behaviour_logprobs, batch.mask))
    advantages = algorithm.ADVANTAGES[config.advantage](scores, batch.group_index, batch.valid)
    chosen = batch.valid & torch.isin(batch.group_index, torch.tensor(problems))
    gradients, rows = [], []
    for problem in problems:
        own = torch.nonzero(chosen & (batch.group_index == problem)).flatten().tolist()
        if len(own) < 2:
            continue
        loss = 0.0
        for row in own:
            response = tuple(batch.response_token_ids[row][batch.mask[row]].tolist())
            scale = int(chosen.sum()) * (len(response) if config.reduction == "sequence_mean" else 1)
            loss = loss - advantages[row] / scale * plain_logprob(policy, batch.prompt_token_ids[row], response)
        pieces = torch.autograd.grad(loss, list(policy.model.parameters()))
        gradients.append(torch.cat([piece.reshape(-1) for piece in pieces]).double().numpy())
        rows.append(len(own))
    shares = np.array(rows) / sum(rows)
    total = np.sum(gradients, axis=0)
    across = sum(g @ h for i, g in enumerate(gradients) for j, h in enumerate(gradients) if i != j)
    signal = across / (1 - (shares**2).sum())
    return float(total @ total - signal), float(signal)


@pytest.mark.parametrize(
    ("family", "regime"), [("qwen3", "task_reward"), ("llama", "sharpening"), ("gpt2", "tempered(alpha=3)")]
)
@pytest.mark.parametrize(
    ("sizes", "invalid"), [((3, 3, 3, 3, 3), ()), ((4, 2, 3, 5, 2), (1, 4, 9)), ((3, 3, 3, 3, 3), (0, 1, 2, 4, 5))]
)
def test_the_noise_of_a_step_is_that_of_every_problems_own_gradient(family: str, regime: str, sizes, invalid) -> None:
    # Even groups, ragged ones with invalid rows, and groups that invalid rows leave empty or with a single row. GPT-2
    # uses its parameters in ways that cannot be separated within a pass: its problems run one by one.
    policy, base = small_model(family, vocab_size=3, seed=1), small_model(family, vocab_size=3, seed=2)
    _, objective = parse_objective(regime)
    batch = make_batch(policy, sizes, invalid)
    config = AlgorithmConfig(reduction="sequence_mean" if invalid else "sequence_sum")
    update = Update(config, SamplingConfig(max_new_tokens=3), max_grad_norm=1e12, microbatch_rows=7)
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.0)
    metrics = training_step(policy, base, objective, batch, optimizer, update)
    variance, signal = brute_force(policy, base, objective, batch, config, range(len(sizes)))
    assert variance > 0
    assert metrics["gradient/variance_trace"] == pytest.approx(variance, rel=1e-4)
    assert metrics["gradient/signal_squared"] == pytest.approx(signal, rel=1e-4)
    assert metrics["gradient/signal_to_noise"] == pytest.approx(signal / variance, rel=1e-4)


def test_the_noise_of_ppo_minibatches_is_the_mean_over_their_own_problems() -> None:
    policy, base = small_model(vocab_size=3, seed=1), small_model(vocab_size=3, seed=2)
    _, objective = parse_objective("tempered(alpha=3)")
    batch = make_batch(policy, (4, 2, 3, 5, 2), (1,))
    config = AlgorithmConfig(loss="ppo_clip")
    update = Update(config, SamplingConfig(max_new_tokens=3), max_grad_norm=1e12, microbatch_rows=4)
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.0)
    order = [[0, 3], [4, 1, 2]]
    metrics = training_step(policy, base, objective, batch, optimizer, update, minibatch_order=order)
    # Nothing moves, so the ratio is 1 and the clipped loss has the gradient of reinforce.
    expected = np.mean([brute_force(policy, base, objective, batch, config, problems) for problems in order], axis=0)
    assert metrics["gradient/variance_trace"] == pytest.approx(expected[0], rel=1e-4)
    assert metrics["gradient/signal_squared"] == pytest.approx(expected[1], rel=1e-4)
    assert metrics["gradient/signal_to_noise"] == pytest.approx(expected[1] / expected[0], rel=1e-4)


def test_larger_parts_estimate_from_their_sums() -> None:
    policy, base = small_model(vocab_size=3, seed=1), small_model(vocab_size=3, seed=2)
    _, objective = parse_objective("sharpening")
    batch = make_batch(policy)
    # Problems 0, 2, 4 and 1, 3 are the two parts: the same rows as two larger problems, with unchanged advantages.
    update = Update(AlgorithmConfig(variance_subbatches=2), SamplingConfig(max_new_tokens=3), 1e12, microbatch_rows=7)
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.0)
    found = training_step(policy, base, objective, batch, optimizer, update)
    merged = dataclasses.replace(batch, group_index=batch.group_index % 2)
    base_logprobs = response_logprobs(base, batch.prompt_token_ids, batch.response_token_ids, batch.mask)
    scores = objective.score(ScoreInputs(batch.rewards, base_logprobs, batch.behaviour_logprobs, batch.mask))
    advantages = algorithm.leave_one_out(scores, batch.group_index, batch.valid)

    class Fixed:
        def score(self, inputs: ScoreInputs) -> torch.Tensor:
            return advantages

    expected = brute_force(policy, base, Fixed(), merged, AlgorithmConfig(advantage="none"), range(2))
    assert found["gradient/variance_trace"] == pytest.approx(expected[0], rel=1e-4)


def test_the_sum_of_the_parts_is_left_in_grad_and_parts_without_rows_say_nothing() -> None:
    parameter, unused = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    parameter.grad = torch.tensor([5.0, 5.0])
    watcher = PartGradients([parameter, unused])
    for piece in ([1.0, 0.0], [0.0, 2.0], [3.0, 0.0]):
        (parameter * torch.tensor(piece)).sum().backward()
        watcher.record(5)
    watcher.record(0)
    noise = watcher.finish()
    assert noise is not None
    assert parameter.grad.tolist() == [4.0, 2.0]
    assert unused.grad is None
    assert noise.norm_squared == pytest.approx(16 + 4)
    assert noise.variance == pytest.approx(3 / 2 * ((1 + 4 + 9) - 20 / 3))


def test_one_part_says_nothing_about_noise() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    watcher = PartGradients([parameter])
    parameter.sum().backward()
    watcher.record(3)
    assert watcher.finish() is None
    assert parameter.grad.tolist() == [1.0, 1.0]


def test_where_no_score_differs_the_gradient_is_zero_and_the_optimizer_still_steps() -> None:
    policy, base = small_model(vocab_size=3, seed=1), small_model(vocab_size=3, seed=2)
    _, objective = parse_objective("task_reward")
    batch = make_batch(policy)
    batch = dataclasses.replace(batch, rewards=torch.ones_like(batch.rewards))
    update = Update(AlgorithmConfig(), SamplingConfig(max_new_tokens=3), 1e12, microbatch_rows=7)
    parameters = list(policy.model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    kept: list[list[torch.Tensor | None]] = []
    optimizer.register_step_pre_hook(lambda *_: kept.append([parameter.grad for parameter in parameters]))
    metrics = training_step(policy, base, objective, batch, optimizer, update)
    assert all(gradient is not None and not gradient.any() for gradient in kept[0])
    assert metrics["grad_norm"] == metrics["gradient/variance_trace"] == metrics["loss/policy"] == 0.0
    assert metrics["entropy/exact_nats_per_token"] > 0
    assert np.isnan(metrics["gradient/signal_to_noise"])
