"""A perturbed base: what is exact about the optimum's answer, what is first order, and when a linear optimum flips."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

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
from bsharp.seeding import generator
from bsharp.theory.stability import (
    amplification_curve,
    binomial_share,
    flip_distance,
    flip_probability,
    flip_share_under_table_noise,
    optimum_change,
    response_values,
    table_perturbation,
    tied,
    total_variation_bound,
    value_sensitivity,
)
from bsharp.theory.targets import optimum
from bsharp.theory.world import FiniteWorld, from_arrays, random_world
from bsharp.theory.worlds import near_tie

LINEAR = {
    "sharpening": sharpening(),
    "sharpening_alpha": sharpening(alpha=3.0),
    "sharpening_mean": sharpening("mean"),
    "sharpening_weighted": sharpening("weighted_mean", rho=0.5),
    "hybrid": hybrid(1.0, 2.0),
    "likelihood_penalty": hybrid(-1.0, 4.0, "mean"),
    "cancelled_entropy": weighted(0.5, 0.2, 0.3, 0.3),
}
each_linear = pytest.mark.parametrize("objective", LINEAR.values(), ids=LINEAR)


def noise(world: FiniteWorld, seed: int = 0, size: float = 0.3) -> torch.Tensor:
    return size * torch.randn(world.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def coins(probabilities: list[float], rewards: list[float]) -> FiniteWorld:
    """Responses of one token with these probabilities."""
    ids = np.arange(len(probabilities))[:, None]
    return from_arrays(ids, np.ones_like(ids), np.log(probabilities)[:, None], rewards)


# Every regime with its optimum written out in NumPy from arrays: (objective, exponent of l_ref, weight of the reward).
SMOOTH = {
    "tempered_half": (tempered(0.5), lambda ref, t: 0.5 * ref, 0.0),
    "tempered_3": (tempered(3.0), lambda ref, t: 3.0 * ref, 0.0),
    "tempered_mean": (tempered(3.0, "mean"), lambda ref, t: ref + 2.0 * ref / t, 0.0),
    "tilted_1": (tilted(1.0, 4.0), lambda ref, t: ref, 4.0),
    "tilted_2": (tilted(2.0, 4.0), lambda ref, t: 2.0 * ref, 4.0),
    "all_terms": (
        weighted(0.5, 0.4, 0.3, 0.1, "weighted_mean", 0.5),
        lambda ref, t: (0.4 * ref / t**0.5 + 0.3 * ref) / 0.2,
        2.5,
    ),
}
each_smooth = pytest.mark.parametrize(("objective", "exponent", "weight"), SMOOTH.values(), ids=SMOOTH)


@each_smooth
def test_the_change_of_a_smooth_optimum_is_that_of_its_closed_form(objective, exponent, weight) -> None:  # type: ignore[no-untyped-def]
    world = random_world(0, 3, 4)
    delta = noise(world)
    base, lengths, rewards = world.base_logprob.numpy(), world.lengths.numpy(), world.rewards.numpy()
    before, after = (softmax(exponent(ref, lengths) + weight * rewards) for ref in (base, base + delta.numpy()))
    moved = optimum_change(world, objective, delta)
    np.testing.assert_allclose(moved.change.numpy(), np.log(after / before), atol=1e-12)
    driven = exponent(delta.numpy(), lengths)
    np.testing.assert_allclose(moved.first_order.numpy(), driven - before @ driven, atol=1e-12)
    assert moved.total_variation == pytest.approx(0.5 * np.abs(after - before).sum(), abs=1e-14)
    assert moved.total_variation_first_order == pytest.approx(
        0.5 * before @ np.abs(driven - before @ driven), abs=1e-14
    )
    assert moved.remainder == pytest.approx(-before @ np.log(before / after), abs=1e-13)  # -KL(p || p')


@each_smooth
def test_what_the_first_order_misses_is_one_constant_of_second_order(objective, exponent, weight) -> None:  # type: ignore[no-untyped-def]
    """-KL(p || p'): the same for all responses, within Hoeffding's bound, and a quarter at half the perturbation."""
    world = random_world(1, 3, 4)
    delta = noise(world, 1)
    driven = exponent(delta.numpy(), world.lengths.numpy())
    remainders = []
    for scale in (1.0, 1e-2, 5e-3):
        moved = optimum_change(world, objective, scale * delta)
        missed = moved.change - moved.first_order
        torch.testing.assert_close(missed, torch.full_like(missed, moved.remainder), rtol=0, atol=1e-13)
        assert -((scale * np.ptp(driven)) ** 2) / 8 <= moved.remainder < 0
        remainders.append(moved.remainder)
    assert remainders[1] / remainders[2] == pytest.approx(4.0, rel=0.02)
    policy = optimum(world, objective).policy.numpy()
    variance = policy @ (driven - policy @ driven) ** 2
    assert remainders[2] == pytest.approx(-(5e-3**2) * variance / 2, rel=0.02)


@each_smooth
def test_the_change_is_that_to_the_optimum_of_the_perturbed_world(objective, exponent, weight) -> None:  # type: ignore[no-untyped-def]
    world = random_world(1, 3, 4)
    shift = torch.as_tensor(np.random.default_rng(1).normal(size=(world.num_prefixes, 3)))
    other = world.with_table(world.base_table() + shift)
    moved = optimum_change(world, objective, table_perturbation(world, shift))
    expected = optimum(other, objective).log_policy - optimum(world, objective).log_policy
    torch.testing.assert_close(moved.change, expected, rtol=0, atol=1e-12)


def test_with_the_sum_a_base_need_not_be_normalised_again_and_with_the_mean_it_must() -> None:
    world = random_world(1, 3, 4)
    delta = noise(world, 1, 1.0)
    normalised = world.with_base(world.base_logprob + delta)
    for objective, same in ((tempered(3.0), True), (tilted(2.0, 4.0), True), (tempered(3.0, "mean"), False)):
        expected = optimum(normalised, objective).log_policy - optimum(world, objective).log_policy
        assert torch.allclose(optimum_change(world, objective, delta).change, expected, atol=1e-10) is same


def test_powering_amplifies_every_difference_alpha_times_and_tilting_once_whatever_the_size_of_the_perturbation() -> (
    None
):
    world = random_world(2, 3, 4)
    for size in (1e-3, 1.0, 30.0):
        delta = noise(world, 2, size)
        curve = amplification_curve(world, [0.5, 1.0, 2.0, 8.0], delta)
        np.testing.assert_allclose(curve.pairwise_amplification, curve.alpha, rtol=1e-9)
        for beta_inv in (0.1, 10.0):
            assert optimum_change(world, tilted(1.0, beta_inv), delta).pairwise_amplification == pytest.approx(1.0)
            assert optimum_change(world, tilted(4.0, beta_inv), delta).pairwise_amplification == pytest.approx(4.0)


def test_a_constant_perturbation_changes_nothing_and_has_no_amplification() -> None:
    world = random_world(2, 3, 3)
    moved = optimum_change(world, tempered(3.0), torch.full((world.size,), 0.7, dtype=torch.float64))
    assert moved.change.abs().max() < 1e-12
    assert moved.total_variation < 1e-12
    assert math.isnan(moved.pairwise_amplification)


def test_the_susceptibility_of_accuracy_is_alpha_times_a_covariance() -> None:
    """d/d eps E_{p_alpha}[r] at l_ref + eps delta, by central differences of the closed form in NumPy."""
    world = random_world(3, 3, 4)
    delta = noise(world, 3, 1.0)
    base, rewards, step = world.base_logprob.numpy(), world.rewards.numpy(), 1e-5
    alphas = [0.5, 1.0, 2.0, 5.0]
    curve = amplification_curve(world, alphas, delta)
    for alpha, first_order, exact in zip(alphas, curve.reward_change_first_order, curve.reward_change, strict=True):

        def accuracy(eps: float, alpha: float = alpha) -> float:
            return float(softmax(alpha * (base + eps * delta.numpy())) @ rewards)

        slope = (accuracy(step) - accuracy(-step)) / (2 * step)
        assert first_order == pytest.approx(slope, abs=1e-8)
        assert exact == pytest.approx(accuracy(1.0) - accuracy(0.0), abs=1e-12)


def test_the_bound_on_total_variation_holds_for_every_alpha_and_is_reached() -> None:
    world = random_world(4, 3, 4)
    for seed in range(20):
        delta = noise(world, seed, 1.0).clamp(-0.8, 0.8)
        curve = amplification_curve(world, [0.5, 1.0, 4.0, 30.0], delta)
        assert (curve.total_variation <= curve.total_variation_bound + 1e-12).all()
    for alpha, size in ((1.0, 0.3), (4.0, 0.3), (2.0, 2.0)):
        share = 1 / (1 + math.exp(alpha * size))
        powered = np.array([share, 1 - share]) ** (1 / alpha)
        world = coins(list(powered / powered.sum()), [1.0, 0.0])
        moved = optimum_change(world, tempered(alpha), torch.tensor([size, -size], dtype=torch.float64))
        assert moved.total_variation == pytest.approx(total_variation_bound(alpha, size), abs=1e-12)


def test_a_perturbed_table_is_a_base_again_and_its_perturbation_is_the_change_of_log_probability() -> None:
    world = random_world(5, 3, 3)
    rng = np.random.default_rng(0)
    shift = rng.normal(size=(world.num_prefixes, 3))
    delta = table_perturbation(world, torch.as_tensor(shift))
    assert (world.base_logprob + delta).exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    rows = np.array([softmax(row) for row in world.base_table().numpy() + shift])
    for index in range(world.size):
        kept = world.mask[index]
        prefixes, tokens = world.prefix_index[index][kept].numpy(), world.token_ids[index][kept].numpy()
        expected = np.log(rows[prefixes, tokens]).sum() - world.base_logprob[index].item()
        assert delta[index].item() == pytest.approx(expected, abs=1e-12)
    each_row = torch.as_tensor(np.repeat(shift[:, :1], 3, axis=1))  # moves all next tokens of a prefix alike
    assert table_perturbation(world, each_row).abs().max() < 1e-12


@each_linear
def test_values_and_their_slopes_are_those_of_the_objective(objective: Objective) -> None:
    world = random_world(6, 3, 4)
    base, lengths = world.base_logprob, world.lengths.double()
    slopes = objective.base_loglikelihood / lengths**objective.length_exponent + objective.kl_to_base
    torch.testing.assert_close(response_values(world, objective), objective.task * world.rewards + slopes * base)
    torch.testing.assert_close(value_sensitivity(world, objective), slopes)


def winners(world: FiniteWorld, objective: Objective, delta: torch.Tensor) -> set[int]:
    return set(tied(response_values(world, objective, world.base_logprob + delta)).nonzero()[:, 0].tolist())


@each_linear
def test_no_perturbation_below_the_flip_distance_moves_a_linear_optimum_and_one_just_above_does(
    objective: Objective,
) -> None:
    for seed in range(5):
        world = random_world(seed, 3, 4)
        flip = flip_distance(world, objective)
        slopes = value_sensitivity(world, objective)
        unmoved = winners(world, objective, torch.zeros(world.size, dtype=torch.float64))
        assert unmoved == {flip.optimum}
        assert flip.rival is not None
        against = slopes.sign()  # pushes every response up and the optimum down
        against[flip.optimum] *= -1
        assert winners(world, objective, 0.999 * flip.distance * against) == unmoved
        assert winners(world, objective, 1.001 * flip.distance * against) == {flip.rival}
        values = response_values(world, objective)
        assert flip.gap == pytest.approx(float(values[flip.optimum] - values[flip.rival]))


def test_the_flip_distance_of_sharpening_is_half_the_gap_to_the_second_likeliest() -> None:
    for seed in range(5):
        world = random_world(seed, 3, 4)
        ordered = np.sort(world.base_logprob.numpy())
        for alpha in (1.0, 4.0):  # a scale of J moves no optimum
            distance = flip_distance(world, sharpening(alpha=alpha)).distance
            assert distance == pytest.approx((ordered[-1] - ordered[-2]) / 2)
    assert flip_distance(near_tie(0, gap=0.01), sharpening()).distance == pytest.approx(0.005, abs=1e-9)


def test_the_base_does_not_touch_the_optima_of_the_task_reward() -> None:
    world = random_world(7, 3, 4)
    flip = flip_distance(world, task_reward())
    assert flip.rival is None
    assert math.isinf(flip.distance)
    assert flip_probability(world, task_reward(), 10.0) == 0.0
    for seed in range(5):
        assert winners(world, task_reward(), noise(world, seed, 20.0)) == set(world.rewards.nonzero()[:, 0].tolist())
    shares = [
        flip_share_under_table_noise(world, objective, 5.0, 50, generator(0, "test"))
        for objective in (task_reward(), sharpening())
    ]
    assert shares[0].estimate == 0.0
    assert shares[1].estimate > 0.5


def test_a_tie_flips_at_any_perturbation() -> None:
    world = coins([0.4, 0.4, 0.2], [1.0, 0.0, 0.0])
    flip = flip_distance(world, sharpening())
    assert (flip.optimum, flip.rival, flip.gap, flip.distance) == (0, 1, 0.0, 0.0)
    assert flip_probability(world, sharpening(), 1e-3) == pytest.approx(0.5, abs=1e-8)


@pytest.mark.parametrize("sd", [0.05, 0.5, 5.0])
def test_two_responses_flip_with_the_normal_probability_of_their_gap(sd: float) -> None:
    world = coins([0.55, 0.45], [0.0, 1.0])
    gap = math.log(0.55 / 0.45)
    expected = stats.norm.cdf(-gap / (math.sqrt(2) * sd))
    assert flip_probability(world, sharpening(), sd) == pytest.approx(expected, abs=1e-8)
    # r in favour of the less likely: value gap 1 - gap/2, each value moved by half its noise.
    against = stats.norm.cdf(-(1 - gap / 2) / (math.sqrt(2) * 0.5 * sd))
    assert flip_probability(world, hybrid(1.0, 2.0), sd) == pytest.approx(against, abs=1e-8)


@each_linear
def test_many_responses_flip_as_often_as_in_simulation(objective: Objective) -> None:
    """20,000 draws; a deviation of 4.9 standard errors has probability 1e-6."""
    world = random_world(8, 3, 3)
    draws, sd = 20_000, 0.4
    shift = np.random.default_rng(0).normal(scale=sd, size=(draws, world.size))
    values, slopes = response_values(world, objective).numpy(), value_sensitivity(world, objective).numpy()
    flips = ((values + slopes * shift).argmax(-1) != values.argmax()).mean()
    probability = flip_probability(world, objective, sd)
    assert 0.001 < probability < 0.999
    assert abs(flips - probability) < 4.9 * math.sqrt(probability * (1 - probability) / draws)


def test_a_table_of_one_token_flips_as_independent_responses_do() -> None:
    """Responses of one token share no prefix. 500 draws; 4.9 standard errors have probability 1e-6."""
    world = random_world(9, 4, 1, eos=None)
    share = flip_share_under_table_noise(world, sharpening(), 0.7, 500, generator(0, "test"))
    probability = flip_probability(world, sharpening(), 0.7)
    assert abs(share.estimate - probability) < 4.9 * math.sqrt(probability * (1 - probability) / 500)
    assert share.low < share.estimate < share.high


def test_the_interval_of_a_share_is_exact() -> None:
    none = binomial_share(0, 100, "bases")
    assert (none.estimate, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 100))


def test_responses_the_base_never_gives_stay_out() -> None:
    ids = np.arange(3)[:, None]
    world = from_arrays(ids, np.ones_like(ids), np.array([[math.log(0.7)], [math.log(0.3)], [-math.inf]]), [0, 1, 1])
    moved = optimum_change(world, tempered(2.0), torch.tensor([0.1, -0.1, 5.0], dtype=torch.float64))
    assert moved.change[2] == 0
    assert moved.pairwise_amplification == pytest.approx(2.0)
    flip = flip_distance(world, sharpening())
    assert (flip.optimum, flip.rival) == (0, 1)
    assert flip.distance == pytest.approx(math.log(0.7 / 0.3) / 2)
    assert flip_probability(world, sharpening(), 0.5) == pytest.approx(
        stats.norm.cdf(-math.log(0.7 / 0.3) / (0.5 * math.sqrt(2))), abs=1e-8
    )


def test_the_wrong_question_is_refused() -> None:
    world = random_world(0, 3, 3)
    delta = torch.zeros(world.size, dtype=torch.float64)
    with pytest.raises(ValueError, match="use flip_distance"):
        optimum_change(world, sharpening(), delta)
    with pytest.raises(ValueError, match="must be finite"):
        optimum_change(world, tempered(2.0), delta - math.inf)
    for objective in (tempered(2.0), tilted(), entropy_minimisation()):
        with pytest.raises(ValueError, match="linear objectives"):
            flip_distance(world, objective)
        with pytest.raises(ValueError, match="linear objectives"):
            flip_probability(world, objective, 1.0)
    with pytest.raises(ValueError, match="sd > 0"):
        flip_probability(world, sharpening(), 0.0)
    with pytest.raises(ValueError, match="size >= 0"):
        total_variation_bound(1.0, -1.0)
