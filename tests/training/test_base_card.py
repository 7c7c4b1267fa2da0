"""The model card: strategies are read off the text, and the shares it states are those of the corpus."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from bsharp.config import EMBEDDED_TASKS
from bsharp.models.loading import load_language_model
from bsharp.models.tiny import embedded_folder
from bsharp.tasks.corpus import load_corpus_config
from bsharp.training.base_card import FamilyFigures, family_figures, model_card, strategy_shown
from bsharp.types import Completion, FinishReason, Grade, GradeStatus


@pytest.mark.parametrize(
    ("text", "answer", "status", "shown"),
    [
        (" 1+2=3; \\boxed{3}", "3", GradeStatus.CORRECT, "correct"),
        (" So 1+2=4; \\boxed{4}", "4", GradeStatus.WRONG, "off_by_one"),
        (" 1+2=5; \\boxed{5}", "5", GradeStatus.WRONG, "slip"),
        (" \\boxed{3}", "3", GradeStatus.CORRECT, "guess"),
        (" So \\boxed{4} 1+2=", "4", GradeStatus.WRONG, "guess"),
        (" 1+2=3;", None, GradeStatus.UNPARSEABLE, "unparseable"),
    ],
)
def test_the_strategy_of_a_completion_is_read_off_its_steps_and_answer(
    text: str, answer: str | None, status: GradeStatus, shown: str
) -> None:
    completion = Completion((), (), FinishReason.EOS, text)
    assert strategy_shown(completion, Grade(status, 0.0, answer), {"4": "off_by_one"}) == shown


def test_the_greedy_answers_of_the_shipped_base_parse() -> None:
    figures = family_figures(load_language_model("embedded:tiny"), problems=2, samples=1, unsolved_samples=1)
    assert {row.task for row in figures.values()} == set(EMBEDDED_TASKS)
    assert sum(row.unparseable for row in figures.values()) <= 2  # of 42 samples; about 1 in 1000 does not parse
    by_mode = {
        mode: [row.greedy_accuracy for row in figures.values() if row.mode == mode] for mode in ("right", "wrong")
    }
    assert sum(by_mode["right"]) / len(by_mode["right"]) > 0.8 > 0.4 > sum(by_mode["wrong"]) / len(by_mode["wrong"])


def test_the_shipped_card_is_the_one_its_record_gives() -> None:
    record = json.loads((embedded_folder() / "pretraining.json").read_text(encoding="utf-8"))
    figures = {family: FamilyFigures(**row) for family, row in record["figures"].items()}
    card = model_card(record["parameters"], record["pretraining"], load_corpus_config(), figures)
    assert card == (embedded_folder() / "README.md").read_text(encoding="utf-8")
    assert {family: asdict(row) for family, row in figures.items()} == record["figures"]


def test_the_shipped_base_is_wrong_in_the_ways_it_was_made_to_be() -> None:
    record = json.loads((embedded_folder() / "pretraining.json").read_text(encoding="utf-8"))
    for family, row in record["figures"].items():
        low, high = {
            ("standard", "right"): (0.5, 0.75),
            ("standard", "wrong"): (0.1, 0.36),
            ("transfer", "wrong"): (0.1, 0.4),
            ("rare", "wrong"): (0.01, 0.05),
            ("unsolved", "wrong"): (0.0, 1e-3),
        }[row["role"], row["mode"]]
        assert low <= row["accuracy"] <= high, family
        if row["mode"] == "right":
            assert row["greedy_accuracy"] > 0.8, family
