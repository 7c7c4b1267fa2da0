"""The score of every regime against its formula, its exact split over tokens, and the constructors against the paper."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bsharp.algorithm import (
    Normalisation,
    Objective,
    ScoreInputs,
    entropy_minimisation,
    from_paper,
    hybrid,
    optimum_log_weights,
    sharpening,
    task_reward,
    tempered,
    tilted,
    weighted,
)

NAN = float("nan")
REGIMES = {
    "task_reward": task_reward(),
    "tilted": tilted(2.0, 10.0),
    "tilted_mean": tilted(2.0, 10.0, normalisation="mean"),
    "sharpening": sharpening(),
    "sharpening_mean": sharpening("mean"),
    "sharpening_weighted": sharpening("weighted_mean", rho=0.5),
    "tempered": tempered(2.0),
    "hybrid": hybrid(0.5, 5.0),
    "entropy_minimisation": entropy_minimisation(),
    "everything": weighted(0.7, -0.3, 0.2, 0.4, "weighted_mean", 0.25),
}


def example() -> ScoreInputs:
    """Three rows of 3, 1 and 2 tokens; one has a hole in the middle, and what is masked out is NaN."""
    return ScoreInputs(
        rewards=torch.tensor([1.0, 0.0, 0.5]),
        base_token_logprobs=torch.tensor([[-1.0, -2.0, -3.0], [-0.5, NAN, NAN], [-4.0, NAN, -2.0]]),
        behaviour_token_logprobs=torch.tensor([[-0.5, -1.0, -2.5], [-1.5, NAN, NAN], [-3.0, NAN, -2.0]]),
        completion_mask=torch.tensor([[True, True, True], [True, False, False], [True, False, True]]),
    )


def test_scores_by_hand() -> None:
    """l_ref = (-6, -0.5, -6), l = (-4, -1.5, -5), T = (3, 1, 2), r = (1, 0, 1/2)."""
    expected = {
        "task_reward": [1.0, 0.0, 0.5],
        "tilted": [1 - 0.6 - 0.2, -0.05 + 0.1, 0.5 - 0.6 - 0.1],
        "tilted_mean": [1 - 0.2 - 0.2, -0.05 + 0.1, 0.5 - 0.3 - 0.1],
        "sharpening": [-6.0, -0.5, -6.0],
        "sharpening_mean": [-2.0, -0.5, -3.0],
        "sharpening_weighted": [-6 / 3**0.5, -0.5, -6 / 2**0.5],
        "tempered": [-6.0 - 2, -0.5 + 1, -6 - 1],
        "hybrid": [1 - 0.6, -0.05, 0.5 - 0.6],
        "entropy_minimisation": [-4.0, -1.5, -5.0],
        "everything": [
            0.7 + 1.8 / 3**0.25 - 0.4 - 1.6,
            0.15 + 0.2 - 0.6,
            0.35 + 1.8 / 2**0.25 - 0.2 - 2.0,
        ],
    }
    for name, objective in REGIMES.items():
        torch.testing.assert_close(objective.score(example()), torch.tensor(expected[name]), msg=name)


@pytest.mark.parametrize("objective", REGIMES.values(), ids=REGIMES)
def test_token_scores_sum_to_the_score_and_vanish_where_masked(objective: Objective) -> None:
    tokens = objective.token_scores(example())
    torch.testing.assert_close(tokens.sum(-1), objective.score(example()))
    assert (tokens[~example().completion_mask] == 0).all()


def test_likelihood_and_kl_sit_on_their_own_token_and_the_reward_on_the_last() -> None:
    objective = weighted(task=1.0, base_loglikelihood=2.0, kl_to_base=0.5)
    tokens = objective.token_scores(example())
    first_row = [2 * -1 + 0.5 * -0.5, 2 * -2 + 0.5 * -1.0, 2 * -3 + 0.5 * -0.5 + 1.0]
    torch.testing.assert_close(tokens[0], torch.tensor(first_row))
    # The last response token of the row with a hole is the third, not the second.
    torch.testing.assert_close(tokens[2], torch.tensor([2 * -4 - 0.5, 0.0, 2 * -2 + 0.5]))


def test_under_a_length_normalisation_a_token_gets_what_it_adds_to_the_mean_so_far() -> None:
    """Means so far of (-1, -2, -3) are -1, -1.5, -2; of (-4, -2) they are -4, -3."""
    tokens = sharpening("mean").token_scores(example())
    torch.testing.assert_close(tokens[0], torch.tensor([-1.0, -0.5, -0.5]))
    torch.testing.assert_close(tokens[2], torch.tensor([-4.0, 0.0, 1.0]))


def test_a_token_score_depends_on_nothing_drawn_later() -> None:
    inputs = example()
    shorter = ScoreInputs(
        inputs.rewards[:1],
        inputs.base_token_logprobs[:1, :2],
        inputs.behaviour_token_logprobs[:1, :2],
        inputs.completion_mask[:1, :2],
    )
    for objective in REGIMES.values():
        torch.testing.assert_close(objective.token_scores(shorter)[0, 0], objective.token_scores(inputs)[0, 0])


def test_scores_carry_no_gradient() -> None:
    behaviour = example().behaviour_token_logprobs.clone().requires_grad_(True)
    base = example().base_token_logprobs.clone().requires_grad_(True)
    inputs = ScoreInputs(example().rewards, base, behaviour, example().completion_mask)
    for objective in REGIMES.values():
        assert not objective.score(inputs).requires_grad
        assert not objective.token_scores(inputs).requires_grad


def test_a_missing_reward_reaches_only_objectives_that_use_it() -> None:
    inputs = ScoreInputs(
        torch.tensor([NAN, 1.0, 0.0]),
        example().base_token_logprobs,
        example().behaviour_token_logprobs,
        example().completion_mask,
    )
    assert task_reward().score(inputs).isnan().tolist() == [True, False, False]
    assert not sharpening().score(inputs).isnan().any()
    assert sharpening().label_free
    assert not hybrid(1, 1).label_free


def test_sum_ignores_padding_width_and_is_rho_0_as_mean_is_rho_1() -> None:
    inputs = example()
    wider = ScoreInputs(
        inputs.rewards,
        torch.nn.functional.pad(inputs.base_token_logprobs, (0, 4), value=NAN),
        torch.nn.functional.pad(inputs.behaviour_token_logprobs, (0, 4), value=NAN),
        torch.nn.functional.pad(inputs.completion_mask, (0, 4)),
    )
    for objective in REGIMES.values():
        torch.testing.assert_close(objective.score(wider), objective.score(inputs))
    for rho, kind in ((0.0, "sum"), (1.0, "mean")):
        assert torch.equal(sharpening("weighted_mean", rho=rho).score(inputs), sharpening(kind).score(inputs))


def test_an_empty_response_cannot_carry_a_reward() -> None:
    mask = example().completion_mask.clone()
    mask[1] = False
    inputs = ScoreInputs(example().rewards, example().base_token_logprobs, example().behaviour_token_logprobs, mask)
    with pytest.raises(ValueError, match="row 1 has no response token"):
        task_reward().token_scores(inputs)


@pytest.mark.parametrize(
    ("mode", "alpha", "beta_inv", "weights"),
    [
        ("task_reward", 0, 1, (1, 0, 0)),
        ("tilted", 1, 100, (1, 0, 0.01)),
        ("tilted", 2, 100, (1, 0.01, 0.01)),
        ("tilted", 4, 10000, (1, 3e-4, 1e-4)),
        ("sharpening", 4, 0, (0, 4, 0)),
        ("tempered", 1.25, 0, (0, 0.25, 1)),
        ("hybrid", 2, 100, (1, 0.02, 0)),
    ],
)
def test_the_papers_knobs_give_the_papers_weights(
    mode: str, alpha: float, beta_inv: float, weights: tuple[float, float, float]
) -> None:
    objective = from_paper(alpha, beta_inv, mode)
    assert (objective.task, objective.base_loglikelihood, objective.kl_to_base) == pytest.approx(weights)
    assert objective.own_loglikelihood == 0
    assert objective.normalisation is Normalisation.SUM


@pytest.mark.parametrize(
    ("mode", "alpha", "beta_inv", "message"),
    [
        ("task_reward", 1, 1, "needs alpha = 0"),
        ("task_reward", 0, 0, "needs beta_inv > 0"),
        ("tilted", 1, 0, "needs beta_inv > 0"),
        ("tilted", 0, 1, "needs alpha > 0"),
        ("sharpening", 0, 0, "needs alpha > 0"),
        ("sharpening", 1, 100, "needs beta_inv = 0"),
        ("tempered", -1, 0, "needs alpha > 0"),
        ("tempered", math.nan, 0, "needs alpha > 0"),
        ("hybrid", 1, math.inf, "needs beta_inv > 0"),
        ("tempred", 2, 0, "did you mean tempered"),
    ],
)
def test_impossible_knobs_are_refused(mode: str, alpha: float, beta_inv: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_paper(alpha, beta_inv, mode)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "all 0"),
        ({"task": math.inf}, "not finite"),
        ({"task": 1.0, "kl_to_base": -0.1}, "kl_to_base = -0.1"),
        ({"task": 1.0, "normalisation": "weighted_mean"}, "needs rho in"),
        ({"task": 1.0, "normalisation": "weighted_mean", "rho": 1.5}, "needs rho in"),
        ({"task": 1.0, "rho": 0.5}, "no meaning with normalisation sum"),
        ({"task": 1.0, "normalisation": "means"}, "did you mean mean"),
    ],
)
def test_unusable_weights_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weighted(**weights)  # type: ignore[arg-type]


def test_constructors_refuse_knobs_out_of_range() -> None:
    for build in (
        lambda: tilted(0.0, 1.0),
        lambda: tilted(1.0, -1.0),
        lambda: sharpening(alpha=0.0),
        lambda: tempered(math.nan),
        lambda: hybrid(1.0, 0.0),
        lambda: hybrid(0.0, 1.0),
    ):
        with pytest.raises(ValueError):
            build()


def test_describe_writes_the_equation() -> None:
    assert {name: objective.describe() for name, objective in REGIMES.items()} == {
        "task_reward": "J = E[r]",
        "tilted": "J = E[r + 0.1 l_ref] - 0.1 KL(policy||base)",
        "tilted_mean": "J = E[r + 0.1 l_ref/T] - 0.1 KL(policy||base)",
        "sharpening": "J = E[l_ref]",
        "sharpening_mean": "J = E[l_ref/T]",
        "sharpening_weighted": "J = E[l_ref/T^0.5]",
        "tempered": "J = E[l_ref] - KL(policy||base)",
        "hybrid": "J = E[r + 0.1 l_ref]",
        "entropy_minimisation": "J = E[l]",
        "everything": "J = E[0.7 r - 0.3 l_ref/T^0.25 + 0.4 l] - 0.2 KL(policy||base)",
    }
    assert tempered(1.0).describe() == "J = -KL(policy||base)"


def test_as_dict_rebuilds_the_objective() -> None:
    for objective in REGIMES.values():
        assert weighted(**objective.as_dict()) == objective  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- optima

BASE_LOGPROB = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64).log()
LENGTH = torch.tensor([1, 2, 4, 1])
REWARD = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)


def normalised(objective: Objective) -> torch.Tensor:
    return optimum_log_weights(objective, BASE_LOGPROB, LENGTH, REWARD).softmax(-1)


@settings(derandomize=True, max_examples=50, deadline=None)
@given(alpha=st.floats(0.1, 5), beta_inv=st.floats(0.1, 20))
def test_smooth_optima_are_the_papers_distributions(alpha: float, beta_inv: float) -> None:
    torch.testing.assert_close(normalised(tempered(alpha)), (alpha * BASE_LOGPROB).softmax(-1))
    power_and_tilt = alpha * BASE_LOGPROB + beta_inv * REWARD
    torch.testing.assert_close(normalised(tilted(alpha, beta_inv)), power_and_tilt.softmax(-1))
    per_token = BASE_LOGPROB + (alpha - 1) * BASE_LOGPROB / LENGTH + beta_inv * REWARD
    torch.testing.assert_close(normalised(tilted(alpha, beta_inv, "mean")), per_token.softmax(-1))


def test_linear_optima_are_vertices_and_share_ties() -> None:
    assert normalised(task_reward()).tolist() == [0, 0.5, 0.5, 0]
    assert normalised(sharpening()).tolist() == [1, 0, 0, 0]
    # Per token: log .5, log .25 / 2 = log .5, log .15 / 4, log .1.
    assert normalised(sharpening("mean")).tolist() == [0, 0, 1, 0]
    assert normalised(sharpening("weighted_mean", rho=1.0)).tolist() == [0, 0, 1, 0]
    assert normalised(hybrid(1.0, 100.0)).tolist() == [0, 1, 0, 0]
    assert normalised(hybrid(1.0, 0.1)).tolist() == [1, 0, 0, 0]


def test_own_loglikelihood_as_strong_as_the_kl_leaves_a_linear_objective_and_beyond_it_a_point_mass() -> None:
    assert normalised(weighted(kl_to_base=1.0, own_loglikelihood=1.0)).tolist() == [1, 0, 0, 0]
    assert normalised(entropy_minimisation()).tolist() == [1, 0, 0, 0]
    assert normalised(weighted(task=1.0, own_loglikelihood=0.1)).tolist() == [0, 1, 0, 0]


def test_support_never_grows() -> None:
    base = torch.tensor([0.0, -math.inf], dtype=torch.float64)
    length, reward = torch.tensor([1, 1]), torch.tensor([0.0, 1.0], dtype=torch.float64)
    for objective in REGIMES.values():
        weights = optimum_log_weights(objective, base, length, reward)
        assert weights.softmax(-1).tolist() == [1, 0]
    with pytest.raises(ValueError, match="no response has positive probability"):
        optimum_log_weights(task_reward(), base[1:], length[1:], reward[1:])
