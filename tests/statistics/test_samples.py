"""Records as a table of seeds × problems × samples."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hand_made_records import answered, simulated

from bsharp.statistics.columns import PER_SAMPLE
from bsharp.statistics.samples import (
    distinct_answers,
    linearised_ratio,
    mean_where_defined,
    means_without_grades,
    paired_tables,
    sample_table,
)


def plainly(record: dict[str, Any]) -> dict[str, Any]:
    """What the table says of a sample, by the definitions."""
    graded = record["reward"] is not None and record["status"] not in ("timeout", "error")
    return {
        "graded": graded,
        "correct": graded and record["status"] == "correct",
        "unparseable": record["status"] == "unparseable",
        "truncated": record["finish_reason"] == "length",
        "rewards": record["reward"] if graded else np.nan,
        "exact_matches": record["exact_match"] if graded else np.nan,
        "logprobs": record["logprob"],
        "base_logprobs": np.nan if record["base_logprob"] is None else record["base_logprob"],
        "scored": record["base_logprob"] is not None,
        "lengths": record["length"],
        "answered": record["answer"] is not None,
    }


def test_the_table_holds_every_sample_once_in_order_and_greedy_records_apart() -> None:
    first, second = simulated(0, ungraded=0.2), simulated(1, ungraded=0.2)
    second[3] |= {"base_logprob": None}
    table = sample_table([iter(random.Random(1).sample(first, len(first))), second], "model")
    assert (table.seeds, len(table.problem_ids), table.samples) == (2, 24, 8)
    for seed, records in enumerate((first, second)):
        sampled = [record for record in records if not record["greedy"]]
        for key in PER_SAMPLE:
            if key not in ("answers", "responses"):
                found = getattr(table, key)[seed].ravel()
                np.testing.assert_array_equal(found, [plainly(record)[key] for record in sampled])
        greedy = [plainly(record) for record in records if record["greedy"]]
        assert table.greedy_graded[seed].tolist() == [record["graded"] for record in greedy]
        assert table.greedy_correct[seed].tolist() == [record["correct"] for record in greedy]
    bare = sample_table([[record for record in first if not record["greedy"]]], "model")
    assert bare.greedy_graded.shape == bare.greedy_correct.shape == (1, 0)
    assert table.labels("difficulty") == tuple(1 + place % 2 for place in range(24))
    assert table.family_codes.tolist() == [place % 3 for place in range(24)]
    with pytest.raises(KeyError, match="task"):
        sample_table([[{k: v for k, v in r.items() if k != "task"} for r in first]], "model").labels("task")


def test_answers_and_responses_have_equal_codes_exactly_where_they_are_equal() -> None:
    records = simulated(0)
    # Other models' codes of answers are comparable; ids may be given as the text of their list.
    texts = [record | {"token_ids": ", ".join(map(str, record["token_ids"]))} for record in records]
    plain, as_text = sample_table([records], "model"), sample_table([texts], "model")
    assert np.array_equal(plain.answers, as_text.answers)
    sampled = [record for record in records if not record["greedy"]]
    for table in (plain, as_text):
        for key, codes in (("answer", table.answers), ("token_ids", table.responses)):
            for start in range(0, len(sampled), 8):
                group, found = sampled[start : start + 8], codes.ravel()[start : start + 8].tolist()
                for (one, a), (other, b) in itertools.combinations(zip(group, found, strict=True), 2):
                    assert (one[key] == other[key]) == (a == b)


def test_extra_figures_of_a_record_stand_where_its_sample_stands() -> None:
    records = simulated(2)
    shuffled = random.Random(0).sample(records, len(records))
    table = sample_table([shuffled], "model", {"ids": lambda record: float(sum(record["token_ids"]))})
    expected = [sum(record["token_ids"]) for record in records if not record["greedy"]]
    assert table.extra["ids"].ravel().tolist() == expected


def test_a_table_reads_each_record_once_and_holds_a_bounded_number_of_them() -> None:
    alive = 0
    most = 0

    class Counted(dict[str, Any]):
        def __init__(self, *content: Any) -> None:
            nonlocal alive, most
            super().__init__(*content)
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def produced() -> Iterator[dict[str, Any]]:
        for record in answered([["7", "8", None, "8"]] * 2500):
            yield Counted(record)

    table = sample_table([produced()], "model")
    assert table.graded.shape == (1, 2500, 4)
    assert most <= 2 * 512 + 1
    del table


def test_records_that_do_not_make_a_table_are_refused() -> None:
    records = answered([["7", "8"], ["7", "7"]])
    with pytest.raises(ValueError, match=r"^model: no records"):
        sample_table([], "model")
    with pytest.raises(ValueError, match=r"^model: no records for at least one seed"):
        sample_table([records, []], "model")
    with pytest.raises(ValueError, match=r"^model, seed 0: no sampled records"):
        sample_table([[records[0] | {"greedy": True}]], "model")
    with pytest.raises(ValueError, match="sample 0 of problem task/0000 occurs twice"):
        sample_table([[*records, records[0]]], "model")
    greedy = [record | {"greedy": True} for record in (records[0], records[2])]
    with pytest.raises(ValueError, match="greedy record of problem task/0000 occurs twice"):
        sample_table([[*records, *greedy, greedy[0]]], "model")
    with pytest.raises(ValueError, match="model: 3 greedy records for 4 problems; evaluate all or none"):
        sample_table([[*records, *greedy], [*records, greedy[0]]], "model")
    with pytest.raises(ValueError, match="between 0 and 2 samples"):
        sample_table([[*records[:2], *greedy]], "model")
    with pytest.raises(ValueError, match="problem task/0000 lacks sample 0"):
        sample_table([records[1:]], "model")
    with pytest.raises(ValueError, match="between 1 and 2 samples"):
        sample_table([[records[0], *records[2:]]], "model")
    with pytest.raises(ValueError, match=r"^model, seed 1 lacks problem task/0001 that model, seed 0 has"):
        sample_table([records, records[:2]], "model")


def test_pairing_refuses_other_problems_other_answers_and_other_sample_counts() -> None:
    base = sample_table([answered([["7", "8"], ["7", "7"]])], "base")
    with pytest.raises(ValueError, match=r"^model lacks problem task/0001 that base has"):
        sample_table([answered([["7", "8"]])], "model").require_paired(base)
    with pytest.raises(ValueError, match="model has 1 samples per problem, base has 2"):
        sample_table([answered([["7"], ["7"]])], "model").require_paired(base)
    with pytest.raises(ValueError, match="problem task/0000 has gold '9' in model and '7' in base"):
        sample_table([answered([["7", "8"], ["7", "7"]], gold="9")], "model").require_paired(base)


def test_problems_without_a_value_in_any_seed_are_left_out_and_counted() -> None:
    values = np.array([[1.0, 2.0, 3.0, np.nan], [3.0, np.nan, 5.0, 1.0]])
    estimate = mean_where_defined(values, "x", ["a"] * 4, "tokens")
    assert (estimate.estimate, estimate.n) == (3.0, 2)
    assert estimate.note.startswith("2 of 4 problems left out: too few graded samples")
    nothing = mean_where_defined(np.full((1, 3), np.nan), "x", ["a"] * 3, "tokens", reason="why")
    assert (nothing.as_json()["estimate"], nothing.note) == (None, "3 of 3 problems left out: why")


def test_the_tables_of_all_models_are_paired_with_a_base_of_one_seed() -> None:
    ours, other = answered([["7", "8"], ["7", "7"]]), answered([["7", "8"]])
    assert list(paired_tables({"regime": [ours, ours], "base": [ours]}, "base")) == ["regime", "base"]
    assert list(paired_tables({"a": [ours, ours], "b": [other]}, "base")) == ["a", "b"]  # nothing to pair with
    with pytest.raises(ValueError, match="base has records of 2 seeds; the base is evaluated once"):
        paired_tables({"base": [ours, ours]}, "base")
    with pytest.raises(ValueError, match=r"^regime lacks problem task/0001 that base has"):
        paired_tables({"base": [ours], "regime": [other]}, "base")


def test_ungraded_samples_are_neither_right_nor_wrong_and_answer_nothing() -> None:
    table = sample_table([answered([["7", "8", None, "timeout"], ["timeout"] * 4])], "model")
    assert table.correct[0].tolist() == [[True, False, False, False], [False] * 4]
    assert table.graded[0].tolist() == [[True, True, True, False], [False] * 4]
    np.testing.assert_array_equal(distinct_answers(table), [[2.0, np.nan]])


def test_figures_without_grades_count_ungraded_samples_and_are_nan_only_where_no_base_scored() -> None:
    first, second = answered([["7", "timeout"]])
    first |= {"logprob": -1.0, "base_logprob": -3.0, "length": 5}
    second |= {"logprob": -2.0, "base_logprob": -2.5, "length": 2, "finish_reason": "length"}
    found = {key: value.item() for key, value in means_without_grades(sample_table([[first, second]], "model")).items()}
    assert found == {"kl_to_base": 1.25, "negative_logprob": 1.5, "length": 3.5, "truncated": 0.5}
    bare = sample_table([[record | {"base_logprob": None} for record in (first, second)]], "model")
    assert np.isnan(bare.base_logprobs).all()
    assert [key for key, value in means_without_grades(bare).items() if np.isnan(value).any()] == ["kl_to_base"]


def test_the_linearised_ratio_has_the_ratio_as_its_mean_and_its_derivatives_as_deviations() -> None:
    rng = np.random.default_rng(0)
    numerators, denominators = rng.exponential(size=(3, 9)), rng.uniform(1, 2, size=(3, 9))
    values = linearised_ratio(numerators, denominators)
    ratios = numerators.sum(1) / denominators.sum(1)
    assert values.mean(1) == pytest.approx(ratios, rel=1e-12)
    assert linearised_ratio(numerators[1], denominators[1]) == pytest.approx(values[1], rel=1e-12)
    # Counting problem p (1 + h) times moves the ratio by h (value_p - R) / P to first order in h.
    for place in range(9):
        weights = 1 + 1e-6 * (np.arange(9) == place)
        moved = (weights * numerators).sum(1) / (weights * denominators).sum(1) - ratios
        assert 9 * moved / 1e-6 == pytest.approx(values[:, place] - ratios, rel=1e-4, abs=1e-6)
