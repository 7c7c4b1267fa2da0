"""In a real Chromium: every chart drawn, nothing asked of the network, no error, hostile text inert, all by keyboard."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chromium import WIDE, drawn_all, opened, until
from sample_runs import make_comparison

from bsharp.reporting.page.embed import visible
from bsharp.reporting.page.parts import Chart, Page, RunPage, Section
from bsharp.reporting.page.render import render_page
from bsharp.reporting.page.report import write_report

PHONE = {"width": 390, "height": 844}


def shown(page: Any) -> list[str]:
    page.wait_for_selector(".problem-list")
    return list(page.locator(".problem-list .question").all_inner_texts())


def test_every_chart_is_drawn_in_its_regimes_colours_light_and_dark(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file, color_scheme="dark") as page:
        charts = drawn_all(page)
        assert charts == 6
        assert page.locator(".js-plotly-plot").count() == charts
        colours = (
            "[...document.querySelectorAll('.chart .js-plotly-plot')][0].data.map(trace => (trace.line || {}).color)"
        )
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        assert page.evaluate(colours)[3] == "#4aa8e0"
        page.locator("figure.chart").first.scroll_into_view_if_needed()
        page.click("#theme")
        until(page, colours + "[3] === '#0072b2'")
        assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(253, 253, 252)"
        # A name stays a name inside a chart too.
        legend = page.locator(".legendtext").all_text_contents()
        assert any(text.startswith("<script>window") for text in legend)


@pytest.fixture(scope="module")
def comparison_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report([make_comparison(tmp_path_factory.mktemp("runs") / "run")])


def test_every_chart_of_a_comparison_with_all_diagnostics_is_drawn(browser: Any, comparison_page: Path) -> None:
    with opened(browser, comparison_page) as page:
        assert drawn_all(page) > 20
        assert page.locator("section").count() == 11
        page.locator("td.gained button").first.click()
        page.wait_for_selector(".completions .model")


def test_a_name_in_the_legend_hides_its_regime_in_all_charts_and_shows_it_again(
    browser: Any, comparison_page: Path
) -> None:
    with opened(browser, comparison_page) as page:
        page.locator("[id$=curves] .legend").scroll_into_view_if_needed()
        page.wait_for_selector("[id$=curves] .cartesianlayer .subplot", state="attached")
        shown = (
            "[...document.querySelector('[id$=curves] .js-plotly-plot').data].filter(t => t.meta.regime === 'sharpening')"
            ".every(t => t.visible !== false)"
        )
        assert page.evaluate(shown) is True
        key = page.locator("[id$=curves] .legend [data-regime=sharpening]")
        key.click()
        until(page, f"!({shown})")
        pressed = (
            "new Set([...document.querySelectorAll('[data-regime=sharpening]')].map(k => k.ariaPressed)).size === 1"
        )
        assert page.evaluate(pressed) is True
        assert key.get_attribute("aria-pressed") == "false"
        key.click()
        until(page, shown)


def test_a_button_chooses_one_chart_of_several_and_only_what_is_chosen_is_drawn(
    browser: Any, comparison_page: Path
) -> None:
    with opened(browser, comparison_page) as page:
        host = page.locator("[id$='--mistakes'].choose")
        host.scroll_into_view_if_needed()
        assert host.locator(".option:visible").count() == 1
        host.locator(".option:visible .cartesianlayer .subplot").first.wait_for(state="attached")
        assert host.locator(".js-plotly-plot").count() == 1
        second = host.locator(".choice button").nth(1)
        second.focus()
        page.keyboard.press("Enter")
        host.locator(".option").nth(1).locator(".cartesianlayer .subplot").first.wait_for(state="attached")
        assert host.locator(".option:visible").count() == 1
        assert second.get_attribute("aria-pressed") == "true"
        page.reload()
        page.wait_for_selector("html[data-ready]")
        assert second.get_attribute("aria-pressed") == "true"


def test_a_metrics_name_leads_to_its_entry_of_the_glossary_which_is_searchable(
    browser: Any, comparison_page: Path
) -> None:
    with opened(browser, comparison_page) as page:
        glossary = page.locator(".glossary")
        assert glossary.get_attribute("open") is None
        page.locator("[id$='--models'] thead a >> text=length").click()
        until(page, "document.activeElement.id === 'run1--term--length'")
        assert page.locator("#run1--term--length").is_visible()
        page.locator("[id$=curve_kl] .help").first.click()
        until(page, "document.activeElement.id === 'run1--term--kl'")
        page.fill(".glossary input", "entropy")
        assert not page.locator("#run1--term--length").is_visible()
        assert page.locator("#run1--term--entropy").is_visible()


def test_no_word_of_a_table_is_broken_and_the_main_table_fits(browser: Any, comparison_page: Path) -> None:
    with opened(browser, comparison_page) as page:
        scroll = "document.querySelector('[id$=\"--models\"] .scroll')"
        fits = f"{scroll}.scrollWidth <= {scroll}.clientWidth"
        assert page.evaluate(fits) is True
        page.evaluate("document.querySelectorAll('section details').forEach((fold) => { fold.open = true; })")
        broken = """[...document.querySelectorAll('.table td bdi')].filter((cell) => {
            if (/\\s/.test(cell.textContent) || cell.textContent.length > 40) return false;
            return cell.getClientRects().length > 1;
        }).map((cell) => cell.textContent)"""
        assert page.evaluate(broken) == []


def test_hostile_text_is_shown_as_text(browser: Any, page_file: Path, make_records: Any) -> None:
    hostile = make_records()["tilted"][0][0]["text"]
    with opened(browser, page_file) as page:
        assert page.locator("section img, section script, section iframe").count() == 0
        assert page.locator(".verdict").inner_text() == "Sharpening only: " + " ".join(visible(hostile).split())
        page.locator(".completions").scroll_into_view_if_needed()
        page.click("button[data-model='2']")
        page.wait_for_selector(".model >> nth=2")
        texts = page.locator(".model").nth(2).locator("pre.text").all_inner_texts()
        assert visible(hostile) in texts
        assert page.locator(".completions script, .completions img").count() == 0


def test_a_text_of_two_million_characters_is_cut_until_asked_for(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file) as page:
        page.locator(".completions").scroll_into_view_if_needed()
        more = page.locator(".model button.more")
        more.wait_for()
        assert more.inner_text() == "Show all 2,000,000 characters"
        assert len(page.locator(".model pre.text").nth(4).inner_text()) == 4000
        more.click()
        assert page.evaluate("document.activeElement.textContent.length") == 2_000_000
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_count_opens_its_problems_and_the_filters_narrow_them(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file) as page:
        page.locator("td.gained button").first.click()
        page.wait_for_selector(".problem-list")
        assert [text.split()[0] for text in shown(page)[1:]] == ["2", "3"]  # problem 0 has the hostile question
        assert page.locator(".count").inner_text().startswith("3 of 40 problems, chosen above")
        assert page.locator("button[data-model='2']").get_attribute("aria-pressed") == "true"
        page.locator(".table button.problems").first.click()  # the link in a table
        until(page, "document.querySelector('.count').textContent.startsWith('2 of 40')")
        page.click("button.clear")
        assert page.locator(".count").inner_text() == "40 of 40 problems"
        page.click("button[data-show=lost]")
        assert shown(page) == ["4 + 7 = ?"]
        page.click("button[data-show=collapsed]")
        assert shown(page) == ["1 + 7 = ?"]
        page.wait_for_selector(".model .badge.bad >> text=collapsed")
        page.click("button[data-show=all]")
        page.fill(".completions input", "+ 3")
        assert [text.split()[0] for text in shown(page)] == ["3", "13", "23", *map(str, range(30, 40))]
        page.select_option("select[data-filter=role]", "transfer")
        assert [text.split()[0] for text in shown(page)] == ["13", *map(str, range(30, 40))]
        page.fill(".completions input", "nothing has this")
        assert "No problem matches" in page.locator(".detail").inner_text()
        page.fill(".completions input", "")
        page.select_option("select[data-filter=role]", "")
        page.select_option("select[data-filter=about]", "0")
        page.select_option("select[data-filter=grade]", "truncated")
        assert len(shown(page)) == 1


def test_the_models_stand_side_by_side_with_the_seed_that_is_chosen(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file) as page:
        page.locator(".completions").scroll_into_view_if_needed()
        page.click("[data-problem='1']")
        page.click("button[data-model='2']")
        models = page.locator(".model")
        until(page, "document.querySelectorAll('.model').length === 3")
        tops = {round(models.nth(at).bounding_box()["y"]) for at in range(3)}
        assert len(tops) == 1
        # Problem 1 of the fixture under tilted: one wrong answer, four times.
        first = models.nth(2).locator(".sample").first.inner_text()
        for piece in ("× 4", "wrong", "ℓ_ref\n−2.50", "log π\n−1.25", "reward\n0.00", "answer\n9", "length\n12 tokens"):
            assert piece in first
        models.nth(2).locator("select").select_option("1")
        until(page, "document.querySelectorAll('.model select')[1].value === '1'")


def test_everything_is_reached_by_keyboard(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file) as page:
        page.locator(".completions").scroll_into_view_if_needed()
        page.wait_for_selector(".problem-list")
        page.evaluate("scrollTo(0, 0)")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        reached: list[str] = []
        name = "n.id || n.dataset.save || n.dataset.show || n.dataset.model || n.className"
        describe = f"((n) => n.textContent === 'Config' ? 'end' : {name})"
        while "end" not in reached and len(reached) < 260:
            page.keyboard.press("Tab")
            reached.append(page.evaluate(f"{describe}(document.activeElement)"))
        wanted = {"theme", "svg", "png", "csv", "problems", "gained", "collapsed", "0", "problem", "scroll", "end"}
        assert wanted <= set(reached)
        page.keyboard.press("Enter")  # the fold at the end opens
        assert page.evaluate("document.activeElement.closest('details').open") is True


def test_a_phone_shows_the_page_without_sideways_scrolling(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file, viewport=PHONE, has_touch=True) as page:
        drawn_all(page)
        page.locator(".completions").scroll_into_view_if_needed()
        page.wait_for_selector(".model")
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_a_chart_is_saved_as_svg_png_and_csv(browser: Any, page_file: Path) -> None:
    signs = {"svg": b"<svg", "png": b"\x89PNG", "csv": b"step,tilted\n0,0.2\n"}
    with opened(browser, page_file, accept_downloads=True) as page:
        for kind, sign in signs.items():
            with page.expect_download() as download:
                page.locator(f"figure.chart [data-save={kind}]").first.click()
            assert download.value.suggested_filename == f"accuracy.{kind}"
            assert Path(download.value.path()).read_bytes().startswith(sign)


def test_a_running_comparison_reloads_and_keeps_tab_filters_and_place(
    browser: Any, make_page: Callable[..., Page], tmp_path: Path
) -> None:
    path = render_page(make_page("running: 5 of 19 runs done", runs=2), tmp_path)
    context = browser.new_context(viewport=WIDE)
    page = context.new_page()
    page.clock.install()
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]")
    page.locator("[role=tab]").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#run-1").is_visible()
    assert not page.locator("#run-0").is_visible()
    page.locator("#run-1 .completions").scroll_into_view_if_needed()
    page.locator("#run-1 button[data-show=lost]").click()
    place = page.evaluate("scrollY")
    page.evaluate("window.before = true")
    page.clock.run_for(10_000)  # the clock also runs by itself meanwhile
    assert page.evaluate("window.before") is True
    with page.expect_navigation():
        page.clock.run_for(21_000)
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate("window.before") is None
    assert page.locator("#run-1").is_visible()
    assert abs(page.evaluate("scrollY") - place) < 100
    page.wait_for_selector("#run-1 button[data-show=lost][aria-pressed=true]")
    page.click("#pause")
    page.evaluate("window.before = true")
    page.clock.run_for(120_000)
    assert page.evaluate("window.before") is True
    assert page.locator("#pause").inner_text() == "Resume"
    context.close()


def test_a_link_to_a_section_of_another_run_opens_that_run(browser: Any, make_page: Any, tmp_path: Path) -> None:
    path = render_page(make_page(runs=2), tmp_path)
    context = browser.new_context(viewport=WIDE)
    page = context.new_page()
    page.goto(path.as_uri() + "#run-1--section--manifest")
    page.wait_for_selector("html[data-ready]")
    assert page.locator("#run-1").is_visible()
    context.close()


def test_where_there_is_no_completions_browser_a_count_lists_its_problems(
    browser: Any, problems_json: dict[str, Any], tmp_path: Path
) -> None:
    from bsharp.reporting.page.gained_lost import gained_lost_parts

    parts = [part for part in gained_lost_parts(problems_json) if not isinstance(part, Chart)]
    path = render_page(Page("t", [RunPage("run", "run", [Section("s", "Section", parts)])]), tmp_path)
    with opened(browser, path) as page:
        page.locator("td.gained button").first.click()
        assert page.locator(".ids li").all_inner_texts() == ["add/0", "add/2", "add/3"]


def test_the_page_and_python_show_the_same_characters(browser: Any, page_file: Path) -> None:
    # The browser's script has its own copy of visible(); held together over every code unit that may matter.
    codes = [*range(0x300), *range(0x600, 0x640), *range(0x2000, 0x2100), 0xD800, 0xDFFF, 0xFEFF]
    source = page_file.read_text(encoding="utf-8")
    start = source.index("const CONTROL")
    code = source[start : source.index("function bytesOf")]
    with opened(browser, page_file) as page:
        script = f"(codes) => {{ {code}; return codes.map((code) => visible(String.fromCharCode(code))); }}"
        assert json.loads(json.dumps(page.evaluate(script, codes))) == [visible(chr(code)) for code in codes]


def test_no_button_of_a_chart_sends_it_anywhere(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file) as page:
        drawn_all(page)
        titles = page.evaluate(
            "[...document.querySelectorAll('.modebar-btn')].map((b) => (b.dataset.title || '') + ' ' + (b.title || ''))"
        )
        assert any("Zoom in" in title for title in titles)
        assert [
            t for t in titles if any(word in t.lower() for word in ("share", "cloud", "chart studio", "edit"))
        ] == []


@pytest.mark.parametrize("viewport", [WIDE, PHONE, {"width": 1000, "height": 420}])
def test_a_count_brings_the_chosen_problem_of_the_list_into_view(
    browser: Any, page_file: Path, viewport: dict[str, int]
) -> None:
    with opened(browser, page_file, viewport=viewport) as page:
        page.locator(".completions").scroll_into_view_if_needed()
        page.wait_for_selector(".problem[aria-current]")
        page.evaluate("document.querySelector('.list-pane').scrollTop = 1e6")
        page.locator("td.gained button").first.click()
        page.wait_for_selector(".problem[aria-current]")
        inside = """(() => {
            const box = (selector) => document.querySelector(selector).getBoundingClientRect();
            const [row, pane] = [box('.problem[aria-current]'), box('.list-pane')];
            return row.top >= Math.max(0, pane.top) && row.bottom <= Math.min(innerHeight, pane.bottom); })()"""
        until(page, inside)


def test_the_columns_of_the_flagged_estimates_do_not_overlap(browser: Any, comparison_page: Path) -> None:
    with opened(browser, comparison_page) as page:
        page.evaluate("document.querySelectorAll('section details').forEach((fold) => { fold.open = true; })")
        over = """[...document.querySelectorAll('[id$="--flagged"] :is(td, th)')].filter((cell) => {
            const right = cell.getBoundingClientRect().right + 1;
            return [...cell.querySelectorAll('bdi')].some((text) => text.getBoundingClientRect().right > right);
        }).length"""
        assert page.locator("[id$='--flagged'] tbody tr").count() > 0
        assert page.evaluate(over) == 0
