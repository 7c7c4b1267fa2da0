"""Both graders on whole public test files: right answers are correct, and wrong neighbours are not."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from public_data import data_dir, needs_public_data

from bsharp.rewards import MathVerifyReward, NormalisedReward, RewardFunction

ROOT = Path(__file__).parents[2]


def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("grading_benchmark", ROOT / "benchmarks" / "grading.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["grading_benchmark"] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


GRADING = benchmark()
SIZES = {"gsm8k": 1319, "svamp": 1000, "math500": 500, "minerva": 272, "aime24": 30, "amc23": 40}


@pytest.fixture(scope="module")
def math_verify() -> Iterator[MathVerifyReward]:
    with MathVerifyReward(time_limit=20.0) as reward:
        yield reward


def cases_of(name: str) -> list[Any]:
    folder = data_dir()
    assert folder is not None
    if not (folder / GRADING.SETS[name][0]).exists():
        pytest.skip(f"{folder} has no {GRADING.SETS[name][0]}")
    cases: list[Any] = GRADING.cases(name, folder)
    assert sum(case.kind == "itself" for case in cases) == SIZES[name]
    assert sum(case.right for case in cases) >= 3 * SIZES[name]
    assert sum(not case.right for case in cases) > 3 * SIZES[name]
    return cases


def no_mistakes(cases: Sequence[Any], reward: RewardFunction) -> None:
    grades, _ = GRADING.grade_all(reward, cases)
    wrong = GRADING.mistakes(cases, grades)
    assert not wrong, [(case.problem.answer, case.text, grade.status) for case, grade in wrong[:5]]


@needs_public_data
@pytest.mark.parametrize("name", SIZES)
def test_right_answers_are_correct_and_wrong_neighbours_are_not_as_strings_and_numbers(name: str) -> None:
    no_mistakes(cases_of(name), NormalisedReward(GRADING.SETS[name][2]))


@needs_public_data
@pytest.mark.parametrize("name", SIZES)
def test_right_answers_are_correct_and_wrong_neighbours_are_not_by_value(
    name: str, math_verify: MathVerifyReward
) -> None:
    cases = cases_of(name)
    if name == "minerva":  # formulas of physics take a while to parse: the rest is left to the benchmark
        cases = [case for case in cases if case.kind == "itself"][::4]
    elif name in ("gsm8k", "svamp"):  # and so is most of the other ways to write a whole number
        others = [case for case in cases if case.right and case.kind != "itself"]
        few = {id(case) for case in others[::20]}
        cases = [case for case in cases if not case.right or case.kind == "itself" or id(case) in few]
        cases = cases[:: 1 if name == "gsm8k" else 4]
    math_verify.extraction = GRADING.SETS[name][2]
    no_mistakes(cases, math_verify)


def test_neighbours_are_other_values_and_of_every_kind() -> None:
    made = {
        gold: dict(GRADING.neighbours(gold))
        for gold in ("1,234", "-0.5", r"\frac{3}{4}", "[0,1)", "1, 2", r"1 \pm \pi")
    }
    assert made["1,234"]["one more"] == "1235"
    assert made["1,234"]["swapped digits"] == "2134"
    assert made["-0.5"] == {
        "one more": "-0.4",
        "one less": "-0.6",
        "ten times": "-5",
        "a tenth": "-0.05",
        "sign": "0.5",
        "nearly": "-0.4999999",
    }
    assert made[r"\frac{3}{4}"]["upside down"] == r"\frac{4}{3}"
    assert made["[0,1)"] == {"other left end": "(0,1)", "other right end": "[0,1]", "half": "0", "swapped": "[1,0)"}
    assert made["1, 2"] == {"half": " 2", "one too many": "1, 2,977"}
    assert made[r"1 \pm \pi"]["half"] == r"1 + \pi"
