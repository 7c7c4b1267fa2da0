"""The exact gradient, the score-function gradient of the training scores, and sampled estimators: all the same.

Gradients are compared AWAY from the optimum. At the optimum of a smooth objective every score is the same, all
leave-one-out advantages vanish, and a flipped sign would pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from bsharp.algorithm import (
    Objective,
    entropy_minimisation,
    gae,
    hybrid,
    leave_one_out,
    no_baseline,
    reduction_weights,
    reinforce,
    sharpening,
    task_reward,
    tempered,
    tilted,
    weighted,
    weighted_sum,
)
from bsharp.theory.policy_gradient import (
    LogPolicy,
    autoregressive_log_policy,
    autoregressive_table,
    exact_gradient,
    exact_objective,
    exact_scores,
    leave_one_out_variance,
    score_jacobian,
    tabular_log_policy,
)
from bsharp.theory.targets import expectation, optimum
from bsharp.theory.world import FiniteWorld, random_world, tabular_token_logprobs

REGIMES = {
    "task_reward": task_reward(),
    "tilted": tilted(2.0, 5.0),
    "tilted_mean": tilted(2.0, 5.0, "mean"),
    "sharpening": sharpening(),
    "sharpening_mean": sharpening("mean"),
    "sharpening_weighted": sharpening("weighted_mean", rho=0.5),
    "tempered": tempered(2.0),
    "tempered_weighted": tempered(0.5, "weighted_mean", rho=0.3),
    "hybrid": hybrid(1.0, 5.0),
    "entropy_minimisation": entropy_minimisation(),
    "everything": weighted(0.7, -0.3, 0.2, 0.4, "weighted_mean", 0.25),
}
SMOOTH = {name: objective for name, objective in REGIMES.items() if objective.entropy_weight > 0}
each_regime = pytest.mark.parametrize("objective", REGIMES.values(), ids=REGIMES)
each_smooth_regime = pytest.mark.parametrize("objective", SMOOTH.values(), ids=SMOOTH)
each_parametrisation = pytest.mark.parametrize("parametrisation", ["tabular", "autoregressive"])


def table_away_from_base(world: FiniteWorld, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(
        world.num_prefixes, world.vocab_size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return world.base_table() + 0.7 * noise


def log_policy_of(world: FiniteWorld) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda table: tabular_token_logprobs(world, table).sum(-1)


def away_from_base(world: FiniteWorld, parametrisation: str, seed: int = 0) -> tuple[LogPolicy, torch.Tensor]:
    table = table_away_from_base(world, seed)
    if parametrisation == "autoregressive":
        return autoregressive_log_policy(world), table
    return tabular_log_policy, log_policy_of(world)(table) + 3.0  # logits need not be normalised


def plain_objective(log_policy: torch.Tensor, world: FiniteWorld, objective: Objective) -> float:
    """J response by response, from the arrays alone."""
    total = 0.0
    for y, own in enumerate(log_policy.tolist()):
        tokens = world.mask[y].sum().item()
        base = sum(world.base_token_logprobs[y, :tokens].tolist())
        rho = {"sum": 0.0, "mean": 1.0}.get(objective.normalisation.value, objective.rho)
        value = objective.task * world.rewards[y].item() + objective.base_loglikelihood * base / tokens**rho
        value += objective.own_loglikelihood * own - objective.kl_to_base * (own - base)
        total += np.exp(own) * value
    return total


@each_regime
@each_parametrisation
def test_the_exact_gradient_is_the_central_difference_of_j_at_random_policies(
    objective: Objective, parametrisation: str
) -> None:
    world, step = random_world(8, vocab_size=3, max_length=2), 1e-4
    for seed in (0, 1):
        log_policy, parameters = away_from_base(world, parametrisation, seed)
        gradient = exact_gradient(log_policy, parameters, world, objective).flatten()
        assert gradient.norm() > 1e-2

        def value(shift: torch.Tensor, of: LogPolicy = log_policy, at: torch.Tensor = parameters) -> float:
            return plain_objective(of(at + shift.reshape(at.shape)), world, objective)

        # Fourth order: (8 (J(+h) - J(-h)) - (J(+2h) - J(-2h))) / 12 h.
        differences = [
            (8 * (value(step * unit) - value(-step * unit)) - value(2 * step * unit) + value(-2 * step * unit))
            / 12
            / step
            for unit in torch.eye(parameters.numel(), dtype=torch.float64)
        ]
        torch.testing.assert_close(gradient, torch.tensor(differences, dtype=torch.float64), rtol=1e-8, atol=1e-10)


@each_regime
@each_parametrisation
def test_the_gradient_vanishes_at_the_closed_form_optimum_and_not_beside_it(
    objective: Objective, parametrisation: str
) -> None:
    """Within 1e-12 at pi*; halfway back to the base it is not small and its direction goes up."""
    world = random_world(9, 3, 3)
    target = optimum(world, objective).log_policy
    beside = torch.log((target.exp() + world.base_logprob.exp()) / 2)
    if parametrisation == "tabular":
        log_policy, at, near = tabular_log_policy, target, beside
    else:
        log_policy = autoregressive_log_policy(world)
        at, near = autoregressive_table(world, target), autoregressive_table(world, beside)
    assert exact_gradient(log_policy, at, world, objective).abs().max() <= 1e-12
    gradient = exact_gradient(log_policy, near, world, objective)
    assert gradient.norm() > 1e-2
    risen, here = (plain_objective(log_policy(x), world, objective) for x in (near + 1e-3 * gradient, near))
    assert risen - here == pytest.approx(1e-3 * float(gradient.square().sum()), rel=2e-2)


@each_smooth_regime
@each_parametrisation
def test_the_gradient_anywhere_is_minus_that_of_the_kl_to_the_closed_form_optimum(
    objective: Objective, parametrisation: str
) -> None:
    """J = J* - (c - o) KL(pi || pi*), so grad J = (c - o) E_pi[(log pi* - log pi) grad l]."""
    world = random_world(10, 3, 3)
    log_policy, parameters = away_from_base(world, parametrisation)
    values = log_policy(parameters)
    pull = values.exp() * (optimum(world, objective).log_policy - values) * objective.entropy_weight
    expected = (score_jacobian(log_policy, parameters).T @ pull).reshape(parameters.shape)
    gradient = exact_gradient(log_policy, parameters, world, objective)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-13)


@each_regime
def test_the_expected_score_is_the_objective_whatever_the_policy(objective: Objective) -> None:
    world = random_world(11, 3, 3)
    log_policy = log_policy_of(world)(table_away_from_base(world))
    value = float(expectation(log_policy, exact_scores(log_policy, world, objective)))
    assert value == pytest.approx(plain_objective(log_policy, world, objective), rel=1e-12)


def test_responses_the_policy_never_gives_have_no_say() -> None:
    """Base and policy 0 at the same response: objective, scores and gradient are those of the world without it."""
    world = random_world(12, 3, 2)
    kept = torch.arange(world.size) != 2
    holed = world.with_base(world.base_logprob.masked_fill(~kept, -torch.inf))
    fewer = holed.restrict(kept)
    for objective in REGIMES.values():
        torch.testing.assert_close(
            exact_objective(holed.base_logprob, holed, objective), exact_objective(fewer.base_logprob, fewer, objective)
        )
        scores = exact_scores(holed.base_logprob, holed, objective)
        torch.testing.assert_close(scores[kept], exact_scores(fewer.base_logprob, fewer, objective))
        assert scores[2] == 0
        gradient = exact_gradient(tabular_log_policy, holed.base_logprob, holed, objective)
        torch.testing.assert_close(
            gradient[kept], exact_gradient(tabular_log_policy, fewer.base_logprob, fewer, objective)
        )
        assert gradient[2] == 0


def test_every_distribution_has_an_autoregressive_table() -> None:
    world = random_world(13, 4, 3)
    noise = torch.randn(world.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_policy = (5 * noise).log_softmax(-1)
    table = autoregressive_table(world, log_policy)
    torch.testing.assert_close(autoregressive_log_policy(world)(table), log_policy)
    torch.testing.assert_close(table.exp().sum(-1), torch.ones(world.num_prefixes, dtype=torch.float64))
    point = torch.full((world.size,), -torch.inf, dtype=torch.float64).index_fill(0, torch.tensor([7]), 0.0)
    reached = autoregressive_log_policy(world)(autoregressive_table(world, point))
    assert torch.equal(reached.exp(), point.exp())


@each_parametrisation
def test_the_expected_gradient_of_the_log_policy_is_zero(parametrisation: str) -> None:
    world = random_world(14, 3, 3)
    log_policy, parameters = away_from_base(world, parametrisation)
    jacobian = score_jacobian(log_policy, parameters)
    assert (log_policy(parameters).exp() @ jacobian).abs().max() < 1e-15
    leaf = parameters.clone().requires_grad_(True)
    (row,) = torch.autograd.grad(log_policy(leaf)[3], leaf)
    torch.testing.assert_close(jacobian[3], row.flatten())


def test_what_cannot_be_computed_is_refused() -> None:
    world = random_world(0, 4, 7)
    with pytest.raises(ValueError, match="derivatives, more than 20000000; take a smaller world"):
        score_jacobian(tabular_log_policy, torch.zeros(5000, dtype=torch.float64))
    base = world.base_logprob
    with pytest.raises(ValueError, match="group_size >= 2, got 1"):
        leave_one_out_variance(base, world.rewards, torch.ones_like(base), 1.0, 1)


@each_regime
def test_training_scores_give_the_exact_gradient_away_from_the_optimum(objective: Objective) -> None:
    """E_pi[R grad l] with R from `Objective.score` equals autograd through the enumerated J."""
    world = random_world(0, vocab_size=3, max_length=4)
    table = table_away_from_base(world).requires_grad_(True)
    token_logprobs = tabular_token_logprobs(world, table)
    log_policy = token_logprobs.sum(-1)
    scores = objective.score(world.score_inputs(token_logprobs.detach()))
    surrogate = (log_policy.detach().exp() * scores * log_policy).sum()
    (estimate,) = torch.autograd.grad(surrogate, table)
    exact = exact_gradient(log_policy_of(world), table, world, objective)
    assert exact.norm() > 1e-2
    torch.testing.assert_close(estimate, exact, rtol=1e-9, atol=1e-12)


@each_regime
def test_token_scores_with_reward_to_go_give_the_exact_gradient(objective: Objective) -> None:
    """gamma = lambda = 1 with a zero critic: what a token cannot influence has mean zero and is dropped."""
    world = random_world(0, vocab_size=3, max_length=4)
    table = table_away_from_base(world).requires_grad_(True)
    token_logprobs = tabular_token_logprobs(world, table)
    token_scores = objective.token_scores(world.score_inputs(token_logprobs.detach()))
    advantages, _ = gae(token_scores, torch.zeros_like(token_scores), world.mask, 1.0, 1.0)
    terms = reinforce(token_logprobs, advantages, world.mask).sum(-1)
    (estimate,) = torch.autograd.grad(-(token_logprobs.detach().sum(-1).exp() * terms).sum(), table)
    exact = exact_gradient(log_policy_of(world), table, world, objective)
    torch.testing.assert_close(estimate, exact, rtol=1e-9, atol=1e-12)


@each_regime
def test_gae_with_the_true_values_gives_the_exact_gradient_for_every_lambda(objective: Objective) -> None:
    """V of a prefix is the expected score still to come; then even the one-step advantage (lambda = 0) is unbiased."""
    world = random_world(0, vocab_size=3, max_length=4)
    table = table_away_from_base(world).requires_grad_(True)
    token_logprobs = tabular_token_logprobs(world, table)
    probability = token_logprobs.detach().sum(-1).exp()
    token_scores = objective.token_scores(world.score_inputs(token_logprobs.detach()))
    to_come, _ = gae(token_scores, torch.zeros_like(token_scores), world.mask, 1.0, 1.0)
    prefix, weight = world.prefix_index[world.mask], probability[:, None].expand_as(to_come)[world.mask]
    totals = torch.zeros(2, world.num_prefixes, dtype=torch.float64)
    totals[0].index_add_(0, prefix, weight * to_come[world.mask])
    totals[1].index_add_(0, prefix, weight)
    values = (totals[0] / totals[1])[world.prefix_index]
    exact = exact_gradient(log_policy_of(world), table, world, objective)
    for lam in (0.0, 0.5, 1.0):
        advantages, _ = gae(token_scores, values, world.mask, 1.0, lam)
        terms = reinforce(token_logprobs, advantages, world.mask).sum(-1)
        (estimate,) = torch.autograd.grad(-(probability * terms).sum(), table, retain_graph=True)
        torch.testing.assert_close(estimate, exact, rtol=1e-9, atol=1e-12)


def estimator_expectation(
    world: FiniteWorld,
    table: torch.Tensor,
    objective: Objective,
    group_size: int,
    advantage: Callable[..., torch.Tensor],
) -> torch.Tensor:
    """Exact expectation, over all N^G groups of G responses, of the sampled gradient as a training step forms it."""
    table = table.detach().clone().requires_grad_(True)
    token_logprobs = tabular_token_logprobs(world, table)
    scores = objective.score(world.score_inputs(token_logprobs.detach()))
    members = torch.tensor(list(itertools.product(range(world.size), repeat=group_size)))
    rows = members.flatten()
    group_index = torch.arange(len(members)).repeat_interleave(group_size)
    valid = torch.ones(len(rows), dtype=torch.bool)
    advantages = advantage(scores[rows], group_index, valid)
    probability = token_logprobs.detach().sum(-1)[members].sum(-1).exp()[group_index]
    # One group's loss is its mean over rows, the reduction sequence_sum; the batch mean undoes to an expectation.
    terms = reinforce(token_logprobs[rows], probability * advantages, world.mask[rows])
    weights = reduction_weights(world.mask[rows], "sequence_sum", valid).double() * len(members)
    (gradient,) = torch.autograd.grad(-weighted_sum(terms, weights), table)
    return gradient


@each_regime
@pytest.mark.parametrize(("group_size", "vocab_size", "max_length"), [(2, 3, 3), (3, 3, 2)])
def test_leave_one_out_is_unbiased_over_all_groups(
    objective: Objective, group_size: int, vocab_size: int, max_length: int
) -> None:
    world = random_world(1, vocab_size, max_length)
    table = table_away_from_base(world)
    estimate = estimator_expectation(world, table, objective, group_size, leave_one_out)
    exact = exact_gradient(log_policy_of(world), table, world, objective)
    assert exact.norm() > 1e-3
    torch.testing.assert_close(estimate, exact, rtol=1e-5, atol=1e-7)  # fp32 reduction weights


def test_no_baseline_is_unbiased_and_a_mean_that_counts_the_row_itself_is_not() -> None:
    world = random_world(1, 3, 2)
    table, objective = table_away_from_base(world), tilted(2.0, 5.0)
    exact = exact_gradient(log_policy_of(world), table, world, objective)
    plain = estimator_expectation(world, table, objective, 2, no_baseline)
    torch.testing.assert_close(plain, exact, rtol=1e-5, atol=1e-7)

    def group_mean(scores: torch.Tensor, group_index: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return leave_one_out(scores, group_index, valid) / 2  # (G - 1) / G

    shrunk = estimator_expectation(world, table, objective, 2, group_mean)
    torch.testing.assert_close(shrunk, exact / 2, rtol=1e-5, atol=1e-7)


@each_smooth_regime
def test_the_score_is_constant_and_the_gradient_zero_at_a_smooth_optimum(objective: Objective) -> None:
    """There R = (c - o) log Z for every response, and J(pi*) = (c - o) log Z."""
    world = random_world(2, 3, 3)
    target = optimum(world, objective)
    gradient = exact_gradient(lambda logits: logits.log_softmax(-1), target.log_policy, world, objective)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))
    value = exact_objective(target.log_policy, world, objective).item()
    assert value == pytest.approx(objective.entropy_weight * target.log_partition)
    # Any split of l(y) over tokens will do: the score takes their sum.
    split = torch.where(world.mask, (target.log_policy / world.lengths)[:, None], 0.0)
    scores = objective.score(world.score_inputs(split))
    torch.testing.assert_close(scores, torch.full_like(scores, value))


@each_regime
def test_no_other_policy_beats_the_optimum(objective: Objective) -> None:
    world = random_world(3, 3, 3)
    target = optimum(world, objective)
    assert target.policy.sum().item() == pytest.approx(1.0)
    best = exact_objective(target.log_policy, world, objective).item()
    generator = torch.Generator().manual_seed(0)
    for scale in (0.01, 0.1, 1.0, 5.0):
        for _ in range(25):
            noise = scale * torch.randn(world.size, generator=generator, dtype=torch.float64)
            near = torch.log((target.policy + 1e-12) * noise.exp())
            for logits in (near, noise, world.base_logprob + noise):
                assert exact_objective(logits.log_softmax(-1), world, objective).item() <= best + 1e-9


@each_smooth_regime
def test_a_small_step_away_from_the_optimum_costs_a_kl(objective: Objective) -> None:
    """J(pi*) - J(pi) = (c - o) KL(pi || pi*): the sharpest statement that pi* is the maximiser."""
    world = random_world(4, 3, 3)
    target = optimum(world, objective)
    log_policy = log_policy_of(world)(table_away_from_base(world))
    gap = exact_objective(target.log_policy, world, objective) - exact_objective(log_policy, world, objective)
    divergence = (log_policy.exp() * (log_policy - target.log_policy)).sum()
    torch.testing.assert_close(gap, objective.entropy_weight * divergence)


def test_linear_optima_in_a_world() -> None:
    world = random_world(5, 3, 3)
    assert optimum(world, sharpening()).policy.argmax() == world.base_logprob.argmax()
    per_token = world.base_logprob / world.lengths
    assert optimum(world, sharpening("mean")).policy.argmax() == per_token.argmax()
    reward_only = optimum(world, task_reward())
    torch.testing.assert_close(reward_only.policy, world.rewards / world.rewards.sum())
    assert reward_only.log_partition == pytest.approx(float(world.rewards.sum().log()))


def test_entropy_minimisation_is_minus_the_entropy() -> None:
    world = random_world(6, 3, 3)
    log_policy = log_policy_of(world)(table_away_from_base(world))
    value = exact_objective(log_policy, world, entropy_minimisation())
    torch.testing.assert_close(value, (log_policy.exp() * log_policy).sum())


def test_the_slope_of_accuracy_in_alpha_is_a_covariance_and_in_beta_inv_a_variance() -> None:
    """d/d alpha E[r] = Cov(r, l_ref) under pi_ref^alpha and d/d beta_inv E[r] = Var(r), by central differences."""
    world = random_world(7, 3, 3)

    def accuracy(alpha: float, beta_inv: float) -> float:
        return float((optimum(world, tilted(alpha, beta_inv)).policy * world.rewards).sum())

    policy = optimum(world, tilted(1.5, 2.0)).policy
    mean = (policy * world.rewards).sum()
    covariance = (policy * (world.rewards - mean) * world.base_logprob).sum().item()
    variance = (policy * (world.rewards - mean) ** 2).sum().item()
    step = 1e-5
    slope = (accuracy(1.5 + step, 2.0) - accuracy(1.5 - step, 2.0)) / (2 * step)
    tilt = (accuracy(1.5, 2.0 + step) - accuracy(1.5, 2.0 - step)) / (2 * step)
    assert (slope, tilt) == pytest.approx((covariance, variance), rel=1e-6)
