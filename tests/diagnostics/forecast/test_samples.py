"""Records in, samples out: what is read, what is left out, and one line for everything that is refused."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hand_made_records import answered, simulated

from bsharp.diagnostics.forecast.records import NumberedRecord
from bsharp.diagnostics.forecast.samples import read_samples


def row(problem: str = "a", **changed: Any) -> dict[str, Any]:
    """A record of another sampler: the least that is needed."""
    return {"problem_id": problem, "reward": 1.0, "logprob": -2.0, "length": 4} | changed


def evaluated(seed: int, problems: int, samples: int = 8) -> list[dict[str, Any]]:
    """Records of an evaluation of the base, rare enough for their probabilities to add up to less than 1."""
    rare = {"logprob": -8.0, "base_logprob": -8.0}
    records = simulated(seed, problems=problems, samples=samples, base=True)
    return [record | {key: record[key] + shift for key, shift in rare.items()} for record in records]


def test_problem_reward_logprob_and_length_are_enough() -> None:
    samples = read_samples([row(), row(reward=0, logprob=-3.5, length=7), row("b"), row("b", reward=None), row("b")])
    first, second = samples.problems
    assert first.problem_id == "a"
    assert (first.logprobs.tolist(), first.correct.tolist(), first.lengths.tolist()) == ([-3.5, -2.0], [0, 1], [7, 4])
    assert (first.family, first.answers, first.response_index, first.greedy_correct) == ("", None, None, None)
    assert (second.size, samples.ungraded, samples.left_out) == (2, 1, 0)
    assert (samples.smallest, samples.largest, samples.tasks, samples.split) == (2, 2, (), None)


def test_records_of_an_evaluation_are_read_as_they_are() -> None:
    samples = read_samples(evaluated(0, problems=6, samples=5))
    assert len(samples.problems) == 6
    assert samples.families == ["family0", "family1", "family2"] * 2
    assert samples.tasks == ("task",)
    assert all(problem.size == 5 and problem.greedy_correct in (0.0, 1.0) for problem in samples.problems)
    assert all(problem.answers is not None and problem.response_index is not None for problem in samples.problems)


def test_the_order_of_the_records_is_free() -> None:
    records = evaluated(1, problems=5)
    shuffled = random.Random(0).sample(records, len(records))
    for ours, theirs in zip(read_samples(records).problems, read_samples(shuffled).problems, strict=True):
        assert ours.problem_id == theirs.problem_id
        assert ours.answers == theirs.answers
        for field in ("rewards", "correct", "logprobs", "lengths", "response_index"):
            np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))


def test_problems_with_fewer_than_two_graded_samples_are_left_out_and_counted() -> None:
    samples = read_samples(answered([["7", "8"], ["7", "timeout"], ["timeout", "timeout"], ["8", "8", "7"]]))
    assert [problem.problem_id for problem in samples.problems] == ["task/0000", "task/0003"]
    assert (samples.ungraded, samples.left_out, samples.smallest, samples.largest) == (3, 2, 2, 3)


def test_a_status_stands_for_a_reward_that_is_not_given_and_decides_what_is_right() -> None:
    rows = [
        row(status=status, logprob=-1.0 - i) for i, status in enumerate(("correct", "wrong", "unparseable", "timeout"))
    ]
    for record in rows:
        del record["reward"]
    (problem,) = read_samples(rows).problems
    assert problem.rewards.tolist() == problem.correct.tolist() == [0.0, 0.0, 1.0]
    (problem,) = read_samples([row(status="wrong", reward=0.3), row(status="correct", reward=0.9)]).problems
    assert sorted(zip(problem.rewards.tolist(), problem.correct.tolist(), strict=True)) == [(0.3, 0.0), (0.9, 1.0)]
    (problem,) = read_samples([row(reward=0.9), row(reward=1)]).problems
    assert sorted(problem.correct.tolist()) == [0.0, 1.0]


def test_equal_token_ids_or_equal_texts_are_one_response() -> None:
    by_ids = [row(token_ids=ids, logprob=logprob) for ids, logprob in (([1, 2], -1.0), ([1, 3], -2.0), ([1, 2], -1.0))]
    (problem,) = read_samples(by_ids).problems
    assert sorted(problem.responses.counts.tolist()) == [1, 2]
    assert problem.responses.merged
    by_text = [
        row(text=text, length=length, logprob=-length) for text, length in (("x", 2), ("x", 3), ("y", 3), ("x", 2))
    ]
    (problem,) = read_samples(by_text).problems
    assert sorted(problem.responses.counts.tolist()) == [1, 1, 2]
    (problem,) = read_samples([*by_text, row(logprob=-1.0)]).problems
    assert problem.response_index is None
    assert not problem.responses.merged
    assert problem.responses.counts.tolist() == [1] * 5


def test_log_probabilities_of_one_response_are_averaged() -> None:
    rows = [row(text="x", logprob=-1.0, reward=1), row(text="x", logprob=-1.2, reward=0), row(text="y", logprob=-3.0)]
    (problem,) = read_samples(rows).problems
    found = dict(zip(problem.responses.counts.tolist(), problem.responses.logprobs.tolist(), strict=True))
    assert found == {2.0: pytest.approx(-1.1), 1.0: -3.0}
    assert sorted(problem.responses.correct.tolist()) == [0.5, 1.0]


def test_a_log_probability_just_above_zero_is_rounding() -> None:
    (problem,) = read_samples([row(logprob=3e-6), row(logprob=-9.0)]).problems
    assert problem.logprobs.max() == 0.0


def test_rounding_between_two_passes_of_the_base_is_accepted() -> None:
    assert read_samples([row(base_logprob=-2.01), row(base_logprob=-1.99)]).problems


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "no records"),
        ([{"problem_id": "a", "reward": 1.0, "length": 2}], "record 1 has no logprob"),
        ([{"reward": 1.0, "logprob": -1.0}], "record 1 has no problem_id and no length"),
        ([row(), row(logprob=float("nan"))], "record 2 .*logprob nan is not a finite number"),
        ([row(logprob=float("-inf"))], "logprob -inf is not a finite number"),
        ([row(logprob="-1")], "logprob '-1' is not a finite number"),
        ([row(logprob=0.5)], "logprob 0.5 is positive"),
        ([row(length=0)], "length 0 is not a number of tokens"),
        ([row(length=2.5)], "length 2.5 is not a number of tokens"),
        ([row(reward=1.5), row()], r"record 1 \(problem a\): reward 1.5 is not in"),
        ([row(reward=float("nan")), row()], "reward nan is not in"),
        ([row(reward="yes"), row()], "reward 'yes' is not in"),
        ([{"problem_id": "a", "logprob": -1.0, "length": 2}] * 2, "neither reward nor status"),
        ([row(status="fine"), row()], "unknown status 'fine'; known: correct"),
        ([row(sample=0), row(sample=0)], "sample 0 of problem a occurs twice"),
        ([row(greedy=True), row(greedy=True), row(), row()], "the greedy record of problem a occurs twice"),
        ([row(greedy=True)], "all records are greedy"),
        ([row(temperature=0.7), row(temperature=0.7)], "temperature 0.7.*sample again at temperature 1"),
        ([row(fixed_length=True), row()], "1 of 2 records have a fixed length"),
        ([row(base_logprob=-4.0), row(base_logprob=-1.0)], "differ by 0.375 nats per token.*the base itself"),
        ([row(), row("b")], "none of 2 problems has 2 graded samples"),
        ([row(family="x"), row(family="y")], "records of the families x, y"),
        ([row(reward=0.5), row(reward=0.0)], "1 of 2 rewards lie between 0 and 1, none is 1"),
        ([row(sample=[0]), row()], r"record 1 .*sample \[0\] is not a number"),
        ([row(token_ids=5), row()], "token_ids 5 is not a list of numbers"),
        ([row(), row(token_ids=[[1]])], r"record 2 .*token_ids \[\[1\]\] is not a list of numbers"),
        ([row(status=[1]), row()], r"unknown status \[1\]"),
        ([row(logprob=-(10**400)), row()], "logprob of more than 38 digits is not a finite number"),
        ([row(length=10**400), row()], "length of more than 38 digits is not a number of tokens"),
        ([row(length=float("inf")), row()], "length inf is not a number of tokens"),
        ([row(reward=10**400), row()], "reward of more than 38 digits is not in"),
        ([row(base_logprob="x"), row()], "base_logprob 'x' is not a finite number"),
        ([row(base_logprob=float("nan")), row()], "base_logprob nan is not a finite number"),
        ([row(temperature="1.0"), row()], "temperature '1.0' is not a finite number"),
        ([row(greedy="false"), row()], "greedy 'false' is neither true nor false"),
        ([row(fixed_length=[]), row()], "fixed_length .* is neither true nor false"),
        ([row("\ud800"), row()], r"record 1: problem_id '\\ud800' is not valid Unicode"),
        ([row(family="\ud800"), row()], "family .* is not valid Unicode"),
        ([row(task=["x"]), row()], "task .* is not a text"),
        ([row(logprob=0.0, reward=r) for r in (0, 1)], "add up to 2, more than 1"),
        ([row(logprob=-0.3, length=i + 1) for i in range(8)], "add up to 5.93, more than 1"),
        ([row(text="x", logprob=-0.1), row(text="y", logprob=-0.1)], "add up to 1.81, more than 1"),
    ],
)
def test_what_carries_no_forecast_is_refused_in_one_line(records: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_samples(records)
    assert "\n" not in str(caught.value)


def test_without_ids_two_passes_over_one_response_are_not_two_responses() -> None:
    near = [row(logprob=-0.1 - 1e-4 * i, length=20) for i in range(16)]
    assert read_samples(near).problems
    far = [row(logprob=-0.1 - 0.05 * i, length=20) for i in range(16)]
    with pytest.raises(ValueError, match="more than 1"):
        read_samples(far)


def test_what_is_null_is_absent() -> None:
    absent = dict.fromkeys(
        ("temperature", "fixed_length", "base_logprob", "sample", "greedy", "family", "text", "status")
    )
    samples = read_samples([row(**absent), row(**absent)])
    assert (samples.temperature_known, samples.fixed_length_known) == (False, False)


def test_a_record_of_a_file_is_named_by_its_line() -> None:
    with pytest.raises(ValueError, match=r"^line 7 \(problem a\): length 0"):
        read_samples([NumberedRecord(5, row()), NumberedRecord(7, row(length=0))])
