"""In a real Chromium: every chart drawn, nothing asked of the network, hostile text inert, phone and keyboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chromium import drawn_all, opened, until
from sample_forecast import hand_made_forecast

from bsharp.reporting.forecast import write_forecast_page

PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_forecast_page(hand_made_forecast(), tmp_path_factory.mktemp("forecast"))


@pytest.fixture(scope="module")
def hostile_file(hostile: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_forecast_page(hostile, tmp_path_factory.mktemp("hostile"))


def test_the_answer_stands_first_and_every_chart_is_drawn_light_and_dark(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file, color_scheme="dark") as page:
        assert page.locator(".answer .figure").inner_text().strip() == "Task reward"
        assert page.locator(".answer .verdict").bounding_box()["y"] < 400  # the answer is on the first screen
        assert drawn_all(page) == 10
        assert page.locator(".js-plotly-plot").count() == 10
        assert page.locator(".plot .absent").count() == 0
        colour = (
            "document.querySelector('[id$=alpha_accuracy] .js-plotly-plot').data.find(t => t.name === 'sum').line.color"
        )
        assert page.evaluate(colour) == "#f07f2f"
        page.click("#theme")
        page.locator("[id$=alpha_accuracy]").scroll_into_view_if_needed()
        until(page, f"{colour} === '#d55e00'")


def test_hostile_names_are_text(browser: Any, hostile_file: Path) -> None:
    with opened(browser, hostile_file) as page:
        drawn_all(page)
        assert page.locator("section img, section script, section iframe").count() == 0
        assert "<script>window.__pwned=1</script>" in page.locator(".answer .verdict").inner_text()
        legend = page.locator("[id$='--problems'] .legendtext").all_text_contents()
        assert any(text.startswith("<script>window") for text in legend)


def test_a_phone_shows_the_page_without_sideways_scrolling(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file, viewport=PHONE, has_touch=True) as page:
        drawn_all(page)
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_what_is_drawn_along_alpha_is_chosen_and_terms_are_looked_up_by_keyboard(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file) as page:
        host = page.locator("[id$='--along_alpha']")
        host.scroll_into_view_if_needed()
        host.locator(".choice button").nth(2).focus()
        page.keyboard.press("Enter")
        host.locator("[id$=alpha_kl] .cartesianlayer .subplot").first.wait_for(state="attached")
        assert host.locator(".option:visible").count() == 1
        page.locator("[id$='--regimes'] thead a >> text=ESS").focus()
        page.keyboard.press("Enter")
        until(page, "document.activeElement.id === 'forecast--term--ess'")
        assert page.locator("[id='forecast--term--ess']").is_visible()
