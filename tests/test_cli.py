"""The command line: what commands print and write, their exit statuses, and one line for what cannot be used."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from sample_runs import make_evaluation

from bsharp import experiment
from bsharp.cli import main
from bsharp.cli.dispatch import COMMANDS
from bsharp.config import EMBEDDED_TASKS

SAMPLES = (
    {"text": r"\boxed{5}", "gold": "5"},
    {"text": ["#### 4", "#### 5"], "gold": "2 + 3 = 5\n#### 5"},
    {"text": "I do not know", "gold": "5"},
)


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in SAMPLES), encoding="utf-8")
    return path


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    return make_evaluation(tmp_path / "evaluation")


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    """Exit status and what is said; standard output stays empty."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    shown = capsys.readouterr()
    assert shown.out == ""
    return stop.value.code, shown.err.strip()


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_ends_well(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*filter(None, [command]), "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: bsharp {command}".strip() in shown
    assert command or all(name in shown for name in COMMANDS)


def test_grade_writes_one_grade_a_line_and_says_what_they_are_worth(
    samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "grades.jsonl"
    main(["grade", str(samples), "--task", "gsm8k", "--out", str(out)])
    grades = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["line"] for row in grades] == [1, 2, 3]
    assert [row.get("reward") for row in grades] == [1.0, None, 0.0]
    assert [grade["reward"] for grade in grades[1]["grades"]] == [0.0, 1.0]
    shown = capsys.readouterr()
    assert shown.out.startswith("4 completions of 3 lines: 2 correct, 1 wrong, 1 unparseable, 0 timeout, 0 error\n")
    assert "mean reward, %: 50.0" in shown.out
    assert shown.out.endswith(f"Written to {out}\n")
    assert shown.err == ""


def test_grade_hands_every_flag_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"out": "x", "right": 5, "asked": "2 + 3 = ?"}
    (tmp_path / "samples.jsonl").write_text(json.dumps(row), encoding="utf-8")
    (tmp_path / "mine.py").write_text(
        "def mine(prompts, completions, answer):\n"
        "    return [float(pair == ('2 + 3 = ?', '5')) for pair in zip(prompts, answer, strict=True)]\n"
    )
    flags = ["--text-field", "out", "--gold-field", "right", "--prompt-field", "asked"]
    own = ["--reward", f"{tmp_path}/mine.py:mine", "--out", str(tmp_path / "grades.jsonl")]
    main(["grade", str(tmp_path / "samples.jsonl"), *flags, *own])
    assert "1 completions of 1 lines: 1 correct" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--task", "gsm8"], 2, "unknown task 'gsm8'"),
        (["--task", "gsm8k", "--gold-field", "answer"], 2, "set --gold-field to one of text, gold"),
        (["--task", "gsm8k", "--text-field", "output"], 2, "set --text-field to one of text, gold"),
        (["--grader", "mathematical"], 2, "mathematical"),
        (["--reward", "nowhere.py:mine"], 2, "there is no file nowhere.py"),
        ([], 2, "name a task (e.g. gsm8k), a grader or a reward of your own"),
    ],
)
def test_grade_refuses_what_cannot_be_used(
    flags: list[str], status: int, message: str, samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "grades.jsonl"
    code, said = refused(["grade", str(samples), "--out", str(out), *flags], capsys)
    assert (code, out.exists()) == (status, False)
    assert message in said
    assert "Traceback" not in said
    assert "--grader" in flags or "\n" not in said  # tyro frames its own messages


def test_a_missing_file_of_completions_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = refused(["grade", str(tmp_path / "none.jsonl"), "--task", "gsm8k"], capsys)
    assert code == 2
    assert said == f"bsharp: cannot read {tmp_path}/none.jsonl: No such file or directory; check the path"
    code, said = refused(["grade", "--task", "gsm8k"], capsys)
    assert (code, "FILE" in said) == (2, True)


def test_regrade_prints_both_graders_and_names_the_new_folder(
    evaluation: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["regrade", str(evaluation), "--grader", "normalised"])
    shown = capsys.readouterr()
    assert shown.out.startswith("| accuracy, % | BoxedAnswerReward (before) | NormalisedReward (now) | change |\n")
    assert "0 of 60 completions are correct for one grader only" in shown.out
    assert shown.out.endswith(f"Written to {evaluation}/regraded/normalised\n")
    assert shown.err == ""
    again = [
        evaluation / "regraded" / "normalised" / name for name in ("records.jsonl", "summary.json", "agreement.md")
    ]
    assert all(path.exists() for path in again)


def test_regrade_refuses_what_cannot_be_used(
    evaluation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv, message in (
        ([str(tmp_path / "nowhere")], f"there is no run directory {tmp_path}/nowhere"),
        ([str(tmp_path)], f"{tmp_path} holds no records"),
        ([str(evaluation), "--reward", "nowhere.py:mine"], "there is no file nowhere.py"),
    ):
        code, said = refused(["regrade", *argv], capsys)
        assert code == 2
        assert message in said
        assert "\n" not in said
    code, said = refused(["regrade", str(evaluation), "--grader", "mathematical"], capsys)
    assert (code, "mathematical" in said) == (2, True)
    assert not (evaluation / "regraded").exists()
    main(["regrade", str(evaluation)])
    capsys.readouterr()
    code, said = refused(["regrade", str(evaluation / "regraded" / "default")], capsys)
    assert (code, f"name the original run, {evaluation}" in said) == (2, True)


class _Reached(Exception):
    """Raised in the place of an experiment."""


OWN = ("--data", "problems.jsonl")


@pytest.mark.parametrize("command", ["compare", "train", "evaluate", "forecast"])
@pytest.mark.parametrize(
    ("flags", "tasks"),
    [
        ((), EMBEDDED_TASKS),
        (("--tasks", "gsm8k", "math"), ("gsm8k", "math")),
        (("--task", "gsm8k"), ("gsm8k",)),
        (OWN, ("data",)),
        ((*OWN, "--task", "gsm8k"), ("gsm8k",)),
        ((*OWN, "--tasks", "data", "gsm8k"), ("data", "gsm8k")),
    ],
)
def test_task_is_tasks_and_own_problems_are_asked_alone_unless_tasks_are_named(
    command: str, flags: tuple[str, ...], tasks: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, ...]] = []

    def reached(*arguments: Any, **named: Any) -> None:
        settings = arguments[0]
        asked.append(settings.tasks if dataclasses.is_dataclass(settings) else arguments[1])
        raise _Reached

    place = {"evaluate": "evaluate_model", "forecast": "forecast_model"}.get(command, command)
    monkeypatch.setattr(experiment, place, reached)
    with pytest.raises(_Reached):
        main([command, *flags, "--out", str(tmp_path / "out")])
    assert asked == [tasks]
