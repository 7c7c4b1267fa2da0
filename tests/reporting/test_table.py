"""What is printed is what the results say, at any width and whatever names they hold."""

from __future__ import annotations

import io
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from bsharp.evaluation import SCHEMA_VERSION
from bsharp.reporting import print_results, require_results, results_markdown, table_svg
from bsharp.reporting.cells import RESULTS_VERSION, plain_text

COLUMNS = ("accuracy", "Δ to base", "greedy", "pass@16", "maj@16", "length", "KL", "entropy", "stability")


def printed(results: dict[str, Any], width: int = 120, families: bool = False) -> str:
    output = io.StringIO()
    print_results(results, Console(file=output, width=width), families=families)
    return output.getvalue()


def interval(figure: dict[str, Any], sign: str = "") -> str:
    estimate, low, high = (f"{100 * figure[key]:{sign}.1f}" for key in ("estimate", "low", "high"))
    return f"{estimate} [{low}, {high}]"


def cells_of(summary: dict[str, Any], delta: bool) -> list[str]:
    cells = [interval(summary["accuracy"]), interval(summary["delta"], "+") if delta else ""]
    cells += [f"{100 * summary['greedy_accuracy']['estimate']:.1f}"]
    cells += [f"{100 * summary[key]['16']['estimate']:.1f}" for key in ("pass_at_k", "maj_at_k")]
    cells += [f"{summary['length']['estimate']:.1f}", f"{summary['kl_to_base']['estimate']:.2f}"]
    return [*cells, f"{summary['entropy']['estimate']:.3f}"]


def row_of(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(name))


def test_every_row_shows_the_numbers_of_the_results(results: Any) -> None:
    text = printed(results)
    assert all(column in text for column in COLUMNS)
    base = [cell for cell in cells_of(results["base"], delta=False) if cell]
    assert " ".join(row_of(text, "base").split()) == " ".join(["base", *base])
    for name, regime in results["regimes"].items():
        expected = [name, *cells_of(regime, delta=True), regime["stability"]["word"]]
        assert " ".join(row_of(text, name).split()) == " ".join(expected)


def test_the_best_checkpoint_has_its_own_row_with_its_steps_and_last_is_named(results: Any) -> None:
    last, best = printed(results).split("best checkpoint by validation", maxsplit=1)
    assert "last checkpoint" in last
    for name, regime in results["regimes"].items():
        row = " ".join(row_of(best, name).split())
        assert row == " ".join([name, *cells_of(regime["best_by_validation"], delta=True), "10, 40, 30"])


def test_a_best_checkpoint_equal_to_the_last_is_named_but_not_repeated(results: Any) -> None:
    tilted = results["regimes"]["tilted"]
    tilted["best_by_validation"] = {key: tilted[key] for key in tilted["best_by_validation"] if key != "steps"}
    tilted["best_by_validation"]["steps"] = [40, 40, 40]
    text = printed(results)
    assert "The best checkpoint by validation is the last one in every seed: tilted." in text
    assert len([line for line in text.splitlines() if line.startswith("tilted ")]) == 2  # table and stability


def test_the_figures_behind_the_words_the_verdict_and_the_choices_are_printed(results: Any) -> None:
    text = printed(results)
    for regime in results["regimes"].values():
        assert f"{regime['stability']['word']}: {regime['stability']['why']}" in text
    assert results["verdict"]["sentence"] in text
    assert results["choices_using_labels"][0] in text
    flat = " ".join(text.split())
    assert "512 test problems × 16 samples at temperature 0.7, 3 training seeds. Brackets: 95 % intervals, boot" in flat


@pytest.mark.parametrize("width", [120, 100, 80, 60, 45])
def test_a_narrow_screen_loses_columns_but_breaks_no_row(results: Any, width: int) -> None:
    text = printed(results, width, families=True)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    table = text.split("best checkpoint")[0]
    shown = [column for column in COLUMNS if column in table]
    assert shown[:2] == ["accuracy", "Δ to base"]
    for name, regime in results["regimes"].items():
        assert f"{100 * regime['accuracy']['estimate']:.1f}" in row_of(table, name)
    if width >= 120:
        assert shown == list(COLUMNS)
    if width >= 80:
        assert interval(results["base"]["accuracy"]) in table
        assert {"pass@16", "stability"} <= set(shown)


def test_families_are_grouped_by_role_and_a_star_marks_a_clear_change(results: Any) -> None:
    family = results["regimes"]["tilted"]["families"]["chain"]
    family["delta"] = {"estimate": 0.001, "low": -0.01, "high": 0.012, "n": 32, "unit": "fraction", "note": ""}
    matrices = printed(results, families=True).split("standard families")[1].split("excludes 0; not corrected")[0]
    lines = matrices.splitlines()
    order = [line.split()[0] for line in lines if line.startswith(("add", "word", "chain", "[red]sub"))]
    assert order == ["add", "word", "chain", "[red]sub"]
    row = next(line for line in lines if line.startswith("chain"))
    cells = [f"{100 * results['base']['families']['chain']['accuracy']['estimate']:.1f}"]
    for regime in results["regimes"].values():
        figures = regime["families"]["chain"]
        clear = figures["delta"]["low"] > 0 or figures["delta"]["high"] < 0
        change = f"({100 * figures['delta']['estimate']:+.1f})"
        cells += [f"{100 * figures['accuracy']['estimate']:.1f}", change + ("*" if clear else "")]
    assert row.split()[1:] == cells
    assert "*" not in row.split()[row.split().index("(+0.1)")]
    modes = {line.split()[0]: line.split()[1] for line in lines if line.startswith(("add", "word", "[red]sub"))}
    assert modes == {"add": "wrong", "word": "right", "[red]sub": "right"}


def test_on_request_each_family_has_a_table_of_all_models_and_figures(results: Any) -> None:
    text = printed(results, families=True)
    for family, title in (("add", "add (standard, mode wrong): 32"), ("chain", "chain (unsolved): 32 problems")):
        table = text.split(title)[1].split("\n\n")[0]
        for name in ("base", *results["regimes"]):
            summary = (results["base"] if name == "base" else results["regimes"][name])["families"][family]
            cells = [cell for cell in cells_of(summary | {"entropy": {"estimate": 0}}, name != "base")[:-1] if cell]
            assert " ".join(row_of(table, name).split()) == " ".join([name, *cells])
    assert "mode wrong" not in printed(results)


def test_a_single_seed_is_said_once_and_fixed_length_is_said(results: Any) -> None:
    for summary in (results["base"], *results["regimes"].values()):
        summary["counts"]["seeds"] = 1
        for key in ("accuracy", "delta"):
            summary[key]["note"] = "one seed: the interval covers problems only"
    results["config"]["evaluation"] |= {"fixed_length": True, "split": "validation"}
    text = " ".join(printed(results).split())
    assert "512 validation problems × 16 samples at temperature 0.7, all of fixed length (48 tokens" in text
    assert text.count("seed:") == 1
    assert "1 training seed: intervals cover problems only" in text
    assert "t interval over seeds" not in text
    assert "test problems" not in text
    assert "Validation problems, last checkpoint:" in results_markdown(results)


def test_the_notes_of_all_printed_figures_are_collected_the_base_and_the_best_included(results: Any) -> None:
    left_out = "2 of 512 problems left out: too few graded samples"
    results["base"]["pass_at_k"]["16"]["note"] = left_out
    results["base"]["delta"]["note"] = "the base against itself"
    results["regimes"]["tilted"]["pass_at_k"]["16"]["note"] = f"{left_out}; one seed: the interval covers problems only"
    results["regimes"]["tilted"]["best_by_validation"]["length"]["note"] = "long"
    results["regimes"]["tilted"]["reward"]["note"] = "not printed"
    results["regimes"]["tilted"]["families"]["add"]["accuracy"]["note"] = "near the bound"
    text = printed(results, 200)
    assert f"{left_out} (pass@16: base, tilted)." in text
    assert "long (length: tilted (best))." in text
    assert not any(note in text for note in ("against itself", "not printed", "near the bound"))
    assert "near the bound (1 figure of families)." in printed(results, 200, families=True)


def test_choices_that_used_labels_have_a_line_each(results: Any) -> None:
    results["choices_using_labels"] = ["the rate", "the checkpoint"]
    lines = printed(results).splitlines()
    start = lines.index("Choices that used labels:")
    assert lines[start + 1 : start + 3] == ["- the rate", "- the checkpoint"]


def test_a_seed_that_stopped_is_named_with_its_reason_and_the_step_of_its_weights(results: Any) -> None:
    sharpening = results["regimes"]["sharpening"]
    sharpening |= {"stopped": [None, "the gradient was not finite", None], "last_steps": [40, 20, 40]}
    sharpening["best_by_validation"]["steps"] = [10, None, 30]
    text = printed(results, 200)
    assert "sharpening: seed 1 stopped early (the gradient was not finite); weights of step 20 are evaluated." in text
    assert "sharpening: seed 1 had no validation check" in text
    assert "10, –, 30" in row_of(text.split("best checkpoint by validation")[1], "sharpening")
    assert text.count("stopped early") == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: r.update(schema_version=0), "schema_version 0, this version of bsharp reads 1"),
        (lambda r: r.pop("verdict"), "results lack verdict"),
        (lambda r: r["regimes"]["tilted"].pop("length"), "results lack the key 'length'"),
    ],
)
def test_what_is_no_results_object_is_refused_in_one_line(results: Any, spoil: Any, message: str) -> None:
    spoil(results)
    with pytest.raises(ValueError, match=message) as error:
        printed(results)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="holds a list, not an object"):
        require_results([])


def test_the_version_that_is_read_is_the_one_that_is_written() -> None:
    assert RESULTS_VERSION == SCHEMA_VERSION


def test_names_are_printed_literally_without_markup_or_control_characters(results: Any) -> None:
    results["regimes"]["tilted"]["stability"]["why"] = "[red]x[/red] \x1b[31my\x1b[0m\nz \u202e"
    for text in (printed(results, families=True), printed(results, 80)):
        assert "[bold]odd|name" in text
        assert "[green]every[/green]" in text
        assert "[red]x[/red] \ufffd[31my\ufffd[0m z \ufffd" in " ".join(text.split())
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert "[red]sub" in printed(results, families=True)
    markdown = results_markdown(results)
    assert "\x1b" not in markdown
    assert r"\[bold]odd\|name" in markdown
    assert plain_text("a\tb\r\nc\x00") == "a b c\ufffd"


def test_without_a_terminal_the_output_is_plain_and_has_no_trailing_blanks(results: Any) -> None:
    for line in printed(results).splitlines():
        assert line == line.rstrip()
        assert "\x1b" not in line


def test_a_terminal_gets_colour_for_the_stability_words(results: Any) -> None:
    output = io.StringIO()
    print_results(results, Console(file=output, width=120, force_terminal=True, color_system="standard"))
    assert re.search("\x1b\\[[0-9;]*31mcollapsed", output.getvalue())


def test_markdown_rows_hold_every_column_and_family(results: Any) -> None:
    markdown = results_markdown(results)
    for name in ("task_reward", "tilted", "sharpening"):
        regime = results["regimes"][name]
        cells = [name, *cells_of(regime, delta=True), regime["stability"]["word"]]
        assert f"| {' | '.join(cells)} |" in markdown
        assert f"- {name}: {regime['stability']['word']}: {regime['stability']['why']}" in markdown
    assert markdown.startswith(f"**{results['verdict']['sentence']}**")
    widths = {line.count("|") - line.count("\\|") for line in markdown.splitlines() if line.startswith("| base")}
    assert widths == {11}
    assert all(f"| {family} |" in markdown for family in ("add", "word", "chain"))


def test_what_could_not_be_estimated_is_a_dash_never_a_number(results: Any) -> None:
    nothing = {"estimate": None, "low": None, "high": None, "n": 0, "unit": "fraction", "note": "nothing was graded"}
    results["regimes"]["tilted"]["accuracy"] = nothing
    results["regimes"]["tilted"]["greedy_accuracy"] = None
    results["regimes"]["tilted"]["counts"]["ungraded_samples"] = 77
    text = printed(results)
    assert row_of(text, "tilted").split()[1] == "–"
    assert "nothing was graded" in text
    assert "77 samples could not be graded" in text


def test_a_change_that_rounds_to_zero_has_no_sign(results: Any) -> None:
    results["regimes"]["tilted"]["delta"] |= {"estimate": -0.0001, "low": -0.02, "high": 0.0002}
    assert " 0.0 [-2.0, 0.0] " in row_of(printed(results), "tilted")


def test_the_picture_is_wellformed_and_shows_every_row(results: Any) -> None:
    picture = table_svg(results)
    assert picture == table_svg(results)
    assert "url(" not in picture.replace("url(#", "")
    shown = "".join(ElementTree.fromstring(picture).itertext()).replace("\xa0", " ")
    assert all(name in shown for name in ("base", *results["regimes"]))
    assert interval(results["regimes"]["tilted"]["delta"], "+") in shown
