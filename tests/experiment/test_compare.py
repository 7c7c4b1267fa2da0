"""`compare` end to end on the embedded base, small, and through the command line."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
from chromium import drawn_all, opened
from in_process import run_here

import bsharp
from bsharp.cli import main
from bsharp.config import CompareConfig, ConfigError, DiagnoseConfig, EvaluationConfig, SamplingConfig, ValidationConfig
from bsharp.evaluation import validate_results
from bsharp.experiment import DIAGNOSTICS, compare, comparison, diagnose, jobs, live_report, regimes_of, tune
from bsharp.experiment.comparison import plan_jobs
from bsharp.experiment.diagnose import CHEAP, DiagnosticsFailed
from bsharp.models.placement import release_cached_memory
from bsharp.runlog import RunDirectory

SMALL = CompareConfig(
    regimes=("task_reward", "tilted(alpha=1,beta_inv=100)", "sharpening", "tempered(alpha=2)"),
    seeds=(0, 1),
    steps=2,
    sampling=SamplingConfig(prompts_per_step=4, group_size=2),
    validation=ValidationConfig(problems=21, samples=2, every=1),
    final_validation_samples=2,
    evaluation=EvaluationConfig(problems=21, samples=4),
    workers=2,
)

FEW = DiagnoseConfig(alignment_problems=16, alignment_samples=2, mistake_problems=1, workers=2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "small"
    compare(SMALL, out, diagnose_settings=FEW)
    return out


def test_results_hold_every_regime_with_intervals_and_follow_the_schema(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text(encoding="utf-8"))
    validate_results(results)
    assert list(results["regimes"]) == ["task_reward", "tilted", "sharpening", "tempered"]
    for summary in (results["base"], *results["regimes"].values()):
        for key in ("accuracy", "length", "kl_to_base", "entropy"):
            assert {"estimate", "low", "high", "n", "unit"} <= set(summary[key])
        assert set(summary["pass_at_k"]) == set(summary["maj_at_k"]) == {"1", "2", "4"}
        assert summary["pass_at_k"]["1"]["estimate"] == pytest.approx(summary["accuracy"]["estimate"])
    assert results["verdict"]["sentence"]
    assert any("validation" in choice for choice in results["choices_using_labels"])
    assert (finished / "table.md").read_text(encoding="utf-8").count("\n") > 5


def test_every_sample_is_kept_and_paired_across_regimes(finished: Path) -> None:
    sets = []
    for folder in [finished / "base", *(finished / name / "seed_0" for name in ("task_reward", "sharpening"))]:
        rows = list(RunDirectory(folder).rows("records_last.jsonl"))
        assert len(rows) == 21 * (4 + 1)
        sets.append([(row["problem_id"], row["sample"], row["greedy"]) for row in rows])
    assert sets[0] == sets[1] == sets[2]


def test_a_second_compare_uses_what_is_complete_and_writes_the_same_results(finished: Path) -> None:
    before = json.loads((finished / "results.json").read_text(encoding="utf-8"))
    seen: list[int] = []
    again = compare(SMALL, finished, on_start=lambda jobs, todo: seen.append(len(todo)), diagnose_settings=FEW)
    assert seen == [0]
    assert json.loads(json.dumps(again)) == before


def test_an_interrupted_compare_does_only_what_is_missing(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    lost = out / "sharpening" / "seed_1"
    (lost / "complete.json").unlink()
    (lost / "records_last.jsonl").unlink()
    todo: list[str] = []
    again = compare(
        SMALL,
        out,
        on_start=lambda jobs, missing: todo.extend(job.name for job in missing),
        diagnose_settings=FEW,
    )
    assert todo == ["sharpening/seed_1"]
    before = json.loads((finished / "results.json").read_text(encoding="utf-8"))
    assert again["regimes"]["sharpening"]["accuracy"] == before["regimes"]["sharpening"]["accuracy"]


def test_a_finished_comparison_has_the_cheap_diagnostics_and_a_page_that_says_its_verdict(finished: Path) -> None:
    assert sorted(path.stem for path in (finished / "diagnostics").iterdir()) == sorted(CHEAP)
    results = json.loads((finished / "results.json").read_text(encoding="utf-8"))
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "running" not in page.partition("<main")[0]
    assert results["verdict"]["sentence"].partition(":")[0].lower() in page.lower()
    alignment = json.loads((finished / "diagnostics" / "alignment.json").read_text(encoding="utf-8"))
    assert [point["checkpoint"] for point in alignment["points"]] == ["base"]
    assert list((finished / "report_data").glob("*.csv"))


def test_the_page_of_a_real_comparison_draws_every_chart_and_opens_its_problems(finished: Path, browser: Any) -> None:
    with opened(browser, finished / "report.html") as page:
        assert drawn_all(page) >= 20
        page.locator("td.gained button, td.lost button, td.never button").first.click()
        page.wait_for_selector(".completions .model")
        page.select_option("select", index=1)
        page.locator(".problem-list button").first.click()
        assert page.locator(".completions .model").count() >= 2


def test_diagnose_makes_the_rest_once_and_what_other_settings_ask_for_again(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    few = dataclasses.replace(
        FEW, sensitivity_problems=8, sensitivity_samples=1, surface_problems=4, surface_samples=2, surface_grid=3
    )
    made: list[str] = []
    diagnose(out, few, ["surface"])  # without a word about progress
    files = diagnose(out, few, on_progress=lambda name, done, total: made.append(name))
    assert [file.stem for file in files] == list(DIAGNOSTICS)
    assert set(made) == {"alignment", "sensitivity"}
    found = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    points = [point["checkpoint"] for point in found["alignment"]["points"]]
    assert points == ["base", *(f"{name}/seed_0" for name in ("task_reward", "tilted", "sharpening", "tempered"))]
    plane = found["surface"]["planes"][0]
    assert [axis["label"] for axis in plane["axes"]] == ["sharpening", "task_reward"]
    assert {(path["regime"], path["seed"]) for path in plane["paths"]} == {
        (name, seed) for name in ("task_reward", "tilted", "sharpening", "tempered") for seed in (0, 1)
    }
    spanning = [
        path for path in plane["paths"] if path["seed"] == 0 and path["regime"] in ("sharpening", "task_reward")
    ]
    # The plane goes through the ends of these two runs; snapshots are kept with 11 bits.
    assert all(path["explained"][-1] == pytest.approx(1.0, abs=1e-3) for path in spanning)
    made.clear()
    diagnose(out, few, on_progress=lambda name, done, total: made.append(name))
    assert not made
    more = dataclasses.replace(few, mistake_problems=2)
    diagnose(out, more, ["mistakes", "drift"], on_progress=lambda name, done, total: made.append(name))
    assert set(made) == {"mistakes"}
    assert not list((out / "diagnostics").glob("*.safetensors"))
    # compare leaves what was made with other settings as it is.
    made.clear()
    compare(SMALL, out, on_diagnostic=lambda name, done, total: made.append(name), diagnose_settings=FEW)
    assert not made


def test_a_diagnostic_that_fails_costs_no_other_and_never_the_results(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object) -> dict:
        raise ValueError("a record is missing")

    module = sys.modules["bsharp.experiment.diagnose"]
    monkeypatch.setattr(module, "_MAKERS", {**module._MAKERS, "drift": fails})
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "diagnostics")
    with pytest.raises(DiagnosticsFailed, match="drift: a record is missing"):
        diagnose(out, FEW, ["drift", "calibration", "problems"])
    assert sorted(path.stem for path in (out / "diagnostics").iterdir()) == ["calibration", "problems"]
    (out / "report.html").unlink()
    warnings: list[str | None] = []
    results = compare(SMALL, out, on_event=lambda event: warnings.append(event.warning), diagnose_settings=FEW)
    assert results["verdict"]["sentence"]
    assert "drift: a record is missing" in warnings
    assert (out / "report.html").exists()


def test_an_interrupted_comparison_leaves_a_page_that_does_not_say_it_is_running(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    statuses: list[str | None] = []
    monkeypatch.setattr(comparison, "run_jobs", interrupted)
    monkeypatch.setattr(live_report, "write_report", lambda runs, status=None: statuses.append(status) or Path("x"))
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    (out / "sharpening" / "seed_1" / "complete.json").unlink()
    with pytest.raises(KeyboardInterrupt):
        compare(SMALL, out)
    assert statuses == [None]


class _Enough(Exception):
    pass


@pytest.mark.parametrize("begin", [compare, tune])
def test_before_the_workers_start_the_base_is_gone_and_its_memory_given_back(
    begin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[begin.__module__]
    build, bases, told = module.workbench_of, [], []

    def built(*arguments: Any) -> Any:
        bench = build(*arguments)
        bases.append(weakref.ref(bench.base.model))
        return bench

    def release() -> None:
        release_cached_memory()
        told.append(("released", bases[0]() is None))

    def start(*_: Any) -> None:
        told.append(("started", bases[0]() is None))
        raise _Enough

    monkeypatch.setattr(module, "workbench_of", built)
    monkeypatch.setattr(module, "release_cached_memory", release)
    monkeypatch.setattr(module, "run_jobs", start)
    with pytest.raises(_Enough):
        begin(SMALL, tmp_path)
    assert told == [("released", True), ("started", True)]


def test_a_job_gives_back_the_memory_of_the_one_before_it_loads_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    def load(*_: Any) -> None:
        told.append("loading")
        raise _Enough

    monkeypatch.setattr(jobs, "release_cached_memory", lambda: told.append("released"))
    monkeypatch.setattr(jobs, "kept_workbench", load)
    with pytest.raises(_Enough):
        run_here(plan_jobs(SMALL, regimes_of(SMALL), tmp_path)[:1], 1, lambda event: None)
    assert told == ["released", "loading"]


def test_diagnose_refuses_a_base_whose_weights_are_others(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    manifest["identity"]["base_weights"] = "0" * 16
    (out / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ConfigError, match="restore that base"):
        diagnose(out, FEW, ["mistakes"])


def test_the_page_is_refreshed_while_the_runs_go_on_and_one_that_fails_stops_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses: list[str | None] = []

    def fake(runs: list[Path], out: Path | None = None, status: str | None = None) -> Path:
        statuses.append(status)
        if status is None:
            raise OSError("no space left on device")
        return Path("report.html")

    monkeypatch.setattr(live_report, "write_report", fake)
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    (out / "sharpening" / "seed_1" / "complete.json").unlink()
    warnings: list[str | None] = []
    compare(SMALL, out, on_event=lambda event: warnings.append(event.warning), diagnose_settings=FEW, refresh_seconds=0)
    assert statuses[0] == "running: 8 of 9 runs done"
    assert statuses[-1] is None
    assert any("no space left" in warning for warning in warnings if warning)


def test_a_page_that_takes_long_is_written_more_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, written = [0.0], []

    def write(runs: list[Path], out: Path | None = None, status: str | None = None) -> Path:
        written.append(now[0])
        now[0] += 2.0  # a hundredth of 200 seconds
        return Path("report.html")

    monkeypatch.setattr(live_report, "write_report", write)
    monkeypatch.setattr(live_report.time, "monotonic", lambda: now[0])
    page = live_report.LiveReport(tmp_path, 1, 1, lambda event: None, seconds=30.0)
    while now[0] < 900:
        now[0] += 1.0
        page.on_event(jobs.Event("task_reward/seed_0", "training", 1, 2))
    assert written == [30.0, 232.0, 434.0, 636.0, 838.0]


def test_a_directory_of_another_comparison_is_refused_with_the_difference(finished: Path) -> None:
    with pytest.raises(ConfigError, match=r"steps: 2 there, 3 asked for"):
        compare(dataclasses.replace(SMALL, steps=3), finished)


def test_the_table_is_printed_again_without_a_model(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["table", str(finished), "--families"])
    shown = capsys.readouterr().out
    for word in ("base", "task_reward", "tilted", "sharpening", "tempered", "accuracy", "transfer", "unsolved"):
        assert word in shown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"regimes": ()}, "name at least one"),
        ({"regimes": ("task_rewad",)}, "task_reward"),
        ({"regimes": ("sharpening", "sharpening(normalisation=mean)")}, "'sharpening' is taken"),
        ({"learning_rates": {"tilted": 1e-3}, "regimes": ("task_reward",)}, "no regime of this run"),
    ],
)
def test_regimes_that_cannot_be_compared_are_one_line(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        regimes_of(dataclasses.replace(SMALL, **changes))
    assert "\n" not in str(error.value)


def test_every_regime_gets_the_same_settings_but_its_objective_and_rate() -> None:
    config = dataclasses.replace(SMALL, learning_rates={"sharpening": 3e-4})
    jobs = [job for job in plan_jobs(config, regimes_of(config), Path("runs/x")) if job.trains]
    assert len(jobs) == 8
    stripped = {
        dataclasses.replace(
            job.config, objective="", seed=0, optimizer=dataclasses.replace(job.config.optimizer, learning_rate=1.0)
        ).__repr__()
        for job in jobs
    }
    assert len(stripped) == 1
    rates = {job.name.split("/")[0]: job.config.optimizer.learning_rate for job in jobs}
    assert rates == {"task_reward": 1e-3, "tilted": 1e-3, "sharpening": 3e-4, "tempered": 1e-3}


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["comparr"], 2, "did you mean compare?"),
        (["compare", "--config", "absent.toml"], 2, "cannot read config absent.toml"),
        (["compare", "--steps", "0"], 2, "steps = 0 cannot be used"),
        (["compare", "--tasks", "gsm9k"], 2, "gsm9k"),
        (["compare", "--model", "no/such-model-anywhere"], 2, "cannot be had"),
        (["compare", "--model", "runs/nowhere/last"], 2, "there is no such folder"),
        (["compare", "--seeds", "1", "1"], 2, "names a seed twice"),
        (["compare", "--sampling.top-p", "0.9"], 2, "set sampling.top_p = 1"),
        (["compare", "--device", "cuda:9"], 2, "device = 'cuda:9' cannot be used"),
        (["compare", "--evaluation.split", "validation"], 2, "judged on test problems"),
        (["compare", "--sampling.fixed-length"], 2, "set both alike"),
        (["compare", "--beta-inv", "10"], 2, "--beta-inv belongs to --alpha"),
        (["compare", "--alpha", "2", "--regimes", "task_reward"], 2, "give either --alpha or --regimes"),
        (["compare", "--optimizer.name", "Adamm"], 2, "is not in torch.optim"),
        (["pretrain", "--preset", "reduced", "--config", "configs/ppo.toml"], 2, "give one of them"),
        (["table", "nowhere"], 2, "holds no results.json"),
        (["diagnose", "nowhere"], 2, "nowhere holds no comparison"),
        (["diagnose", "nowhere", "--surface-grid", "2"], 2, "surface_grid = 2 cannot be used"),
        (["report", "nowhere"], 1, "nowhere"),
        (["report", "one", "two"], 1, "--out"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_no_traceback(
    argv: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = ["--out", str(tmp_path)] if argv[0] == "compare" else []
    with pytest.raises(SystemExit) as stop:
        main([*argv, *out])
    shown = capsys.readouterr()
    assert stop.value.code == status
    assert message in shown.err
    assert "Traceback" not in shown.err + shown.out
    assert len(shown.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_papers_grid_of_alpha_and_beta_can_be_asked_for() -> None:
    from bsharp.cli.actions import regime_grid

    names = list(regimes_of(dataclasses.replace(SMALL, regimes=regime_grid((1, 1.25, 2, 4), (100, 10_000, 1e6)))))
    assert names[:3] == ["task_reward", "sharpening", "tilted"]
    assert len(names) == 2 + 4 * 3 + 3


def test_shipped_learning_rates_serve_the_embedded_base_alone_and_are_recorded() -> None:
    shipped = comparison.learning_rates_of(CompareConfig())
    assert set(shipped) == {"sharpening", "tempered"}
    config = dataclasses.replace(CompareConfig(), learning_rates=shipped)
    assert "shipped learning rates (sharpening" in comparison.choices_using_labels(config)[-1]
    other = dataclasses.replace(CompareConfig(), model="some/folder")
    assert comparison.learning_rates_of(other) == {}
    assert "by whoever set them" in comparison.choices_using_labels(other)[-1]


def test_the_public_surface_is_what_all_names() -> None:
    for name in bsharp.__all__:
        assert getattr(bsharp, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        bsharp.nothing  # noqa: B018


def test_importing_the_package_is_instant_and_brings_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, bsharp; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
