"""Where no model answers anything, every view says so and none concludes."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sample_runs import make_comparison

from bsharp.reporting import print_results, results_markdown, table_svg, write_report
from bsharp.reporting.page.load import load_run
from bsharp.reporting.page.parts import Callout, Chart, DataTable, Section, Verdict, every_part
from bsharp.reporting.page.sections import build_sections
from bsharp.reporting.page.sections.at_k import section as at_k_section
from bsharp.statistics.verdict import LEAST_SOLVED

CAUSES = {
    "wrong": "Take a stronger base or easier problems",
    "unparseable": "No completion holds an answer that can be read",
    "truncated": "All completions were cut at max_new_tokens = 48: raise it",
    "timeout": "could be graded: the grader timed out or failed on each",
}
CONCLUSIONS = ("gain beyond", "sharpening ahead", "not distinguishable", "Under-powered", "Undecided", "learned", "*")


@pytest.fixture(scope="module", params=CAUSES)
def silent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("silent") / request.param
    return make_comparison(folder, seeds=(0,), problems=8, outcome=request.param, alarms=False), request.param


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of them, for what costs more."""
    folder = tmp_path_factory.mktemp("silent") / "cut"
    return make_comparison(folder, seeds=(0,), problems=8, outcome="truncated", alarms=False)


def results_of(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def sections_of(folder: Path) -> dict[str, Section]:
    return {section.section_id: section for section in build_sections(load_run(folder), folder)}


def test_terminal_markdown_and_picture_say_that_there_is_nothing_to_compare_and_why(silent: tuple[Path, str]) -> None:
    folder, outcome = silent
    results, screen = results_of(folder), io.StringIO()
    print_results(results, Console(file=screen, width=400), families=True)
    markdown = results_markdown(results)
    for text in (screen.getvalue(), markdown, re.sub(r"<[^>]*>|&#160;", " ", table_svg(results, width=400))):
        said = " ".join(text.split())
        assert "nothing to compare: " in said
        assert CAUSES[outcome] in said
    for text in (screen.getvalue(), markdown.replace("**", "")):
        assert not [word for word in CONCLUSIONS if word in text]
        assert "no signal" in text


def test_the_page_leads_with_the_reason_and_draws_no_difference(cut: Path) -> None:
    sections = sections_of(cut)
    parts = list(every_part(sections["verdict"].parts))
    (verdict,) = (part for part in parts if isinstance(part, Verdict))
    assert verdict.text.startswith("Nothing to compare: ")
    assert CAUSES["truncated"] in verdict.text
    assert not [part for part in parts if isinstance(part, Chart) and part.chart_id == "deltas"]
    (tests,) = (part for part in parts if isinstance(part, DataTable) and part.table_id == "paired_tests")
    assert {row[tests.headers.index("verdict")] for row in tests.rows} == {"nothing to compare"}
    limits = [part.text for part in every_part(sections["limits"].parts) if isinstance(part, Callout)]
    assert any(text.startswith("No figure of this page says which model is better") for text in limits)
    assert not [word for word in CONCLUSIONS[:-1] if any(word in text for text in limits)]


def test_the_page_is_written_whole(cut: Path, tmp_path: Path) -> None:
    page = write_report([cut], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "could not be built" not in page
    assert "Nothing to compare" in page


def test_where_neither_is_ever_right_the_curves_do_not_cross(cut: Path) -> None:
    (table,) = (part for part in at_k_section(load_run(cut)).parts if isinstance(part, DataTable))
    assert {row[1] for row in table.rows} == {"nothing to cross: neither is ever right"}


def test_results_without_the_counts_are_read_as_comparable(tmp_path: Path) -> None:
    folder = make_comparison(tmp_path / "run", seeds=(0,), problems=12)
    results = results_of(folder)
    assert results["verdict"]["comparable"] is True
    assert results["verdict"]["answers"]["solved"] >= LEAST_SOLVED
    for key in ("comparable", "answers"):
        del results["verdict"][key]
    assert results_markdown(results) == results_markdown(results_of(folder))
