"""What a page says of runs that ended, stopped or were interrupted, and of figures that could not be had."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sample_runs import make_comparison, make_training

from bsharp.diagnostics.mistakes import NO_MISTAKES
from bsharp.reporting.page.glossary import GLOSSARY
from bsharp.reporting.page.load import RunData, known, load_run
from bsharp.reporting.page.parts import Callout, Chart, DataTable, Paragraph, Part, Section, Verdict, every_part
from bsharp.reporting.page.report import write_report
from bsharp.reporting.page.sections import alignment, build_sections, calibration, sensitivity, surface
from bsharp.reporting.page.sections.common import task_objective
from bsharp.reporting.page.snapshots import parameters

REGIMES = {"task_reward": "task_reward", "flat": "sharpening"}


def sections_of(path: Path, running: bool = False) -> dict[str, Section]:
    return {section.section_id: section for section in build_sections(load_run(path), path, running)}


def parts_of(section: Section, kind: type[Part]) -> list[Any]:
    return [part for part in every_part(section.parts) if isinstance(part, kind)]


def said(section: Section) -> str:
    return " ".join(part.text for kind in (Callout, Paragraph) for part in parts_of(section, kind))


def state_of(sections: Mapping[str, Section]) -> str:
    (found,) = (part for part in parts_of(sections["verdict"], DataTable) if part.table_id == "seeds")
    return str(found.rows[0][found.headers.index("state")])


def small(path: Path, regimes: Mapping[str, str] = REGIMES, **more: Any) -> Path:
    return make_comparison(path, regimes=regimes, seeds=(0,), steps=6, problems=6, **more)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("progress", "running", "state", "limit", "sentence"),
    [
        ({}, False, "finished", "", "12 of 12 steps,"),
        (
            {"step": 7, "stopped": "entropy collapsed", "collapsed": True},
            False,
            "stopped at step 7: entropy collapsed",
            "stopped early (entropy collapsed); the weights of step 7 are its last.",
            "7 of 12 steps (stopped)",
        ),
        (
            {"step": 5, "stopped": "logits were not finite", "stopped_at": 8},
            False,
            "stopped at step 8: logits were not finite",
            "the weights of step 5 are its last.",
            "8 of 12 steps (stopped)",
        ),
        (
            {"step": 5},
            False,
            "unfinished at step 5",
            "Training is unfinished: 5 of 12 steps.",
            "5 of 12 steps (unfinished)",
        ),
        ({"step": 5}, True, "running", "Training is running: 5 of 12 steps.", "5 of 12 steps (running)"),
    ],
)
def test_a_training_run_ends_as_its_last_checkpoint_says(
    tmp_path: Path, progress: dict[str, Any], running: bool, state: str, limit: str, sentence: str
) -> None:
    sections = sections_of(make_training(tmp_path / "run", progress=progress), running)
    assert state_of(sections) == state
    assert limit in said(sections["limits"])
    assert ("stopped early (" in said(sections["limits"])) == ("stopped" in progress)
    assert "One training run has one seed and no comparison" in said(sections["limits"])
    assert ("same `bsharp train` command" in said(sections["verdict"])) == state.startswith("unfinished")
    assert sentence in parts_of(sections["verdict"], Verdict)[0].text


def test_the_newest_whole_checkpoint_counts(tmp_path: Path) -> None:
    folder = make_training(tmp_path / "run", progress={"step": 5})
    for name, step in (("step_000004", 4), ("step_000010", 10), ("step_000012.part", 12)):
        (folder / "checkpoints" / name).mkdir()
        (folder / "checkpoints" / name / "progress.json").write_text(json.dumps({"step": step}))
    assert state_of(sections_of(folder)) == "unfinished at step 10"


def test_an_interrupted_comparison_is_unfinished_and_never_running(tmp_path: Path) -> None:
    folder = small(tmp_path / "run", {"task_reward": "task_reward"}, diagnostics=False)
    (folder / "results.json").unlink()
    (folder / "task_reward" / "seed_0" / "complete.json").unlink()
    page = write_report([folder]).read_text(encoding="utf-8")
    assert "Unfinished, no verdict: 1 of 2 jobs are done." in page
    assert "running" not in state_of(sections_of(folder))
    assert state_of(sections_of(folder)) == "trained, not evaluated"
    assert state_of(sections_of(folder, running=True)) == "running"


def unknown(content: Any, key: str = "") -> Any:
    """The same with null in place of every number of a figure."""
    if isinstance(content, dict):
        return {name: unknown(value, name) for name, value in content.items()}
    if isinstance(content, list):
        return [unknown(value, key) for value in content]
    kept = isinstance(content, str | bool) or key in ("step", "steps", "seed", "x", "y", "t", "problems", "samples")
    return content if kept else None


def without(content: Any, whole: tuple[str, ...]) -> Any:
    """The same with null for these keys, wherever they are."""
    if isinstance(content, dict):
        return {name: None if name in whole else without(value, whole) for name, value in content.items()}
    return [without(value, whole) for value in content] if isinstance(content, list) else content


NULLS = [
    ("alignment", "matrix"), ("alignment", "noise_floor"), ("alignment", "debiased"), ("alignment", "groups"),
    ("alignment", "share_of_norm"), ("alignment", "euclidean"), ("alignment", "fisher"), ("alignment", "variance"),
    ("alignment", "signal_to_noise"), ("mistakes", "first_step"), ("mistakes", "trained"), ("mistakes", "margin"),
    ("mistakes", "right"), ("mistakes", "all"), ("mistakes", "families"), ("mistakes", "flat"), ("mistakes", "summary"),
    ("sensitivity", "flat"), ("sensitivity", "answer_changed"), ("sensitivity", "overall"), ("sensitivity", "models"),
    ("surface", "mean"), ("surface", "standard_error"), ("surface", "explained"), ("surface", "anchors"),
    ("surface", "paths"), ("calibration", "flat"), ("calibration", "bins"), ("calibration", "accuracy"),
    ("calibration", "changes"), ("drift", "flat"), ("drift", "families"), ("drift", "kl"),
]  # fmt: skip


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("runs") / "run")


SECTIONS = {"mistakes": alignment, "alignment": alignment, "sensitivity": sensitivity, "surface": surface}


def section_with(run: RunData, name: str, content: Any) -> Section:
    """The section that shows a diagnostic, with this content of it as it is read from a file."""
    diagnostics = {**run.diagnostics, name: known(content)}
    return SECTIONS.get(name, calibration).section(replace(run, diagnostics=diagnostics))


@pytest.mark.parametrize("name", sorted({name for name, _ in NULLS}))
def test_null_in_place_of_every_number_of_a_diagnostic_costs_no_section(complete: Path, name: str) -> None:
    content = json.loads((complete / "diagnostics" / f"{name}.json").read_text())
    section = section_with(load_run(complete), name, unknown(content))
    assert section.parts


@pytest.mark.parametrize("name", sorted({name for name, _ in NULLS}))
def test_null_in_place_of_any_part_of_a_diagnostic_costs_no_section(complete: Path, name: str) -> None:
    run, content = load_run(complete), json.loads((complete / "diagnostics" / f"{name}.json").read_text())
    for key in (key for of, key in NULLS if of == name):
        assert without(content, (key,)) != content
        section = section_with(run, name, without(content, (key,)))
        assert section.parts


def test_an_objective_that_is_flat_at_the_base_leaves_the_figures_of_the_others(tmp_path: Path) -> None:
    folder = small(tmp_path / "run")
    path = folder / "diagnostics" / "alignment.json"
    content = json.loads(path.read_text())
    undefined = {"estimate": None, "low": None, "high": None, "n": 9, "unit": "cosine", "note": "every advantage is 0"}
    for point in content["points"]:
        for figures in point["groups"].values():
            figures["matrix"] = [[1.0, None], [None, None]]
            figures["noise_floor"][1] = figures["share_of_norm"][1] = None
        for kind in (point["euclidean"], point["fisher"]):
            kind["matrix"][1] = [undefined, undefined]
            kind["matrix"][0][1] = undefined
        point["euclidean"]["noise_floor"][1] = undefined
        point["variance"][1] = {"objective": "flat", "variance_trace": None, "signal_to_noise": undefined}
    path.write_text(json.dumps(content))
    charts = {part.chart_id: part for part in parts_of(sections_of(folder)["gradients"], Chart)}
    assert charts["cosine_euclidean"].traces[0]["text"] == [["1.00", "–"], ["–", "–"], ["0.40", "–"]]
    norms = {trace["name"]: trace["y"] for trace in charts["norm_modules"].traces}
    assert norms == {"task_reward": [20.0, 30.0, 50.0], "flat": [None] * 3}
    assert charts["norm_modules"].layout["yaxis"]["type"] == "log"
    floors = {trace["name"]: trace["y"] for trace in charts["cosine_modules"].traces}
    assert floors == {"flat": [None] * 3, "noise floor of task_reward": [0.4] * 3}


def test_the_advantage_that_was_used_and_why_gradients_are_missing_are_said(tmp_path: Path) -> None:
    folder = small(tmp_path / "run")
    edit(folder / "config.json", algorithm={"advantage": "gae"})
    content = json.loads((folder / "diagnostics" / "alignment.json").read_text())
    content["points"][0] = unknown(content["points"][0]) | {"note": "gradients would need 9000 MB"}
    (folder / "diagnostics" / "alignment.json").write_text(json.dumps(content))
    path = folder / "flat" / "seed_0" / "gradients.jsonl"
    rows = [json.loads(line) | {"note": "probes would need 8000 MB"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = sections_of(folder)["gradients"]
    text = said(section)
    assert "of base), with the advantage leave_one_out (training itself used gae)." in text
    assert "Gradients over training, with the advantage leave_one_out (training itself used gae)." in text
    assert "Gradients of base, step 0: gradients would need 9000 MB." in text
    assert "2 probes of gradients while flat/seed_0 trained: probes would need 8000 MB." in text
    assert "cosine_euclidean" not in [part.chart_id for part in parts_of(section, Chart)]


@pytest.mark.parametrize("probed", [True, False])
@pytest.mark.parametrize("finished", [True, False])
def test_the_task_objective_is_found_by_its_spec_and_not_by_its_name(
    tmp_path: Path, probed: bool, finished: bool
) -> None:
    regimes = {"r": "task_reward", "tilted": "tilted(alpha=2)"}
    folder = small(tmp_path / "run", regimes)
    if not probed:
        for path in folder.glob("*/seed_*/gradients.jsonl"):
            path.unlink()
    if not finished:
        (folder / "results.json").unlink()
    run = load_run(folder)
    assert task_objective(run, ["tilted", "r"]) == "r"
    assert task_objective(run, ["tilted"]) is None
    charts = {part.chart_id: part for part in parts_of(sections_of(folder)["gradients"], Chart)}
    assert {trace["name"] for trace in charts["cosine_modules"].traces} == {"tilted", "noise floor of r"}
    assert set(charts["checkpoints_euclidean"].columns["series"]) == {"tilted"}
    if probed:
        assert set(charts["cosine_training"].columns["series"]) == {"tilted"}


def test_a_surface_that_could_not_be_spanned_says_why(tmp_path: Path) -> None:
    folder = small(tmp_path / "run")
    path = folder / "diagnostics" / "surface.json"
    edit(path, note="the directions are parallel")
    sections = sections_of(folder)
    assert "Left out: the directions are parallel." in said(sections["surface"])
    assert "Missing from the loss surface: the directions are parallel." in said(sections["limits"])
    assert parts_of(sections["surface"], Chart)
    edit(path, planes=[], lines=[])
    sections = sections_of(folder)
    assert "No surface: the directions are parallel." in said(sections["surface"])
    assert sections["surface"].absent is None
    assert "No loss surface: the directions are parallel." in said(sections["limits"])


def write_model(folder: Path, *shapes: list[int]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    header |= {
        f"weight {at}": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for at, shape in enumerate(shapes)
    }
    content = json.dumps(header).encode()
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(content)) + content)


@pytest.mark.parametrize(
    ("megabytes", "why"),
    [
        (1.4, None),
        (1.0, "snapshots of 1.2 MB exceed watch.snapshot_megabytes = 1."),
        (0.5, "snapshots of 1.2 MB exceed watch.snapshot_megabytes = 0.5."),
        (0, "watch.snapshot_megabytes = 0 keeps no snapshots."),
    ],
)
def test_a_run_without_snapshots_is_named_beside_the_surface_with_the_megabytes_they_need(
    tmp_path: Path, megabytes: float, why: str | None
) -> None:
    folder = small(tmp_path / "run")
    path = folder / "diagnostics" / "surface.json"
    content = json.loads(path.read_text())
    for plane in content["planes"]:
        plane["paths"] = [drawn for drawn in plane["paths"] if drawn["regime"] != "flat"]
    path.write_text(json.dumps(content))
    job = folder / "flat" / "seed_0"
    assert "No path" not in said(sections_of(folder)["surface"])  # its snapshots are there
    (snapshot,) = (job / "snapshots").iterdir()
    snapshot.unlink()
    write_model(job / "last", [300, 1000], [5])
    assert parameters(job / "last") == 300_005  # × 2 bytes × 2 snapshots in 6 steps = 1.2 MB
    edit(job / "config.json", watch={"snapshot_megabytes": megabytes, "snapshot_every": 5})
    text = said(sections_of(folder)["surface"])
    assert f"No path of flat/seed_0: {why or 'no snapshots are there.'}" in text
    assert "task_reward/seed_0:" not in text


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\x02" + b"\0" * 7 + b"[]", b"\x02" + b"\0" * 7 + b"{"])
def test_a_broken_weights_file_has_no_weights(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert parameters(tmp_path) == 0


def test_the_noise_floor_is_a_self_cosine_that_bounds_no_cosine(complete: Path) -> None:
    entries = {key: f"{GLOSSARY[key].meaning} {GLOSSARY[key].estimator} {GLOSSARY[key].healthy}" for key in GLOSSARY}
    assert "with itself between two half batches" in entries["noise_floor"]
    assert "bounds no cosine of two objectives" in entries["noise_floor"]
    assert "may raise or lower it" in entries["cosine"]
    assert "the noise that they share is taken out" in entries["debiased_cosine"]
    assert "itself not unbiased" in entries["snr"]
    captions = " ".join(part.caption for section in sections_of(complete).values() for part in parts_of(section, Chart))
    for wrong in ("towards 0", "look more alike", "shrinkage"):
        assert wrong not in captions + " ".join(entries[key] for key in ("cosine", "debiased_cosine", "noise_floor"))


def test_of_a_long_question_the_page_shows_the_place_where_the_change_is(tmp_path: Path) -> None:
    folder = small(tmp_path / "run")
    long = "Let $x_1, x_2$ be such that " + "$\\\\sqrt{x_1} < x_2$ and " * 60 + "find $x_2$."
    file = folder / "diagnostics" / "sensitivity.json"
    changes = json.loads(file.read_text())["changes"]
    changes[0]["example"], changes[1]["example"] = [long, f"Please solve: {long}"], [long, f"{long}\n"]
    edit(file, changes=changes)
    (table,) = (
        part
        for part in parts_of(sections_of(folder)["sensitivity"], DataTable)
        if part.table_id == "sensitivity_changes"
    )
    rows = [[str(cell) for cell in row[2:4]] for row in table.rows[:2]]
    assert all(len(text) <= 170 for row in rows for text in row)
    assert rows[0][1].startswith("Please solve: Let")
    assert rows[1][1].endswith("$x_2$.⏎")
    assert rows[1][0].endswith("$x_2$.")
    assert all(text.startswith("…") for text in rows[1])


def test_where_no_task_has_typed_mistakes_the_page_says_so_in_one_sentence(tmp_path: Path) -> None:
    folder = small(tmp_path / "run")
    edit(folder / "diagnostics" / "mistakes.json", types=[], notes=[NO_MISTAKES], oracle_cosine={}, margin_cosine={})
    text = said(sections_of(folder)["gradients"])
    assert f"Mistakes: {NO_MISTAKES}." in text
    assert "Every mistake of the test problems" not in text
