"""What is drawn is what was measured: bands over seeds, averages of long runs, and the CSV beside every chart."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsharp.reporting.page.charts import Curve, axis, buckets, curves, lines, seed_band
from bsharp.reporting.page.dots import Dot, dots
from bsharp.reporting.page.heatmap import heatmap
from bsharp.reporting.page.panels import panels
from bsharp.reporting.page.parts import Chart


def traces_of(chart: Chart | None, role: str) -> list[Any]:
    assert chart is not None
    return [trace for trace in chart.traces if trace["meta"]["role"] == role]


def test_the_band_runs_from_the_lowest_to_the_highest_seed_around_the_mean() -> None:
    table = seed_band({0: ([1, 2], [1.0, 4.0]), 1: ([1, 2], [3.0, 4.0]), 2: ([1, 2], [8.0, 1.0])})
    assert table["mean"] == [4.0, 3.0]
    assert table["low"] == [1.0, 1.0]
    assert table["high"] == [8.0, 4.0]
    assert [table[seed] for seed in "012"] == [[1.0, 4.0], [3.0, 4.0], [8.0, 1.0]]


def test_a_step_that_a_seed_lacks_has_no_mean() -> None:
    table = seed_band({0: ([1, 2, 3], [1.0, 2.0, 3.0]), 1: ([1], [3.0])})
    assert table["mean"] == [2.0, None, None]
    assert table["0"] == [1.0, 2.0, 3.0]
    assert table["1"] == [3.0, None, None]


@given(st.integers(0, 3000), st.integers(1, 500))
def test_buckets_keep_every_step_in_order_and_are_few_enough(count: int, longest: int) -> None:
    found = buckets(list(range(count)), longest)
    assert [step for bucket in found for step in bucket] == list(range(count))
    assert len(found) <= longest
    assert len({len(bucket) for bucket in found[:-1]}) <= 1
    assert count > longest or all(len(bucket) == 1 for bucket in found)


def test_a_long_run_is_averaged_without_losing_its_extremes_and_says_so() -> None:
    values = [float(step % 10) for step in range(1000)]
    values[503] = 99.0
    chart = curves(
        "x", "X", "How.", "x (units)", {"a": {0: (list(range(1000)), values), 1: (list(range(1000)), values)}}
    )
    assert chart is not None
    assert "mean of 3 consecutive steps" in chart.caption
    (line,) = traces_of(chart, "line")
    assert len(line["x"]) <= 400
    assert sum(line["y"][:-1]) * 3 + line["y"][-1] == pytest.approx(sum(values), rel=1e-4)
    assert max(chart.columns["a high"]) == 99.0


def test_the_csv_of_curves_is_what_is_drawn() -> None:
    series = {"a": {0: ([1, 2, 3], [1.0, 2.0, 3.0]), 1: ([1, 2, 3], [3.0, 4.0, 5.0])}, "b": {0: ([2, 4], [7.0, 8.0])}}
    chart = curves("x", "X", "How.", "x (%)", series, scale=10)
    assert chart is not None
    assert chart.columns["step"] == [1, 2, 3, 4]
    for line in traces_of(chart, "line"):
        values = dict(zip(chart.columns["step"], chart.columns[f"{line['name']} mean"], strict=True))
        assert [values[step] for step in line["x"]] == line["y"]
    assert chart.columns["a mean"] == [20.0, 30.0, 40.0, None]
    assert chart.columns["b mean"] == [None, 70.0, None, 80.0]
    (band,) = traces_of(chart, "band")
    assert band["y"] == [30.0, 40.0, 50.0, 30.0, 20.0, 10.0]
    (seeds,) = traces_of(chart, "seed")  # all seeds in one trace, a gap between them
    assert seeds["y"] == [*chart.columns["a seed 0"][:3], None, *chart.columns["a seed 1"][:3]]
    assert seeds["x"] == [1, 2, 3, None, 1, 2, 3]


def test_no_value_no_chart() -> None:
    assert curves("x", "X", "How.", "x (%)", {"a": {0: ([], [])}}) is None
    assert dots("x", "X", "How.", "x (%)", "y", [Dot("a", "a", "p", {"estimate": None})]) is None
    assert panels("x", "X", "How.", "x (%)", "y (%)", []) is None


def test_a_log_axis_needs_values_above_zero() -> None:
    def kind(values: list[float]) -> object:
        chart = curves("x", "X", "How.", "x (%)", {"a": {0: ([1, 2], values)}}, log=True)
        assert chart is not None
        return chart.layout["yaxis"].get("type")

    assert kind([1.0, 100.0]) == "log"
    assert kind([0.0, 100.0]) is None


def test_an_alarm_stands_on_its_seeds_curve_at_its_step() -> None:
    series = {"a": {0: ([1, 2, 3], [1.0, 2.0, 3.0]), 1: ([1, 2, 3], [5.0, 6.0, 7.0])}}
    chart = curves("x", "X", "How.", "x (%)", series, marks={"a": {1: {2: "it fell"}}})
    (mark,) = traces_of(chart, "marker")
    assert (mark["x"], mark["y"]) == ([2], [6.0])
    assert "it fell" in mark["text"][0]


def test_dots_show_estimate_and_interval_as_the_csv_has_them() -> None:
    figure = {"estimate": 0.2, "low": 0.1, "high": 0.4, "n": 7}
    chart = dots(
        "x", "X", "How.", "x (%)", "family", [Dot("a", "a", "add", figure), Dot("b", None, "add", figure)], scale=100
    )
    assert chart is not None
    for trace in chart.traces:
        assert trace["x"] == [20.0]
        assert (trace["error_x"]["array"], trace["error_x"]["arrayminus"]) == ([20.0], [10.0])
    assert chart.columns["x (%)"] == [20.0, 20.0]
    assert [chart.columns[key] for key in ("low", "high", "n")] == [[10.0, 10.0], [40.0, 40.0], [7, 7]]


def test_a_matrix_keeps_rows_and_columns_apart() -> None:
    values = [[{"estimate": 1.0, "low": None, "high": None}, 0.5], [None, -0.25]]
    chart = heatmap("x", "X", "How.", ("objective", "against", "cosine (−1 to 1)"), ["a", "b"], ["c", "d"], values)
    (trace,) = chart.traces
    assert trace["z"] == [[1.0, 0.5], [None, -0.25]]
    assert trace["text"] == [["1.00", "0.50"], ["–", "−0.25"]]
    cells = zip(chart.columns["against"], chart.columns["objective"], chart.columns["cosine (−1 to 1)"], strict=True)
    assert list(cells) == [("c", "a", 1.0), ("c", "b", 0.5), ("d", "a", None), ("d", "b", -0.25)]


def test_a_robust_curve_is_the_median_and_says_how_many_values_its_axis_leaves_out() -> None:
    steps = list(range(1, 41))
    quiet = [1.0 + 0.01 * step for step in steps]
    wild = [900.0 if step == 20 else value for step, value in zip(steps, quiet, strict=True)]
    series = {"a": {seed: (steps, values) for seed, values in enumerate((quiet, quiet, wild))}}
    chart = curves("x", "X", "How.", "x (ratio)", series, robust=True)
    assert chart is not None
    (line,) = traces_of(chart, "line")
    assert line["y"] == chart.columns["a median"] == [round(value, 5) for value in quiet]
    low, high = chart.layout["yaxis"]["range"]
    assert low <= min(quiet)
    assert max(quiet) <= high < 10
    assert "1 of 120 single values lie outside" in chart.caption
    assert chart.columns["a high"][19] == 900.0
    calm = curves("x", "X", "How.", "x (ratio)", {"a": {0: (steps, quiet)}}, robust=True)
    assert calm is not None
    assert "range" not in calm.layout["yaxis"]
    assert "outside" not in calm.caption


def test_a_matrix_puts_what_an_interval_does_not_tell_from_zero_in_brackets_and_its_colours_survive_an_outlier() -> (
    None
):
    figures = [
        [{"estimate": 0.5, "low": 0.1, "high": 0.9}, {"estimate": 0.5, "low": -0.1, "high": 0.9}],
        [{"estimate": -0.001, "low": -0.2, "high": 0.1}, {"estimate": -3.0, "low": -4.0, "high": -2.0}],
    ]
    chart = heatmap("x", "X", "How.", ("objective", "family", "margin (nats)"), ["a", "b"], ["c", "d"], figures)
    (trace,) = chart.traces
    assert trace["text"] == [["0.50", "(0.50)"], ["(0.00)", "−3.00"]]
    assert trace["zmin"] == -trace["zmax"]
    many = heatmap("x", "X", "How.", ("a", "b", "c (nats)"), ["a"] * 40, ["c"], [[1.0] * 39 + [1000.0]])
    assert many.traces[0]["zmax"] == 1.0
    assert "full from ±1 on" in many.caption


def test_rows_of_a_matrix_whose_names_are_cut_to_the_same_stay_apart() -> None:
    names = ["x" * 60 + end for end in "ab"]
    chart = heatmap("x", "X", "How.", ("o", "t", "v (nats)"), ["a"], names, [[1.0], [2.0]], compact=True)
    assert len(set(chart.traces[0]["y"])) == 2
    assert chart.columns["t"] == names


def test_lines_and_panels_write_every_point_with_its_interval() -> None:
    drawn = [
        Curve("a", "a", [1, 2], [0.1, 0.2], [0.0, 0.1], [0.2, 0.3], panel="p"),
        Curve("b", "b", [1], [0.5], panel="q"),
    ]
    chart = lines("x", "X", "How.", axis("k (samples)"), axis("x (%)"), drawn)
    small = panels("x", "X", "How.", "k (samples)", "x (%)", drawn, square=(0.0, 1.0), diagonal=True)
    assert small is not None
    for columns in (chart.columns, small.columns):
        assert columns["series"] == ["a", "a", "b"]
        assert columns["x (%)"] == [0.1, 0.2, 0.5]
        assert columns["high"] == [0.2, 0.3, None]
    assert small.columns["panel"] == ["p", "p", "q"]
    used = {(trace.get("xaxis", "x"), trace.get("yaxis", "y")) for trace in small.traces}
    assert used == {("x", "y"), ("x2", "y2")}
    assert all(small.layout[f"{letter}axis{n}"]["title"]["text"] for letter in "xy" for n in ("", "2"))
