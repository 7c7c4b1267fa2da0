"""The forecast's page as a file: complete, self-contained, in the order in which it is read."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
from sample_forecast import hand_made_forecast

from bsharp.reporting.forecast import write_forecast_page


def test_the_recommendation_comes_first_and_every_section_is_there(forecast: dict[str, Any], tmp_path: Path) -> None:
    path = write_forecast_page(forecast, tmp_path / "out" / "page.html")
    assert path == tmp_path / "out" / "page.html"
    text = path.read_text(encoding="utf-8")
    titles = re.findall(r'<h2 id="[^"]*"><span class="number">\d+</span> ([^<]*)</h2>', text)
    assert titles == [
        "Recommendation",
        "The rules behind the recommendation",
        "Every regime, and the base",
        "Does likelihood predict correctness?",
        "Sharpening",
        "Tilt towards the reward",
        "Families",
        "What base samples cannot know",
        "Source and glossary",
    ]
    assert '<p class="figure"><span>Task reward</span>' in text
    assert text.count("How to read this: ") == 10  # one for each chart


def test_a_directory_gets_forecast_html(forecast: dict[str, Any], tmp_path: Path) -> None:
    assert write_forecast_page(forecast, tmp_path) == tmp_path / "forecast.html"
    assert write_forecast_page(forecast, tmp_path / "new") == tmp_path / "new" / "forecast.html"


def test_the_data_of_every_chart_and_table_lies_beside_the_page(forecast: dict[str, Any], tmp_path: Path) -> None:
    write_forecast_page(forecast, tmp_path)
    names = {path.stem for path in (tmp_path / "forecast_data").glob("*.csv")}
    charts = {"gains", "problems", "problems_by_family", "alpha_accuracy", "alpha_length", "alpha_kl", "alpha_ess"}
    tables = {"regimes", "base", "likelihood", "alpha_sum", "alpha_mean", "limits", "tilt", "families", "rules"}
    assert names == charts | tables | {"limits_by_k", "tilt_kl", "families_change"}
    with (tmp_path / "forecast_data" / "regimes.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["regime"] for row in rows] == list(forecast["regimes"])
    assert rows[0]["accuracy (%)"] == "84.5 [80.4, 88.6]"


def test_a_forecast_without_families_answers_and_mixed_problems_still_makes_a_page(tmp_path: Path) -> None:
    content = hand_made_forecast(problems=3)
    content["families"] = {}
    content["base"] |= {"greedy_accuracy": None, "no_correct_ids": []}
    undefined = {
        "estimate": None,
        "low": None,
        "high": None,
        "n": 0,
        "unit": "share",
        "note": "records hold no answers",
    }
    content["limit"]["majority"] = {"accuracy": undefined, "delta": undefined, "by_k": {"k": [], "accuracy": []}}
    for problem in content["per_problem"]:
        problem |= {"family": None, "correlation": undefined}
    text = write_forecast_page(content, tmp_path).read_text(encoding="utf-8")
    assert "The records name no families." in text
    assert "Only 3 problems" in text
    assert "most frequent answer</dt><dd>records hold no answers" in text


def test_what_is_no_forecast_is_refused(forecast: dict[str, Any], tmp_path: Path) -> None:
    del forecast["tilt"]
    with pytest.raises(ValueError, match="lacks tilt"):
        write_forecast_page(forecast, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_regime_with_a_name_of_its_own_is_called_by_it_and_explained_below(
    forecast: dict[str, Any], tmp_path: Path
) -> None:
    whole = "mine=sharpening(normalisation=mean)"
    forecast["regimes"][whole] = forecast["regimes"]["task_reward"] | {"reliable": False, "lower_bound": True}
    text = write_forecast_page(forecast, tmp_path).read_text(encoding="utf-8")
    assert '<th scope="row">mine</th>' in text
    assert f"<dt>{whole}</dt>" in text
    assert "<td><bdi>≥, lower bound</bdi></td>" in text
