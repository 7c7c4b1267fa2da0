"""Which parts of plotly a page carries."""

from __future__ import annotations

import re

import pytest
from plotly.offline import get_plotlyjs

from bsharp.reporting.page.plotly_source import plotly_source, without_unused_traces

SOURCE = get_plotlyjs()


def registered(source: str) -> list[str]:
    (names,) = re.findall(r"\.register\(\[((?:[\w$]+\(\),?)+)\]\)", source)
    return names.split(",")


@pytest.mark.parametrize(
    ("kinds", "count"),
    [({"scatter", "bar", "heatmap", "contour"}, 3), ({"bar"}, 1), ({"barpolar"}, 1), ({"pie", "sankey"}, 2)],
)
def test_plotly_registers_the_traces_that_a_page_draws_and_no_others(kinds: set[str], count: int) -> None:
    pruned = plotly_source(kinds)
    names = registered(pruned)
    assert len(names) == count + 1
    assert names[-1] == registered(SOURCE)[-1]  # calendars, which is no trace and stays
    assert set(names) < set(registered(SOURCE))
    assert pruned.replace(",".join(names), ",".join(registered(SOURCE))) == SOURCE  # nothing else has changed


@pytest.mark.parametrize("kinds", [{"scatter", "no_such_trace"}, {"scattergl"}])
def test_all_of_plotly_is_kept_where_a_trace_is_not_found(kinds: set[str]) -> None:
    assert plotly_source(kinds) == SOURCE


@pytest.mark.parametrize("source", ["", "var x = 1", SOURCE.replace(".register([", ".enlist([")])
def test_a_plotly_of_another_build_is_left_as_it_is(source: str) -> None:
    assert without_unused_traces(source, {"bar"}) == source


TRACE = 'moduleType:"trace",name:"sunburst"'


@pytest.mark.parametrize(
    "other",
    [
        'moduleType:"trace",kind:"sunburst"',  # a trace without a name
        'moduleType:"trace",name:"treemap"',  # a name that another trace has
        f"{TRACE},{TRACE}",  # two definitions in one module
    ],
)
def test_all_of_plotly_is_kept_where_any_entry_of_its_list_is_not_understood(other: str) -> None:
    assert SOURCE.count(TRACE) == 1
    changed = SOURCE.replace(TRACE, other)
    assert without_unused_traces(changed, {"bar"}) == changed
