"""Per-problem figures against plain loops over records and over all subsets of samples."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from bsharp.evaluation import problem_figures
from bsharp.evaluation.problem_figures import vote_sizes


def samples_of(records: list[dict[str, Any]], problem_id: str) -> list[dict[str, Any]]:
    return [record for record in records if record["problem_id"] == problem_id and not record["greedy"]]


def graded_of(records: list[dict[str, Any]], problem_id: str) -> list[dict[str, Any]]:
    return [record for record in samples_of(records, problem_id) if record["reward"] is not None]


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def plurality_credit(drawn: tuple[dict[str, Any], ...]) -> float:
    votes = Counter(record["answer"] for record in drawn if record["answer"] is not None)
    winners = [answer for answer, count in votes.items() if count == max(votes.values())]
    return mean([float(answer == "7") for answer in winners]) if winners else 0.0


def expected_figures(records: list[dict[str, Any]], problem_id: str, n: int) -> dict[str, float]:
    samples, graded = samples_of(records, problem_id), graded_of(records, problem_id)
    distinct = {tuple(record["token_ids"]): record for record in reversed(graded)}.values()
    weight = sum(math.exp(record["logprob"]) for record in distinct)
    expected = {
        "accuracy": mean([record["status"] == "correct" for record in graded]),
        "exact_match": mean([record["exact_match"] for record in graded]),
        "reward": mean([record["reward"] for record in graded]),
        "ungraded": 1 - len(graded) / n,
        "unparseable": mean([record["status"] == "unparseable" for record in samples]),
        "truncated": mean([record["finish_reason"] == "length" for record in samples]),
        "length": mean([record["length"] for record in samples]),
        "kl_to_base": mean([record["logprob"] - record["base_logprob"] for record in samples]),
        "negative_logprob": -mean([record["logprob"] for record in samples]),
        "distinct_answers": len({record["answer"] for record in graded} - {None}) if graded else math.nan,
        "reward_weighted_score": sum(math.exp(r["logprob"]) * r["reward"] for r in distinct) / weight
        if graded
        else math.nan,
    }
    for k in vote_sizes(n):
        subsets = list(itertools.combinations(graded, k))
        expected[f"pass@{k}"] = mean([any(record["status"] == "correct" for record in drawn) for drawn in subsets])
        expected[f"maj@{k}"] = mean([plurality_credit(drawn) for drawn in subsets])
    return expected


@pytest.mark.parametrize("ungraded", [0.0, 0.4])
@pytest.mark.parametrize("samples", [1, 4, 5])
def test_every_figure_equals_a_plain_loop_and_ungraded_samples_leave_the_denominator(
    simulate: Any, samples: int, ungraded: float
) -> None:
    seeds = [simulate(seed, samples=samples, ungraded=ungraded) for seed in (1, 2)]
    figures = problem_figures(seeds, "model")
    for s, records in enumerate(seeds):
        for p, problem_id in enumerate(figures.problem_ids):
            expected = expected_figures(records, problem_id, samples)
            found = {key: table[s, p] for key, table in figures.values.items() if key != "greedy_accuracy"}
            assert found == pytest.approx(expected, nan_ok=True)
    timeouts = sum(r["reward"] is None and not r["greedy"] for records in seeds for r in records)
    assert figures.ungraded_samples == timeouts
    assert (timeouts > 0) == (ungraded > 0)


def test_greedy_records_never_enter_sampled_figures_nor_sampled_ones_the_greedy_accuracy(simulate: Any) -> None:
    records = simulate(0)
    with_greedy = problem_figures([records], "model")
    without = problem_figures([[record for record in records if not record["greedy"]]], "model")
    assert set(with_greedy.values) - set(without.values) == {"greedy_accuracy"}
    for key, table in without.values.items():
        np.testing.assert_array_equal(table, with_greedy.values[key])
    by_problem = {r["problem_id"]: r["status"] == "correct" for r in records if r["greedy"]}
    assert with_greedy.values["greedy_accuracy"][0].tolist() == [by_problem[i] for i in with_greedy.problem_ids]


def test_the_order_of_records_does_not_matter(simulate: Any) -> None:
    records = simulate(0, ungraded=0.2)
    shuffled = random.Random(0).sample(records, len(records))
    ours, theirs = problem_figures([records], "model"), problem_figures([shuffled], "model")
    assert ours.problem_ids == theirs.problem_ids
    for key, table in ours.values.items():
        np.testing.assert_array_equal(table, theirs.values[key])


def test_a_reward_beside_a_timeout_or_a_correct_status_without_reward_counts_as_ungraded(simulate: Any) -> None:
    records = simulate(0, problems=2, greedy=False)
    records[0] |= {"status": "timeout", "reward": 1.0}
    records[1] |= {"status": "correct", "reward": None}
    assert problem_figures([records], "model").values["ungraded"][0, 0] == 0.5


def test_votes_are_counted_for_powers_of_two_and_n() -> None:
    assert [vote_sizes(n) for n in (1, 2, 6, 16)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8, 16]]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda records: records.append(records[0]), "sample 0 of problem task/0 occurs twice"),
        (lambda records: records.append(records[4]), "greedy record of problem task/0 occurs twice"),
        (lambda records: records.pop(1), "problem task/0 lacks sample 1"),
        (lambda records: records.pop(3), "between 3 and 4 samples"),
        (lambda records: records.pop(4), "11 greedy records for 12 problems"),
        (lambda records: records.clear(), "no records"),
    ],
)
def test_incomplete_or_repeated_records_are_refused(simulate: Any, spoil: Any, message: str) -> None:
    records = simulate(0)
    spoil(records)
    with pytest.raises(ValueError, match=message):
        problem_figures([records], "model")


def test_seeds_with_different_problems_are_refused(simulate: Any) -> None:
    with pytest.raises(ValueError, match=r"model, seed 1 lacks problem task/10 and 1 more that model, seed 0 has"):
        problem_figures([simulate(0, problems=12), simulate(1, problems=10)], "model")
