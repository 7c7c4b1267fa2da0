"""Laws of the sensitivity table: every share against policies whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pytest

from bsharp.diagnostics import sensitivity
from bsharp.diagnostics.sensitivity import sensitivity_table
from bsharp.generation import GenerationRequest, SamplingParams
from bsharp.models.loading import LanguageModel, load_language_model
from bsharp.rewards import RewardFunction, reward_for
from bsharp.tasks import Split, load_task
from bsharp.tasks.variants import CHANGES
from bsharp.types import Completion, FinishReason, Grade, GradeStatus, Problem

TASK = load_task("gsm8k_lite")
FAMILIES = ["share", "spend"]  # share has every change, spend no other order
PROBLEMS = TASK.problems(Split.TEST, 6, seed=0, families=FAMILIES)
GOLD = {TASK.prompt(problem): problem.answer for problem in PROBLEMS}
Rule = Callable[[str], str]


@dataclass(frozen=True)
class Ruled:
    """A policy that answers a prompt by a rule."""

    rule: Rule

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]


class RuledDecoder:
    """Stands in for the decoder; sampled completions follow the same rule as greedy ones."""

    def __init__(self, policy: Ruled, max_rows: int, backend: str) -> None:
        self._rule = policy.rule

    def generate(self, requests: Sequence[GenerationRequest], params: SamplingParams) -> list[tuple[Completion, ...]]:
        texts = [self._rule("".join(map(chr, request.prompt_token_ids))) for request in requests]
        return [
            tuple([Completion((0,), (0.0,), FinishReason.EOS, text)] * request.num_samples)
            for text, request in zip(texts, requests, strict=True)
        ]


def box(answer: str) -> str:
    return f"\\boxed{{{answer}}}"


def right_on_originals(prompt: str) -> str:
    return box(GOLD.get(prompt, "-1"))


def wrong_and_different(prompt: str) -> str:
    return box(f"-{sum(place * ord(character) for place, character in enumerate(prompt, start=1))}")


def table(
    monkeypatch: pytest.MonkeyPatch,
    base: Rule,
    policies: Mapping[str, Sequence[Rule]] | None = None,
    reward: RewardFunction | None = None,
    problems: Sequence[Problem] = PROBLEMS,
) -> dict:
    monkeypatch.setattr(sensitivity, "generator_for", RuledDecoder)
    made = sensitivity_table(
        Ruled(base),
        {name: [lambda rule=rule: Ruled(rule) for rule in rules] for name, rules in (policies or {}).items()},
        {TASK.name: TASK},
        {TASK.name: reward or reward_for(TASK)},
        problems=problems,
        samples=2,
        seed=0,
        max_new_tokens=8,
    )
    json.dumps(made, allow_nan=False)
    return made


def shares(made: Mapping, model: str = "base") -> dict[str, dict[str, float | None]]:
    rows = {row["change"]: row["models"][model] for row in made["changes"]} | {"overall": made["overall"][model]}
    return {
        change: {key: None if value is None else value["estimate"] for key, value in cells.items()}
        for change, cells in rows.items()
    }


@pytest.mark.parametrize("text", [box("7"), "no box at all"])
def test_a_policy_deaf_to_its_prompt_never_changes_its_answer_nor_does_one_without_answers(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = shares(table(monkeypatch, lambda prompt: text))
    for change, cells in found.items():
        assert cells["answer_changed"] == (None if change == "numbers" else 0.0)


def test_wrong_answers_that_follow_the_text_always_change_and_never_their_correctness(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for change, cells in shares(table(monkeypatch, wrong_and_different)).items():
        assert cells["answer_changed"] == (None if change == "numbers" else 1.0)
        assert cells["correctness_changed"] == cells["accuracy_original"] == cells["accuracy_changed"] == 0.0
        assert cells["right_kept"] is None  # nothing was right


def test_a_policy_that_knows_the_originals_alone_loses_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    made = table(monkeypatch, right_on_originals)
    # All six were lost: a true share kept of 46 % would show none in six with probability 2.5 %.
    kept = made["overall"]["base"]["right_kept"]
    assert (kept["low"], kept["high"]) == (0.0, pytest.approx(1 - 0.025 ** (1 / 6)))
    for cells in shares(made).values():
        assert (cells["accuracy_original"], cells["accuracy_changed"]) == (1.0, 0.0)
        assert (cells["correctness_changed"], cells["right_kept"]) == (1.0, 0.0)
    assert made["control"]["base"]["answer_changed"]["estimate"] == 0.0


def test_differences_are_regime_minus_base_over_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    policies = {
        "worse": [right_on_originals, right_on_originals],
        "half": [right_on_originals, lambda prompt: box("7")],
    }
    made = table(monkeypatch, lambda prompt: box("7"), policies)
    for cells in shares(made, "worse").values():
        assert cells["correctness_changed_delta"] == 1.0
    assert shares(made, "worse")["wording"]["answer_changed_delta"] == 1.0
    assert shares(made, "worse")["numbers"]["answer_changed_delta"] is None
    assert shares(made, "half")["wording"]["answer_changed_delta"] == 0.5
    assert "correctness_changed_delta" not in shares(made)["wording"]


def test_right_kept_is_the_share_of_what_was_right_that_stays_right(monkeypatch: pytest.MonkeyPatch) -> None:
    known = list(GOLD)[:4]

    def forgets_one(prompt: str) -> str:
        """Right on 4 of the 6 problems; other wordings of the first of them are lost, of the others kept."""
        for place, original in enumerate(known):
            if prompt == original or (place and same_numbers(prompt, original)):
                return box(GOLD[original])
        return box("-1")

    def same_numbers(prompt: str, original: str) -> bool:
        digits = [sorted(character for character in text if character.isdigit()) for text in (prompt, original)]
        return digits[0] == digits[1]

    made = table(monkeypatch, forgets_one, {"all lost": [right_on_originals]})
    wording = shares(made)["wording"]
    assert wording["right_kept"] == pytest.approx(3 / 4)
    assert wording["correctness_changed"] == pytest.approx(1 / 6)
    assert shares(made, "all lost")["wording"]["right_kept_delta"] == pytest.approx(-3 / 4)


def test_overall_is_each_problems_mean_over_its_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    def minds_blanks(prompt: str) -> str:
        return box("8" if "  " in prompt else "7")

    # One of four changes for the three problems of `share`, one of three for those of `spend`.
    assert shares(table(monkeypatch, minds_blanks))["overall"]["answer_changed"] == pytest.approx((1 / 4 + 1 / 3) / 2)


def test_problems_a_change_does_not_apply_to_leave_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    made = table(monkeypatch, right_on_originals, problems=[p for p in PROBLEMS if p.family == "spend"])
    rows = {row["change"]: row for row in made["changes"]}
    assert list(rows) == list(CHANGES)
    assert rows["order"]["problems"] == 0
    assert rows["order"]["example"] is None
    assert rows["order"]["models"]["base"]["answer_changed"]["estimate"] is None
    assert rows["wording"]["problems"] == rows["wording"]["models"]["base"]["answer_changed"]["n"] == 3
    before, after = rows["wording"]["example"]
    assert before in {problem.question for problem in PROBLEMS}
    assert before != after


def test_ungraded_completions_leave_the_figures_instead_of_counting_as_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = PROBLEMS[0].problem_id

    def times_out_once(problems: Sequence[Problem], completions: Sequence[Completion]) -> list[Grade]:
        graded = reward_for(TASK)(problems, completions)
        timeout = Grade(GradeStatus.TIMEOUT, None)
        return [timeout if p.problem_id == lost else grade for p, grade in zip(problems, graded, strict=True)]

    made = table(monkeypatch, right_on_originals, reward=times_out_once)
    (wording,) = (row["models"]["base"] for row in made["changes"] if row["change"] == "wording")
    for cell in wording.values():
        assert cell["n"] == len(PROBLEMS) - 1
    assert wording["correctness_changed"]["estimate"] == 1.0


def test_greedy_answers_to_the_identical_prompt_never_differ_and_the_base_does_not_differ_from_itself() -> None:
    base = load_language_model("embedded:tiny")
    loaded: list[LanguageModel] = []

    def load() -> LanguageModel:
        loaded.append(base)
        return base

    task = load_task("math_mini")
    made = sensitivity_table(
        base,
        {"same": [load, load]},
        {task.name: task},
        {task.name: reward_for(task)},
        problems=task.problems(Split.TEST, 11, seed=0),
        samples=1,
        seed=0,
        max_new_tokens=40,
    )
    assert len(loaded) == 2
    assert {cells["answer_changed"]["estimate"] for cells in made["control"].values()} == {0.0}
    assert 0 < made["overall"]["base"]["answer_changed"]["estimate"] < 1
    for models in (*(row["models"] for row in made["changes"]), made["overall"]):
        for key, cell in models["same"].items():
            if key.endswith("_delta") and cell is not None:
                assert cell["estimate"] in (0.0, None)


def test_wrong_arguments_are_refused_with_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="regime 'ours' has no policy"):
        table(monkeypatch, right_on_originals, {"ours": []})
    with pytest.raises(ValueError, match="no problem to change"):
        table(monkeypatch, right_on_originals, problems=[])
    with pytest.raises(ValueError, match="samples = 0"):
        sensitivity_table(Ruled(right_on_originals), {}, {}, {}, problems=PROBLEMS, samples=0, seed=0, max_new_tokens=8)


class TextTask:
    """Problems as public data sets have them: a text, no families, no numbers to draw again."""

    name = "text"
    families: Mapping[str, object] = {}

    def prompt(self, problem: Problem) -> str:
        return problem.question


class Trimmed(Ruled):
    """A model whose chat template trims what the user says."""

    def encode(self, text: str) -> list[int]:
        return super().encode(text.strip())


QUESTIONS = ("Find $\\frac{1}{2} + x$ for $x = 3$", "Let $f(x) = x^2$. Find $f(4)$. Give it as an integer")


def text_table(monkeypatch: pytest.MonkeyPatch, kind: type[Ruled]) -> dict[str, dict]:
    monkeypatch.setattr(sensitivity, "generator_for", RuledDecoder)
    problems = [Problem(f"text/{i}", "text", "text", question, "7") for i, question in enumerate(QUESTIONS)]
    rewards = {"text": reward_for(load_task("math_mini"))}
    made = sensitivity_table(
        kind(wrong_and_different),
        {},
        {"text": TextTask()},
        rewards,
        problems=problems,
        samples=1,
        seed=0,
        max_new_tokens=8,
    )
    return {row["change"]: row for row in made["changes"]}


def test_problems_of_any_text_have_the_changes_that_are_safe_for_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = text_table(monkeypatch, Ruled)
    assert {change: row["problems"] for change, row in rows.items()} == {
        "names": 0, "wording": 2, "order": 0, "spacing": 2, "numbers": 0,
    }  # fmt: skip
    assert rows["wording"]["example"] == [QUESTIONS[0], f"Please solve: {QUESTIONS[0]}"]
    assert rows["names"]["models"]["base"]["answer_changed"]["estimate"] is None


def test_a_change_that_leaves_the_models_prompt_as_it_was_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    spacing = text_table(monkeypatch, Trimmed)["spacing"]
    # Trimming undoes a line break at the end; two blanks between sentences stay, and only one question has sentences.
    assert spacing["problems"] <= 1
    assert all("\n" not in question for question in spacing["example"] or [])
