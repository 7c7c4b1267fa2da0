"""Every section from the files of a run, at every stage and with any file missing; and what the sections must not hide."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sample_diagnostics import FAMILIES
from sample_runs import REGIMES, make_comparison, make_evaluation, make_training

from bsharp.reporting.page.glossary import GLOSSARY, definitions
from bsharp.reporting.page.load import DIAGNOSTICS, load_run
from bsharp.reporting.page.parts import (
    Callout,
    Chart,
    Completions,
    DataTable,
    Definitions,
    FileLinks,
    GainedLost,
    Glossary,
    Part,
    Preformatted,
    Section,
    Verdict,
    every_part,
)
from bsharp.reporting.page.report import write_report
from bsharp.reporting.page.sections import build_sections, limits
from bsharp.reporting.page.sections.at_k import crossover
from bsharp.reporting.page.sections.limits import UNBUILT
from bsharp.reporting.page.sections.manifest import training_tokens

ORDER = [
    "verdict", "curves", "at_k", "changed", "gradients", "surface", "sensitivity", "calibration", "completions", "limits",
    "manifest",
]  # fmt: skip
CATEGORIES = {
    "problem family",
    "module group",
    "objective",
    "against",
    "checkpoint",
    "type of mistake",
    "change of the prompt",
    "regime",
    "model",
    "direction",
    "which share",
    "types of mistake (count)",
}
COUNTS = {
    "seed", "step", "last step", "since", "alarms", "k", "problems", "threads", "estimates", "estimate", "95 % interval",
    "corrected", "amplified", "undecided", "all", "tokens sampled in training",
}  # fmt: skip


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_comparison(tmp_path_factory.mktemp("runs") / "complete")


@pytest.fixture
def comparison(complete: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(complete, tmp_path / "run"))


@pytest.fixture(scope="module")
def sections(complete: Path) -> dict[str, Section]:
    return sections_of(complete)


def sections_of(path: Path) -> dict[str, Section]:
    return {section.section_id: section for section in build_sections(load_run(path), path)}


def parts_of(sections: dict[str, Section], kind: type[Part]) -> Iterator[Any]:
    everything = (part for section in sections.values() for part in every_part(section.parts))
    return (part for part in everything if isinstance(part, kind))


def chart(sections: dict[str, Section], chart_id: str) -> Chart:
    return next(part for part in parts_of(sections, Chart) if part.chart_id == chart_id)


def table(sections: dict[str, Section], table_id: str) -> list[dict[str, Any]]:
    found = next(part for part in parts_of(sections, DataTable) if part.table_id == table_id)
    return [dict(zip(found.headers, row, strict=True)) for row in found.rows]


def callouts(sections: dict[str, Section], section_id: str) -> str:
    return " ".join(part.text for part in sections[section_id].parts if isinstance(part, Callout))


def edit(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def unbuilt(sections: dict[str, Section]) -> list[str]:
    return [part.text for part in parts_of(sections, Callout) if part.text.startswith(UNBUILT)]


def test_a_complete_comparison_fills_every_section_in_order(sections: dict[str, Section]) -> None:
    assert list(sections) == ORDER
    assert [section.section_id for section in sections.values() if section.absent or not section.parts] == []
    assert unbuilt(sections) == []


def test_ids_of_parts_are_ids_and_unique(sections: dict[str, Section]) -> None:
    ids = [part.chart_id for part in parts_of(sections, Chart)] + [
        part.table_id for part in parts_of(sections, DataTable)
    ]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) for name in ids)


def axes_of(drawn: Chart) -> list[dict[str, Any]]:
    return [content for name, content in drawn.layout.items() if re.fullmatch(r"[xy]axis\d*", name)]


def test_every_axis_names_a_unit_or_categories(sections: dict[str, Section]) -> None:
    for drawn in parts_of({key: section for key, section in sections.items() if key != "changed"}, Chart):
        for content in axes_of(drawn):
            title = content["title"]["text"]
            assert title in CATEGORIES or re.search(r"\(.+\)|training step", title), (drawn.chart_id, title)


def in_glossary(title: str) -> bool:
    term = re.sub(r"@\d+", "@k", title.partition(" (")[0])
    return any(term.startswith(metric.term) or metric.term.startswith(f"{term}(") for metric in GLOSSARY.values())


def test_every_metric_of_the_page_has_an_entry_in_its_glossary(sections: dict[str, Section]) -> None:
    own = {key: section for key, section in sections.items() if key != "changed"}
    coordinates = ("training step", "k (", "towards ", "position on the line")
    for drawn in parts_of(own, Chart):
        for title in (content["title"]["text"] for content in axes_of(drawn)):
            known = title in CATEGORIES or title.startswith(coordinates) or "orthogonal" in title
            assert known or in_glossary(title), (drawn.chart_id, title)
    for found in parts_of(own, DataTable):
        for header in (found.headers[column] for column in found.numeric):
            assert header.partition(" (")[0] in COUNTS or in_glossary(header), (found.table_id, header)
    assert [part.items for part in parts_of(sections, Glossary)] == [definitions()]
    assert all(metric.healthy and metric.estimator and metric.meaning for metric in GLOSSARY.values())


@pytest.mark.parametrize("missing", DIAGNOSTICS)
def test_a_missing_diagnostic_leaves_the_page_and_names_its_command(comparison: Path, missing: str) -> None:
    (comparison / "diagnostics" / f"{missing}.json").unlink()
    sections = sections_of(comparison)
    assert unbuilt(sections) == []
    told = [section.absent or "" for section in sections.values()]
    told += [getattr(part, "text", "") for section in sections.values() for part in section.parts]
    commands = [text for text in told if re.search(rf"bsharp diagnose \S+ --only [\w ]*\b{missing}\b", text)]
    assert len(commands) == 2  # in its place, and among what the run does not show


def test_without_any_diagnostics_every_such_section_names_its_command(comparison: Path) -> None:
    shutil.rmtree(comparison / "diagnostics")
    for path in comparison.glob("*/seed_*/gradients.jsonl"):
        path.unlink()
    sections = sections_of(comparison)
    assert unbuilt(sections) == []
    for name in ("changed", "gradients", "surface", "sensitivity", "calibration"):
        assert "bsharp diagnose" in (sections[name].absent or "")


@pytest.mark.parametrize("name", DIAGNOSTICS)
@pytest.mark.parametrize(
    "content", ['{"schema": 1}', '{"points": 3, "types": 4, "changes": 5, "planes": 6, "models": 7, "regimes": 8}']
)
def test_a_diagnostic_that_holds_something_else_costs_at_most_its_own_section(
    comparison: Path, name: str, content: str
) -> None:
    (comparison / "diagnostics" / f"{name}.json").write_text(content)
    sections = sections_of(comparison)
    assert list(sections) == ORDER
    assert len(unbuilt(sections)) <= 3
    assert sections["curves"].parts
    assert isinstance(sections["verdict"].parts[0], Verdict | Callout)


def test_an_unfinished_comparison_says_how_far_it_is(tmp_path: Path) -> None:
    path = make_comparison(tmp_path / "run", finished=False, diagnostics=False)
    sections = sections_of(path)
    assert unbuilt(sections) == []
    assert [part.text for part in parts_of(sections, Verdict)] == ["Unfinished, no verdict: 5 of 7 jobs are done."]
    assert "2 of 7 jobs are missing (sharpening/seed_1, tilted/seed_1)" in callouts(sections, "limits")
    assert "the same `bsharp compare` command again to finish it" in callouts(sections, "verdict")
    assert "ended" in (sections["at_k"].absent or "")
    assert chart(sections, "curve_reward").columns["sharpening seed 1"][-1] is None
    states = {(row["regime"], row["seed"]): row["state"] for row in table(sections, "seeds")}
    assert (states["sharpening", "0"], states["sharpening", "1"]) == ("finished", "unfinished at step 5")
    sections = {section.section_id: section for section in build_sections(load_run(path), path, running=True)}
    assert [part.text for part in parts_of(sections, Verdict)] == ["No verdict yet: 5 of 7 jobs are done."]
    assert {row["state"] for row in table(sections, "seeds")} == {"finished", "running"}
    assert "Unfinished" not in callouts(sections, "verdict")


def test_while_a_run_goes_on_that_there_was_no_alarm_is_no_good_news_yet(comparison: Path) -> None:
    for path in comparison.glob("*/seed_*/alarms.jsonl"):
        path.unlink()
    for running, kind, text in (
        (True, "note", "No collapse alarm so far"),
        (False, "ok", "No collapse alarm was raised"),
    ):
        verdict = build_sections(load_run(comparison), comparison, running)[0]
        assert [part.kind for part in verdict.parts if isinstance(part, Callout) and text in part.text] == [kind]


@pytest.mark.parametrize("make", [make_training, make_evaluation])
def test_a_training_run_and_an_evaluation_have_all_sections(make: Callable[[Path], Path], tmp_path: Path) -> None:
    sections = sections_of(make(tmp_path / "run"))
    assert list(sections) == ORDER
    assert unbuilt(sections) == []
    assert all(section.parts or section.absent for section in sections.values())


def test_a_training_run_says_its_first_last_and_best_accuracy(tmp_path: Path) -> None:
    folder = make_training(tmp_path / "run")
    accuracies = {0: 0.4, 6: 0.7, 12: 0.6}
    rows = [{"step": step, "validation/accuracy": value} for step, value in accuracies.items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (verdict,) = parts_of(sections_of(folder), Verdict)
    assert verdict.text == (
        "sharpening: 12 of 12 steps, validation accuracy 40.0 % at step 0, 60.0 % at step 12, best 70.0 % at step 6"
    )


def test_an_evaluation_lists_its_figures_under_terms_of_the_glossary(tmp_path: Path) -> None:
    folder = make_evaluation(tmp_path / "run")
    accuracy = json.loads((folder / "summary.json").read_text())["accuracy"]
    rows = {row["figure"]: row for row in table(sections_of(folder), "summary")}
    assert rows["accuracy"]["estimate"] == f"{100 * accuracy['estimate']:.2f}"
    assert {"pass@1", "pass@4", "maj@2", "length", "ungraded"} <= set(rows)
    assert all(in_glossary(term) for term in rows)


def deltas(*values: float, width: float = 0.01) -> dict[str, dict[str, float]]:
    return {str(2**i): {"estimate": v, "low": v - width, "high": v + width} for i, v in enumerate(values)}


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        (deltas(0.1, 0.05, 0.0), None),
        (deltas(0.1, -0.02, -0.05), (2, True)),
        (deltas(0.1, 0.02, -0.005), (4, False)),
        (deltas(-0.1, 0.1, 0.1), (1, True)),
        (deltas(0.3, 0.2, 0.1, 0.05, -0.02), (16, True)),
        ({}, None),
    ],
)
def test_the_crossover_is_the_first_k_at_which_the_base_is_ahead(
    curve: dict[str, dict[str, float]], expected: tuple[int, bool] | None
) -> None:
    assert crossover(curve) == expected


def test_the_main_table_has_the_figures_of_the_results(comparison: Path) -> None:
    results = json.loads((comparison / "results.json").read_text())
    rows = table(sections_of(comparison), "models")
    assert [row["model"] for row in rows] == ["base", *REGIMES]
    for row, name in zip(rows[1:], REGIMES, strict=True):
        regime = results["regimes"][name]
        assert row["accuracy (%)"].startswith(f"{100 * regime['accuracy']['estimate']:.1f} [")
        assert row["Δ to base (points)"].startswith(f"{100 * regime['delta']['estimate']:+.1f} [")
        assert row["stability"] == regime["stability"]["word"]


def test_paired_tests_call_a_difference_clear_only_where_its_interval_excludes_zero(comparison: Path) -> None:
    def change(results: dict[str, Any]) -> None:
        for name, (low, high) in zip(REGIMES, ((0.01, 0.2), (-0.2, -0.01), (-0.1, 0.1)), strict=True):
            results["regimes"][name]["delta"] |= {"estimate": (low + high) / 2, "low": low, "high": high}

    edit(comparison / "results.json", change)
    rows = table(sections_of(comparison), "paired_tests")
    assert [row["verdict"] for row in rows if row["against"] == "base"] == ["higher", "lower", "undecided"]


def test_an_alarm_is_said_beside_the_verdict_and_marked_on_the_curves(sections: dict[str, Section]) -> None:
    assert "sharpening, seed 0, step 10: Entropy fell to 0.01" in callouts(sections, "verdict")
    marks = [trace for trace in chart(sections, "curve_entropy").traces if trace["meta"]["role"] == "marker"]
    assert [trace["x"] for trace in marks] == [[10, 10]]


def test_many_alarms_become_a_table_and_none_says_so(comparison: Path) -> None:
    alarm = {"step": 3, "since": 1, "kind": "length", "sentence": "short", "figures": {}, "advice": "", "stops": False}
    (comparison / "tilted" / "seed_0" / "alarms.jsonl").write_text(f"{json.dumps(alarm)}\n" * 6)
    assert len(table(sections_of(comparison), "alarms")) == 8
    for path in comparison.glob("*/seed_*/alarms.jsonl"):
        path.unlink()
    assert "No collapse alarm was raised in 6 training runs." in callouts(sections_of(comparison), "verdict")


@pytest.mark.parametrize(
    ("model", "base"),
    [
        ("meta-llama/Llama-3.2-3B-Instruct", "42.1"),
        ("Qwen/Qwen2.5-3B-Instruct", "38.7"),
        ("/models/Qwen3-4B-Instruct-2507/", "45.5"),
        ("Qwen/Qwen3-4B", None),
        ("embedded:tiny", None),
    ],
)
def test_the_papers_figures_stand_beside_its_three_models_only(comparison: Path, model: str, base: str | None) -> None:
    edit(comparison / "config.json", lambda config: config.update(model=model))
    found = [part for part in parts_of(sections_of(comparison), DataTable) if part.table_id == "reported"]
    assert [part.rows[0][1] for part in found] == ([] if base is None else [base])
    assert all("2604.16259" in part.caption and "not measured here" in part.caption for part in found)


def spoil(comparison: Path, change: Callable[[dict[str, Any]], None]) -> str:
    edit(comparison / "results.json", change)
    return callouts(sections_of(comparison), "limits")


def set_widths(results: dict[str, Any], width: float, centre: float = 0.01) -> None:
    figures = [regime["delta"] for regime in results["regimes"].values()]
    figures += [figure for others in results["differences"].values() for figure in others.values()]
    for figure in figures:
        figure |= {"estimate": centre, "low": centre - width, "high": centre + width}


def test_undecided_comparisons_wider_than_five_points_are_under_powered(comparison: Path) -> None:
    assert "Under-powered" not in spoil(comparison, lambda results: set_widths(results, 0.049))
    told = spoil(comparison, lambda results: set_widths(results, 0.051))
    assert "6 of 6 comparisons have an interval that includes 0 and is wider than ± 5 points" in told
    assert "task_reward against sharpening (± 5.1)" in told
    clear = spoil(comparison, lambda results: set_widths(results, 0.1, centre=0.2))
    assert "Under-powered" not in clear
    assert "Undecided" not in clear


@pytest.mark.parametrize(
    ("problems", "seeds", "warning"),
    [
        (512, 3, None),
        (200, 2, None),
        (199, 3, "Too few to conclude from: 199 problems."),
        (512, 1, "Too few to conclude from: one seed."),
        (63, 1, "Too few to conclude from: one seed, 63 problems."),
    ],
)
def test_the_verdict_says_what_it_rests_on_and_warns_of_one_seed_or_few_problems(
    comparison: Path, problems: int, seeds: int, warning: str | None
) -> None:
    def change(results: dict[str, Any]) -> None:
        results["base"]["counts"] |= {"problems": problems, "samples_per_problem": 16}
        for regime in results["regimes"].values():
            regime["counts"]["seeds"] = seeds

    edit(comparison / "results.json", change)
    found = sections_of(comparison)
    (verdict,) = parts_of(found, Verdict)
    assert verdict.basis == f"{problems} test problems × 16 samples, {seeds} training seed{'s' * (seeds > 1)}"
    said = [part.text for part in found["verdict"].parts if isinstance(part, Callout) and "Too few" in part.text]
    assert said == ([] if warning is None else [warning])


def test_one_seed_two_seeds_truncated_and_ungraded_samples_are_said(comparison: Path) -> None:
    def change(results: dict[str, Any]) -> None:
        regimes = results["regimes"]
        regimes["task_reward"]["counts"]["seeds"] = 1
        regimes["tilted"]["counts"]["seeds"] = 3
        for row in (results["base"], *regimes.values()):
            row["truncated"] |= {"estimate": 0.009, "low": 0.0, "high": 0.02}
        regimes["tilted"]["truncated"] |= {"estimate": 0.011}
        regimes["sharpening"]["counts"]["ungraded_samples"] = 3

    told = spoil(comparison, change)
    assert "task_reward: one seed" in told
    assert "sharpening: two seeds" in told
    assert "token limit: tilted 1.1 [0.0, 2.0] %." in told
    assert "count in no accuracy: sharpening 3." in told


def test_stopped_runs_and_the_choice_of_the_rival_are_said(comparison: Path) -> None:
    path = comparison / "sharpening" / "seed_1" / "complete.json"
    edit(path, lambda complete: complete.update(stopped="loss is not finite", last_step=8))
    told = spoil(
        comparison, lambda results: results["verdict"].update(choice_shares={"sharpening": 0.8, "tempered": 0.2})
    )
    assert "sharpening/seed_1 stopped early (loss is not finite); the weights of step 8 are evaluated." in told
    assert "in bootstrap replicates others won: tempered 20 %" in told


def test_every_note_of_an_estimate_is_counted(sections: dict[str, Section]) -> None:
    rows = {(row["note"], row["where"]): row["estimates"] for row in table(sections, "flagged")}
    assert rows["a squared norm is not above 0", "alignment"] == "6"  # one column of a 3 × 3 matrix, at 2 checkpoints


def test_completions_left_out_of_the_page_are_said(complete: Path) -> None:
    part = Completions("completions", {}, [], problems=12, left_out=5)
    section = limits.section(load_run(complete), [Section("completions", "Completions", [part])])
    assert any("5 of 12 problems are not in this page" in getattr(part, "text", "") for part in section.parts)


def test_completions_wait_while_the_run_goes_on(complete: Path) -> None:
    found = {section.section_id: section for section in build_sections(load_run(complete), complete, running=True)}
    assert found["completions"].absent == "Completions are shown when the comparison has ended."


def test_tokens_are_mean_length_times_rollouts_of_every_step(complete: Path) -> None:
    run = load_run(complete).runs[0]
    lengths = [row["completions/mean_length"] for row in run.metrics if "completions/mean_length" in row]
    assert training_tokens(run) == round(sum(lengths) * 4 * 8)


def test_cost_is_seconds_times_threads_over_all_jobs(comparison: Path) -> None:
    for path in comparison.glob("*/seed_*/complete.json"):
        edit(path, lambda complete: complete.update(seconds=600.0))
    for path in comparison.glob("*/seed_*/config.json"):
        edit(path, lambda config: config.update(threads=2))
    edit(comparison / "base" / "complete.json", lambda complete: complete.update(seconds=0.0))
    texts = dict(next(part.items for part in sections_of(comparison)["manifest"].parts
                      if isinstance(part, Definitions) and part.items[0][0] == "Cost"))  # fmt: skip
    assert texts["Cost"].startswith("2.00 CPU core-hours (3600 s of jobs)")


def test_links_lead_from_the_page_to_files_that_exist(comparison: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "pages" / "deep"
    elsewhere.mkdir(parents=True)
    for folder in (comparison, elsewhere):
        found = build_sections(load_run(comparison), folder)
        links = [
            path
            for section in found
            for part in every_part(section.parts)
            if isinstance(part, FileLinks)
            for _, path in part.items
        ]
        links += [
            path
            for section in found
            for part in section.parts
            if isinstance(part, Completions)
            for _, path in part.sources
        ]
        assert len(links) > 40
        assert all((folder / path).is_file() for path in links)


def test_the_map_of_the_surface_and_its_csv_agree(sections: dict[str, Section]) -> None:
    drawn = chart(sections, "surface_0_reward")
    grid = drawn.traces[0]
    rows = zip(*(drawn.columns[name] for name in ("kind", "x", "y", "value")), strict=True)
    points = {(x, y): value for kind, x, y, value in rows if kind == "grid"}
    assert points == {(x, y): grid["z"][i][j] for i, y in enumerate(grid["y"]) for j, x in enumerate(grid["x"])}
    assert points[1.0, 0.0] > points[-1.0, 0.0]
    assert points[0.0, 2.0] < points[0.0, 0.0]
    paths = {trace["name"]: trace["x"] for trace in drawn.traces[1:] if trace["meta"]["role"] == "line"}
    assert paths == {name: [0.0, 0.4, 0.9] for name in REGIMES}


def test_mistakes_that_a_regime_amplifies_lie_below_zero_and_wrong_mode_comes_first(
    sections: dict[str, Section],
) -> None:
    columns = chart(sections, "mistakes_trained").columns
    value = next(name for name in columns if name.startswith("margin change"))
    rows = list(zip(columns["objective"], columns["type of mistake"], columns[value], strict=True))
    assert {(regime, kind.partition(":")[0]) for regime, kind, change in rows if change < 0} == {("sharpening", "mean")}
    assert "[wrong]" in rows[0][1]
    assert not any("[wrong]" in kind for _, kind, _ in rows[len(REGIMES) :])


def test_a_corrected_type_lies_above_the_diagonal_of_right_against_mistake(sections: dict[str, Section]) -> None:
    columns = chart(sections, "mistakes_moved_trained").columns
    mistake, right = (next(name for name in columns if f"({kind})" in name) for kind in ("mistake", "right"))
    rows = zip(columns["series"], columns["text"], columns[mistake], columns[right], strict=True)
    below = {(regime, kind.partition(":")[0]) for regime, kind, of_mistake, of_right in rows if of_right < of_mistake}
    assert below == {("sharpening", "mean")}


def test_drift_names_every_family_of_every_model(sections: dict[str, Section]) -> None:
    (text,) = (part.text for part in sections["calibration"].parts if isinstance(part, Preformatted))
    pairs = [tuple(line.split()[:2]) for line in text.splitlines()[1:]]
    assert pairs == [(model, family) for model in ("base", *REGIMES) for family, *_ in FAMILIES]


@pytest.mark.parametrize(
    ("low", "value", "high", "said"),
    [
        (
            11.1,
            15.0,
            18.8,
            "Task reward gains 15.0 points [11.1, 18.8] more than the best label-free regime (tempered, chosen on",
        ),
        (
            -8.0,
            -5.0,
            -2.0,
            "Task reward gains 5.0 points [2.0, 8.0] less than the best label-free regime (tempered, chosen on",
        ),
        (
            -1.0,
            0.5,
            2.0,
            "are not told apart: the difference is +0.5 points [−1.0, +2.0], and the interval includes 0.",
        ),
        (
            None,
            3.0,
            None,
            "Task reward gains 3.0 points more than the best label-free regime (tempered, chosen on validation); there",
        ),
    ],
)
def test_the_verdict_says_in_plain_words_what_the_gain_means(
    comparison: Path, low: float | None, value: float, high: float | None, said: str
) -> None:
    gain = {"estimate": value, "low": low, "high": high, "n": 9, "unit": "points"}
    edit(comparison / "results.json", lambda results: results["verdict"].update(gain=gain, chosen="tempered"))
    (verdict,) = parts_of(sections_of(comparison), Verdict)
    assert said in verdict.meaning
    assert verdict.figure == f"{value:+.1f}".replace("-", "−")
    assert (verdict.interval == "") == (low is None)
    sentence = json.loads((comparison / "results.json").read_text())["verdict"]["sentence"]
    assert verdict.text.lower() == sentence.lower()


def test_the_changes_under_the_verdict_are_those_of_the_results(comparison: Path) -> None:
    results = json.loads((comparison / "results.json").read_text())
    columns = chart(sections_of(comparison), "deltas").columns
    assert columns["series"] == list(results["regimes"])
    for key in ("estimate", "low", "high"):
        column = columns["Δ to base (points)"] if key == "estimate" else columns[key]
        expected = [100 * regime["delta"][key] for regime in results["regimes"].values()]
        assert column == pytest.approx(expected, rel=1e-4)


def test_certainty_gained_stands_beside_certainty_lost(sections: dict[str, Section]) -> None:
    (headers,) = (part.headers for part in parts_of(sections, DataTable) if part.table_id == "overconfident")
    for kind in ("right", "wrong"):
        more = next(at for at, header in enumerate(headers) if header.startswith(f"{kind} and more certain"))
        assert headers[more + 1].startswith(f"{kind} and less certain")


def test_the_counts_of_corrected_types_start_with_families_of_wrong_mode(sections: dict[str, Section]) -> None:
    drawn = chart(sections, "mistakes_outcomes")
    rows = list(zip(*drawn.columns.values(), strict=True))
    assert rows[0][0] == "wrong-mode families"
    assert {outcome: count for *_, outcome, count in rows} == {"corrected": 2, "amplified": 1, "undecided": 0}


def test_gained_and_lost_stand_against_what_chance_gives(comparison: Path) -> None:
    chance = {
        "gained": {"estimate": 2.4, "low": 0, "high": 6, "n": 8, "unit": "problems"},
        "lost": {"estimate": 1.0, "low": 0, "high": 3, "n": 4, "unit": "problems"},
    }

    def change(problems: dict[str, Any]) -> None:
        for regime in problems["regimes"].values():
            regime["expected_by_chance"] = chance

    edit(comparison / "diagnostics" / "problems.json", change)
    sections = sections_of(comparison)
    counted = {change.regime: change for part in parts_of(sections, GainedLost) for change in part.changes}
    for kind in ("gained", "lost"):
        columns = chart(sections, f"{kind}-by-chance").columns
        drawn = zip(columns["series"], columns["regime"], columns[f"{kind} (problems)"], columns["low"], strict=True)
        for series, regime, value, low in drawn:
            observed = len(getattr(counted[regime], kind))
            assert (value, low) == ((chance[kind]["estimate"], 0) if series == "by chance" else (observed, None))
    (test,) = (part for part in parts_of(sections, DataTable) if part.table_id == "gained-lost-test")
    assert {(row[2], row[4]) for row in test.rows} == {("2 [0, 6]", "1 [0, 3]")}


def test_one_run_makes_a_page_beside_itself_with_a_csv_for_every_chart(comparison: Path) -> None:
    page = write_report([comparison])
    assert page == comparison / "report.html"
    sections = sections_of(comparison)
    for drawn in parts_of(sections, Chart):
        with (comparison / "report_data" / f"{drawn.chart_id}.csv").open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        assert header == list(drawn.columns)
        assert len(rows) == len(next(iter(drawn.columns.values())))


def test_several_runs_need_a_place_and_start_with_an_overview(complete: Path, tmp_path: Path) -> None:
    training = make_training(tmp_path / "train")
    with pytest.raises(ValueError, match="--out"):
        write_report([complete, training])
    with pytest.raises(ValueError, match="no run to report on"):
        write_report([])
    page = write_report([complete, training], tmp_path / "pages")
    assert page == tmp_path / "pages" / "report.html"
    with (tmp_path / "pages" / "report_data" / "runs" / "runs.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["complete", "train"]
    assert rows[0]["what it says"].startswith("Gain beyond the best")


def test_hostile_names_and_texts_stay_text(tmp_path: Path) -> None:
    hostile = "<svg onload>"
    regimes = {"task_reward": "task_reward", hostile: "sharpening", "tilted": "tilted(alpha=2)"}
    text = "</script><script>window.__pwned=1</script>\x00\x1b[31m"
    path = make_comparison(tmp_path / hostile, regimes=regimes, finished=False, diagnostics=False, text=text)
    alarm = {"step": 2, "since": 1, "kind": hostile, "sentence": text, "advice": hostile, "stops": True}
    (path / "task_reward" / "seed_0" / "alarms.jsonl").write_text(json.dumps(alarm) + "\n")
    edit(path / "config.json", lambda config: config.update(model=text))
    content = write_report([path]).read_text(encoding="utf-8")
    assert hostile not in content
    assert "<script>window.__pwned" not in content
    assert load_run(path).regimes == list(regimes)
    assert unbuilt(sections_of(path)) == []
