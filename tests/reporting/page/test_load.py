"""A run directory is read at every stage of its life, and what cannot be read is named and never fatal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from sample_runs import REGIMES, make_comparison, make_evaluation, make_training

from bsharp.reporting.page.load import DIAGNOSTICS, finite, load_run, regime_name


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_comparison(tmp_path_factory.mktemp("runs") / "complete")


@pytest.fixture
def comparison(complete: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(complete, tmp_path / "run"))


def test_a_finished_comparison_has_all_its_jobs_in_the_order_of_the_results(complete: Path) -> None:
    run = load_run(complete)
    assert (run.kind, run.regimes, run.models) == ("comparison", list(REGIMES), ["base", *REGIMES])
    assert run.planned == ["base", *(f"{name}/seed_{seed}" for name in REGIMES for seed in (0, 1))]
    assert run.finished == run.planned
    assert set(run.diagnostics) == set(DIAGNOSTICS)
    assert run.unreadable == []
    seeds = {name: list(found) for name, found in run.records().items()}
    assert seeds == {"base": [0], **{name: [0, 1] for name in REGIMES}}


def test_an_unfinished_comparison_has_the_jobs_that_are_there_and_the_rows_before_the_cut_line(tmp_path: Path) -> None:
    run = load_run(make_comparison(tmp_path / "run", finished=False, diagnostics=False))
    assert (run.kind, run.results, run.diagnostics) == ("comparison", None, {})
    assert set(run.planned) - set(run.finished) == {"sharpening/seed_1", "tilted/seed_1"}
    (_, running) = run.of("sharpening")
    assert running.complete is None
    assert [row["step"] for row in running.metrics] == list(range(6))
    assert [job.seed for job in run.of("tilted")] == [0]
    assert run.unreadable == []


def test_metrics_cut_anywhere_give_the_whole_lines_before_the_cut(comparison: Path) -> None:
    path = comparison / "sharpening" / "seed_0" / "metrics.jsonl"
    content = path.read_bytes()
    for size in range(0, len(content), 97):
        path.write_bytes(content[:size])
        (first, _) = load_run(comparison).of("sharpening")
        assert len(first.metrics) == content[:size].count(b"\n")


def test_a_directory_with_only_its_config_is_a_comparison_without_jobs(comparison: Path) -> None:
    for child in comparison.iterdir():
        if child.is_dir():
            shutil.rmtree(child)
    (comparison / "results.json").unlink()
    run = load_run(comparison)
    assert (run.kind, run.runs, run.finished, run.records()) == ("comparison", [], [], {})


@pytest.mark.parametrize("name", ["config.json", "diagnostics/drift.json", "sharpening/seed_0/complete.json"])
@pytest.mark.parametrize("content", ['{"a": ', "[1, 2]", "null", ""])
def test_a_broken_file_is_left_out_and_named(comparison: Path, name: str, content: str) -> None:
    (comparison / name).write_text(content)
    run = load_run(comparison)
    assert [Path(name).name in sentence for sentence in run.unreadable] == [True]
    assert run.regimes == list(REGIMES)


def test_a_broken_line_ends_its_file_and_is_named_once(comparison: Path) -> None:
    path = comparison / "base" / "records_last.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:5], "no json\n", *lines[5:]]))
    run = load_run(comparison)
    records = run.records()["base"][0]
    assert [len(list(records)), len(list(records))] == [5, 5]
    assert ["line 6" in sentence for sentence in run.unreadable] == [True]


def test_bytes_that_are_no_utf8_and_rows_that_are_no_objects_do_no_harm(comparison: Path) -> None:
    path = comparison / "sharpening" / "seed_0" / "alarms.jsonl"
    path.write_bytes(b'[1]\n"text"\n{"no": "step"}\n{"step": 3, "sentence": "\xff\xfe"}\n')
    (first, _) = load_run(comparison).of("sharpening")
    assert [row["sentence"] for row in first.alarms] == ["\ufffd\ufffd"]


def test_a_series_leaves_out_what_was_not_measured_or_is_not_finite(tmp_path: Path) -> None:
    folder = make_training(tmp_path / "train")
    rows = [
        {"step": 0},
        {"step": 1, "x": 2},
        {"step": 2, "x": None},
        {"step": 3, "x": float("nan")},
        {"step": 4, "x": True},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"step": 5, "x": 0.5}]))
    (run,) = load_run(folder).runs
    assert run.series("x") == ([1, 5], [2.0, 0.5])
    assert (run.last("x"), run.last("y")) == (0.5, None)


def test_a_training_run_and_an_evaluation_are_recognised(tmp_path: Path) -> None:
    training = load_run(make_training(tmp_path / "train"))
    assert (training.kind, training.regimes, [run.seed for run in training.runs]) == ("training", ["sharpening"], [3])
    evaluation = load_run(make_evaluation(tmp_path / "evaluation"))
    assert (evaluation.kind, evaluation.runs, list(evaluation.records())) == ("evaluation", [], ["base"])
    assert evaluation.summary is not None


def test_anything_else_is_refused_with_a_remedy(tmp_path: Path, complete: Path) -> None:
    with pytest.raises(ValueError, match="is no directory; give"):
        load_run(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"holds no run .*; give what"):
        load_run(tmp_path)
    with pytest.raises(ValueError, match=r"did you mean .*complete\?"):
        load_run(complete.parent)


def test_results_of_another_schema_are_refused(comparison: Path) -> None:
    (comparison / "results.json").write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(ValueError, match="schema_version 99"):
        load_run(comparison)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("task_reward", "task_reward"),
        ("tilted(alpha=1,beta_inv=100)", "tilted"),
        ("x=tilted(alpha=2)", "x"),
        ("sharpening_mean=sharpening(normalisation=mean)", "sharpening_mean"),
    ],
)
def test_the_name_of_a_regime_is_what_stands_before_its_objective(spec: str, name: str) -> None:
    assert regime_name(spec) == name


def test_only_finite_numbers_are_numbers() -> None:
    assert [finite(value) for value in (1, 0.5, True, None, "1", float("inf"), float("nan"))] == [1, 0.5, *[None] * 5]
