"""One file, complete in itself, in which hostile text is text; a CSV per chart and table; refusals."""

from __future__ import annotations

import csv
import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bsharp.reporting.page.palette import palette
from bsharp.reporting.page.parts import Chart, DataTable, Page, Paragraph, RunPage, Section
from bsharp.reporting.page.render import render_page

AXES = {"xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": "reward (share)"}}}
CHART = Chart("reward", "Reward", "", [{"x": [1], "y": [2]}], AXES, {"step": [1], "reward": [2]})


def page_of(*parts: Any) -> Page:
    return Page("t", [RunPage("run", "run", [Section("s", "Section", parts)])])


class Elements(HTMLParser):
    """The elements and their attributes, as a browser's parser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_refers_to_nothing_outside_and_runs_only_its_own_scripts(page_file: Path) -> None:
    elements = Elements(page_file.read_text(encoding="utf-8")).found
    tags = {tag for tag, _ in elements}
    assert not tags & {"img", "iframe", "object", "embed", "base", "form", "video", "audio", "svg", "math"}
    assert not [attributes for _, attributes in elements if any(name.startswith("on") for name in attributes)]
    assert not [attributes for tag, attributes in elements if "src" in attributes]
    links = [attributes["href"] or "" for _, attributes in elements if "href" in attributes]
    assert {link.split(":")[0] for link in links if not link.startswith(("#", "./"))} == {"data"}
    running = [a for tag, a in elements if tag == "script" and a.get("type") not in ("application/json", "text/plain")]
    assert len(running) == 2


def test_every_chart_and_table_has_its_csv(page_file: Path, make_page: Any) -> None:
    (run,) = make_page().runs
    parts = [part for section in run.sections for part in section.parts]
    names = {part.chart_id for part in parts if isinstance(part, Chart)}
    names |= {part.table_id for part in parts if isinstance(part, DataTable)}
    assert {path.stem for path in (page_file.parent / "report_data").iterdir()} == names
    with (page_file.parent / "report_data" / "accuracy.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["step", "tilted"], ["0", "0.2"], ["1", "0.25"], ["2", ""], ["3", ""]]


def test_several_runs_keep_their_files_apart(make_page: Any, tmp_path: Path) -> None:
    render_page(make_page(runs=2), tmp_path, "two.html")
    assert sorted(path.name for path in (tmp_path / "two_data").iterdir()) == ["run-0", "run-1"]
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]  # no temporary file stays


def test_the_same_page_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (render_page(page_of(CHART), tmp_path / name).read_bytes() for name in "ab")
    assert first == second


def test_the_old_page_stays_whole_where_rendering_fails(tmp_path: Path) -> None:
    path = render_page(page_of(Paragraph("before")), tmp_path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="has no title"):
        render_page(page_of(dataclasses.replace(CHART, layout={})), tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("layout", "axis"),
    [
        ({"xaxis": AXES["xaxis"]}, "yaxis"),
        ({"yaxis": AXES["yaxis"], "xaxis": {"title": " "}}, "xaxis"),
        ({**AXES, "xaxis2": {"title": {"text": "step"}}}, "yaxis2"),
    ],
)
def test_a_chart_without_an_axis_title_is_refused(layout: dict[str, Any], axis: str, tmp_path: Path) -> None:
    traces = [{"x": [1], "y": [1]}, *([{"xaxis": "x2", "yaxis": "y2"}] if axis == "yaxis2" else [])]
    with pytest.raises(ValueError, match=f"'reward': {axis} has no title"):
        render_page(page_of(dataclasses.replace(CHART, traces=traces, layout=layout)), tmp_path)


@pytest.mark.parametrize(
    ("changes", "paired"),
    [
        ({}, True),
        ({"wide": True}, False),
        ({"traces": [{"x": [1]}, {"xaxis": "x2"}], "layout": {**AXES, "xaxis2": {"title": "t"}}}, False),
        ({"traces": [{"type": "bar", "x": list("abcdef")}]}, True),
        ({"traces": [{"type": "bar", "x": list("abcdefg")}]}, False),
        ({"traces": [{"type": "bar", "y": list("abcdefg")}], "wide": False}, True),
    ],
)
def test_charts_of_one_panel_and_few_categories_share_a_row(
    changes: dict[str, Any], paired: bool, tmp_path: Path
) -> None:
    chart = dataclasses.replace(CHART, **changes)
    text = render_page(page_of(Paragraph("p"), chart), tmp_path).read_text(encoding="utf-8")
    assert ('<div class="pair"><figure' in text) is paired


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((CHART, CHART), "two parts of run 'run' have the id 'reward'"),
        ((dataclasses.replace(CHART, chart_id="../../x"),), "is no id"),
        ((dataclasses.replace(CHART, columns={"a": [1], "b": []}),), "differ in length"),
        ((DataTable("t", "", "", ("a", "b"), [("1",)]),), "1 cells under 2 headers"),
        (("text",), "str is no part of a page"),
    ],
)
def test_malformed_parts_are_refused(parts: tuple[Any, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        render_page(page_of(*parts), tmp_path)


def test_a_page_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run"):
        render_page(Page("t", []), tmp_path)


def test_only_a_run_under_way_reloads(make_page: Any, tmp_path: Path) -> None:
    running = render_page(make_page("running: 1 of 2"), tmp_path / "a").read_text(encoding="utf-8")
    assert 'id="reload"' in running
    assert "running: 1 of 2" in running
    assert 'id="reload"' not in render_page(make_page(), tmp_path / "b").read_text(encoding="utf-8")


def test_known_regimes_keep_their_colour_and_no_two_of_the_first_eleven_look_alike() -> None:
    known = palette(["base", "task_reward", "sharpening", "sharpening_mean", "tempered", "tilted", "tilted_alpha_2"])
    more = palette(["mine", "tilted", "yours", "base", "mine", *known, "third", "fourth"])
    assert {name: more[name] for name in known} == known
    assert (known["base"].symbol, known["task_reward"].light) == ("x", "#0072b2")
    for part in range(2):
        assert len({style[part] for style in more.values()}) == len(more) == 11
    assert len({style[2:] for style in more.values()}) == 11


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_the_text_colours_have_a_contrast_of_4_5_on_their_ground_in_both_themes(page_file: Path) -> None:
    # WCAG 2.1, 1.4.3: (L1 + 0.05) / (L2 + 0.05) ≥ 4.5.
    text = page_file.read_text(encoding="utf-8")
    for selector in (r":root \{", r":root\[data-theme=dark\] \{"):
        block = re.search(selector + "(.*?)}", text, re.DOTALL)
        assert block is not None
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block[1]))
        pairs = [(ink, ground) for ink in ("ink", "muted", "link") for ground in ("ground", "raised")]
        pairs += [(kind, f"{kind}-ground") for kind in ("good", "bad", "odd")]
        for ink, ground in pairs:
            high, low = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (selector, ink, ground)
