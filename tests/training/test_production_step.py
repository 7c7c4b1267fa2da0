"""The production step against the exact, enumerated gradient, away from the optimum, and against plain references."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import pytest
import torch
from small_models import every_response, plain_logprob, small_model

from bsharp import algorithm
from bsharp.algorithm import Objective, ScoreInputs, parse_objective
from bsharp.config import AlgorithmConfig, SamplingConfig
from bsharp.masking import pad_right
from bsharp.models.logprobs import response_logprobs
from bsharp.models.value_head import ValueHead
from bsharp.rollouts import RolloutBatch
from bsharp.theory.policy_gradient import exact_objective
from bsharp.theory.world import from_arrays
from bsharp.training.step import Critic, Update, accumulate_gradient, advantages_of, score_metrics, training_step

pytestmark = pytest.mark.usefixtures("small_bundles")

PROMPT = (1, 2)
VOCAB, MAX_LENGTH, EOS = 3, 3, (0,)
RESPONSES = every_response(VOCAB, MAX_LENGTH, EOS)
REWARDS = torch.tensor([float((7 * i + 3) % 5 < 2) for i in range(len(RESPONSES))], dtype=torch.float64)
SHORT = every_response(VOCAB, 2, EOS)  # a smaller world, for the losses that repeat what the larger one showed
UNTRUNCATED = 1e300
REGIMES = (
    "task_reward",
    "tilted(alpha=2,beta_inv=2)",
    "tilted(alpha=0.5,beta_inv=1)",
    "sharpening",
    "sharpening(normalisation=mean)",
    "sharpening(normalisation=weighted_mean,rho=0.5)",
    "tempered(alpha=3)",
    "tempered(alpha=2,normalisation=mean)",
    "hybrid(alpha=1,beta_inv=2)",
    "entropy_minimisation",
)


def make_batch(
    policy,
    indices: Sequence[int],
    group_index: Sequence[int],
    prompts: Sequence[tuple[int, ...]] | None = None,
    responses: Sequence[tuple[int, ...]] = RESPONSES,
) -> RolloutBatch:
    rows = [responses[i] for i in indices]
    token_ids, mask = pad_right(rows, policy.pad_token_id)
    prompts = tuple(prompts or [PROMPT] * len(rows))
    behaviour = response_logprobs(policy, prompts, token_ids, mask)
    return RolloutBatch(
        prompt_token_ids=prompts,
        response_token_ids=token_ids,
        mask=mask,
        behaviour_logprobs=behaviour,
        rewards=REWARDS[list(indices)],
        valid=torch.ones(len(rows), dtype=torch.bool),
        group_index=torch.tensor(group_index),
        truncated=torch.tensor([row[-1] not in EOS for row in rows]),
    )


def kept_gradients(
    optimizer: torch.optim.Optimizer, parameters: Sequence[torch.nn.Parameter]
) -> list[list[torch.Tensor | None]]:
    """What is in `.grad` at each step of the optimizer from now on: the training step leaves nothing there."""
    kept: list[list[torch.Tensor | None]] = []
    optimizer.register_step_pre_hook(lambda *_: kept.append([parameter.grad for parameter in parameters]))
    return kept


def gradient(policy, base, objective: Objective, batch: RolloutBatch, update: Update, critic=None) -> torch.Tensor:
    """What the production step gives its optimizer, as one vector, through training_step itself (it does nothing)."""
    parameters = list(policy.model.parameters())
    for parameter in parameters:
        parameter.grad = None
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    kept = kept_gradients(optimizer, parameters)
    training_step(policy, base, objective, batch, optimizer, update, critic)
    return torch.cat([g.reshape(-1) for g in kept[0] if g is not None])


def update_with(**algorithm_fields) -> Update:
    sampling = SamplingConfig(group_size=2, max_new_tokens=MAX_LENGTH)
    return Update(AlgorithmConfig(**algorithm_fields), sampling, max_grad_norm=1e12, microbatch_rows=2)


def exact_policy_gradient(
    policy, base, objective: Objective, responses: Sequence[tuple[int, ...]] = RESPONSES
) -> torch.Tensor:
    parameters = list(policy.model.parameters())
    log_policy = torch.stack([plain_logprob(policy, PROMPT, response) for response in responses])
    with torch.no_grad():
        token_ids, mask = pad_right(responses, 0)
        base_tokens = torch.zeros(mask.shape, dtype=torch.float64)
        for row, response in enumerate(responses):
            logits = base.model(input_ids=torch.tensor([[*PROMPT, *response]])).logits[0].log_softmax(-1)
            for t, token in enumerate(response):
                base_tokens[row, t] = logits[len(PROMPT) - 1 + t, token]
    world = from_arrays(token_ids, mask, base_tokens, REWARDS[: len(responses)])
    grads = torch.autograd.grad(exact_objective(log_policy, world, objective), parameters, allow_unused=True)
    flat = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]
    return torch.cat([g.reshape(-1) for g in flat])


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("regime", "loss", "responses", "cap"),
    [(regime, "reinforce", RESPONSES, None) for regime in REGIMES]
    + [(regime, "ppo_clip", SHORT, None) for regime in REGIMES]
    + [(regime, loss, SHORT, 20.0) for regime, loss in zip(REGIMES, ["reinforce", "ppo_clip"] * 5, strict=True)],
)
def test_expected_production_gradient_is_the_enumerated_gradient_away_from_the_optimum(
    regime: str, loss: str, responses: list[tuple[int, ...]], cap: float | None
) -> None:
    # Every pair of responses is one group of two; weighted by its probability the step's gradients add up to -∇J.
    policy, base = small_model(vocab_size=VOCAB, seed=1), small_model(vocab_size=VOCAB, seed=2)
    _, objective = parse_objective(regime)
    update = update_with(loss=loss, importance_cap=cap)
    probabilities = torch.stack([plain_logprob(policy, PROMPT, response) for response in responses]).detach().exp()
    assert float(probabilities.sum()) == pytest.approx(1.0, abs=1e-12)
    expected = torch.zeros(sum(p.numel() for p in policy.model.parameters()), dtype=torch.float64)
    for i, j in itertools.combinations(range(len(responses)), 2):  # equal responses have advantage 0
        step = gradient(policy, base, objective, make_batch(policy, [i, j], [0, 0], responses=responses), update)
        expected += 2 * probabilities[i] * probabilities[j] * step
    assert relative_error(-expected, exact_policy_gradient(policy, base, objective, responses)) < 1e-6


@pytest.mark.parametrize(("regime", "loss"), [(r, ["reinforce", "ppo_clip"][i % 2]) for i, r in enumerate(REGIMES)])
@pytest.mark.parametrize("length", [1, 2])
def test_under_another_sampler_the_expected_gradient_is_exact_token_by_token(
    regime: str, loss: str, length: int
) -> None:
    # Rollouts of another policy, as it reports them, and no truncation: the expected step is the gradient of
    # Σ_t E[R] with y_<t and y_>t from the sampler and y_t from the policy. At length 1 that is the policy gradient.
    policy, base, sampler = (small_model(vocab_size=VOCAB, seed=seed) for seed in (1, 2, 3))
    _, objective = parse_objective(regime)
    responses = every_response(VOCAB, length, EOS)
    update = update_with(loss=loss, importance_cap=UNTRUNCATED)
    behaviour = plain_table(sampler, responses)
    probabilities = behaviour.sum(-1).exp()
    expected = torch.zeros(sum(p.numel() for p in policy.model.parameters()), dtype=torch.float64)
    for i, j in itertools.combinations(range(len(responses)), 2):
        batch = make_batch(policy, [i, j], [0, 0], responses=responses)
        batch = dataclasses.replace(batch, behaviour_logprobs=behaviour[[i, j], : batch.mask.shape[1]])
        expected += 2 * probabilities[i] * probabilities[j] * gradient(policy, base, objective, batch, update)

    own, mask = plain_table(policy, responses, with_gradient=True), pad_right(responses, 0)[1]
    inputs = ScoreInputs(REWARDS[: len(responses)], plain_table(base, responses), own.detach(), mask)
    returns = objective.score(inputs)
    surrogate = (probabilities[:, None] * (own - behaviour).exp() * returns[:, None])[mask].sum()
    parameters = list(policy.model.parameters())
    exact = torch.cat([g.reshape(-1) for g in torch.autograd.grad(surrogate, parameters)])
    assert relative_error(-expected, exact) < 1e-6
    if length == 1:
        assert relative_error(exact, exact_policy_gradient(policy, base, objective, responses)) < 1e-6


def plain_table(model, responses: Sequence[tuple[int, ...]], with_gradient: bool = False) -> torch.Tensor:
    """log π(y_t | y_<t) of every token of every response, 0 behind its end; one row at a time, no padding."""
    rows = []
    with torch.set_grad_enabled(with_gradient):
        for response in responses:
            logits = model.model(input_ids=torch.tensor([[*PROMPT, *response]])).logits[0].log_softmax(-1)
            own = torch.stack([logits[len(PROMPT) - 1 + t, token] for t, token in enumerate(response)])
            rows.append(torch.nn.functional.pad(own, (0, max(map(len, responses)) - len(response))))
    return torch.stack(rows)


def test_the_cap_bounds_what_a_token_counts_and_everything_else_is_the_policys() -> None:
    policy, base, sampler = (small_model(vocab_size=VOCAB, seed=seed) for seed in (3, 4, 5))
    _, objective = parse_objective("tempered(alpha=3)")
    indices = [0, 5, 9, 14, 2, 3]
    trained_on = make_batch(policy, indices, [0, 0, 0, 1, 1, 1])
    behaviour = make_batch(sampler, indices, [0, 0, 0, 1, 1, 1]).behaviour_logprobs
    batch = dataclasses.replace(trained_on, behaviour_logprobs=behaviour)
    ratio = (trained_on.behaviour_logprobs - behaviour).exp()[batch.mask]
    cap = float(ratio.median())
    base_logprobs = response_logprobs(base, batch.prompt_token_ids, batch.response_token_ids, batch.mask)
    scores = objective.score(ScoreInputs(batch.rewards, base_logprobs, trained_on.behaviour_logprobs, batch.mask))
    advantages = algorithm.leave_one_out(scores, batch.group_index, batch.valid)
    own = plain_table(policy, [RESPONSES[i] for i in indices], with_gradient=True)
    weights = (own.detach() - behaviour).exp().clamp(max=cap)
    loss = -(weights * advantages[:, None] * own)[batch.mask].sum() / len(indices)
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(policy.model.parameters()))])
    for name in ("reinforce", "ppo_clip"):
        found = gradient(policy, base, objective, batch, update_with(loss=name, importance_cap=cap))
        assert relative_error(found, expected) < 1e-6
    update = update_with(importance_cap=cap)
    metrics = training_step(policy, base, objective, batch, torch.optim.SGD(policy.model.parameters(), 0.0), update)
    assert metrics["importance_sampling_ratio/mean"] == pytest.approx(float(ratio.mean()))
    assert metrics["importance_sampling_ratio/min"] == pytest.approx(float(ratio.min()))
    assert metrics["importance_sampling_ratio/max"] == pytest.approx(float(ratio.max()))
    assert metrics["importance_sampling_ratio/capped"] == pytest.approx(
        float((ratio > cap * (1 + 1e-9)).double().mean())
    )
    assert metrics["importance_ratio/max"] == pytest.approx(1.0)  # to the policy before the update, not to the sampler
    kl = (trained_on.behaviour_logprobs - base_logprobs)[batch.mask].sum() / len(indices)
    assert metrics["kl(policy||base)/k1_nats_per_sequence"] == pytest.approx(float(kl))
    # Without the correction the mismatch is logged all the same, and the sampler is taken for the policy.
    plain = training_step(
        policy, base, objective, batch, torch.optim.SGD(policy.model.parameters(), 0.0), update_with()
    )
    for key, value in plain.items():
        if key.startswith(("sampling_logp_difference/", "importance_sampling_ratio/m")):
            assert value == pytest.approx(metrics[key]) != 0
    assert plain["importance_sampling_ratio/capped"] == 0.0
    assert plain["importance_ratio/max"] == pytest.approx(float(ratio.max()))


def test_the_mismatch_to_the_sampler_is_that_of_the_weights_it_used_whatever_updates_follow() -> None:
    for cap in (None, 20.0):
        policy, base = small_model(vocab_size=VOCAB, seed=3), small_model(vocab_size=VOCAB, seed=4)
        _, objective = parse_objective("tempered(alpha=3)")
        batch = make_batch(policy, [0, 5, 9, 14, 2, 3], [0, 0, 0, 1, 1, 1])
        optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.05)
        update = update_with(loss="ppo_clip", epochs=2, importance_cap=cap)
        metrics = training_step(policy, base, objective, batch, optimizer, update)
        assert metrics["importance_ratio/max"] > 1.001
        for figure in ("mean", "min", "max"):
            assert metrics[f"importance_sampling_ratio/{figure}"] == pytest.approx(1.0, abs=1e-9)
        assert metrics["sampling_logp_difference/max"] < 1e-9


def test_an_invalid_row_cannot_spoil_the_importance_weights() -> None:
    policy, base = small_model(vocab_size=VOCAB, seed=3), small_model(vocab_size=VOCAB, seed=4)
    _, objective = parse_objective("task_reward")
    batch = make_batch(policy, [0, 5, 9, 14, 2], [0, 0, 0, 1, 1])
    batch = dataclasses.replace(batch, valid=torch.tensor([1, 1, 0, 1, 1]).bool())
    spoilt = torch.where(batch.valid[:, None], batch.behaviour_logprobs, torch.nan)
    update = update_with(importance_cap=UNTRUNCATED)
    found = gradient(policy, base, objective, dataclasses.replace(batch, behaviour_logprobs=spoilt), update)
    assert relative_error(found, gradient(policy, base, objective, batch, update_with())) < 1e-6


def test_gae_with_a_zero_critic_gives_the_enumerated_gradient() -> None:
    # One response a group: without a critic the expected gradient is exact for γ = λ = 1, whatever is split over tokens.
    policy, base = small_model(vocab_size=VOCAB, seed=1), small_model(vocab_size=VOCAB, seed=2)
    update = update_with(advantage="gae")
    probabilities = torch.stack([plain_logprob(policy, PROMPT, response) for response in RESPONSES]).detach().exp()
    for regime in ("tilted(alpha=2,beta_inv=2)", "tempered(alpha=3)", "sharpening(normalisation=mean)"):
        _, objective = parse_objective(regime)
        total = torch.zeros(sum(p.numel() for p in policy.model.parameters()), dtype=torch.float64)
        for i in range(len(RESPONSES)):
            head = ValueHead(16)
            critic = Critic(head, torch.optim.SGD(head.parameters(), lr=0.0))
            total += probabilities[i] * gradient(policy, base, objective, make_batch(policy, [i], [0]), update, critic)
        assert relative_error(-total, exact_policy_gradient(policy, base, objective)) < 1e-6


@pytest.mark.parametrize("reduction", ["sequence_sum", "sequence_mean", "token_mean", "constant_length"])
@pytest.mark.parametrize("advantage", ["leave_one_out", "group_z_score", "batch_normalised", "none"])
def test_micro_batches_and_ragged_lengths_leave_the_gradient_of_the_whole_batch(reduction: str, advantage: str) -> None:
    policy, base = small_model(vocab_size=VOCAB, seed=3), small_model(vocab_size=VOCAB, seed=4)
    _, objective = parse_objective("tilted(alpha=2,beta_inv=2)")
    indices, groups = [0, 5, 9, 14, 2, 3, 7, 11], [0, 0, 0, 1, 1, 2, 2, 2]
    prompts = [(1, 2), (1, 2), (1, 2), (2,), (2,), (1, 1, 2, 1), (1, 1, 2, 1), (1, 1, 2, 1)]
    batch = make_batch(policy, indices, groups, prompts)
    batch = dataclasses.replace(batch, valid=torch.tensor([1, 1, 0, 1, 1, 1, 1, 1]).bool())
    update = update_with(reduction=reduction, advantage=advantage, variance_subbatches=3)
    found = gradient(policy, base, objective, batch, update)

    base_logprobs = response_logprobs(base, batch.prompt_token_ids, batch.response_token_ids, batch.mask)
    scores = objective.score(ScoreInputs(batch.rewards, base_logprobs, batch.behaviour_logprobs, batch.mask))
    advantages = algorithm.ADVANTAGES[advantage](scores, batch.group_index, batch.valid)
    valid = [row for row in range(8) if batch.valid[row]]
    tokens = sum(len(RESPONSES[indices[row]]) for row in valid)
    loss = torch.zeros((), dtype=torch.float64)
    for row in valid:
        length = len(RESPONSES[indices[row]])
        scale = {
            "sequence_sum": 1 / len(valid),
            "sequence_mean": 1 / (len(valid) * length),
            "token_mean": 1 / tokens,
            "constant_length": 1 / (len(valid) * MAX_LENGTH),
        }[reduction]
        loss = loss - scale * advantages[row] * plain_logprob(policy, prompts[row], RESPONSES[indices[row]])
    expected = torch.autograd.grad(loss, list(policy.model.parameters()))
    assert relative_error(found, torch.cat([g.reshape(-1) for g in expected])) < 1e-6


def test_the_gradient_does_not_depend_on_padding_row_order_or_micro_batch_size() -> None:
    policy, base = small_model(vocab_size=VOCAB, seed=3), small_model(vocab_size=VOCAB, seed=4)
    _, objective = parse_objective("tempered(alpha=3)")
    batch = make_batch(policy, [0, 5, 9, 14, 2, 3], [0, 0, 0, 1, 1, 1])
    reference = gradient(policy, base, objective, batch, update_with())
    order = torch.tensor([4, 0, 3, 1, 5, 2])
    shuffled = RolloutBatch(
        tuple(batch.prompt_token_ids[i] for i in order),
        *(getattr(batch, name)[order] for name in (
            "response_token_ids", "mask", "behaviour_logprobs", "rewards", "valid", "group_index", "truncated")),
    )  # fmt: skip
    padded = dataclasses.replace(
        batch,
        response_token_ids=torch.nn.functional.pad(batch.response_token_ids, (0, 4), value=2),
        mask=torch.nn.functional.pad(batch.mask, (0, 4)),
        behaviour_logprobs=torch.nn.functional.pad(batch.behaviour_logprobs, (0, 4), value=float("nan")),
    )
    for variant in (shuffled, padded):
        # transformers' norms and rotations run in fp32 whatever the model's type, hence 1e-6 and not 1e-12.
        assert relative_error(gradient(policy, base, objective, variant, update_with()), reference) < 1e-6
    for rows in (1, 4, 100):
        update = dataclasses.replace(update_with(), microbatch_rows=rows)
        assert relative_error(gradient(policy, base, objective, batch, update), reference) < 1e-6


def test_the_fixed_length_gradient_is_that_of_the_renormalised_policy() -> None:
    policy, base = small_model(vocab_size=VOCAB, seed=1), small_model(vocab_size=VOCAB, seed=2)
    _, objective = parse_objective("tempered(alpha=2)")
    fixed = [r for r in RESPONSES if len(r) == MAX_LENGTH and r[-1] not in EOS]

    def log_policy(model) -> torch.Tensor:
        values = []
        for response in fixed:
            logits = model.model(input_ids=torch.tensor([[*PROMPT, *response]])).logits[0][:, 1:].log_softmax(-1)
            values.append(sum(logits[len(PROMPT) - 1 + t, token - 1] for t, token in enumerate(response)))
        return torch.stack(values)

    log_pi, log_base = log_policy(policy), log_policy(base).detach()
    assert float(log_pi.detach().exp().sum()) == pytest.approx(1.0, abs=1e-12)
    # tempered(α = 2): J = E[ℓ_ref] − KL(π‖π_ref)
    objective_value = (log_pi.exp() * (log_base - (log_pi - log_base))).sum()
    exact = torch.autograd.grad(objective_value, list(policy.model.parameters()))
    update = dataclasses.replace(
        update_with(), sampling=SamplingConfig(group_size=2, max_new_tokens=MAX_LENGTH, fixed_length=True)
    )
    total = 0.0
    probabilities = log_pi.detach().exp()
    for i, j in itertools.combinations(range(len(fixed)), 2):
        batch = make_batch(policy, [RESPONSES.index(fixed[i]), RESPONSES.index(fixed[j])], [0, 0])
        behaviour = response_logprobs(
            policy, batch.prompt_token_ids, batch.response_token_ids, batch.mask, fixed_length=True
        )
        batch = dataclasses.replace(batch, behaviour_logprobs=behaviour)
        total = total + 2 * probabilities[i] * probabilities[j] * gradient(policy, base, objective, batch, update)
    assert relative_error(-total, torch.cat([g.reshape(-1) for g in exact])) < 1e-6


def test_temperature_is_the_same_in_scoring_policy_and_base() -> None:
    policy, base = small_model(vocab_size=VOCAB, seed=1), small_model(vocab_size=VOCAB, seed=2)
    token_ids, mask = pad_right(RESPONSES, 0)
    for model in (policy, base):
        scored = response_logprobs(model, [PROMPT] * len(RESPONSES), token_ids, mask, temperature=0.6).sum(-1)
        expected = torch.stack([plain_logprob(model, PROMPT, response, 0.6) for response in RESPONSES])
        torch.testing.assert_close(scored, expected.detach(), rtol=1e-9, atol=1e-9)
        assert float(scored.exp().sum()) == pytest.approx(1.0, abs=1e-9)


def test_an_invalid_row_changes_nothing_whatever_it_holds() -> None:
    policy, base = small_model(vocab_size=VOCAB, seed=3), small_model(vocab_size=VOCAB, seed=4)
    _, objective = parse_objective("tilted(alpha=2,beta_inv=2)")
    without = make_batch(policy, [0, 5, 14, 2], [0, 0, 1, 1])
    with_invalid = make_batch(policy, [0, 5, 9, 14, 2], [0, 0, 0, 1, 1])
    with_invalid = dataclasses.replace(
        with_invalid,
        valid=torch.tensor([1, 1, 0, 1, 1]).bool(),
        rewards=torch.where(torch.tensor([0, 0, 1, 0, 0]).bool(), torch.nan, with_invalid.rewards),
    )
    for advantage in ("leave_one_out", "group_z_score", "batch_normalised"):
        update = update_with(advantage=advantage)
        found = gradient(policy, base, objective, with_invalid, update)
        assert relative_error(found, gradient(policy, base, objective, without, update)) < 1e-6


def test_a_critic_changes_the_baseline_but_never_the_policy_gradient_through_its_own_loss() -> None:
    policy, base = small_model(vocab_size=VOCAB, seed=3), small_model(vocab_size=VOCAB, seed=4)
    _, objective = parse_objective("task_reward")
    batch = make_batch(policy, [0, 5, 9, 14], [0, 0, 1, 1])
    update = update_with(advantage="gae")
    head = ValueHead(16)
    critic = Critic(head, torch.optim.SGD(head.parameters(), lr=0.0))
    of_critic = kept_gradients(critic.optimizer, [head.outer.weight])
    with_critic = gradient(policy, base, objective, batch, update, critic)
    token_scores = torch.where(batch.mask, batch.rewards[:, None].expand(batch.mask.shape), 0.0)
    loss = -sum(
        token_scores[row, 0] * plain_logprob(policy, PROMPT, RESPONSES[index]) / 4
        for row, index in enumerate([0, 5, 9, 14])
    )
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(policy.model.parameters()))])
    assert relative_error(with_critic, expected) < 1e-6
    assert of_critic[0][0] is not None
    assert float(of_critic[0][0].abs().sum()) > 0
    # Rollouts and checks need the memory.
    assert all(parameter.grad is None for parameter in (*policy.model.parameters(), *head.parameters()))


def test_uneven_minibatches_and_rows_without_a_reward_log_every_indicator() -> None:
    policy, base = small_model(vocab_size=VOCAB, seed=3), small_model(vocab_size=VOCAB, seed=4)
    _, objective = parse_objective("task_reward")
    batch = make_batch(policy, [0, 5, 9, 14, 2, 3], [0, 0, 1, 1, 2, 2])
    update = update_with(loss="ppo_clip")
    keys = []
    for valid in ([1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0]):
        part = dataclasses.replace(batch, valid=torch.tensor(valid).bool())
        optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.0)
        metrics = training_step(policy, base, objective, part, optimizer, update, minibatch_order=[[0, 1], [2]])
        keys.append(set(metrics))
        assert metrics["invalid_completions"] == 6 - sum(valid)
    assert keys[0] == keys[1] == keys[2]
    assert {"gradient/variance_trace", "gradient/signal_to_noise", "loss/policy", "grad_norm"} <= keys[0]


def test_several_passes_and_minibatches_use_every_problem_once_per_pass() -> None:
    policy = small_model(vocab_size=VOCAB, seed=3)
    _, objective = parse_objective("task_reward")
    batch = make_batch(policy, [0, 5, 9, 14, 2, 3, 7, 11], [0, 0, 1, 1, 2, 2, 3, 3])
    inputs = ScoreInputs(batch.rewards, batch.behaviour_logprobs, batch.behaviour_logprobs, batch.mask)
    update = update_with(loss="ppo_clip")
    advantages, _ = advantages_of(objective, inputs, objective.score(inputs), batch, update.algorithm)
    parts = []
    for problems in ([0, 2], [1, 3], [0, 1, 2, 3]):
        policy.model.zero_grad()
        accumulate_gradient(policy, batch, advantages, update, problems)
        parts.append(torch.cat([p.grad.reshape(-1) for p in policy.model.parameters()]))
    # Equal minibatches of the same weights: the mean of their gradients is the gradient of the whole batch.
    torch.testing.assert_close((parts[0] + parts[1]) / 2, parts[2])


def test_the_logged_kl_is_that_of_the_policy_from_the_base_and_not_the_reverse() -> None:
    policy, base = small_model(vocab_size=VOCAB, seed=1), small_model(vocab_size=VOCAB, seed=2)
    log_policy, log_base = (
        torch.stack([plain_logprob(model, PROMPT, response) for response in RESPONSES]).detach()
        for model in (policy, base)
    )
    logged = 0.0
    for row in range(len(RESPONSES)):
        batch = make_batch(policy, [row], [0])
        base_logprobs = response_logprobs(base, batch.prompt_token_ids, batch.response_token_ids, batch.mask)
        metrics = score_metrics(batch, batch.rewards, base_logprobs)
        logged += float(log_policy[row].exp()) * metrics["kl(policy||base)/k1_nats_per_sequence"]
    exact = float((log_policy.exp() * (log_policy - log_base)).sum())
    assert exact > 0.01
    assert logged == pytest.approx(exact, rel=1e-6)
