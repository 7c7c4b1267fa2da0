"""Sampled gradients over all possible groups, and what training on samples ends in; two statistical tests.

The false-alarm probability of each statistical test is 1e-6 (chi-squared with the exact covariance); seeds are fixed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from bsharp.algorithm import Objective, sharpening, task_reward, tempered, tilted, weighted
from bsharp.config import AlgorithmConfig
from bsharp.seeding import generator
from bsharp.theory.policy_gradient import autoregressive_table, exact_gradient, exact_scores, leave_one_out_noise
from bsharp.theory.sampled import (
    Parametrisation,
    SampledRun,
    SampledSettings,
    autoregressive,
    draw,
    sampled_gradient,
    tabular,
    train_sampled,
)
from bsharp.theory.targets import expectation, optimum
from bsharp.theory.world import FiniteWorld, random_world

REGIMES = {
    "task_reward": task_reward(),
    "tilted": tilted(2.0, 5.0),
    "sharpening_mean": sharpening("mean"),
    "tempered": tempered(2.0),
    "everything": weighted(0.7, -0.3, 0.2, 0.4, "weighted_mean", 0.25),
}
RLOO = AlgorithmConfig()
each_regime = pytest.mark.parametrize("objective", REGIMES.values(), ids=REGIMES)
each_parametrisation = pytest.mark.parametrize("build", [tabular, autoregressive])
FALSE_ALARM = 1e-6


def away_from_base(parametrisation: Parametrisation, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(
        parametrisation.initial.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return parametrisation.initial + 0.7 * noise


def over_all_groups(
    parametrisation: Parametrisation,
    parameters: torch.Tensor,
    world: FiniteWorld,
    objective: Objective,
    config: AlgorithmConfig,
    groups: int,
    group_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact mean and covariance of the sampled gradient, over all N^(groups * group_size) draws."""
    log_policy = parametrisation.log_policy(parameters)
    group_index = torch.arange(groups).repeat_interleave(group_size)
    draws = list(itertools.product(range(world.size), repeat=groups * group_size))
    estimates = torch.stack(
        [
            sampled_gradient(
                parametrisation, parameters, world, objective, torch.tensor(rows), group_index, config
            ).flatten()
            for rows in draws
        ]
    )
    probability = log_policy[torch.tensor(draws)].sum(-1).exp()
    assert float(probability.sum()) == pytest.approx(1.0)
    mean = probability @ estimates
    centred = estimates - mean
    return mean, centred.T @ (probability[:, None] * centred)


SHAPES = {  # vocabulary, length, groups, group size: N^(groups * group size) draws
    "3 responses, G = 2": (2, 2, 1, 2),
    "3 responses, 2 groups of 2": (2, 2, 2, 2),
    "4 responses, G = 3": (2, 3, 1, 3),
}


@pytest.mark.parametrize(
    ("objective", "shape"),
    [(o, SHAPES["3 responses, G = 2"]) for o in REGIMES.values()]
    + [(REGIMES["everything"], shape) for shape in list(SHAPES.values())[1:]],
    ids=[*REGIMES, *list(SHAPES)[1:]],
)
@each_parametrisation
def test_leave_one_out_gradient_is_unbiased_with_the_closed_form_variance(
    objective: Objective, shape: tuple[int, int, int, int], build: Callable[[FiniteWorld], Parametrisation]
) -> None:
    vocab_size, max_length, groups, group_size = shape
    world = random_world(0, vocab_size, max_length)
    parametrisation = build(world)
    parameters = away_from_base(parametrisation)
    mean, covariance = over_all_groups(parametrisation, parameters, world, objective, RLOO, groups, group_size)
    exact = exact_gradient(parametrisation.log_policy, parameters, world, objective)
    assert exact.norm() > 1e-3
    torch.testing.assert_close(mean, exact.flatten(), rtol=1e-6, atol=1e-7)  # fp32 reduction weights
    noise = leave_one_out_noise(parametrisation.log_policy, parameters, world, objective, group_size, groups)
    assert noise.variance == pytest.approx(float(covariance.trace()), rel=1e-6)
    assert noise.signal_squared == pytest.approx(float(exact.square().sum()), rel=1e-9)
    assert noise.norm_squared == pytest.approx(noise.signal_squared + noise.variance, rel=1e-12)


@each_parametrisation
def test_dividing_by_the_standard_deviation_of_the_group_biases_the_gradient_but_climbs(
    build: Callable[[FiniteWorld], Parametrisation],
) -> None:
    world = random_world(1, 3, 2)
    parametrisation = build(world)
    parameters = away_from_base(parametrisation)
    grpo = AlgorithmConfig(advantage="group_z_score")
    mean, _ = over_all_groups(parametrisation, parameters, world, task_reward(), grpo, 1, 2)
    exact = exact_gradient(parametrisation.log_policy, parameters, world, task_reward()).flatten()
    assert (mean - exact).norm() > 0.1 * exact.norm()
    # Two binary rewards have standard deviation 0 or 1 / sqrt(2): the gradient is scaled and keeps its direction.
    torch.testing.assert_close(mean, exact / (0.5**0.5 + 1e-4) / 2, rtol=1e-6, atol=1e-8)


@each_parametrisation
def test_leave_one_out_gradient_is_unbiased_on_drawn_groups(build: Callable[[FiniteWorld], Parametrisation]) -> None:
    """The mean of 3,000 groups against the exact gradient under the exact covariance: chi-squared, P(alarm) = 1e-6."""
    world, objective, groups = random_world(2, 3, 2), tilted(2.0, 5.0), 3000
    parametrisation = build(world)
    parameters = away_from_base(parametrisation)
    _, covariance = over_all_groups(parametrisation, parameters, world, objective, RLOO, 1, 2)
    rows, group_index = draw(parametrisation.log_policy(parameters), groups, 2, generator(0, "test_unbiased"))
    found = sampled_gradient(parametrisation, parameters, world, objective, rows, group_index, RLOO)
    off = (found - exact_gradient(parametrisation.log_policy, parameters, world, objective)).flatten()
    rank = int(torch.linalg.matrix_rank(covariance, rtol=1e-9, hermitian=True))
    statistic = groups * float(off @ torch.linalg.pinv(covariance, rtol=1e-9, hermitian=True) @ off)
    assert rank == world.size - 1
    assert stats.chi2.sf(statistic, rank) > FALSE_ALARM


def test_draws_follow_the_policy() -> None:
    """Chi-squared over 7 responses and 20,000 draws, P(alarm) = 1e-6; groups are numbered in order."""
    world = random_world(3, 3, 2)
    rows, group_index = draw(world.base_logprob, 2500, 8, generator(0, "test_draws"))
    counts = torch.bincount(rows, minlength=world.size).numpy()
    expected = world.base_logprob.exp().numpy() * 20_000
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > FALSE_ALARM
    assert group_index.tolist() == [group for group in range(2500) for _ in range(8)]


@each_regime
@each_parametrisation
def test_ppo_in_its_first_update_is_reinforce(
    objective: Objective, build: Callable[[FiniteWorld], Parametrisation]
) -> None:
    """At ratio 1 the clip is silent: one on-policy epoch of PPO is RLOO's gradient, on every draw."""
    world = random_world(4, 3, 3)
    parametrisation = build(world)
    parameters = away_from_base(parametrisation)
    rows, group_index = draw(parametrisation.log_policy(parameters), 3, 4, generator(0, "test_ppo"))
    for advantage in ("leave_one_out", "group_z_score", "gae"):
        plain, clipped = (
            sampled_gradient(
                parametrisation,
                parameters,
                world,
                objective,
                rows,
                group_index,
                AlgorithmConfig(advantage=advantage, loss=loss),
            )
            for loss in ("reinforce", "ppo_clip")
        )
        assert plain.norm() > 1e-3
        torch.testing.assert_close(clipped, plain, rtol=1e-12, atol=1e-14)


@each_regime
@each_parametrisation
def test_gae_with_any_critic_is_unbiased_at_lambda_one(
    objective: Objective, build: Callable[[FiniteWorld], Parametrisation]
) -> None:
    """A baseline that sees only the prefix has no mean; lambda = 0 with a wrong critic is biased, with the true one not."""
    world = random_world(5, 3, 2)
    parametrisation = build(world)
    parameters = away_from_base(parametrisation)
    log_policy = parametrisation.log_policy(parameters)
    exact = exact_gradient(parametrisation.log_policy, parameters, world, objective)
    states = int(parametrisation.states.max()) + 1
    critic = torch.randn(states, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def mean(values: torch.Tensor, lam: float) -> torch.Tensor:
        config = AlgorithmConfig(advantage="gae", gae_lambda=lam)
        return sum(  # type: ignore[return-value]
            probability
            * sampled_gradient(
                parametrisation, parameters, world, objective, torch.tensor([y]), torch.tensor([0]), config, values
            )
            for y, probability in enumerate(log_policy.exp().tolist())
        )

    torch.testing.assert_close(mean(critic, 1.0), exact, rtol=1e-6, atol=1e-8)
    if build is autoregressive:
        assert (mean(critic, 0.0) - exact).norm() > 1e-2


@pytest.mark.parametrize("objective", [REGIMES["tilted"], REGIMES["tempered"]], ids=["tilted", "tempered"])
@each_parametrisation
def test_a_policy_at_its_smooth_optimum_never_moves_whatever_is_drawn(
    objective: Objective, build: Callable[[FiniteWorld], Parametrisation]
) -> None:
    """All scores are equal there: no signal, and no noise either."""
    world = random_world(6, 3, 2)
    parametrisation = build(world)
    target = optimum(world, objective).log_policy
    initial = target if build is tabular else autoregressive_table(world, target)
    settings = SampledSettings(steps=20, groups=2, group_size=4, learning_rate=1.0)
    run = train_sampled(world, objective, parametrisation, settings, generator(0, "test_still"), initial)
    assert run.trajectory.total_variation(target).max() < 1e-12
    assert max(noise.norm_squared for noise in run.noise.values()) < 1e-24


PPO = AlgorithmConfig(loss="ppo_clip", epochs=2, minibatches=2)
CRITIC = AlgorithmConfig(loss="ppo_clip", advantage="gae", value_learning_rate=0.3, value_clip=10.0)
CONVERGENCE = {
    "tilted, RLOO, tabular": (tilted(1.0, 2.0), RLOO, 2.0, tabular),
    "tilted, RLOO, autoregressive": (tilted(1.0, 2.0), RLOO, 2.0, autoregressive),
    "tempered, RLOO, tabular": (tempered(2.0), RLOO, 1.0, tabular),
    "tempered, RLOO, autoregressive": (tempered(2.0), RLOO, 1.0, autoregressive),
    "tempered by mean, PPO, autoregressive": (tempered(2.0, "mean"), PPO, 1.0, autoregressive),
    "tilted and tempered, PPO, tabular": (tilted(1.5, 2.0), PPO, 2.0, tabular),
    "tempered, PPO with a critic, autoregressive": (tempered(2.0), CRITIC, 1.0, autoregressive),
}


@pytest.mark.parametrize(("objective", "config", "learning_rate", "build"), CONVERGENCE.values(), ids=list(CONVERGENCE))
def test_training_on_samples_converges_to_the_closed_form(
    objective: Objective, config: AlgorithmConfig, learning_rate: float, build: Callable[[FiniteWorld], Parametrisation]
) -> None:
    """Total variation at most 0.02 after 120 steps of 4 groups of 8; the bases are 0.1 to 0.6 away."""
    world = random_world(7, 3, 3)
    settings = SampledSettings(120, learning_rate=learning_rate, algorithm=config, noise_every=120)
    run = train_sampled(world, objective, build(world), settings, generator(0, "test_converges"))
    distance = run.trajectory.total_variation(optimum(world, objective).log_policy)
    assert distance[0] > 0.1
    assert distance[-1] <= 0.02
    assert run.noise[120].variance < 0.1 * run.noise[0].variance


def test_group_z_scores_converge_with_a_falling_learning_rate() -> None:
    """Divided by the standard deviation the noise does not fade near the optimum, so the rate has to."""
    world, objective = random_world(7, 3, 3), tilted(1.0, 2.0)
    config = AlgorithmConfig(advantage="group_z_score", loss="ppo_clip")
    settings = SampledSettings(120, 4, 16, 0.5, 0.0, algorithm=config, noise_every=120)
    run = train_sampled(world, objective, tabular(world), settings, generator(0, "test_grpo"))
    assert run.trajectory.total_variation(optimum(world, objective).log_policy)[-1] <= 0.05


@each_parametrisation
def test_training_on_samples_of_sharpening_gathers_on_one_response_and_loses_entropy(
    build: Callable[[FiniteWorld], Parametrisation],
) -> None:
    world = random_world(7, 3, 3)
    settings = SampledSettings(120, learning_rate=2.0, noise_every=120)
    run = train_sampled(world, sharpening(), build(world), settings, generator(0, "test_sharpen"))
    last = run.trajectory.moments[-1]
    assert int(run.trajectory.policies[-1].argmax()) == int(world.base_logprob.argmax())
    assert run.trajectory.policies[-1].max() > 0.98
    assert last.entropy < 0.1 < run.trajectory.moments[0].entropy
    assert last.kl_policy_base == pytest.approx(-float(world.base_logprob.max()), rel=0.1)


@each_parametrisation
def test_training_is_its_own_loop_written_out(build: Callable[[FiniteWorld], Parametrisation]) -> None:
    """theta <- theta + rate * sampled gradient, the rate falling linearly, on the same draws."""
    world, objective = random_world(8, 3, 2), tilted(2.0, 5.0)
    parametrisation = build(world)
    settings = SampledSettings(3, 2, 4, learning_rate=1.0, final_learning_rate=0.5, noise_every=2)
    run = train_sampled(world, objective, parametrisation, settings, generator(0, "test_loop"))
    rng, parameters = generator(0, "test_loop"), parametrisation.initial
    log_policies = [parametrisation.log_policy(parameters)]
    for rate in (1.0, 0.75, 0.5):
        rows, group_index = draw(log_policies[-1], 2, 4, rng)
        rng.permutation(2)  # minibatches are dealt even where there is one
        parameters = parameters + rate * sampled_gradient(
            parametrisation, parameters, world, objective, rows, group_index, RLOO
        )
        log_policies.append(parametrisation.log_policy(parameters))
    torch.testing.assert_close(run.parameters, parameters)
    torch.testing.assert_close(run.trajectory.log_policies, torch.stack(log_policies))
    assert run.trajectory.times.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert list(run.noise) == [0, 2]
    here = leave_one_out_noise(parametrisation.log_policy, parametrisation.initial, world, objective, 4, 2)
    assert run.noise[0].variance == pytest.approx(here.variance, rel=1e-9)


def test_the_critic_learns_the_expected_score_still_to_come() -> None:
    """With the policy at rest, V(prefix) tends to the mean score of the tokens that follow; within 0.1 of range 5."""
    world, objective = random_world(9, 3, 2), sharpening()
    config = AlgorithmConfig(advantage="gae", value_learning_rate=1.0, value_clip=100.0)
    settings = SampledSettings(200, 4, 64, learning_rate=0.0, algorithm=config, noise_every=200)
    run = train_sampled(world, objective, autoregressive(world), settings, generator(0, "test_critic"))
    token_scores = objective.token_scores(world.score_inputs(world.base_token_logprobs))
    policy = world.base_logprob.exp()
    for state in range(world.num_prefixes):
        at = (world.prefix_index == state) & world.mask
        holds = at.any(-1)
        to_come = torch.where(world.mask & (at.cumsum(-1) > 0), token_scores, 0.0).sum(-1)
        expected = float((policy * to_come)[holds].sum() / policy[holds].sum())
        assert float(run.values[state]) == pytest.approx(expected, abs=0.1)


def test_clipping_bounds_how_far_epochs_carry_a_response_and_reinforce_has_no_bound() -> None:
    """A tabular response is left alone once its ratio has passed 1.2; a REINFORCE loss is linear in the logits."""
    world = random_world(10, 3, 2)

    def trained(loss: str, epochs: int) -> SampledRun:
        config = AlgorithmConfig(loss=loss, epochs=epochs, clip_low=0.2, clip_high=0.2)  # type: ignore[arg-type]
        settings = SampledSettings(1, 4, 8, learning_rate=0.5, algorithm=config)
        return train_sampled(world, sharpening(), tabular(world), settings, generator(0, "test_clip"))

    clipped, plain, once = trained("ppo_clip", 40), trained("reinforce", 40), trained("reinforce", 1)
    bound = np.log(1.2) + 0.1  # the last step goes past the bound
    assert clipped.trajectory.log_policies.diff(dim=0).max() < bound < plain.trajectory.log_policies.diff(dim=0).max()
    torch.testing.assert_close(plain.parameters - world.base_logprob, 40 * (once.parameters - world.base_logprob))


def test_minibatches_take_an_update_each() -> None:
    """3 groups dealt 2 and 1. A tabular leave-one-out loss is linear in the logits: both gradients are as at the start."""
    world, policy = random_world(10, 3, 2), tabular(random_world(10, 3, 2))
    settings = SampledSettings(1, 3, 8, learning_rate=0.5, algorithm=AlgorithmConfig(minibatches=2))
    end = train_sampled(world, sharpening(), policy, settings, generator(1, "test_minibatches")).parameters
    rng = generator(1, "test_minibatches")
    rows, group_index = draw(world.base_logprob, 3, 8, rng)
    gradients = []
    for part in np.array_split(rng.permutation(3), 2):
        dealt = torch.isin(group_index, torch.as_tensor(part))
        chosen, groups = rows[dealt], group_index[dealt]
        gradients.append(sampled_gradient(policy, policy.initial, world, sharpening(), chosen, groups, RLOO))
    assert (gradients[0] - gradients[1]).norm() > 0.05
    torch.testing.assert_close(end - policy.initial, 0.5 * (gradients[0] + gradients[1]), rtol=1e-6, atol=1e-8)


def test_scores_of_a_tabular_response_stand_on_its_tokens_lengths() -> None:
    """`mean` divides by the tokens of the response, although the policy makes a single choice."""
    world, objective = random_world(11, 3, 3), sharpening("mean")
    scores = exact_scores(world.base_logprob, world, objective)
    torch.testing.assert_close(scores, world.base_logprob / world.lengths)
    rows, group_index = torch.arange(world.size), torch.zeros(world.size, dtype=torch.long)
    found = sampled_gradient(
        tabular(world), world.base_logprob, world, objective, rows, group_index, AlgorithmConfig(advantage="none")
    )
    policy = world.base_logprob.exp()
    expected = (scores - policy * scores.sum()) / world.size
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    assert float(expectation(world.base_logprob, scores)) < 0


def test_a_lone_response_a_group_trains_with_a_critic_and_is_refused_by_leave_one_out() -> None:
    world = random_world(13, 3, 2)
    config = AlgorithmConfig(advantage="gae")
    run = train_sampled(
        world,
        tempered(2.0),
        autoregressive(world),
        SampledSettings(3, 4, 1, optimizer="AdamW", algorithm=config),
        generator(0, "test_lone"),
    )
    assert run.noise == {}
    assert run.trajectory.log_policies.shape == (4, world.size)
    with pytest.raises(ValueError, match="at least 2 completions per problem"):
        train_sampled(world, tempered(2.0), tabular(world), SampledSettings(3, 4, 1), generator(0, "test_lone"))


def test_settings_that_train_nothing_are_refused_and_a_seed_is_a_run() -> None:
    for name in ("steps", "groups", "group_size", "noise_every"):
        with pytest.raises(ValueError, match=f"{name} = 0 cannot be used"):
            SampledSettings(**{name: 0})
    with pytest.raises(ValueError, match="3 minibatches cannot share 2 groups"):
        SampledSettings(groups=2, algorithm=AlgorithmConfig(minibatches=3))
    with pytest.raises(ValueError, match=r"optimizer 'Sgd' is no class of torch\.optim"):
        SampledSettings(optimizer="Sgd")
    assert SampledSettings(steps=1, final_learning_rate=0.5).learning_rate_at(0) == 1.0
    world = random_world(12, 3, 2)
    runs = [
        train_sampled(world, tempered(2.0), tabular(world), SampledSettings(5), generator(seed, "test_seed")).parameters
        for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
