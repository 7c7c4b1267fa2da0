"""The command from end to end: what is written follows from the base's samples, and from nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import bsharp.experiment.run as run_module
from bsharp.cli import main
from bsharp.config import ConfigError, ForecastConfig
from bsharp.diagnostics.forecast import forecast
from bsharp.experiment import forecast_model, forecast_records
from bsharp.runlog import RunDirectory
from bsharp.tasks import Split, load_task

SETTINGS = ForecastConfig(regimes=("task_reward", "tempered(alpha=2)"), alphas=(1.0, 2.0), problems=42, samples=4)
TASKS = ("math_mini", "gsm8k_lite")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forecast")
    forecast_model("embedded:tiny", TASKS, SETTINGS, folder)
    return folder


def rows(folder: Path) -> list[dict]:
    return list(RunDirectory(folder).rows("records.jsonl"))


def test_the_forecast_is_a_function_of_the_samples_that_lie_beside_it(done: Path) -> None:
    written = json.loads((done / "forecast.json").read_text(encoding="utf-8"))
    again = forecast(rows(done), SETTINGS.regimes, alphas=SETTINGS.alphas, beta_invs=SETTINGS.beta_invs)
    for part in ("base", "likelihood", "tempered", "tilt", "limit", "regimes", "recommendation"):
        assert written[part] == json.loads(json.dumps(again[part]))
    assert written["source"]["model"] == "embedded:tiny"
    assert written["source"]["problems"] == SETTINGS.problems
    assert (done / "forecast.md").exists()
    assert (done / "forecast.html").exists()


def test_the_problems_are_those_that_training_draws_from_and_no_test_problem(done: Path) -> None:
    tasks = [load_task(name) for name in TASKS]
    training = {problem.problem_id for task in tasks for problem in task.problems(Split.TRAIN, 21, SETTINGS.seed)}
    assert {row["problem_id"] for row in rows(done)} == training
    assert "transfer" not in {row["role"] for row in rows(done)}


def test_samples_are_drawn_once_and_other_settings_are_refused(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (done / "records.jsonl").read_bytes()

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("sampled again")

    monkeypatch.setattr(run_module, "evaluate_among", never)  # in several processes
    monkeypatch.setattr(run_module.SavedEvaluation, "opened", never)  # in this one
    forecast_model("embedded:tiny", TASKS, SETTINGS, done)
    assert (done / "records.jsonl").read_bytes() == before
    more = ForecastConfig(problems=SETTINGS.problems, samples=8)
    with pytest.raises(ConfigError, match="samples: 4 there, 8 asked for"):
        forecast_model("embedded:tiny", TASKS, more, done)


def test_records_of_another_sampler_give_the_same_figures(done: Path, tmp_path: Path) -> None:
    """The least a line must hold, in an order of its own."""
    keys = ("problem_id", "reward", "logprob", "length", "answer", "family", "text")
    lines = [json.dumps({key: row[key] for key in keys}) for row in reversed(rows(done)) if not row["greedy"]]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    theirs = forecast_records(path, SETTINGS, tmp_path / "out")
    ours = json.loads((done / "forecast.json").read_text(encoding="utf-8"))
    for regime, figures in ours["regimes"].items():
        assert theirs["regimes"][regime]["delta"]["estimate"] == pytest.approx(figures["delta"]["estimate"], abs=1e-12)
    assert theirs["base"]["accuracy"]["estimate"] == pytest.approx(ours["base"]["accuracy"]["estimate"], abs=1e-12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no record; give one JSON object a line"),
        ('{"problem_id": 1}\nnonsense\n', "line 2 is not JSON"),
        ("[1, 2]\n", "line 1 holds '[1, 2]', not an object"),
    ],
)
def test_a_file_that_holds_no_records_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        forecast_records(path, SETTINGS, tmp_path / "out")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_cannot_be_asked_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--records", str(tmp_path / "none.jsonl")], "cannot read records"),
        (["--records", str(tmp_path)], "is a directory; name the file of records"),
        (["--records", "x.jsonl", "--model", "embedded:tiny"], "give either --records or --model"),
        (["--regimes", "sharpenin"], "sharpenin"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["forecast", "--out", str(tmp_path / "out"), *arguments])
        assert stop.value.code in (1, 2)
        error = capsys.readouterr().err.strip()
        assert message in error
        assert "\n" not in error
    assert not (tmp_path / "out").exists()
