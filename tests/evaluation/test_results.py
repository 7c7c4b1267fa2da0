"""The results of a comparison: their schema, the pairing of regimes, the verdict and the stability word."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bsharp.evaluation import RegimeRecords, build_results, schema_markdown, summarize, validate_results
from bsharp.evaluation.problem_figures import problem_figures
from bsharp.evaluation.results import _TRACES, _answers, _verdict, seed_trace
from bsharp.evaluation.schema import (
    Answers,
    BestCheckpoint,
    Counts,
    FamilySlice,
    Figure,
    Regime,
    Results,
    Stability,
    Verdict,
)


@pytest.fixture(autouse=True)
def few_replicates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The widths of intervals are not what is tested here."""
    monkeypatch.setattr("bsharp.evaluation.summary.REPLICATES", 50)
    monkeypatch.setattr("bsharp.evaluation.summary.SLICE_REPLICATES", 50)


SPECS = {
    "task_reward": ("task_reward", 0.9, 1),
    "tilted": ("tilted(alpha=1,beta_inv=100)", 0.85, 2),
    "sharpening": ("sharpening", 0.3, 3),
    "tempered": ("tempered(alpha=2)", 0.5, 4),
}


def metrics(accuracies: list[float]) -> list[dict[str, Any]]:
    """One row per step, a validation check at every second one."""
    rows: list[dict[str, Any]] = []
    for step in range(1, 2 * len(accuracies) + 1):
        rows.append({"step": step, "grad_norm": 1.0, "entropy/exact_nats_per_token": 0.2})
        rows[-1] |= {"kl(policy||base)/k1_nats_per_sequence": 1.0, "completions/mean_length": 10.0}
        rows[-1]["completions/clipped_ratio"] = 0.0
        if step % 2 == 0:
            rows[-1]["validation/accuracy"] = accuracies[step // 2 - 1]
    return rows


@pytest.fixture
def regimes(simulate: Any) -> dict[str, RegimeRecords]:
    return {
        name: RegimeRecords(
            objective=objective,
            seeds=(0, 1, 2),
            learning_rate=1e-3,
            last=[simulate(100 * index + seed, accuracy=accuracy) for seed in range(3)],
            metrics=[metrics([accuracy, accuracy])] * 3,
            last_steps=[4] * 3,
            stopped=[None] * 3,
            validation_samples=512,
            validation_last=[simulate(100 * index + 50 + seed, problems=9, accuracy=accuracy) for seed in range(3)],
        )
        for name, (objective, accuracy, index) in SPECS.items()
    }


@pytest.fixture
def base(simulate: Any) -> list[dict[str, Any]]:
    return simulate(0, accuracy=0.3, base=True)


def build(base: Any, regimes: Any, **changes: Any) -> dict[str, Any]:
    arguments = {"config": {"steps": 40}, "manifest": {}, "choices_using_labels": ["The rate was tuned."]}
    return build_results(base, regimes, **(arguments | changes))


def test_results_follow_their_schema_and_survive_json(base: Any, regimes: Any) -> None:
    results = build(base, regimes)
    again = json.loads(json.dumps(results, allow_nan=False))
    assert again == results
    assert validate_results(again).model_dump(exclude_unset=True) == results
    assert list(results["regimes"]) == ["task_reward", "tilted", "sharpening", "tempered"]
    for summary in (results["base"], *results["regimes"].values()):
        for key in ("accuracy", "delta", "length", "kl_to_base", "entropy"):
            assert {"estimate", "low", "high", "n", "unit"} <= set(summary[key])
        assert set(summary["pass_at_k"]) == set(summary["maj_at_k"]) == {"1", "2", "4"}


def test_results_do_not_depend_on_the_order_of_regimes_except_in_their_order(base: Any, regimes: Any) -> None:
    forward, backward = build(base, regimes), build(base, dict(reversed(regimes.items())))
    assert forward["regimes"] == backward["regimes"]
    assert forward["base"] == backward["base"]
    assert forward["verdict"]["gain"]["estimate"] == backward["verdict"]["gain"]["estimate"]


def test_differences_between_regimes_are_those_of_their_accuracies(base: Any, regimes: Any) -> None:
    results = build(base, regimes)
    names = list(regimes)
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            change = [results["regimes"][name]["accuracy"]["estimate"] for name in (first, second)]
            assert results["differences"][first][second]["estimate"] == pytest.approx(change[0] - change[1])


def test_the_verdict_takes_the_rival_that_is_best_on_validation_not_on_test(
    simulate: Any, base: Any, regimes: Any
) -> None:
    lucky_on_test = [simulate(900 + seed, accuracy=0.8) for seed in range(3)]
    regimes["sharpening"] = dataclasses.replace(regimes["sharpening"], last=lucky_on_test)
    results = build(base, regimes)
    accuracy = {name: regime["accuracy"]["estimate"] for name, regime in results["regimes"].items()}
    assert accuracy["sharpening"] > accuracy["tempered"]
    assert results["verdict"]["chosen"] == "tempered"
    expected = 100 * (accuracy["task_reward"] - accuracy["tempered"])
    assert results["verdict"]["gain"]["estimate"] == pytest.approx(expected)
    assert results["verdict"]["gain"]["unit"] == "points"
    assert set(results["verdict"]["choice_shares"]) == {"sharpening", "tempered"}


def test_only_objectives_without_task_weight_are_rivals(base: Any, regimes: Any) -> None:
    results = build(base, regimes)
    assert [name for name, regime in results["regimes"].items() if regime["label_free"]] == ["sharpening", "tempered"]


@pytest.mark.parametrize(
    ("left_out", "reason"),
    [(["task_reward"], "no regime is named task_reward"), (["sharpening", "tempered"], "no label-free regime")],
)
def test_without_one_of_the_two_sides_there_is_no_verdict(base: Any, regimes: Any, left_out: Any, reason: str) -> None:
    verdict = build(base, {name: regime for name, regime in regimes.items() if name not in left_out})["verdict"]
    assert verdict["sentence"].startswith(f"no verdict: {reason}")
    assert verdict["gain"] is None


def test_a_regime_named_task_reward_must_use_the_task_reward(base: Any, regimes: Any) -> None:
    regimes["task_reward"] = dataclasses.replace(regimes["task_reward"], objective="task_reward=tempered(alpha=2)")
    with pytest.raises(ValueError, match=r"task_reward=tempered\(alpha=2\) uses no task reward; give it another name"):
        build(base, regimes)


def test_without_validation_records_no_rival_is_chosen(base: Any, regimes: Any) -> None:
    regimes["tempered"] = dataclasses.replace(regimes["tempered"], validation_last=None)
    assert "tempered has no validation records" in build(base, regimes)["verdict"]["sentence"]


def test_ungraded_problems_leave_the_verdict_for_every_regime(base: Any, regimes: Any) -> None:
    for record in regimes["tempered"].last[1]:
        if record["problem_id"] == "task/3":
            record |= {"status": "timeout", "reward": None}
    verdict = build(base, regimes)["verdict"]
    assert verdict["gain"]["n"] == 11
    assert "1 test and 0 validation problems without a grade left out" in verdict["sentence"]


def test_the_best_checkpoint_stands_beside_the_last_one(simulate: Any, base: Any, regimes: Any) -> None:
    tempered, tilted = regimes["tempered"], regimes["tilted"]
    better = [simulate(700 + seed, accuracy=1.0) for seed in range(3)]
    regimes["tempered"] = dataclasses.replace(tempered, best=better, best_steps=(10, 20, 40))
    regimes["tilted"] = dataclasses.replace(tilted, best=[list(r) for r in tilted.last], best_steps=(40, 40, 40))
    results = build(base, regimes)["regimes"]
    assert results["sharpening"]["best_by_validation"] is None
    same = results["tilted"]["best_by_validation"]
    assert all(same[key] == results["tilted"][key] for key in same if key != "steps")
    other = results["tempered"]["best_by_validation"]
    assert other["steps"] == [10, 20, 40]
    assert other["accuracy"]["estimate"] > results["tempered"]["accuracy"]["estimate"]


def test_a_run_that_stopped_at_a_gradient_that_was_not_finite_is_collapsed(base: Any, regimes: Any) -> None:
    stopped = metrics([0.5, 0.5])[:3]
    stopped[-1]["grad_norm"] = None
    rows = [*regimes["tempered"].metrics[:2], stopped]
    regimes["tempered"] = dataclasses.replace(regimes["tempered"], metrics=rows)
    stability = build(base, regimes)["regimes"]["tempered"]["stability"]
    assert stability["word"] == "collapsed"
    assert "grad_norm is not finite" in stability["why"]


def test_a_lasting_loss_of_validation_accuracy_is_declining(base: Any, regimes: Any) -> None:
    regimes["tempered"] = dataclasses.replace(regimes["tempered"], metrics=[metrics([0.8, 0.6])] * 3)
    results = build(base, regimes)["regimes"]
    assert results["tempered"]["stability"]["word"] == "declining"
    assert results["tempered"]["stability"]["figures"]["decline_points"] == pytest.approx(20.0)


def test_a_trace_begins_with_the_check_before_training_and_repeats_the_last_one_of_a_stopped_run() -> None:
    before = {"step": 0, "validation/accuracy": 0.3}
    trace = seed_trace([before, *metrics([0.4, 0.5])], 0.45, checks=5, stopped="loops")
    assert list(trace.validation_accuracy) == [0.3, 0.4, 0.5, 0.5, 0.5]
    assert (trace.final_accuracy, trace.stopped) == (0.45, "loops")
    assert len(trace.entropy) == len(trace.kl) == len(trace.mean_length) == len(trace.truncation_rate) == 4


@pytest.mark.parametrize("name", ["entropy", "kl", "grad_norm"])
def test_a_null_of_entropy_kl_or_gradient_norm_was_not_finite(base: Any, regimes: Any, name: str) -> None:
    rows = [{"step": 0, "validation/accuracy": 0.5}, *metrics([0.5, 0.5])]
    rows[2] = rows[2] | {_TRACES[name]: None}
    series = {key: getattr(seed_trace(rows, 0.5), key) for key in _TRACES}
    assert math.isnan(series.pop(name)[1])
    assert all(np.isfinite(values).all() for values in series.values())
    regimes["tempered"] = dataclasses.replace(regimes["tempered"], metrics=[metrics([0.5, 0.5])] * 2 + [rows[1:]])
    stability = build(base, regimes)["regimes"]["tempered"]["stability"]
    assert (stability["word"], f"{name} is not finite" in stability["why"]) == ("collapsed", True)


@pytest.mark.parametrize("first_check", [[{"step": 0, "validation/accuracy": 0.3}], []])
def test_a_seed_that_stopped_is_a_collapse_and_is_named_with_the_step_of_its_weights(
    simulate: Any, base: Any, regimes: Any, first_check: Any
) -> None:
    reason = "the gradient was not finite at step 1; lower optimizer.learning_rate"
    for name in ("task_reward", "tempered", "sharpening"):
        last = regimes[name].last
        regimes[name] = dataclasses.replace(
            regimes[name],
            metrics=[[*first_check, {"step": 1, "grad_norm": 1.0}]]
            + [first_check + metrics([0.5, 0.5]) for _ in range(2)],
            last_steps=[0, 4, 4],
            stopped=[reason, None, None],
            best=[last[0], simulate(70), simulate(71)],
            best_steps=[None, 2, 2],
        )
    results = build(base, regimes)
    tempered = results["regimes"]["tempered"]
    assert tempered["stability"]["word"] == "collapsed"
    assert tempered["stability"]["why"].startswith(f"1 of 3 seeds: stopped: {reason}")
    assert (tempered["last_steps"], tempered["stopped"]) == ([0, 4, 4], [reason, None, None])
    assert tempered["best_by_validation"]["steps"] == [None, 2, 2]
    sentence = results["verdict"]["sentence"]
    assert "task_reward: seed 0 stopped early, the weights of step 0 are evaluated" in sentence
    assert "tempered: seed 0 stopped early" in sentence
    assert "sharpening: seed 0" not in sentence
    validate_results(json.loads(json.dumps(results, allow_nan=False)))


def test_regimes_with_other_seeds_or_problems_are_refused(simulate: Any, base: Any, regimes: Any) -> None:
    fewer = dataclasses.replace(
        regimes["tempered"],
        seeds=(0, 1),
        last=regimes["tempered"].last[:2],
        metrics=regimes["tempered"].metrics[:2],
        last_steps=(4, 4),
        stopped=(None, None),
        validation_last=regimes["tempered"].validation_last[:2],
    )
    with pytest.raises(ValueError, match=r"same seeds to be compared, got task_reward \[0, 1, 2\].*tempered \[0, 1\]"):
        build(base, regimes | {"tempered": fewer})
    other = dataclasses.replace(regimes["tempered"], last=[simulate(s, problems=11) for s in range(3)])
    with pytest.raises(ValueError, match="tempered lacks problem task/11 that base has"):
        build(base, regimes | {"tempered": other})
    with pytest.raises(ValueError, match="last has 2 entries for 3 seeds"):
        dataclasses.replace(regimes["tempered"], last=regimes["tempered"].last[:2])
    with pytest.raises(ValueError, match="stopped has 1 entries for 3 seeds"):
        dataclasses.replace(regimes["tempered"], stopped=["reason"])
    with pytest.raises(ValueError, match="best and best_steps belong together"):
        dataclasses.replace(regimes["tempered"], best_steps=(1, 2, 3))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: r.update(schema_version=2), "schema_version 2, this version of bsharp reads 1"),
        (lambda r: r["base"].pop("length"), r"base\.length: Field required; docs/results-schema.md"),
        (
            lambda r: r["regimes"]["tilted"]["accuracy"].update(estimate="high"),
            r"tilted\.accuracy\.estimate: .*got 'high'",
        ),
        (lambda r: r["verdict"].update(winner="x"), r"verdict\.winner: Extra inputs"),
    ],
)
def test_results_that_break_the_schema_are_refused_in_one_line(
    base: Any, regimes: Any, spoil: Any, message: str
) -> None:
    results = build(base, {"tilted": regimes["tilted"]})
    spoil(results)
    with pytest.raises(ValueError, match=message) as error:
        validate_results(results)
    assert "\n" not in str(error.value)


def with_outcome(records: list[dict[str, Any]], outcome: str) -> list[dict[str, Any]]:
    """The same records, no answer of which is right: wrong, unparseable, truncated (and unparseable) or ungraded."""
    ungraded = outcome == "timeout"
    changed: dict[str, Any] = {"reward": None if ungraded else 0.0, "exact_match": False, "finish_reason": "eos"}
    changed |= {"status": outcome, "answer": "8" if outcome == "wrong" else None}
    if outcome == "truncated":
        changed |= {"status": "unparseable", "finish_reason": "length"}
    return [record | changed for record in records]


def never_right(base: Any, regimes: Any, outcome: str) -> tuple[Any, Any]:
    """Base and regimes of which nothing is ever right, in training either."""
    zero = None if outcome == "timeout" else 0.0
    rows = [
        row | ({"validation/accuracy": zero} if "validation/accuracy" in row else {}) for row in metrics([0.0, 0.0])
    ]
    changed = {
        name: dataclasses.replace(
            regime,
            last=[with_outcome(records, outcome) for records in regime.last],
            validation_last=[with_outcome(records, outcome) for records in regime.validation_last],
            metrics=[rows] * 3,
        )
        for name, regime in regimes.items()
    }
    return with_outcome(base, outcome), changed


def figures_in(content: Any, path: str = "") -> Any:
    if isinstance(content, dict):
        if "estimate" in content:
            yield path, content
        for key, value in content.items():
            yield from figures_in(value, f"{path}/{key}")


@pytest.mark.parametrize("outcome", ["wrong", "unparseable", "truncated", "timeout"])
def test_where_nothing_is_right_nothing_is_concluded_and_no_interval_is_certain(
    base: Any, regimes: Any, outcome: str
) -> None:
    config = {"evaluation": {"max_new_tokens": 20, "fixed_length": False}}
    results = build(*never_right(base, regimes, outcome), config=config)
    verdict = results["verdict"]
    assert verdict["comparable"] is False
    assert (verdict["gain"], verdict["chosen"], verdict["choice_shares"]) == (None, None, {})
    assert verdict["sentence"].startswith("nothing to compare: ")
    assert ("cut at max_new_tokens = 20" in verdict["sentence"]) == (outcome == "truncated")
    counts = verdict["answers"]
    assert (counts["models"], counts["problems"], counts["solved"], counts["correct"]) == (5, 12, 0, 0)
    assert counts["completions"] == 12 * 4 * (1 + 4 * 3)
    assert counts["ungraded"] == (counts["completions"] if outcome == "timeout" else 0)
    bound = 1 - 0.025 ** (1 / 12)  # P(none of 12 problems is solved) = 2.5 % at this share of solved problems
    for path, figure in figures_in(results["regimes"] | {"differences": results["differences"]}):
        if figure["unit"] != "fraction" or figure["estimate"] is None or "/families/" in path or "/roles/" in path:
            continue
        if figure["n"] == 12 and path.rpartition("/")[2] not in ("truncated", "unparseable", "ungraded"):
            delta = "delta" in path or "differences" in path
            assert figure["low"] == pytest.approx(-bound if delta else 0.0)
            assert figure["high"] == pytest.approx(bound)
        assert figure["low"] < figure["high"], path
    for regime in results["regimes"].values():
        assert regime["stability"]["word"] == "no signal"
        if outcome in ("unparseable", "truncated"):
            assert regime["distinct_answers"]["high"] == pytest.approx(4 * bound)
    assert validate_results(json.loads(json.dumps(results, allow_nan=False))).verdict.comparable is False


@pytest.mark.parametrize("who", ["base", "task_reward", "sharpening"])
@pytest.mark.parametrize("solved", [5, 6])
def test_six_problems_that_any_model_solves_once_are_enough_for_a_verdict(
    base: Any, regimes: Any, who: str, solved: int
) -> None:
    base, regimes = never_right(base, regimes, "wrong")
    records = base if who == "base" else regimes[who].last[1]
    right = [record for record in records if record["sample"] == 2][:solved]
    for record in right:
        record |= {"status": "correct", "answer": "7", "reward": 1.0}
    figures = {name: problem_figures(regime.last, name) for name, regime in regimes.items()}
    verdict = _verdict(problem_figures([base], "base"), figures, regimes, {})
    assert verdict["answers"]["solved"] == verdict["answers"]["correct"] == solved
    assert verdict["comparable"] == (verdict["gain"] is not None) == (solved == 6)


def test_greedy_answers_do_not_count_for_the_verdict(base: Any, regimes: Any) -> None:
    base, regimes = never_right(base, regimes, "wrong")
    for record in base:
        if record["greedy"]:
            record |= {"status": "correct", "answer": "7", "reward": 1.0}
    assert _answers([problem_figures([base], "base")]).solved == 0


def test_a_run_whose_grader_failed_has_no_signal_and_is_not_called_collapsed(base: Any, regimes: Any) -> None:
    _, failed = never_right(base, regimes, "timeout")
    regimes["tempered"] = failed["tempered"]
    stability = build(base, {"tempered": regimes["tempered"]})["regimes"]["tempered"]["stability"]
    assert (stability["word"], "no test completion could be graded" in stability["why"]) == ("no signal", True)


def test_a_run_in_which_nothing_was_ever_graded_is_not_called_collapsed_for_the_entropy_it_lacks(
    base: Any, regimes: Any
) -> None:
    _, failed = never_right(base, regimes, "timeout")
    regime = failed["tempered"]
    empty = [[row | {"entropy/exact_nats_per_token": None, "reward": None} for row in rows] for rows in regime.metrics]
    silent = dataclasses.replace(regime, metrics=empty)
    word = build(base, {"tempered": silent})["regimes"]["tempered"]["stability"]["word"]
    assert word == "no signal"
    judged = dataclasses.replace(regime, metrics=[[row | {"reward": 0.0} for row in rows] for rows in empty])
    assert build(base, {"tempered": judged})["regimes"]["tempered"]["stability"]["word"] == "collapsed"


def test_a_run_that_was_never_right_and_broke_down_is_still_collapsed(base: Any, regimes: Any) -> None:
    _, silent = never_right(base, regimes, "wrong")
    regime = dataclasses.replace(silent["tempered"], stopped=["loops", None, None])
    stability = build(base, {"tempered": regime})["regimes"]["tempered"]["stability"]
    assert (stability["word"], "stopped: loops" in stability["why"]) == ("collapsed", True)


def test_a_run_that_was_right_in_training_only_is_judged_by_the_rule(base: Any, regimes: Any) -> None:
    _, silent = never_right(base, regimes, "wrong")
    regimes["tempered"] = dataclasses.replace(silent["tempered"], metrics=[metrics([0.4, 0.4])] * 3)
    results = build(base, {"tempered": regimes["tempered"]})
    assert results["regimes"]["tempered"]["stability"]["word"] == "stable"


@pytest.mark.parametrize(("changed", "has_direction"), [(5, False), (6, True)])
def test_a_difference_on_fewer_than_six_problems_has_no_direction(
    simulate: Any, changed: int, has_direction: bool
) -> None:
    base = with_outcome(simulate(1, problems=40, samples=2, base=True), "wrong")
    ours = with_outcome(simulate(2, problems=40, samples=2), "wrong")
    for record in ours:
        if int(record["problem_id"].rpartition("/")[2]) < changed:
            record |= {"status": "correct", "answer": "7", "reward": 1.0}
    delta = summarize([ours], base)["delta"]
    assert delta["estimate"] == pytest.approx(changed / 40)
    assert (delta["low"] > 0) == has_direction
    assert ("too few to tell a direction" in delta.get("note", "")) != has_direction


def test_the_schema_page_is_current_and_names_every_key() -> None:
    page = (Path(__file__).parents[2] / "docs" / "results-schema.md").read_text(encoding="utf-8")
    assert page == schema_markdown(), "write bsharp.evaluation.schema_markdown() to docs/results-schema.md"
    for model in (Results, Regime, BestCheckpoint, FamilySlice, Counts, Stability, Verdict, Answers, Figure):
        for key, field in model.model_fields.items():
            assert f"| `{key}` |" in page
            assert field.description
