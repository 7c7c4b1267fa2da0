"""Alignment figures against exact worlds, known means and covariances, and the cases in which nothing can be known."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from small_models import every_response, plain_logprob, small_model

from bsharp.algorithm import Objective, parse_objective, weighted
from bsharp.config import AlgorithmConfig, SamplingConfig
from bsharp.diagnostics.alignment import Alignment, alignment_point, gradient_probe
from bsharp.diagnostics.objective_gradients import ObjectiveGradients
from bsharp.masking import pad_right
from bsharp.models.logprobs import response_logprobs
from bsharp.rollouts import RolloutBatch
from bsharp.theory.policy_gradient import exact_objective
from bsharp.theory.world import from_arrays, random_world

PROMPT = (1, 2)
RESPONSES = every_response(3, 3, (0,))
REWARDS = torch.tensor([float((7 * i + 3) % 5 < 2) for i in range(len(RESPONSES))], dtype=torch.float64)
SAMPLING = SamplingConfig(max_new_tokens=3)
DEFAULT = AlgorithmConfig()


def objectives_of(*specs: str) -> dict[str, Objective]:
    return dict(parse_objective(spec) for spec in specs)


def make_batch(policy, indices, groups, invalid=()) -> RolloutBatch:
    token_ids, mask = pad_right([RESPONSES[i] for i in indices], policy.pad_token_id)
    prompts = tuple([PROMPT] * len(indices))
    return RolloutBatch(
        prompt_token_ids=prompts,
        response_token_ids=token_ids,
        mask=mask,
        behaviour_logprobs=response_logprobs(policy, prompts, token_ids, mask),
        rewards=REWARDS[list(indices)],
        valid=torch.tensor([row not in invalid for row in range(len(indices))]),
        group_index=torch.tensor(groups),
        truncated=torch.zeros(len(indices), dtype=torch.bool),
    )


def point(policy, base, batch, objectives, seed: int = 0, config=DEFAULT, megabytes: float = 1024.0) -> dict:
    found = alignment_point(
        policy, base, batch, objectives, config, SAMPLING,
        checkpoint="base", step=0, microbatch_rows=512, seed=seed, megabytes=megabytes,
    )  # fmt: skip
    json.dumps(found, allow_nan=False)
    return found


def probe(policy, base, batch, objectives, config=DEFAULT, megabytes: float = 1024.0) -> dict:
    found = gradient_probe(
        policy, base, batch, objectives, config, SAMPLING, step=3, microbatch_rows=512, seed=0, megabytes=megabytes
    )
    json.dumps(found, allow_nan=False)
    return found


def estimates(matrix) -> np.ndarray:
    return np.array([[cell["estimate"] for cell in row] for row in matrix], dtype=float)


def random_batch(policy, problems: int = 10, size: int = 4) -> RolloutBatch:
    rng = np.random.default_rng(0)
    return make_batch(
        policy, rng.integers(0, len(RESPONSES), problems * size).tolist(), np.repeat(range(problems), size).tolist()
    )


def log_probabilities(model) -> torch.Tensor:
    return torch.stack([plain_logprob(model, PROMPT, response) for response in RESPONSES])


def test_the_cosines_are_those_of_the_enumerated_gradients_away_from_any_optimum() -> None:
    # Every response as often as its probability asks for, to one in 2,000: what is left is that rounding.
    policy, base = small_model(vocab_size=3, seed=1), small_model(vocab_size=3, seed=2)
    objectives = objectives_of("task_reward", "sharpening", "tempered(alpha=3)", "mean=sharpening(normalisation=mean)")
    log_policy = log_probabilities(policy)
    counts = (log_policy.detach().exp() * 2000).round().int().tolist()
    rows = [i for i, count in enumerate(counts) for _ in range(count)]
    batch = make_batch(policy, rows * 2, [0] * len(rows) + [1] * len(rows))
    found = point(policy, base, batch, objectives)

    token_ids, mask = pad_right(RESPONSES, 0)
    base_tokens = response_logprobs(base, [PROMPT] * len(RESPONSES), token_ids, mask)
    world = from_arrays(token_ids, mask, base_tokens, REWARDS)
    parameters = list(policy.model.parameters())
    gradients = []
    for objective in objectives.values():
        pieces = torch.autograd.grad(exact_objective(log_policy, world, objective), parameters, retain_graph=True)
        gradients.append(torch.cat([piece.reshape(-1) for piece in pieces]))
    vectors = torch.stack(gradients)
    vectors = (vectors / vectors.norm(dim=1, keepdim=True)).numpy()
    exact = vectors @ vectors.T
    assert abs(exact - np.eye(4)).max() < 0.999
    np.testing.assert_allclose(estimates(found["euclidean"]["matrix"]), exact, atol=5e-3)
    # Two problems of the same rollouts: no noise at all.
    assert [cell["estimate"] for cell in found["euclidean"]["noise_floor"]] == pytest.approx([1.0] * 4)
    for row in found["variance"]:
        assert row["variance_trace"]["estimate"] == pytest.approx(0.0, abs=1e-5 * row["signal_squared"]["estimate"])


def test_the_fisher_figure_is_the_correlation_of_reward_and_base_likelihood_under_the_base() -> None:
    base = small_model(vocab_size=3, seed=2)
    log_base = log_probabilities(base).detach()
    counts = (log_base.exp() * 2000).round().int().tolist()
    rows = [i for i, count in enumerate(counts) for _ in range(count)]
    found = point(
        base,
        base,
        make_batch(base, rows * 2, [0] * len(rows) + [1] * len(rows)),
        objectives_of("task_reward", "sharpening"),
    )
    probability = (log_base.exp() / log_base.exp().sum()).numpy()
    covariance = np.cov(REWARDS.numpy(), log_base.numpy(), aweights=probability, ddof=0)
    correlation = covariance[0, 1] / math.sqrt(covariance[0, 0] * covariance[1, 1])
    assert abs(correlation) > 0.05
    assert estimates(found["fisher"]["matrix"])[0, 1] == pytest.approx(correlation, abs=3e-3)


def test_the_fisher_figure_is_the_cosine_of_the_natural_gradients_of_a_table() -> None:
    # π = softmax(θ) over the responses of two prompts: ∇J_a = π (R_a − E R_a), F = diag π − π πᵀ, and the products pool.
    worlds = [random_world(seed, vocab_size=3, max_length=3) for seed in (0, 1)]
    inner = np.zeros((2, 2))
    scores, problems = [], []
    for number, world in enumerate(worlds):
        logprob = world.base_logprob.numpy()
        probability = np.exp(logprob) / np.exp(logprob).sum()
        values = np.stack([world.rewards.numpy(), logprob])
        gradients = probability * (values - (values @ probability)[:, None])
        fisher = np.diag(probability) - np.outer(probability, probability)
        inner += gradients @ np.linalg.pinv(fisher) @ gradients.T
        repeats = np.round(probability * 20_000).astype(int)
        scores.append(np.repeat(values, repeats, axis=1))
        problems.append(np.full(repeats.sum(), number))
    gradients = made(np.ones((2, 2, 1)), [0, 1], np.concatenate(scores, axis=1), np.concatenate(problems))
    exact = inner[0, 1] / math.sqrt(inner[0, 0] * inner[1, 1])
    assert Alignment(gradients).fisher_matrix()[0, 1] == pytest.approx(exact, abs=2e-3)


def test_matrices_are_symmetric_with_ones_and_fisher_estimates_are_the_fisher_numbers() -> None:
    policy, base = small_model(vocab_size=3, seed=1), small_model(vocab_size=3, seed=2)
    objectives = objectives_of("task_reward", "sharpening", "tempered(alpha=3)")
    batch = random_batch(policy, problems=40)
    found, row = point(policy, base, batch, objectives), probe(policy, base, batch, objectives)
    for matrix in (found["euclidean"]["matrix"], found["euclidean"]["debiased"], found["fisher"]["matrix"]):
        assert matrix == [list(column) for column in zip(*matrix, strict=True)]
        assert np.diag(estimates(matrix)).tolist() == [1.0] * 3
    np.testing.assert_allclose(row["fisher"], estimates(found["fisher"]["matrix"]))
    assert row["fisher"] == [list(column) for column in zip(*row["fisher"], strict=True)]


def test_the_probe_is_the_cheap_part_of_the_point() -> None:
    policy, base = small_model(vocab_size=3, seed=1), small_model(vocab_size=3, seed=2)
    objectives = objectives_of("sharpening", "double=weighted(task=2)", "tempered(alpha=3)")
    batch = random_batch(policy)
    found, row = point(policy, base, batch, objectives), probe(policy, base, batch, objectives)
    assert row["task"] == "double"
    np.testing.assert_allclose(row["cosine"], estimates(found["euclidean"]["matrix"]))
    assert row["cosine_to_task"] == [cells[1] for cells in found["euclidean"]["matrix"]]
    assert row["noise_floor"] == found["euclidean"]["noise_floor"]
    assert row["variance_trace"] == [item["variance_trace"]["estimate"] for item in found["variance"]]
    assert row["signal_squared"] == [item["signal_squared"]["estimate"] for item in found["variance"]]
    assert row["signal_to_noise"] == [item["signal_to_noise"] for item in found["variance"]]
    for norm, signal, variance in zip(row["norm"], row["signal_squared"], row["variance_trace"], strict=True):
        assert norm**2 == pytest.approx(signal + variance)
    assert (row["step"], row["problems"], found["samples"]) == (3, 10, 40)


def test_shares_of_the_squared_norm_add_up_to_one_over_the_module_groups() -> None:
    policy, base = small_model(vocab_size=3, seed=1), small_model(vocab_size=3, seed=2)
    found = point(policy, base, random_batch(policy), objectives_of("task_reward", "sharpening"))
    shares = np.array([group["share_of_norm"] for group in found["groups"].values()])
    np.testing.assert_allclose(shares.sum(axis=0), 1.0)
    assert shares.min() >= 0
    whole = estimates(found["euclidean"]["matrix"])[0, 1]
    pieces = [g["matrix"][0][1] * math.sqrt(np.prod(g["share_of_norm"])) for g in found["groups"].values()]
    assert sum(pieces) == pytest.approx(whole)


def test_an_objective_and_its_negative_have_cosine_minus_one_in_both_metrics() -> None:
    policy, base = small_model(vocab_size=3, seed=1), small_model(vocab_size=3, seed=2)
    objectives = {"for": weighted(base_loglikelihood=1.0), "against": weighted(base_loglikelihood=-0.5)}
    found = point(policy, base, random_batch(policy), objectives)
    for matrix in (found["euclidean"]["matrix"], found["euclidean"]["debiased"], found["fisher"]["matrix"]):
        assert matrix[0][1]["estimate"] == pytest.approx(-1.0)
    assert found["euclidean"]["matrix"][0][1]["high"] < -0.999


def test_objectives_without_a_gradient_are_null_with_the_reason_and_no_figure_is_nan() -> None:
    base = small_model(vocab_size=3, seed=2)
    wrong = [i for i in range(len(RESPONSES)) if REWARDS[i] == 0]
    indices = [wrong[(3 * k + k // 4) % len(wrong)] for k in range(24)]
    batch = make_batch(base, indices, np.repeat(range(6), 4).tolist())
    objectives = {**objectives_of("task_reward", "sharpening"), "kl": weighted(kl_to_base=1.0)}
    found, row = point(base, base, batch, objectives), probe(base, base, batch, objectives)
    assert row["cosine"] == [[None, None, None], [None, 1.0, None], [None, None, None]]
    assert row["norm"][0] == row["norm"][2] == 0.0
    assert row["cosine_to_task"][1]["estimate"] is None
    for cell in (
        found["euclidean"]["matrix"][0][1],
        found["euclidean"]["debiased"][0][0],
        found["euclidean"]["noise_floor"][2],
        found["variance"][0]["variance_trace"],
        found["variance"][2]["signal_to_noise"],
        row["signal_to_noise"][0],
    ):
        assert cell["estimate"] is None
        assert "no gradient" in cell["note"]
    assert found["fisher"]["matrix"][2][1]["estimate"] is None
    assert "no correlation" in found["fisher"]["matrix"][2][1]["note"]
    assert found["variance"][1]["signal_to_noise"]["estimate"] is not None
    everything = {key: value for key, value in objectives.items() if key != "sharpening"}
    assert probe(base, base, batch, everything)["cosine"] == [[None, None], [None, None]]


def leaves(value) -> list:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return [value] if parts is None else [leaf for part in parts for leaf in leaves(part)]


def shape_of(value):
    """The keys at every depth, without the values."""
    if isinstance(value, dict) and "estimate" in value:
        return "estimate"
    if isinstance(value, dict):
        return {key: shape_of(part) for key, part in value.items()}
    return [shape_of(part) for part in value] if isinstance(value, list) else None


def test_gradients_that_need_too_much_memory_are_null_with_what_to_raise_and_the_scores_stay() -> None:
    policy, base = small_model(vocab_size=3, seed=1), small_model(vocab_size=3, seed=2)
    objectives = objectives_of("task_reward", "sharpening")
    batch = random_batch(policy)
    for make, setting in ((point, "--gradient-megabytes of `bsharp diagnose`"), (probe, "watch.gradient_megabytes")):
        found, fits = (make(policy, base, batch, objectives, megabytes=megabytes) for megabytes in (0.01, 1024.0))
        note = found.pop("note")
        assert "need 1 MB even in 2 blocks of problems, more than the 0.01 MB allowed" in note
        assert note.endswith(f"; raise {setting}")
        assert shape_of(found) == shape_of(fits)
        assert "note" not in fits
        assert found["fisher"] == fits["fisher"]
        for key in ("euclidean", "groups", "variance", "cosine", "norm", "signal_squared"):
            numbers = [x for x in leaves(found.get(key, [])) if isinstance(x, float)]
            assert numbers == []
        for cell in found.get("noise_floor", found.get("euclidean", {}).get("noise_floor")):
            assert cell["note"] == note


@pytest.mark.parametrize("advantage", ["batch_normalised", "none"])
def test_problems_all_right_or_all_wrong_have_a_cosine_where_the_advantage_sees_them_and_no_correlation(
    advantage,
) -> None:
    base = small_model(vocab_size=3, seed=2)
    right = [i for i in range(len(RESPONSES)) if REWARDS[i] == 1]
    wrong = [i for i in range(len(RESPONSES)) if REWARDS[i] == 0]
    indices = [(right if k // 4 % 2 else wrong)[(3 * k + k // 4) % 4] for k in range(24)]
    batch = make_batch(base, indices, np.repeat(range(6), 4).tolist())
    objectives, config = objectives_of("task_reward", "sharpening"), AlgorithmConfig(advantage=advantage)
    found, row = point(base, base, batch, objectives, config=config), probe(base, base, batch, objectives, config)
    assert row["norm"][0] > 0
    assert found["euclidean"]["matrix"][0][1]["estimate"] == pytest.approx(row["cosine"][0][1])
    assert row["fisher"] == [[None, None], [None, 1.0]]
    assert found["fisher"]["matrix"][0][1]["note"] == "the scores differ within no problem: no correlation"
    assert found["advantage"] == row["advantage"] == advantage


def test_the_advantage_used_is_said_where_it_is_not_the_one_set() -> None:
    base = small_model(vocab_size=3, seed=2)
    batch, config = random_batch(base), AlgorithmConfig(advantage="gae")
    for make in (point, probe):
        assert make(base, base, batch, objectives_of("task_reward"), config=config)["advantage"] == "leave_one_out"


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_few_problems_leave_figures_undefined_and_raise_nothing(kept: int) -> None:
    policy, base = small_model(vocab_size=3, seed=1), small_model(vocab_size=3, seed=2)
    batch = make_batch(policy, list(range(12)), np.repeat(range(3), 4).tolist(), invalid=range(4 * kept, 12))
    found = point(policy, base, batch, objectives_of("task_reward", "sharpening"))
    row = probe(policy, base, batch, objectives_of("sharpening", "entropy_minimisation"))
    assert row["problems"] == found["problems"] == kept
    assert (row["variance_trace"][0] is None) == (kept < 2)
    assert row["task"] is None
    assert "task reward alone" in row["cosine_to_task"][0]["note"]
    assert found["euclidean"]["matrix"][0][1]["low"] is None or kept == 3


# ------------------------------------------------------------------------------- contributions of known distribution


def made(contributions: np.ndarray, block: list[int], scores=None, score_problems=None) -> ObjectiveGradients:
    """Gradients from the contributions (O, P, N) of P problems of equal share."""
    count, problems, _ = contributions.shape
    sums = np.stack([contributions[:, np.array(block) == k].sum(axis=1) for k in range(max(block) + 1)], axis=1)
    return ObjectiveGradients(
        names=tuple(f"o{i}" for i in range(count)),
        groups={"whole": np.einsum("okn,pln->okpl", sums, sums)},
        problem_products=np.einsum("opn,qpn->poq", contributions, contributions),
        problem_shares=np.full(problems, 1 / problems),
        problem_block=np.array(block),
        scores=np.zeros((count, 0)) if scores is None else scores,
        score_problems=np.zeros(0, dtype=int) if score_problems is None else score_problems,
        flat=np.zeros(count, dtype=bool),
        no_spread=np.zeros(count, dtype=bool),
        advantage="leave_one_out",
        basis=torch.zeros(0, 0),
        mixing=torch.zeros(count, 0),
    )


PROBLEMS, DIMENSIONS = 24, 20
BLOCK = [p % 8 for p in range(PROBLEMS)]


def drawn(rng: np.random.Generator, shared: float, scale: float = 1.0) -> np.ndarray:
    """Contributions of two objectives with means of cosine 0.6 and noise of correlation `shared`."""
    means = np.zeros((2, DIMENSIONS))
    means[0, 0], means[1, :2] = 1.0, (0.6, 0.8)
    common = rng.normal(size=(PROBLEMS, DIMENSIONS))
    own = rng.normal(size=(2, PROBLEMS, DIMENSIONS))
    noise = math.sqrt(shared) * common + math.sqrt(1 - shared) * own
    return (means[:, None, :] + scale * noise) / PROBLEMS


def test_the_debiased_cosine_is_free_of_shared_noise_and_its_interval_covers_the_true_cosine() -> None:
    # 400 batches. Median of an estimate within 4 standard errors (1.25 sd / 20) of 0.6: false alarm 1e-4. A 95 %
    # interval that covers 370 times or fewer has true coverage below 95 % with a chance of all but 0.5 %.
    rng = np.random.default_rng(0)
    figures = [Alignment(made(drawn(rng, shared=0.9, scale=0.8), BLOCK)) for _ in range(400)]
    debiased, plain = [f.debiased_cosine(0, 1) for f in figures], [f.cosine(0, 1) for f in figures]
    values = np.array([item.estimate for item in debiased])
    assert abs(np.median(values) - 0.6) < 4 * 1.25 * values.std() / 20
    assert np.median([item.estimate for item in plain]) > 0.67
    assert sum(item.low <= 0.6 <= item.high for item in debiased) > 370
    centre = float(np.mean([item.estimate for item in plain]))
    assert sum(item.low <= centre <= item.high for item in plain) > 370


def test_scores_that_differ_by_rounding_alone_have_no_correlation_though_they_may_have_a_gradient() -> None:
    scores = np.array([[1.0, 1.0 + 1e-12, 3.0, 3.0 + 1e-12], [0.0, 1.0, 0.0, 1.0]])
    gradients = made(np.ones((2, 2, 1)), [0, 1], scores, np.array([0, 0, 1, 1]))
    figures = Alignment(dataclasses.replace(gradients, no_spread=np.array([True, False])))
    np.testing.assert_array_equal(figures.fisher_matrix(), [[np.nan, np.nan], [np.nan, 1.0]])
    assert figures.fisher_estimates(0)[0][1].note == "the scores differ within no problem: no correlation"
    assert figures.cosine(0, 1).estimate == pytest.approx(1.0)


def test_a_debiased_cosine_beyond_one_is_cut() -> None:
    # Two problems whose own products alone differ in sign: Σ_{p≠q} ⟨g_a,p, g_b,q⟩ / √(…) = 1.25 before the cut.
    contributions = np.array([[[1.0, 0.0], [1.0, 0.0]], [[0.5, 0.0], [2.0, 0.0]]])
    found = Alignment(made(contributions, [0, 1])).debiased_cosine(0, 1)
    assert found.estimate == 1.0
    plain = Alignment(made(contributions, [0, 1])).cosine(0, 1)
    assert plain.estimate == pytest.approx(1.0)


def test_shared_noise_lifts_a_cosine_of_two_objectives_above_the_noise_floor_of_either() -> None:
    # Orthogonal means and one and the same noise: the cosine is that noise, the floor does not know of it. Seed fixed.
    rng = np.random.default_rng(4)
    noise, means = rng.normal(size=(PROBLEMS, DIMENSIONS)), np.eye(2, DIMENSIONS)
    figures = Alignment(made((0.2 * means[:, None, :] + noise) / PROBLEMS, BLOCK))
    assert figures.cosine(0, 1).estimate > 0.8
    assert max(abs(figures.noise_floor(a).estimate) for a in (0, 1)) < 0.4
    # And the noise that goes into the two with opposite signs takes from it.
    signs = np.array([1.0, -1.0])[:, None, None]
    opposed = Alignment(made((0.2 * means[:, None, :] + signs * noise) / PROBLEMS, BLOCK))
    assert opposed.cosine(0, 1).estimate < -0.8


def test_variance_signal_and_ratio_are_unbiased_and_covered() -> None:
    # tr Cov(ĝ) = N / P and ‖E ĝ‖² = 1. 400 batches: means within 4 standard errors, coverage as above.
    rng = np.random.default_rng(1)
    found = [Alignment(made(drawn(rng, shared=0.5), BLOCK)).noise(0) for _ in range(400)]
    expected = {"variance_trace": DIMENSIONS / PROBLEMS, "signal_squared": 1.0}
    for key, truth in expected.items():
        values = np.array([item[key].estimate for item in found])
        assert abs(values.mean() - truth) < 4 * values.std() / 20
        assert sum(item[key].low <= truth <= item[key].high for item in found) > 370
    ratio = expected["signal_squared"] / expected["variance_trace"]
    assert sum(item["signal_to_noise"].low <= ratio <= item["signal_to_noise"].high for item in found) > 370


def test_the_noise_floor_is_0_for_pure_noise_and_that_of_two_half_batches_in_between() -> None:
    # Halves of 12 problems: cosine ‖m‖² / (‖m‖² + N / 12) to first order. 4 standard errors over 400 batches.
    rng = np.random.default_rng(2)
    noise = [Alignment(made(rng.normal(size=(1, PROBLEMS, DIMENSIONS)), BLOCK)).noise_floor(0) for _ in range(400)]
    values = np.array([item.estimate for item in noise])
    assert abs(values.mean()) < 4 * values.std() / 20
    assert sum(item.low <= 0 <= item.high for item in noise) > 370
    floors = [Alignment(made(drawn(rng, 0.0, scale=0.5), BLOCK)).noise_floor(0).estimate for _ in range(100)]
    assert np.mean(floors) == pytest.approx(1 / (1 + 0.25 * DIMENSIONS / 12), abs=0.05)


def test_a_noiseless_objective_has_a_noise_floor_of_1() -> None:
    floor = Alignment(made(np.ones((1, PROBLEMS, DIMENSIONS)), BLOCK)).noise_floor(0)
    assert floor.estimate == pytest.approx(1.0)
    assert floor.low == pytest.approx(1.0, abs=1e-9)
