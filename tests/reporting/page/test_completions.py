"""The browser's data holds every sample, once, and the filters' facts are those of the records."""

from __future__ import annotations

import gzip
import json
import random
from itertools import pairwise
from typing import Any

import pytest

from bsharp.reporting.page.completions import HELD, _Tallies, completions_part
from bsharp.reporting.page.gained_lost import gained_lost_parts
from bsharp.reporting.page.parts import Chart, Completions, GainedLost


def texts(part: Completions, at: int) -> Any:
    chunk, place = part.index["problems"][at]["chunk"]
    return json.loads(gzip.decompress(part.chunks[chunk]))[place]


def record(problem: int, **values: Any) -> dict[str, Any]:
    common = {"problem_id": f"p{problem}", "question": "q", "gold": "1", "greedy": False, "text": "t", "logprob": -1.0}
    return (
        common
        | {"base_logprob": -2.0, "reward": 0.0, "status": "wrong", "answer": "0", "finish_reason": "eos"}
        | values
    )


def test_every_sample_is_there_once_with_its_count(make_records: Any) -> None:
    records = make_records()
    part = completions_part(records, None)
    models = part.index["models"]
    assert models[0] == {"name": "base", "seeds": [0]}
    for at, problem in enumerate(part.index["problems"]):
        held = texts(part, at)["samples"]
        for model, by_seed in zip(models, held, strict=True):
            for seed, rows in zip(model["seeds"], by_seed, strict=True):
                given = [r for r in records[model["name"]][seed] if r["problem_id"] == problem["id"]]
                given = sorted(r["text"].replace("\ud800", "\ufffd") for r in given)
                assert sorted(text for count, _, text, *_ in rows for _ in range(count)) == given


def test_share_right_leaves_out_greedy_and_ungraded_samples() -> None:
    rows = [record(0, greedy=True, status="correct", reward=1.0), record(0, status="correct", reward=1.0), record(0)]
    part = completions_part({"base": {0: [*rows, record(0, status="timeout", reward=None)]}}, None)
    assert part.index["problems"][0]["right"] == [0.5]


@pytest.mark.parametrize(
    ("samples", "collapsed"),
    [
        ([{"answer": "7"}, {"answer": "7"}], True),
        ([{"answer": "7"}, {"answer": "8"}], False),
        ([{"answer": "1", "status": "correct"}] * 2, False),
        ([{"answer": None, "status": "unparseable", "text": ""}] * 3, True),
        ([{"answer": None, "status": "unparseable"}, {"answer": "7"}], False),
        ([{"answer": "7"}], False),  # one sample always agrees with itself
        ([{"answer": "7"}, {"answer": "7"}, {"answer": "8", "greedy": True}], True),
        ([{"answer": "7", "status": "timeout"}] * 2, False),  # nobody knows whether it is wrong
    ],
)
def test_collapsed_means_one_wrong_answer_or_none_at_all(samples: list[dict[str, Any]], collapsed: bool) -> None:
    part = completions_part({"base": {0: [record(0)]}, "x": {3: [record(0, **sample) for sample in samples]}}, None)
    assert part.index["problems"][0]["collapsed"] == ([1] if collapsed else [])


def test_one_collapsed_seed_is_enough() -> None:
    healthy, stuck = ([record(0, answer=answer) for answer in answers] for answers in ("78", "77"))
    part = completions_part({"x": {0: healthy, 1: stuck}}, None)
    assert part.index["problems"][0]["collapsed"] == [0]


def test_problems_are_left_out_evenly_until_the_budget_holds() -> None:
    noise = random.Random(0)
    rows = [record(at, text="".join(noise.choices("abcdefghijklmnop", k=4000))) for at in range(200)]
    full = completions_part({"base": {0: rows}}, None)
    budget = sum(len(chunk) for chunk in full.chunks) * 4 // 3 // 4
    part = completions_part({"base": {0: rows}}, None, budget_bytes=budget)
    size = sum(4 * -(-len(chunk) // 3) for chunk in part.chunks)
    kept = [at for at, problem in enumerate(part.index["problems"]) if problem["chunk"] is not None]
    assert 0.8 * budget < size <= budget
    assert (part.problems, part.left_out) == (200, 200 - len(kept))
    gaps = [b - a for a, b in pairwise(kept)]
    assert max(gaps) - min(gaps) <= 1
    assert all(texts(part, at)["samples"][0][0][0][2] == rows[at]["text"] for at in kept)


def test_of_more_text_than_is_held_the_problems_shown_are_spread_evenly_and_complete() -> None:
    noise = random.Random(1)
    rows = {
        seed: [
            record(at, text="".join(noise.choices("ab", k=500)), answer=str(seed))
            for at in range(300)
            for _ in range(2)
        ]
        for seed in (0, 1)
    }
    budget = 8_000
    assert HELD * budget < 300 * 4 * 500 / 8  # even an eighth of the problems' texts is too much
    part = completions_part({"base": rows}, None, budget_bytes=budget)
    shown = [at for at, problem in enumerate(part.index["problems"]) if problem["chunk"] is not None]
    assert 0.5 * budget < sum(4 * -(-len(chunk) // 3) for chunk in part.chunks) <= budget
    assert (part.problems, part.left_out) == (300, 300 - len(shown))
    gaps = [b - a for a, b in pairwise(shown)]
    assert max(gaps) <= 2 * min(gaps)
    for at in shown:
        of_seed = [[row for row in rows[seed] if row["problem_id"] == f"p{at}"] for seed in (0, 1)]
        assert [[row[2] for row in held] for held in texts(part, at)["samples"][0]] == [
            [row["text"] for row in given] for given in of_seed
        ]
    assert all(problem["right"] == [0.0] for problem in part.index["problems"])


def test_the_texts_held_while_records_are_read_are_bounded() -> None:
    most, length, problems = 4_000, 100, 500
    tallies = _Tallies(most)
    for model in range(3):
        for at in range(problems):
            for sample in range(4):
                tallies.add(model, 0, record(at, text=f"{model} {sample} {'x' * length}"))
                assert tallies.characters <= most
    characters = [tally.characters for tally in tallies.by_id.values()]
    assert sum(characters) == tallies.characters <= most
    assert {at for at, number in enumerate(characters) if number} == set(range(0, problems, tallies.stride))


def test_no_records_give_an_empty_index_and_a_negative_budget_is_refused() -> None:
    assert completions_part({}, None).index["problems"] == []
    with pytest.raises(ValueError, match="budget_bytes is -1"):
        completions_part({}, None, budget_bytes=-1)


def test_gained_and_lost_are_positions_of_known_problems(make_records: Any, problems_json: dict[str, Any]) -> None:
    problems_json = json.loads(json.dumps(problems_json))
    problems_json["regimes"]["tilted"]["lost"].append("not among the records")
    index = completions_part(make_records(), problems_json).index
    changed = {entry["regime"]: entry for entry in index["changed"]}
    ids = [problem["id"] for problem in index["problems"]]
    assert [ids[at] for at in changed["tilted"]["gained"]] == ["add/0", "add/2", "add/3"]
    assert [ids[at] for at in changed["tilted"]["lost"]] == ["add/4"]


def test_bars_show_gained_upwards_lost_downwards_and_the_csv_holds_the_counts(problems_json: dict[str, Any]) -> None:
    parts = gained_lost_parts(problems_json)
    changes = next(part for part in parts if isinstance(part, GainedLost)).changes
    assert [(c.regime, len(c.gained), len(c.lost)) for c in changes] == [("tilted", 3, 1), ("task_reward", 1, 0)]
    chart = next(part for part in parts if isinstance(part, Chart))
    assert [trace["y"] for trace in chart.traces] == [[2, 2], [-1, -1]] * 2
    assert chart.columns["gained"] == [2] * 4
    assert chart.columns["lost"] == [1] * 4
    assert gained_lost_parts({"regimes": {}}) == []
