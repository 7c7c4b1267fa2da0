from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import bsharp.theory.check as check_module
from bsharp.algorithm import tempered
from bsharp.cli import main
from bsharp.experiment import world_of_problem
from bsharp.models.loading import load_language_model
from bsharp.tasks import load_task
from bsharp.theory.at_k import exact_maj_at_k
from bsharp.theory.targets import covariance, expectation, moments, optimum, power


def test_check_prints_every_statement_with_both_sides_and_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    main(["theory", "--check"])
    lines = capsys.readouterr().out.splitlines()
    statements = {line.split()[0] for line in lines if line[:1].isalpha() and " = " in line}
    assert {letter + "1" for letter in "ABCDEF"} <= statements
    assert not any("✗" in line for line in lines)
    assert lines[-1].endswith("all hold")


def test_check_exits_with_status_1_where_a_statement_does_not_hold(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = check_module.check()
    wrong = dataclasses.replace(first, right=first.right + 1, error=1.0, holds=False)
    monkeypatch.setattr("bsharp.experiment.theory.check", lambda seed: [wrong, *others])
    with pytest.raises(SystemExit) as stop:
        main(["theory", "--check"])
    assert stop.value.code == 1
    captured = capsys.readouterr()
    assert "✗" in captured.out
    assert captured.err.startswith(f"bsharp: 1 of {1 + len(others)} checks")


def test_the_page_is_written_where_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "new" / "lecture.html"
    main(["theory", "--out", str(page)])
    assert str(page) in capsys.readouterr().out
    assert page.read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")


def test_the_answers_of_a_real_model_to_a_real_problem_are_a_finite_world() -> None:
    model, task = load_language_model("embedded:tiny"), load_task("math_mini")
    (problem,) = task.problems("test", 1, 0, families=["add"], difficulties=[1])
    world = world_of_problem(model, task, problem, max_digits=3)
    assert world.size == 1 + 10 + 100 + 1000
    assert float(world.base_logprob.exp().sum()) == pytest.approx(1, abs=1e-9)
    digits = [
        model.decode(row[keep].tolist()).rstrip("}") for row, keep in zip(world.token_ids, world.mask, strict=True)
    ]
    assert world.rewards.tolist() == [float(text.isdigit() and int(text) == int(problem.answer)) for text in digits]
    right = world.rewards == 1
    assert len(set(world.answers[right].tolist())) == 1, "7, 07 and 007 are one answer"
    assert world.answers[digits.index("")] == -1
    # The slope of accuracy along α is the covariance, here on a transformer.
    step = 1e-5
    slope = (
        expectation(power(world, 1 + step), world.rewards) - expectation(power(world, 1 - step), world.rewards)
    ) / (2 * step)
    assert float(slope) == pytest.approx(
        float(covariance(world.base_logprob, world.rewards, world.base_logprob)), rel=1e-6
    )
    assert moments(optimum(world, tempered(2.0)).log_policy, world).entropy < moments(world.base_logprob, world).entropy
    assert 0 <= float(exact_maj_at_k(world.base_logprob, world, [5])[0]) <= 1
