"""Natural gradients against closed forms: R - E[R] for a table of responses, Q - V for a table of next tokens."""

from __future__ import annotations

import math

import pytest
import torch

from bsharp.algorithm import (
    Objective,
    entropy_minimisation,
    hybrid,
    sharpening,
    task_reward,
    tempered,
    tilted,
    weighted,
)
from bsharp.theory.natural import (
    alignment,
    autoregressive_at_base,
    cosine,
    fisher_matrix,
    natural_gradient,
    tabular_at_base,
)
from bsharp.theory.policy_gradient import (
    LogPolicy,
    autoregressive_log_policy,
    exact_gradient,
    exact_scores,
    score_jacobian,
    tabular_log_policy,
)
from bsharp.theory.targets import correlation, covariance, expectation, optimum, variance
from bsharp.theory.world import FiniteWorld, random_world

REGIMES = {
    "task_reward": task_reward(),
    "tilted": tilted(2.0, 5.0),
    "sharpening": sharpening(),
    "sharpening_mean": sharpening("mean"),
    "tempered_weighted": tempered(0.5, "weighted_mean", rho=0.3),
    "hybrid": hybrid(1.0, 5.0),
    "entropy_minimisation": entropy_minimisation(),
    "everything": weighted(0.7, -0.3, 0.2, 0.4, "weighted_mean", 0.25),
}
each_regime = pytest.mark.parametrize("objective", REGIMES.values(), ids=REGIMES)
each_parametrisation = pytest.mark.parametrize("parametrisation", ["tabular", "autoregressive"])


def away_from_base(world: FiniteWorld, parametrisation: str, seed: int = 0) -> tuple[LogPolicy, torch.Tensor]:
    at_base = {"tabular": tabular_at_base, "autoregressive": autoregressive_at_base}[parametrisation]
    log_policy, parameters = at_base(world)
    noise = torch.randn(parameters.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return log_policy, parameters + 0.7 * noise


@each_parametrisation
def test_fisher_is_the_hessian_of_the_kl_and_blind_to_the_constant_of_a_row(parametrisation: str) -> None:
    world = random_world(0, 3, 3)
    log_policy, parameters = away_from_base(world, parametrisation)
    here = log_policy(parameters)

    def divergence(flat: torch.Tensor) -> torch.Tensor:
        return (here.exp() * (here - log_policy(flat.reshape(parameters.shape)))).sum()

    fisher = fisher_matrix(log_policy, parameters)
    torch.testing.assert_close(
        fisher, torch.autograd.functional.hessian(divergence, parameters.flatten()), rtol=1e-9, atol=1e-12
    )
    rows = parameters.reshape(-1, parameters.shape[-1])
    for row in range(len(rows)):
        constant = torch.zeros_like(rows).index_fill(0, torch.tensor([row]), 1.0).flatten()
        assert (fisher @ constant).abs().max() < 1e-15
    assert torch.linalg.matrix_rank(fisher, rtol=1e-12, hermitian=True) == world.size - 1


def test_tabular_fisher_is_the_covariance_of_one_draw() -> None:
    world = random_world(1, 3, 2)
    policy = world.base_logprob.exp()
    expected = torch.diag(policy) - torch.outer(policy, policy)
    torch.testing.assert_close(fisher_matrix(tabular_log_policy, world.base_logprob), expected)


@each_regime
@each_parametrisation
def test_natural_gradient_is_the_pseudo_inverse_of_fisher_times_the_gradient(
    objective: Objective, parametrisation: str
) -> None:
    world = random_world(2, 3, 3)
    log_policy, parameters = away_from_base(world, parametrisation)
    fisher = fisher_matrix(log_policy, parameters)
    gradient = exact_gradient(log_policy, parameters, world, objective).flatten()
    natural = natural_gradient(log_policy, parameters, world, objective).flatten()
    torch.testing.assert_close(fisher @ natural, gradient, rtol=1e-10, atol=1e-14)
    inverse = torch.linalg.pinv(fisher, rtol=1e-12, hermitian=True)
    torch.testing.assert_close(natural, inverse @ gradient, rtol=1e-8, atol=1e-10)


@each_regime
def test_tabular_natural_gradient_is_the_score_minus_a_constant(objective: Objective) -> None:
    world = random_world(3, 3, 4)
    _, logits = away_from_base(world, "tabular")
    scores = exact_scores(logits.log_softmax(-1), world, objective)
    natural = natural_gradient(tabular_log_policy, logits, world, objective)
    torch.testing.assert_close(natural, scores - scores.mean(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("objective", [REGIMES["tilted"], REGIMES["tempered_weighted"], tilted(0.5, 0.3, "mean")])
def test_natural_gradient_of_a_smooth_objective_points_straight_at_its_optimum(objective: Objective) -> None:
    """F^+ grad J = (c - o)(log pi* - log pi), up to a constant, at every policy."""
    world = random_world(4, 3, 3)
    _, logits = away_from_base(world, "tabular")
    away = optimum(world, objective).log_policy - logits
    expected = objective.entropy_weight * (away - away.mean())
    torch.testing.assert_close(natural_gradient(tabular_log_policy, logits, world, objective), expected)


def advantage_function(world: FiniteWorld, log_policy: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Q(prefix, token) - V(prefix) with Q the mean score of the responses that hold prefix + token, one by one."""
    mass, total = torch.zeros(2, world.num_prefixes, world.vocab_size, dtype=torch.float64)
    for y, probability in enumerate(log_policy.exp().tolist()):
        for t in range(int(world.lengths[y])):
            cell = int(world.prefix_index[y, t]), int(world.token_ids[y, t])
            mass[cell] += probability
            total[cell] += probability * float(scores[y])
    return total / mass - (total.sum(-1) / mass.sum(-1))[:, None]


@each_regime
def test_autoregressive_natural_gradient_is_the_advantage_function(objective: Objective) -> None:
    """However rare the prefix: its probability cancels. The shortest solution has rows of mean 0."""
    world = random_world(5, 3, 4)
    log_policy, table = away_from_base(world, "autoregressive")
    values = log_policy(table)
    advantage = advantage_function(world, values, exact_scores(values, world, objective))
    expected = advantage - advantage.mean(-1, keepdim=True)
    torch.testing.assert_close(natural_gradient(log_policy, table, world, objective), expected, rtol=1e-8, atol=1e-10)


@each_regime
def test_both_parametrisations_move_the_policy_alike(objective: Objective) -> None:
    """d log pi(y) = R(y) - E[R] along the natural gradient, and J rises by Var(R)."""
    world = random_world(6, 3, 3)
    log_policy, table = away_from_base(world, "autoregressive")
    values = log_policy(table)
    scores = exact_scores(values, world, objective)
    for policy, parameters in ((log_policy, table), (tabular_log_policy, values)):
        natural = natural_gradient(policy, parameters, world, objective).flatten()
        moved = score_jacobian(policy, parameters) @ natural
        torch.testing.assert_close(moved, scores - expectation(values, scores), rtol=1e-9, atol=1e-11)
        gradient = exact_gradient(policy, parameters, world, objective).flatten()
        torch.testing.assert_close(gradient @ natural, variance(values, scores), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("at", [tabular_at_base, autoregressive_at_base])
@pytest.mark.parametrize("seed", range(4))
def test_at_the_base_task_reward_and_sharpening_align_as_reward_and_likelihood_correlate(at: object, seed: int) -> None:
    world = random_world(seed, 3, 3)
    base = world.base_logprob
    found = alignment([world], task_reward(), sharpening(), at)  # type: ignore[arg-type]
    assert found.natural_inner == pytest.approx(float(covariance(base, world.rewards, base)), rel=1e-9)
    assert found.natural == pytest.approx(float(correlation(base, world.rewards, base)), rel=1e-9)
    log_policy, parameters = at(world)  # type: ignore[operator]
    first, second = (exact_gradient(log_policy, parameters, world, o).flatten() for o in (task_reward(), sharpening()))
    assert found.euclidean_inner == pytest.approx(float(first @ second), rel=1e-9)
    assert found.euclidean == pytest.approx(float(torch.cosine_similarity(first, second, dim=0)), rel=1e-9)


def test_euclidean_cosine_of_a_table_weighs_each_response_by_its_squared_probability() -> None:
    world = random_world(7, 3, 3)
    base, policy = world.base_logprob, world.base_logprob.exp()
    r = policy * (world.rewards - policy @ world.rewards)
    l_ref = policy * (base - policy @ base)
    found = alignment([world], task_reward(), sharpening())
    assert found.euclidean == pytest.approx(float(r @ l_ref / r.norm() / l_ref.norm()), rel=1e-12)
    assert abs(found.euclidean - found.natural) > 1e-2


def test_over_prompts_the_cosine_pools_before_it_divides() -> None:
    worlds = [random_world(seed, 3, 3, success_share=share) for seed, share in ((0, 0.1), (1, 0.5), (2, 0.8))]
    covariances, rewards, likelihoods = (
        sum(float(covariance(w.base_logprob, *pair(w))) for w in worlds) / 3
        for pair in (
            lambda w: (w.rewards, w.base_logprob),
            lambda w: (w.rewards, w.rewards),
            lambda w: (w.base_logprob, w.base_logprob),
        )
    )
    found = alignment(worlds, task_reward(), sharpening())
    assert found.natural_inner == pytest.approx(covariances, rel=1e-9)
    assert found.natural == pytest.approx(covariances / math.sqrt(rewards * likelihoods), rel=1e-9)
    mean = sum(alignment([w], task_reward(), sharpening()).natural for w in worlds) / 3
    assert abs(found.natural - mean) > 1e-2
    gradients = [
        [exact_gradient(tabular_log_policy, w.base_logprob, w, o) for w in worlds]
        for o in (task_reward(), sharpening())
    ]
    inverses = [torch.linalg.pinv(fisher_matrix(tabular_log_policy, w.base_logprob), hermitian=True) for w in worlds]
    assert cosine(*gradients, inverses) == pytest.approx(found.natural, rel=1e-9)
    assert cosine(*gradients) == pytest.approx(found.euclidean, rel=1e-9)


def test_natural_gradients_under_fisher_and_gradients_under_its_inverse_have_one_cosine() -> None:
    world = random_world(8, 3, 3)
    log_policy, table = away_from_base(world, "autoregressive")
    fisher = fisher_matrix(log_policy, table)
    pair = (tilted(2.0, 5.0), sharpening("mean"))
    naturals = [natural_gradient(log_policy, table, world, objective) for objective in pair]
    gradients = [exact_gradient(log_policy, table, world, objective) for objective in pair]
    expected = cosine(*gradients, torch.linalg.pinv(fisher, rtol=1e-12, hermitian=True))
    assert cosine(*naturals, fisher) == pytest.approx(expected, rel=1e-9)
    assert cosine(-3 * naturals[0], naturals[1], fisher) == pytest.approx(-expected, rel=1e-9)
    assert cosine(naturals[0], naturals[0], fisher) == pytest.approx(1.0, rel=1e-12)


def test_a_cosine_without_a_direction_is_nan_and_without_partners_refused() -> None:
    vector = torch.ones(2, dtype=torch.float64)
    assert math.isnan(cosine(vector, 0 * vector))
    assert math.isnan(
        alignment([random_world(0, 3, 2).with_rewards(torch.ones(7))], task_reward(), sharpening()).natural
    )
    with pytest.raises(ValueError, match="give one of each a prompt"):
        cosine([vector, vector], [vector])
    with pytest.raises(ValueError, match="give at least one"):
        alignment([], task_reward(), sharpening())


def test_a_response_without_probability_has_no_natural_gradient() -> None:
    world = random_world(9, 3, 2)
    holed = world.with_base(world.base_logprob.index_fill(0, torch.tensor([1]), -torch.inf))
    for objective in REGIMES.values():
        natural = natural_gradient(tabular_log_policy, holed.base_logprob, holed, objective)
        assert abs(natural[1]) < 1e-14
        moved = natural - expectation(holed.base_logprob, natural)
        scores = exact_scores(holed.base_logprob, holed, objective)
        kept = holed.base_logprob > -torch.inf
        torch.testing.assert_close(moved[kept], (scores - expectation(holed.base_logprob, scores))[kept])


def test_autoregressive_log_policy_is_the_sum_of_its_tokens() -> None:
    world = random_world(10, 3, 3)
    _, table = away_from_base(world, "autoregressive")
    rows = table.softmax(-1)
    for y, value in enumerate(autoregressive_log_policy(world)(table).tolist()):
        tokens = zip(world.prefix_index[y].tolist(), world.token_ids[y].tolist(), world.mask[y].tolist(), strict=True)
        product = math.prod(float(rows[prefix, token]) for prefix, token, real in tokens if real)
        assert value == pytest.approx(math.log(product), rel=1e-12)
