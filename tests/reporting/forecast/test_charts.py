"""The page's charts hold the figures of the file, and show where they stop being reliable."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sample_forecast import ALPHAS, FAMILIES, hand_made_forecast

from bsharp.reporting.forecast.charts import alpha_charts, by_k_chart, families_chart, gains_chart, tilt_chart
from bsharp.reporting.forecast.parted import Point, leading, parted, parted_columns, parted_traces
from bsharp.reporting.forecast.problems import CORRELATION, MOST_FAMILIES, OTHERS, problem_charts
from bsharp.reporting.page.parts import Chart

Trace = dict[str, Any]


def accuracy_chart(forecast: dict[str, Any]) -> Chart:
    return dict(alpha_charts(forecast))["accuracy"]


def lines_of(chart: Chart, name: str) -> list[Trace]:
    return [dict(trace) for trace in chart.traces if trace.get("name") == name]


def test_the_curve_is_solid_up_to_the_last_reliable_alpha_and_pale_from_there(forecast: dict[str, Any]) -> None:
    solid, pale = lines_of(accuracy_chart(forecast), "sum")
    assert solid["x"] == [a for a in ALPHAS if a <= 2.0]
    assert pale["x"] == [a for a in ALPHAS if a >= 2.0]
    assert pale["y"][0] == solid["y"][-1]
    assert "opacity" not in solid
    assert pale["opacity"] < 1
    assert pale["line"]["dash"] == "dot"
    assert solid["showlegend"] is True
    assert pale["showlegend"] is False
    assert [a for a, text in zip(pale["x"], pale["text"], strict=True) if "not reliable" in text] == list(ALPHAS[6:])
    assert len(lines_of(accuracy_chart(forecast), "mean")) == 1


def test_the_end_of_what_is_reliable_is_marked_for_each_likelihood(forecast: dict[str, Any]) -> None:
    (mark,) = lines_of(accuracy_chart(forecast), "end of what is reliable")
    assert mark["x"] == [2.0, 2.0]
    assert mark["text"][0].strip() == "sum: reliable to here"
    forecast["tempered"]["mean"]["reliable"] = forecast["tempered"]["sum"]["reliable"]
    (mark,) = lines_of(accuracy_chart(forecast), "end of what is reliable")
    assert mark["text"][0].strip() == "sum and mean: reliable to here"


def test_every_point_of_the_curve_is_in_the_data_file_once_in_per_cent(forecast: dict[str, Any]) -> None:
    columns = accuracy_chart(forecast).columns
    rows = list(
        zip(columns["series"], columns["α"], columns["accuracy (%)"], columns["low"], columns["high"], strict=True)
    )
    assert [row[1] for row in rows if row[0].startswith("sum")] == list(ALPHAS)
    assert [row[1] for row in rows if row[0] == "sum, not reliable"] == list(ALPHAS[6:])
    wanted = forecast["tempered"]["sum"]["accuracy"]
    got = [row[2:] for row in rows if row[0].startswith("sum")]
    for figure, values in zip(wanted, got, strict=True):
        assert values == pytest.approx(tuple(100 * figure[key] for key in ("estimate", "low", "high")), rel=1e-4)


def test_the_base_is_a_line_and_the_limits_stand_beyond_the_last_alpha(forecast: dict[str, Any]) -> None:
    forecast["limit"]["mean"]["reliable"] = False
    chart = accuracy_chart(forecast)
    (base,) = lines_of(chart, "base")
    assert base["y"] == [46.2, 46.2]
    wanted = {"likeliest, sum": (48.8, 1), "likeliest, mean": (43.7, 0.5), "most frequent answer": (56.1, 1)}
    for name, (value, opacity) in wanted.items():
        (mark,) = lines_of(chart, name)
        assert mark["x"][0] > ALPHAS[-1]
        assert mark["y"] == [value]
        assert mark["opacity"] == opacity
        assert mark["error_y"]["array"] == pytest.approx([4.7])
    assert lines_of(chart, "likeliest, mean")[0]["text"][0].endswith("not reliable")


def test_length_kl_and_effective_samples_are_drawn_in_their_own_units(forecast: dict[str, Any]) -> None:
    charts = dict(alpha_charts(forecast))
    assert list(charts) == ["accuracy", "length", "KL", "effective samples"]
    assert lines_of(charts["length"], "sum")[0]["y"][0] == 31.4
    assert lines_of(charts["effective samples"], "sum")[0]["y"][0] == 16.0
    assert "(nats/sequence)" in charts["KL"].layout["yaxis"]["title"]["text"]


def test_the_tilt_begins_at_the_base_and_is_bounded_by_the_problems_with_a_right_sample(
    forecast: dict[str, Any],
) -> None:
    chart = tilt_chart(forecast)
    assert chart is not None
    (tilt,) = lines_of(chart, "tilt")
    assert (tilt["x"][0], tilt["y"][0]) == (0.0, 46.2)
    assert tilt["x"][1:] == pytest.approx([f["estimate"] for f in forecast["tilt"]["kl"]], rel=1e-4)
    assert tilt["y"][1:] == pytest.approx([100 * f["estimate"] for f in forecast["tilt"]["accuracy"]], rel=1e-4)
    (ceiling,) = lines_of(chart, "problems with a right sample")
    assert ceiling["y"] == [84.5, 84.5]
    (labels,) = lines_of(chart, "β⁻¹")
    assert [text.strip() for text in labels["text"]] == ["0.5", "1", "2", "β⁻¹ = 5 to 10,000"]
    # The tempered policy is drawn as far as it is reliable.
    assert max(lines_of(chart, "tempered (sum)")[0]["x"]) == pytest.approx(1.1)


def test_a_tilt_that_is_not_reliable_is_pale(forecast: dict[str, Any]) -> None:
    forecast["tilt"]["reliable"] = [True, True, False, False, False, False, False]
    chart = tilt_chart(forecast)
    assert chart is not None
    solid, pale = lines_of(chart, "tilt")
    assert len(solid["x"]) == 3
    assert len(pale["x"]) == 6
    assert pale["opacity"] < 1


def test_the_limits_by_k_are_those_of_the_file(forecast: dict[str, Any]) -> None:
    chart = by_k_chart(forecast)
    assert chart is not None
    (line,) = lines_of(chart, "most frequent answer")
    assert line["x"] == [1, 2, 4, 8, 16]
    assert line["y"][0] == pytest.approx(46.2)
    assert line["y"][-1] == pytest.approx(56.1)


def test_a_familys_change_is_its_accuracy_minus_that_of_the_base(forecast: dict[str, Any]) -> None:
    chart = families_chart(forecast)
    assert chart is not None
    (trace,) = chart.traces
    assert list(trace["y"]) == list(FAMILIES)
    # Of the first family: 93 - 90, 97 - 90 and 100 - 90; of the last: 12.5 - 13, 6 - 13, 58 - 13.
    assert trace["z"][0] == pytest.approx([3, 7, 10])
    assert trace["z"][-1] == pytest.approx([-0.5, -7, 45])


def test_regimes_that_are_not_reliable_have_an_asterisk(forecast: dict[str, Any]) -> None:
    chart = gains_chart(forecast)
    assert chart is not None
    labels = chart.layout["yaxis"]["ticktext"]
    assert [label for label in labels if label.startswith("*")] == ["* tempered(alpha=4)"]
    assert [label.removeprefix("* ") for label in labels] == list(forecast["regimes"])
    assert lines_of(chart, "task_reward")[0]["x"] == [38.3]
    assert lines_of(chart, "sharpening(normalisation=mean)")[0]["meta"]["regime"] == "sharpening_mean"
    assert lines_of(chart, "tilted(alpha=1,beta_inv=100)")[0]["meta"]["regime"] == "tilted"


def test_every_problem_with_a_correlation_is_one_point(forecast: dict[str, Any]) -> None:
    defined = [p for p in forecast["per_problem"] if p["correlation"]["estimate"] is not None]
    scatter, strip = (chart for _, chart in problem_charts(forecast))
    for chart in (scatter, strip):
        assert sorted(chart.columns["problem"]) == sorted(p["problem_id"] for p in defined)
    points = [(x, y) for trace in scatter.traces for x, y in zip(trace["x"], trace["y"], strict=True)]
    wanted = [(100 * p["accuracy"], p["correlation"]["estimate"]) for p in defined]
    np.testing.assert_allclose(sorted(points), sorted(wanted), atol=1e-3)
    assert f"{len(forecast['per_problem']) - len(defined)} of 96 problems have no correlation" in scatter.caption
    pooled = next(trace for trace in strip.traces if trace["name"] == "pooled over the family")
    names = [strip.layout["yaxis"]["ticktext"][place] for place in pooled["y"]]
    assert pooled["x"] == [round(forecast["families"][name]["within_correlation"]["estimate"], 5) for name in names]
    assert scatter.columns[CORRELATION] == strip.columns[CORRELATION]


def test_more_families_than_can_be_told_apart_share_one_name() -> None:
    content = hand_made_forecast()
    for at, problem in enumerate(content["per_problem"]):
        problem["family"] = f"family {at % 30}"
    (_, scatter), (_, strip) = problem_charts(content)
    names = [trace["name"] for trace in scatter.traces]
    assert len(names) == MOST_FAMILIES
    assert names[-1] == OTHERS
    looks = {(trace["meta"]["regime"], trace["marker"]["symbol"]) for trace in scatter.traces}
    assert len(looks) == MOST_FAMILIES
    assert len(strip.layout["yaxis"]["ticktext"]) == 30


def test_records_without_families_give_one_chart(forecast: dict[str, Any]) -> None:
    for problem in forecast["per_problem"]:
        problem["family"] = None
    assert [label for label, _ in problem_charts(forecast)] == ["against accuracy"]
    forecast["per_problem"] = []
    assert problem_charts(forecast) == []


@pytest.mark.parametrize(
    ("flags", "solid", "pale"),
    [
        ([True, True, True], [[1, 2, 3]], []),
        ([True, False, False], [[1]], [[1, 2, 3]]),
        ([True, False, True], [[1]], [[1, 2, 3]]),
        ([False, False, False], [], [[1, 2, 3]]),
        ([], [], []),
    ],
)
def test_a_curve_is_parted_at_the_first_point_that_is_not_reliable(
    flags: list[bool], solid: list[list[int]], pale: list[list[int]]
) -> None:
    points = [Point(float(at), 0.1 * at, flag, f"point {at}") for at, flag in enumerate(flags, start=1)]
    drawn = list(parted("curve", "sharpening", points))
    assert [list(curve.x) for curve, reliable in drawn if reliable] == solid
    assert [list(curve.x) for curve, reliable in drawn if not reliable] == pale
    assert leading(flags) == sum(map(len, solid))
    columns = parted_columns(drawn, ("x", "y"))
    assert columns["x"] == [1, 2, 3][: len(flags)]
    # A curve that is pale as a whole is named in the legend all the same.
    assert sum(trace["showlegend"] for trace in parted_traces(drawn)) == bool(flags)


def test_points_without_a_figure_are_left_out() -> None:
    points = [Point(1.0, 0.5, True, "a"), Point(2.0, {"estimate": None}, True, "b"), Point(3.0, math.nan, True, "c")]
    ((curve, _),) = parted("curve", "sharpening", points)
    assert list(curve.x) == [1.0]


def test_a_regime_that_is_a_lower_bound_has_that_sign_and_a_named_one_its_name(forecast: dict[str, Any]) -> None:
    regimes = forecast["regimes"]
    regimes["task_reward"] |= {"reliable": False, "lower_bound": True}
    regimes["mine=tempered(alpha=8,normalisation=mean)"] = dict(regimes["sharpening"])
    chart = gains_chart(forecast)
    assert chart is not None
    labels = chart.layout["yaxis"]["ticktext"]
    assert labels[0] == "≥ task_reward"
    assert "mine" in labels


def test_a_lower_bound_of_the_tilt_is_solid_and_says_what_it_is(forecast: dict[str, Any]) -> None:
    forecast["tilt"] |= {"reliable": [True] * 3 + [False] * 4, "lower_bound": [False] * 3 + [True] * 4}
    chart = tilt_chart(forecast)
    assert chart is not None
    (tilt,) = lines_of(chart, "tilt")
    assert [text.endswith("≥, lower bound") for text in tilt["text"]] == [False] * 4 + [True] * 4
    (labels,) = lines_of(chart, "β⁻¹")
    assert labels["text"][-1].strip() == "β⁻¹ = 5 to 10,000 (≥)"
    # A point that is neither reliable nor a lower bound still ends what is solid.
    forecast["tilt"]["lower_bound"][-1] = False
    chart = tilt_chart(forecast)
    assert chart is not None
    assert [len(line["x"]) for line in lines_of(chart, "tilt")] == [7, 2]


def test_the_labels_of_the_tilt_have_room_left_of_the_first_point_and_above_the_last(forecast: dict[str, Any]) -> None:
    chart = tilt_chart(forecast)
    assert chart is not None
    (labels,) = lines_of(chart, "β⁻¹")
    assert labels["textposition"] == ["middle left"] * 3 + ["top left"]
    assert chart.layout["xaxis"]["range"][0] < 0
    top = max(figure["high"] for figure in forecast["tilt"]["accuracy"])
    assert chart.layout["yaxis"]["range"][1] > 100 * top


def test_a_majority_that_is_not_reliable_is_pale(forecast: dict[str, Any]) -> None:
    forecast["limit"]["majority"] |= {"reliable": False, "note": "the vote has not settled"}
    (mark,) = lines_of(accuracy_chart(forecast), "most frequent answer")
    assert mark["opacity"] < 1
    assert mark["text"][0].endswith("not reliable")
