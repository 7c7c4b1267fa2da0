"""Flows: closed form against the differential equation, against numerical integration, and against where they end."""

from __future__ import annotations

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
from bsharp.theory import dynamics
from bsharp.theory.dynamics import (
    Trajectory,
    flow_limit,
    gradient_flow,
    natural_gradient_flow,
    parametric_natural_gradient_flow,
    score_variance,
)
from bsharp.theory.natural import autoregressive_at_base, natural_gradient, tabular_at_base
from bsharp.theory.policy_gradient import (
    autoregressive_log_policy,
    exact_gradient,
    exact_objective,
    exact_scores,
    tabular_log_policy,
)
from bsharp.theory.targets import expectation, moments, optimum, power, tilt
from bsharp.theory.world import FiniteWorld, random_world

REGIMES = {
    "task_reward": task_reward(),
    "tilted": tilted(2.0, 5.0),
    "sharpening": sharpening(),
    "sharpening_mean": sharpening("mean"),
    "tempered": tempered(2.0),
    "tempered_weighted": tempered(0.5, "weighted_mean", rho=0.3),
    "hybrid": hybrid(1.0, 5.0),
    "entropy_minimisation": entropy_minimisation(),
    "smooth": weighted(0.7, -0.3, 0.5, 0.2, "weighted_mean", 0.25),
    "convex": weighted(0.7, 0.3, 0.1, 0.4, "mean"),
}
SMOOTH = {name: objective for name, objective in REGIMES.items() if objective.entropy_weight > 0}
each_regime = pytest.mark.parametrize("objective", REGIMES.values(), ids=REGIMES)
each_smooth_regime = pytest.mark.parametrize("objective", SMOOTH.values(), ids=SMOOTH)
each_parametrisation = pytest.mark.parametrize("at_base", [tabular_at_base, autoregressive_at_base])


def start(world: FiniteWorld, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(world.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (world.base_logprob + 0.7 * noise).log_softmax(-1)


def spread(values: torch.Tensor) -> torch.Tensor:
    return values.amax(-1) - values.amin(-1)


@each_regime
def test_closed_form_solves_the_replicator_equation(objective: Objective) -> None:
    """d log pi(y)/dt = R(y) - E_pi[R] at every time, by fourth-order central differences; pi_0 is the start."""
    world, step = random_world(0, 3, 3), 1e-3
    initial = start(world)
    for t in (0.2, 1.0, 2.5):
        times = [0.0, t - 2 * step, t - step, t, t + step, t + 2 * step]
        flow = natural_gradient_flow(initial, world, objective, times)
        torch.testing.assert_close(flow.log_policies[0], initial)
        _, before_2, before, here, after, after_2 = flow.log_policies
        slope = (8 * (after - before) - (after_2 - before_2)) / (12 * step)
        scores = exact_scores(here, world, objective)
        torch.testing.assert_close(slope, scores - expectation(here, scores), rtol=1e-7, atol=1e-8)


@each_regime
def test_objective_rises_at_the_rate_of_the_variance_of_the_score(objective: Objective) -> None:
    """dJ/dt = grad J^T F^-1 grad J = Var(R) >= 0 along the natural flow."""
    world, step = random_world(1, 3, 3), 1e-3
    for t in (0.1, 1.0):
        times = [t - 2 * step, t - step, t, t + step, t + 2 * step]
        flow = natural_gradient_flow(start(world), world, objective, times)
        j = flow.objective
        slope = float(8 * (j[3] - j[1]) - (j[4] - j[0])) / (12 * step)
        here = flow.log_policies[2]
        natural = natural_gradient(tabular_log_policy, here, world, objective)
        rate = float(exact_gradient(tabular_log_policy, here, world, objective) @ natural)
        assert slope == pytest.approx(rate, rel=1e-6)
        assert rate == pytest.approx(score_variance(here, world, objective), rel=1e-9)
        assert rate > 0


@pytest.mark.parametrize("name", ["tilted", "sharpening_mean", "tempered_weighted", "entropy_minimisation"])
@each_parametrisation
def test_integrated_natural_flow_is_the_closed_form_in_both_parametrisations(name: str, at_base: object) -> None:
    """Flows of policies do not depend on coordinates where all distributions are reached."""
    world, times = random_world(2, 3, 2), [0.0, 0.5, 1.0]
    log_policy, parameters = at_base(world)  # type: ignore[operator]
    integrated = parametric_natural_gradient_flow(log_policy, parameters, world, REGIMES[name], times)
    closed = natural_gradient_flow(world.base_logprob, world, REGIMES[name], times)
    torch.testing.assert_close(integrated.log_policies, closed.log_policies, rtol=1e-8, atol=1e-8)


def test_integrated_natural_flow_is_the_closed_form_on_a_deeper_table() -> None:
    world, objective = random_world(3, 3, 4), tilted(2.0, 5.0)
    log_policy, parameters = autoregressive_at_base(world)
    integrated = parametric_natural_gradient_flow(log_policy, parameters, world, objective, [2.0])
    closed = natural_gradient_flow(world.base_logprob, world, objective, [2.0])
    torch.testing.assert_close(integrated.log_policies, closed.log_policies, rtol=1e-7, atol=1e-7)


def test_flow_of_the_task_reward_is_the_tilt_of_sharpening_the_power_and_of_entropy_an_exponential_power() -> None:
    """From the base: log-odds grow by t r; alpha is 1 + t under sharpening and e^t under entropy minimisation."""
    world, times = random_world(4, 3, 3), [0.0, 0.3, 1.0, 4.0]
    flows = {
        name: natural_gradient_flow(world.base_logprob, world, REGIMES[name], times).log_policies
        for name in ("task_reward", "sharpening", "entropy_minimisation")
    }
    for index, t in enumerate(times):
        torch.testing.assert_close(flows["task_reward"][index], tilt(world, t))
        torch.testing.assert_close(flows["sharpening"][index], power(world, 1 + t))
        exponent = float(torch.tensor(t, dtype=torch.float64).exp())
        torch.testing.assert_close(flows["entropy_minimisation"][index], power(world, exponent))


def test_sharpening_ends_in_the_mode_with_entropy_zero_and_kl_minus_its_log_probability() -> None:
    world = random_world(5, 3, 3)
    flow = natural_gradient_flow(world.base_logprob, world, sharpening(), [0.0, 1.0, 10.0, 1000.0])
    entropies = [m.entropy for m in flow.moments]
    divergences = [m.kl_policy_base for m in flow.moments]
    assert entropies == sorted(entropies, reverse=True)
    assert divergences == sorted(divergences)
    assert entropies[-1] == pytest.approx(0.0, abs=1e-12)
    assert divergences[-1] == pytest.approx(-float(world.base_logprob.max()), rel=1e-12)
    gaps = spread(flow.log_policies) / spread(world.base_logprob)
    torch.testing.assert_close(gaps, 1 + flow.times, rtol=1e-12, atol=0)


@each_smooth_regime
def test_distance_in_log_odds_to_a_smooth_optimum_falls_by_exp_minus_ht(objective: Objective) -> None:
    world = random_world(6, 3, 3)
    h, target = objective.entropy_weight, optimum(world, objective).log_policy
    flow = natural_gradient_flow(start(world), world, objective, [0.0, 1 / h, 5 / h, 40 / h])
    distance = spread(flow.log_policies - target)
    torch.testing.assert_close(distance / distance[0], (-h * flow.times).exp(), rtol=1e-9, atol=1e-14)
    assert flow.total_variation(target)[-1] < 1e-12


@pytest.mark.parametrize("name", ["tilted", "tempered_weighted"])
@each_parametrisation
def test_gradient_flow_reaches_the_smooth_optimum_uphill(name: str, at_base: object) -> None:
    """Total variation falls to a hundredth; J never falls, and rises at first by |grad J|^2 per unit of time."""
    world, objective = random_world(7, 3, 2, scale=0.5), REGIMES[name]
    log_policy, parameters = at_base(world)  # type: ignore[operator]
    early, end = 1e-5, 200 / objective.entropy_weight
    flow = gradient_flow(log_policy, parameters, world, objective, [0.0, early, end / 100, end / 10, end], 1e-7, 1e-9)
    distance = flow.total_variation(optimum(world, objective).log_policy)
    assert distance[-1] <= 0.01 * distance[0]
    assert bool((flow.objective.diff() >= -1e-12).all())
    squared = float(exact_gradient(log_policy, parameters, world, objective).square().sum())
    assert float(flow.objective[1] - flow.objective[0]) / early == pytest.approx(squared, rel=1e-3)


@each_parametrisation
def test_gradient_flow_of_linear_objectives_heads_for_the_limit_of_the_natural_flow(at_base: object) -> None:
    world = random_world(8, 3, 2, success_share=0.15)
    assert world.rewards.sum() == 1
    log_policy, parameters = at_base(world)  # type: ignore[operator]
    for name in ("task_reward", "sharpening", "hybrid"):
        flow = gradient_flow(log_policy, parameters, world, REGIMES[name], [0.0, 30.0, 200.0, 600.0], 1e-6, 1e-8)
        distance = flow.total_variation(flow_limit(world.base_logprob, world, REGIMES[name]))
        assert bool((distance.diff() < 0).all())
        assert distance[-1] < 0.05


def test_euclidean_flow_of_a_table_of_responses_is_scaled_by_probability() -> None:
    """d log pi(y)/dt = u(y) - E_pi[u] with u = pi (R - E R): a short integration against the formula."""
    world, objective, t = random_world(9, 3, 2), sharpening(), 1e-4
    flow = gradient_flow(tabular_log_policy, world.base_logprob, world, objective, [0.0, t])
    base = world.base_logprob
    pull = base.exp() * (base - expectation(base, base))
    expected = pull - expectation(base, pull)
    torch.testing.assert_close((flow.log_policies[1] - base) / t, expected, rtol=1e-3, atol=1e-5)


@each_regime
def test_flow_limit_is_where_the_natural_flow_ends(objective: Objective) -> None:
    """With positive c - o it is the optimum, with c = o the optimum where the base has one mode."""
    world = random_world(10, 3, 3)
    initial = start(world)
    limit = flow_limit(initial, world, objective)
    late = natural_gradient_flow(initial, world, objective, [1e5 if objective.entropy_weight == 0 else 300.0])
    assert float(late.total_variation(limit)) < 1e-9
    assert limit.exp().sum() == pytest.approx(1.0)
    if objective.entropy_weight > 0:
        torch.testing.assert_close(limit, optimum(world, objective).log_policy)


def test_tied_responses_keep_their_proportions_under_a_linear_objective() -> None:
    world = random_world(11, 3, 3)
    initial = start(world)
    right = world.rewards == 1
    limit = flow_limit(initial, world, task_reward())
    torch.testing.assert_close(limit[right], initial[right].log_softmax(-1))
    assert bool((limit[~right] == -torch.inf).all())
    uniform = torch.full_like(initial, 1 / world.size).log()
    torch.testing.assert_close(flow_limit(uniform, world, entropy_minimisation()), uniform)


@pytest.mark.parametrize("objective", [REGIMES["convex"], weighted(1.0, 0.5, 0.0, 2.0)])
def test_tied_responses_of_a_convex_objective_weigh_exp_of_minus_their_value_over_h(objective: Objective) -> None:
    """log pi_t = e^{|h| t} (log pi_0 + v / |h|) - v / |h| + const: of rows tied in the bracket only the second term is left.

    Being tied, they weigh by it in pi_0 already: they keep their proportions.
    """
    world = random_world(17, 3, 3)
    h = -objective.entropy_weight
    assert h > 0
    lengths = world.lengths.double() if objective.normalisation == "mean" else 1.0
    value = objective.task * world.rewards + objective.base_loglikelihood * world.base_logprob / lengths
    value = value + objective.kl_to_base * world.base_logprob
    first, second = int((value / h).argmin()), int((value / h).argmax())
    tied = torch.tensor([first, second])
    apart = float(value[second] - value[first]) / h
    assert apart > 1
    bracket = torch.full_like(value, -3.0).index_fill(0, tied, 0.0)
    initial = (bracket - value / h).log_softmax(-1)
    limit = flow_limit(initial, world, objective)
    assert float(limit[first] - limit[second]) == pytest.approx(apart, rel=1e-9)
    torch.testing.assert_close(limit[tied], initial[tied].log_softmax(-1))
    assert float(limit[tied].exp().sum()) == pytest.approx(1.0)
    late = natural_gradient_flow(initial, world, objective, [5.0 / h])
    assert float(late.total_variation(limit)) < 1e-9


def test_entropy_minimisation_has_a_basin_for_every_response() -> None:
    world = random_world(12, 3, 2)
    for favourite in range(world.size):
        initial = world.base_logprob.index_fill(0, torch.tensor([favourite]), 0.0).log_softmax(-1)
        assert int(flow_limit(initial, world, entropy_minimisation()).argmax()) == favourite
        ends = natural_gradient_flow(initial, world, entropy_minimisation(), [30.0]).policies[0]
        assert int(ends.argmax()) == favourite
        assert int(flow_limit(initial, world, sharpening()).argmax()) == int(world.base_logprob.argmax())


def test_a_small_entropy_weight_is_the_limit_of_none_and_flows_compose() -> None:
    world = random_world(13, 3, 3)
    initial = start(world)
    none, little, less = (
        natural_gradient_flow(initial, world, weighted(1.0, 0.5, c, o), [2.0]).log_policies[0]
        for c, o in ((0.3, 0.3), (0.3 + 1e-9, 0.3), (0.3, 0.3 + 1e-9))
    )
    torch.testing.assert_close(little, none, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(less, none, rtol=1e-7, atol=1e-7)
    for objective in REGIMES.values():
        first = natural_gradient_flow(initial, world, objective, [0.7]).log_policies[0]
        then = natural_gradient_flow(first, world, objective, [1.1]).log_policies[0]
        at_once = natural_gradient_flow(initial, world, objective, [1.8]).log_policies[0]
        torch.testing.assert_close(then, at_once, rtol=1e-10, atol=1e-10)


@each_regime
def test_no_time_is_too_long_and_no_support_grows(objective: Objective) -> None:
    world = random_world(14, 3, 2)
    initial = start(world).index_fill(0, torch.tensor([3]), -torch.inf).log_softmax(-1)
    flow = natural_gradient_flow(initial, world, objective, [0.0, 1.0, 1e3, 1e6])
    assert not bool(flow.log_policies.isnan().any())
    torch.testing.assert_close(flow.policies.sum(-1), torch.ones(4, dtype=torch.float64))
    assert bool((flow.policies[:, 3] == 0).all())
    assert float(flow_limit(initial, world, objective)[3]) == -torch.inf
    integrated = gradient_flow(tabular_log_policy, initial, world, objective, [0.0, 0.5])
    assert bool((integrated.policies[:, 3] == 0).all())
    assert bool(integrated.log_policies[:, :3].isfinite().all())


def test_a_trajectory_says_what_its_policies_are_worth_and_like() -> None:
    world, objective = random_world(15, 3, 2), tilted(2.0, 5.0)
    flow = natural_gradient_flow(world.base_logprob, world, objective, [0.0, 1.0])
    assert isinstance(flow, Trajectory)
    for index, log_policy in enumerate(flow.log_policies):
        assert flow.objective[index] == exact_objective(log_policy, world, objective)
        assert flow.moments[index] == moments(log_policy, world)
    distance = flow.total_variation(world.base_logprob)
    by_hand = sum(abs(p - q) for p, q in zip(*flow.policies.tolist(), strict=True)) / 2
    assert distance.tolist() == pytest.approx([0.0, by_hand], abs=1e-15)


def test_flows_that_cannot_be_followed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    world = random_world(16, 3, 2)
    base = world.base_logprob
    for times in ([], [float("nan")], [[0.0]]):
        with pytest.raises(ValueError, match="give at least one"):
            natural_gradient_flow(base, world, sharpening(), times)
    for times in ([-1.0, 1.0], [1.0, 0.5], [1.0, 1.0]):
        with pytest.raises(ValueError, match="times must rise from 0 or later"):
            gradient_flow(tabular_log_policy, base, world, sharpening(), times)
    holed = world.with_base(base.index_fill(0, torch.tensor([2]), -torch.inf))
    with pytest.raises(ValueError, match="response 2 has no finite score"):
        natural_gradient_flow(base, holed, sharpening(), [1.0])
    monkeypatch.setattr(dynamics, "MAX_EVALUATIONS", 20)
    log_policy, table = autoregressive_log_policy(world), world.base_table()
    with pytest.raises(ValueError, match="more than 20 evaluations"):
        gradient_flow(log_policy, table, world, sharpening(), [100.0])
