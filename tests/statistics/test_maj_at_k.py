from __future__ import annotations

import importlib
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsharp.statistics import maj_at_k, maj_at_k_monte_carlo, vote_share
from bsharp.statistics.maj_at_k import EXACT_SAMPLES, maj_at_k_of_classes

maj_module = importlib.import_module("bsharp.statistics.maj_at_k")  # the package names its function alike


def by_brute_force(answers: list[str | None], credits: list[float], k: int) -> float:
    """The definition, over all subsets: plurality of those who vote, ties shared, no vote no credit."""
    worth = {a: np.mean([c for b, c in zip(answers, credits, strict=True) if b == a]) for a in answers if a is not None}
    total, subsets = 0.0, 0
    for subset in combinations(answers, k):
        subsets += 1
        votes = Counter(answer for answer in subset if answer is not None)
        winners = [answer for answer, count in votes.items() if count == max(votes.values())]
        total += float(np.mean([worth[answer] for answer in winners])) if winners else 0.0
    return total / subsets


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.lists(st.sampled_from(["1", "2", "3", "10", None]), min_size=1, max_size=9), st.sampled_from(["1", "2", "9"]))
def test_maj_at_k_equals_the_average_over_all_subsets(answers: list[str | None], gold: str) -> None:
    credits = [float(answer == gold) for answer in answers]
    ks = list(range(1, len(answers) + 1))
    expected = [by_brute_force(answers, credits, k) for k in ks]
    np.testing.assert_allclose(maj_at_k(answers, credits, ks), expected, atol=1e-12)


def test_an_answer_is_worth_the_mean_credit_of_its_samples() -> None:
    answers, credits = ["a", "b", "a", "c", None, "b"], [0.25, 1.0, 0.75, 0.1, 1.0, 0.5]
    expected = [by_brute_force(answers, credits, k) for k in range(1, 7)]
    np.testing.assert_allclose(maj_at_k(answers, credits, range(1, 7)), expected, atol=1e-12)


def test_maj_at_1_is_accuracy() -> None:
    answers = ["7", "7", None, "8", "7"]
    assert maj_at_k(answers, [1, 1, 0, 0, 1], [1])[0] == pytest.approx(3 / 5)


def test_an_unparseable_answer_never_votes_and_never_ties() -> None:
    # Were None a class of its own it would win with three of the four votes.
    assert maj_at_k([None, None, None, "5"], [0, 0, 0, 1], [4])[0] == 1.0
    # Nor does it earn credit where nobody votes, whatever credit stands beside it.
    assert maj_at_k([None, None], [1.0, 1.0], [1, 2]).tolist() == [0.0, 0.0]


def test_ties_share_the_credit_exactly() -> None:
    assert maj_at_k(["1", "2", "3"], [1, 0, 0], [3])[0] == pytest.approx(1 / 3)
    assert maj_at_k(["1", "2", "1", "2", "3"], [1, 0, 1, 0, 0], [5])[0] == pytest.approx(1 / 2)


def test_votes_compare_whole_answers() -> None:
    # Sharing a first character is no agreement.
    assert maj_at_k(["12", "13", "14", "2", "2"], [0, 0, 0, 1, 1], [5])[0] == 1.0


def test_maj_at_k_needs_no_label_order() -> None:
    answers = ["b", "a", "a", None, "c", "b", "b"]
    credits = [float(a == "a") for a in answers]
    order = [6, 2, 0, 5, 1, 3, 4]
    shuffled = maj_at_k([answers[i] for i in order], [credits[i] for i in order], [2, 3, 5])
    np.testing.assert_allclose(maj_at_k(answers, credits, [2, 3, 5]), shuffled, atol=1e-15)


def test_monte_carlo_agrees_with_the_exact_figure_within_its_stated_error() -> None:
    rng = np.random.default_rng(3)
    answers = [None if a > 12 else str(a) for a in rng.geometric(0.2, 60)]
    credits = [float(a == "2") for a in answers]
    ks = [1, 4, 16, 60]
    exact = maj_at_k(answers, credits, ks)
    estimate, error = maj_at_k_monte_carlo(answers, credits, ks, rng=rng, draws=4000)
    assert np.all(error > 0)
    assert np.all(error <= 0.5 / np.sqrt(4000) + 1e-9)
    # Four standard errors, four figures: false alarm below 3e-4 for another seed.
    assert np.all(np.abs(estimate - exact) <= 4 * error)


def test_monte_carlo_gives_no_credit_where_nobody_votes() -> None:
    estimate, error = maj_at_k_monte_carlo(["1"] + [None] * 9, [1.0] * 10, [1], rng=np.random.default_rng(0))
    # Four standard errors: false alarm below 1e-4 for another seed.
    assert abs(estimate[0] - 0.1) <= 4 * error[0]


def test_many_samples_need_a_generator_and_then_use_it() -> None:
    answers, credits = ["1", "2"] * 100, [1.0, 0.0] * 100
    with pytest.raises(ValueError, match="rng="):
        maj_at_k(answers, credits, [3])
    assert maj_at_k(answers, credits, [3], rng=np.random.default_rng(0))[0] == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize(
    ("answers", "credits", "ks", "message"),
    [
        (["1"], [1.0], [2], "k=2 with n=1"),
        (["1"], [1.0], [0], "k=0"),
        ([], [], [1], "at least one"),
        (["1", "2"], [1.0], [1], "one credit per answer"),
        (["1"], [1.5], [1], "credits in"),
        (["1"], [float("nan")], [1], "credits in"),
    ],
)
def test_maj_at_k_refuses_what_it_cannot_answer(answers: list, credits: list, ks: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        maj_at_k(answers, credits, ks)


def test_vote_share_counts_the_silent_in_the_denominator_only() -> None:
    assert vote_share(["4", "4", None, "5"], [1, 1, 0, 0]) == (0.5, 1.0)
    assert vote_share(["4", "5"], [1, 0]) == (0.5, 0.5)
    assert vote_share([None, None], [0, 0]) == (0.0, 0.0)


@pytest.mark.parametrize("samples", [1, 7, 40, EXACT_SAMPLES, EXACT_SAMPLES + 1])
def test_many_problems_at_once_have_the_maj_at_k_of_each(samples: int) -> None:
    draw = np.random.default_rng(samples)
    ks = [k for k in (1, 2, 4, 32, samples) if k <= samples]
    problems = [draw.choice(["a", "b", "c", "d", None], samples - draw.integers(min(3, samples))) for _ in range(30)]
    sizes, worth, expected = np.zeros((31, 4), dtype=np.int64), np.zeros((31, 4)), np.full((31, len(ks)), np.nan)
    silent = np.zeros(31, dtype=np.int64)
    for row, answers in enumerate(problems):  # the last problem has no sample at all
        credits = draw.integers(0, 2, len(answers)).astype(float)
        known = list(dict.fromkeys(answer for answer in answers.tolist() if answer is not None))
        for place, answer in enumerate(known):
            inside = answers == answer
            sizes[row, place], worth[row, place] = inside.sum(), credits[inside].sum() / inside.sum()
        silent[row] = sum(answer is None for answer in answers.tolist())
        usable = [k for k in ks if k <= len(answers)]
        found = maj_at_k(answers.tolist(), credits.tolist(), usable, rng=np.random.default_rng(row), draws=50)
        expected[row, [ks.index(k) for k in usable]] = found
    found = maj_at_k_of_classes(sizes, worth, silent, ks, rng=np.random.default_rng, draws=50)
    np.testing.assert_array_equal(found, expected)


def test_problems_of_equal_sizes_are_enumerated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    enumerate_ = maj_module._win_probabilities
    monkeypatch.setattr(maj_module, "_win_probabilities", lambda *shape: asked.append(shape) or enumerate_(*shape))
    sizes = np.tile([[3, 1], [1, 3], [2, 2]], (100, 1))
    maj_at_k_of_classes(sizes, np.ones((300, 2)), np.zeros(300, dtype=np.int64), [1, 4], rng=np.random.default_rng)
    assert sorted(asked) == [((1, 3), 0, 4), ((2, 2), 0, 4)]
