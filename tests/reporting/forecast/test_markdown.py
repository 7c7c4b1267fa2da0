"""The forecast as Markdown: well-formed tables, everything that is on the screen, nothing but text."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

from bsharp.reporting.forecast import forecast_markdown
from bsharp.reporting.forecast.along import alpha_grid
from bsharp.reporting.forecast.grids import families_grid, regimes_grid, rules_grid


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def tables(text: str) -> list[list[list[str]]]:
    found: list[list[list[str]]] = [[]]
    for line in text.split("\n"):
        if line.startswith("|"):
            found[-1].append(cells(line))
        elif found[-1]:
            found.append([])
    return found[:-1]


def test_every_row_of_a_table_has_as_many_cells_as_its_header(
    forecast: dict[str, Any], hostile: dict[str, Any]
) -> None:
    for content in (forecast, hostile):
        found = tables(forecast_markdown(content))
        assert len(found) == 9
        assert all(len(row) == len(table[0]) for table in found for row in table)


def test_every_row_of_regimes_families_rules_and_the_curve_is_there(forecast: dict[str, Any]) -> None:
    found = {tuple(unescape(cell.replace("\\", "")) for cell in row)
             for table in tables(forecast_markdown(forecast)) for row in table}  # fmt: skip
    for grid in (regimes_grid(forecast), families_grid(forecast), alpha_grid(forecast, "sum"), rules_grid(forecast)):
        assert {tuple(row[at] for at in grid.columns()) for row in grid.rows} <= found


def test_the_recommendation_stands_first(forecast: dict[str, Any]) -> None:
    lines = [line for line in forecast_markdown(forecast).split("\n") if line]
    assert lines[0] == "# Forecast"
    assert lines[1].startswith("**task reward**: Train with the task reward")


def test_hostile_names_are_neither_html_nor_markdown(hostile: dict[str, Any]) -> None:
    text = forecast_markdown(hostile)
    assert "<" not in text
    assert not re.search(r"(?<!\\)`", text)
    assert not re.search(r"(?<!\\)\[bold", text)
    assert "&lt;script&gt;" in text


def test_a_lower_bound_is_marked_in_the_table(forecast: dict[str, Any]) -> None:
    forecast["regimes"]["task_reward"] |= {"reliable": False, "lower_bound": True}
    rows = [
        row
        for table in tables(forecast_markdown(forecast))
        for row in table
        if row[0].replace("\\", "") == "task_reward"
    ]
    assert "≥, lower bound" in rows[0]
