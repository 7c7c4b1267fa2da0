"""The forecast on the screen: complete at any width, marked where it is unreliable, the recommendation at its end."""

from __future__ import annotations

import io
import unicodedata
from typing import Any

import pytest
from rich.console import Console
from sample_forecast import hand_made_forecast

from bsharp.reporting.forecast import print_forecast
from bsharp.reporting.forecast.along import alpha_grid, limits_grid, tilt_grid
from bsharp.reporting.forecast.grids import families_grid, likelihood_grid, regimes_grid


def printed(forecast: dict[str, Any], width: int = 100, families: bool = True) -> str:
    file = io.StringIO()
    print_forecast(forecast, Console(width=width, file=file), families)
    return file.getvalue()


def grids(forecast: dict[str, Any]) -> list[Any]:
    along = [alpha_grid(forecast, name) for name in ("sum", "mean")]
    found = [build(forecast) for build in (likelihood_grid, regimes_grid, tilt_grid, limits_grid, families_grid)]
    return [*along, *found]


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_no_line_is_wider_than_the_screen_and_no_figure_is_cut(forecast: dict[str, Any], width: int) -> None:
    text = printed(forecast, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    flat = "".join(text.split())
    for grid in grids(forecast):
        for row in grid.rows:
            for at in grid.columns():
                if at in grid.numeric:  # a figure and its interval stay whole
                    assert all(piece in text for piece in row[at].replace(" [", "\n[").split("\n")), (row, at)
                else:
                    assert all("".join(piece.split()) in flat for piece in row[at].split("(")), (row, at)


def test_every_table_keeps_the_rows_names_where_it_is_continued(forecast: dict[str, Any]) -> None:
    wide, narrow = (printed(forecast, width).count("speed ") for width in (200, 80))
    assert narrow > wide


def test_the_recommendation_stands_at_the_end_with_its_rules_and_what_cannot_be_known(forecast: dict[str, Any]) -> None:
    text = printed(forecast)
    told = forecast["recommendation"]
    order = [
        "By family",
        "What the recommendation rests on",
        told["rules"][0]["rule"][:40],
        "What base samples cannot know",
        "task reward  ─",
    ]
    places = [text.index(piece) for piece in order]
    assert places == sorted(places)
    assert text.splitlines()[-1].startswith("╰")  # the panel is the last thing, next to the prompt
    flat = " ".join(text.split())
    for rule in told["rules"]:
        verdict = "holds" if rule["holds"] else "does not hold"
        assert f"{verdict}: {rule['rule']} {rule['figures']}; {rule['source']}" in flat
    assert all(item in flat for item in told["cannot_know"])


def test_families_are_printed_only_when_asked_for(forecast: dict[str, Any]) -> None:
    assert "By family" in printed(forecast)
    assert "By family" not in printed(forecast, families=False)


def test_a_row_that_is_not_reliable_says_so_and_why(forecast: dict[str, Any]) -> None:
    lines = printed(forecast, 120).splitlines()
    assert [line.split()[0] for line in lines if "not reliable" in line and "from α" not in line] == [
        "tempered(alpha=4)",
        "2.5",
        "3",
        "3.5",
        "4",
    ]
    assert "- tempered(alpha=4): 1.6 effective samples per problem (median), below 4" in lines


def test_where_all_is_reliable_there_is_no_column_of_flags() -> None:
    content = hand_made_forecast(reliable_to=4.0)
    content["regimes"]["tempered(alpha=4)"] |= {"reliable": True, "note": ""}
    assert "flag" not in printed(content, 200)


def test_the_figures_are_those_of_the_file(forecast: dict[str, Any]) -> None:
    flat = " ".join(printed(forecast, 200).split())
    assert "sharpening 48.8 [44.7, 52.9] +2.6 [-0.7, +5.9] 9.40 28.1 1.0 none" in flat
    assert "1.5 47.7 [44.0, 51.4] +1.5 [+0.9, +2.1] 30.1 0.28 9.7" in flat
    assert "100 84.5 [81.2, 87.8] +38.3 [+35.9, +40.7] 0.62 [0.57, 0.67] 7.2" in flat
    assert "likeliest sample by the mean per token 43.7 [39.0, 48.4] -2.5 [-6.2, +1.2] 39.2 46.2 44.2 43.9 43.7" in flat
    assert (
        "sum of log-probabilities +0.21 [+0.15, +0.28] +3.4 [+2.3, +4.5] 68.0 [60.0, 76.0] +0.33 [+0.21, +0.45]" in flat
    )
    assert (
        "mean 12 79.0 [73.0, 85.0] +0.37 [+0.25, +0.49] 0.0 81.5 [74.5, 88.5] 84.0 [76.0, 92.0] 94.0 [89.0, 99.0]"
        in flat
    )


def test_a_long_curve_says_how_much_of_it_is_shown_and_shows_where_it_stops_being_reliable() -> None:
    content = hand_made_forecast()
    found = content["tempered"]["sum"]
    count = 61
    found["alpha"] = [1 + 0.05 * at for at in range(count)]
    for key in ("accuracy", "delta", "length", "kl", "ess"):
        found[key] = [found[key][0]] * count
    found["reliable"] = [at <= 27 for at in range(count)]
    grid = alpha_grid(content, "sum")
    assert grid.title.endswith("(10 of 61 values of α)")
    assert [row[0] for row in grid.rows] == ["1", "1.25", "1.5", "2", "2.35", "2.4", "2.5", "3", "3.5", "4"]
    assert grid.faint == {5, 6, 7, 8, 9}
    assert len(alpha_grid(content, "sum", rows=100).rows) == count


def test_hostile_names_are_printed_literally(hostile: dict[str, Any]) -> None:
    text = printed(hostile, 120)
    assert "[bold red]" in "".join(text.split("\n"))
    assert not [c for c in text if c != "\n" and unicodedata.category(c)[0] == "C"]


def test_a_forecast_without_figures_is_printed_with_dashes(forecast: dict[str, Any]) -> None:
    text = printed(emptied(forecast), 100)
    assert "– " in text
    assert "nothing can be said" in text
    assert "None" not in text


def emptied(content: Any) -> Any:
    """The same content with every estimate undefined and every number of a curve null."""
    if isinstance(content, dict):
        if "estimate" in content:
            return content | {"estimate": None, "low": None, "high": None, "note": "nothing is known"}
        return {key: emptied(value) for key, value in content.items()}
    if isinstance(content, list):
        return [emptied(value) for value in content]
    return content


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "a list"),
        ({}, "schema None"),
        ({"schema": 2}, "schema 2"),
        ({"schema": 1, "source": {}}, "lacks base, likelihood"),
    ],
)
def test_what_is_no_forecast_is_refused_in_one_line(content: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        printed(content)
    assert "\n" not in str(error.value)


def test_a_missing_key_is_named(forecast: dict[str, Any]) -> None:
    del forecast["base"]["pass_at_n"]
    with pytest.raises(ValueError, match="lacks the key 'pass_at_n'"):
        printed(forecast)


def test_a_lower_bound_is_called_that_and_not_unreliable(forecast: dict[str, Any]) -> None:
    forecast["regimes"]["task_reward"] |= {"reliable": False, "lower_bound": True}
    forecast["tilt"] |= {"reliable": [True] * 3 + [False] * 4, "lower_bound": [False] * 3 + [True] * 4}
    for grid, place in ((regimes_grid(forecast), 0), (tilt_grid(forecast), 6)):
        assert "≥, lower bound" in grid.rows[place]
        assert place not in grid.faint
    lines = [line for line in printed(forecast, 200).splitlines() if "≥, lower bound" in line]
    assert [line.split()[0] for line in lines] == ["task_reward", "5", "10", "100", "10,000"]
    assert not any("not reliable" in line for line in lines)


def test_a_table_in_blocks_is_marked_as_continued_and_no_block_has_one_column_left_over(
    forecast: dict[str, Any],
) -> None:
    lines = printed(forecast, 80).splitlines()
    heads = [line for line in lines if line.startswith("(continued)")]
    # Of seven figures a family three or four stand in each block.
    assert [line.count("% [95 %]") for line in heads if "% [95 %]" in line] == [3]
    assert all(len(line.split()) > 3 for line in heads), heads
    assert "(continued)" not in printed(forecast, 200)


def test_intervals_stay_in_line_where_parting_the_names_is_enough(forecast: dict[str, Any]) -> None:
    forecast["regimes"]["sharpening_mean=sharpening(normalisation=mean)"] = dict(forecast["regimes"]["sharpening"])
    lines = printed(forecast, 120).splitlines()
    place = next(at for at, line in enumerate(lines) if line.startswith("sharpening_mean=sharpening "))
    assert "48.8 [44.7, 52.9] +2.6 [-0.7, +5.9]" in " ".join(lines[place].split())
    assert lines[place + 1] == "(normalisation=mean)"
