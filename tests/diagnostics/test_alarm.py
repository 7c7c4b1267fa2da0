"""The collapse alarm on made-up series, on recorded runs, and on exactly known distributions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsharp.algorithm import Objective, parse_objective
from bsharp.diagnostics.alarm import Alarm, AlarmKind, AlarmThresholds, CollapseAlarm

DATA = Path(__file__).parent / "data"
STEADY = {
    "entropy/exact_nats_per_token": 0.3,
    "completions/mean_length": 24.0,
    "completions/clipped_ratio": 0.02,
    "completions/repetition_rate": 0.01,
    "completions/distinct_answers_per_problem": 3.0,
    "kl(policy||base)/k1_nats_per_sequence": 0.5,
    "base_logprob/mean_nats_per_sequence": -6.0,
    "frac_score_zero_std": 0.1,
    "score/mean": -2.0,
    "score/std": 2.0,
    "reward": 0.5,
    "grad_norm": 2.0,
    "loss/policy": 0.1,
}
ENTROPY, LENGTH, TRUNCATED, REPETITION, ANSWERS, KL, BASE, ZERO, SCORE, SCORE_SD, REWARD, NORM, LOSS = STEADY
REWARDED = parse_objective("task_reward")[1]
SHARPENING = parse_objective("sharpening")[1]

Rows = Sequence[Mapping[str, float | None]]


def series(steps: int) -> list[dict[str, float]]:
    return [dict(STEADY) for _ in range(steps)]


def changed(before: int, after: int, change: Mapping[str, float]) -> list[dict[str, float]]:
    """`before` steady steps, then `after` steps with `change`."""
    return series(before) + [STEADY | dict(change) for _ in range(after)]


def events(
    rows: Rows, objective: Objective | None = None, thresholds: AlarmThresholds | None = None, rate: float | None = None
) -> list[Alarm]:
    alarm = CollapseAlarm(thresholds, objective=objective, learning_rate=rate, warmup_steps=2)
    return [raised for step, row in enumerate(rows, start=1) for raised in alarm.observe(step, row)]


# name: (change from step 11 on, kind, stops, first step at which the mean of three is beyond, figures in the sentence)
CHANGES: dict[str, tuple[dict[str, float], AlarmKind, bool, int, tuple[str, ...]]] = {
    "far from the base": ({KL: 12.0, BASE: -14.0}, AlarmKind.KL, True, 12, ("8.2 nats", "0.5 at", "6.0 that", "0.47", "0.25")),
    "longer and further": ({KL: 12.0, LENGTH: 40.0}, AlarmKind.KL, False, 12, ("8.2 nats", "6.0 that")),
    "worse by its own score": ({SCORE: -5.0}, AlarmKind.SCORE, True, 12, ("-4 ", "-2 at the start", "1.0 standard")),
    "short": ({LENGTH: 2.0}, AlarmKind.LENGTH, True, 13, ("2.0 tokens", "24.0 at the start")),
    "long": ({LENGTH: 60.0}, AlarmKind.LENGTH, False, 13, ("60.0 tokens", "24.0 at the start")),
    "cut off": ({TRUNCATED: 0.9}, AlarmKind.TRUNCATION, True, 12, ("61 %", "2 % at the start")),
    "in loops": ({REPETITION: 0.6}, AlarmKind.REPETITION, True, 12, ("40 %", "1 % at the start")),
    "noise": ({ENTROPY: 2.0}, AlarmKind.ENTROPY, True, 12, ("1.43 nats", "0.300 at the start")),
    "sharp": ({ENTROPY: 0.01}, AlarmKind.ENTROPY, False, 13, ("0.010 nats", "0.300 at the start")),
    "all alike": ({ZERO: 1.0, ANSWERS: 1.0}, AlarmKind.ZERO_VARIANCE, False, 13, ("100 %", "1.0 distinct", "3.0 at")),
    "no answers": ({ZERO: 1.0, ANSWERS: 0.1}, AlarmKind.ZERO_VARIANCE, True, 13, ("100 %", "0.1 distinct", "3.0 at")),
}  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "stops", "step", "figures"), CHANGES.values(), ids=CHANGES)
def test_each_change_is_said_once_at_the_step_where_the_mean_of_the_window_crosses(
    change: dict[str, float], kind: AlarmKind, stops: bool, step: int, figures: tuple[str, ...]
) -> None:
    (alarm,) = events(changed(10, 30, change))
    assert (alarm.kind, alarm.stops, alarm.step, alarm.since) == (kind, stops, step, 11)
    assert alarm.sentence.startswith("Since step 11 ")
    assert alarm.sentence.endswith(f"; {alarm.advice}.")
    assert [figure for figure in figures if figure not in alarm.sentence] == []


@pytest.mark.parametrize(("change", "kind"), [(change, kind) for change, kind, *_ in CHANGES.values()], ids=CHANGES)
def test_a_change_of_half_the_size_is_not_said(change: dict[str, float], kind: AlarmKind) -> None:
    limits = {
        KL: 5.9,
        SCORE: -3.4,
        LENGTH: 8.5 if change.get(LENGTH, 0) < 24 else 47.0,
        TRUNCATED: 0.5,
        REPETITION: 0.25,
        ENTROPY: 0.85 if change.get(ENTROPY, 1) > 0.3 else 0.031,
        ZERO: 0.89,
    }
    within = {key: limits.get(key, value) for key, value in change.items()}
    assert [alarm for alarm in events(changed(10, 30, within)) if alarm.kind == kind] == []


def test_a_single_step_says_nothing_unless_it_is_not_finite() -> None:
    for change, *_ in CHANGES.values():
        rows = changed(10, 1, {key: (STEADY[key] + value) / 2 for key, value in change.items()}) + series(10)
        assert events(rows) == []


@pytest.mark.parametrize("key", [NORM, LOSS])
@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("step", [1, 4, 9])
def test_a_gradient_or_loss_that_is_not_finite_stops_at_once(key: str, value: float | None, step: int) -> None:
    rows: list[Mapping[str, float | None]] = [*series(step - 1), STEADY | {key: value}]
    (alarm,) = events(rows, REWARDED)
    assert (alarm.kind, alarm.stops, alarm.step, alarm.since) == (AlarmKind.NOT_FINITE, True, step, step)
    assert key in alarm.sentence


def test_the_row_that_the_loop_writes_when_logits_break_is_an_alarm() -> None:
    (alarm,) = events([*series(3), {"grad_norm": None}])
    assert (alarm.kind, alarm.step) == (AlarmKind.NOT_FINITE, 4)


@pytest.mark.parametrize("key", [key for key in STEADY if key not in (NORM, LOSS)])
def test_figures_that_are_undefined_at_some_steps_are_no_alarm(key: str) -> None:
    rows: list[Mapping[str, float | None]] = [
        STEADY | ({key: None} if step % 2 else {key: math.nan}) if step % 3 else STEADY for step in range(20)
    ]
    assert events(rows) == []
    assert events([STEADY | {key: None}] * 20) == []


NEEDED = {
    AlarmKind.KL: (KL, BASE),
    AlarmKind.SCORE: (SCORE, SCORE_SD),
    AlarmKind.LENGTH: (LENGTH,),
    AlarmKind.TRUNCATION: (TRUNCATED,),
    AlarmKind.REPETITION: (REPETITION,),
    AlarmKind.ENTROPY: (ENTROPY,),
    AlarmKind.ZERO_VARIANCE: (ZERO,),
}


@pytest.mark.parametrize("key", list(STEADY))
def test_a_missing_key_silences_only_what_needs_it(key: str) -> None:
    for change, kind, *_ in CHANGES.values():
        rows = changed(10, 30, change)
        found = events([{name: value for name, value in row.items() if name != key} for row in rows])
        if key in NEEDED[kind]:
            assert found == []
        else:
            assert [alarm.kind for alarm in found] == [kind]
            assert "nan" not in found[0].sentence
        if key not in (*NEEDED[kind], *change, LENGTH):
            assert found == events(rows)
    assert events([{}] * 20) == []


def test_empty_completions_are_short_and_break_nothing() -> None:
    (alarm,) = events(changed(10, 20, {LENGTH: 0.0}))
    assert alarm.kind == AlarmKind.LENGTH
    kinds = {alarm.kind for alarm in events(changed(10, 20, {LENGTH: 0.0, KL: 12.0, BASE: -1.0}))}
    assert kinds == {AlarmKind.LENGTH, AlarmKind.KL}


def test_runs_shorter_than_start_and_window_are_not_judged() -> None:
    broken = STEADY | {LENGTH: 1.0, KL: 300.0, BASE: -300.0, TRUNCATED: 1.0, ENTROPY: 5.0}
    assert events([*series(3), broken, broken]) == []
    assert {alarm.step for alarm in events([*series(3), broken, broken, broken])} == {6}


def test_the_check_before_training_is_passed_over() -> None:
    alarm = CollapseAlarm()
    assert alarm.observe(0, {"validation/accuracy": None, "grad_norm": None}) == []
    assert [raised.kind for raised in alarm.observe(1, {"grad_norm": None})] == [AlarmKind.NOT_FINITE]


def test_steps_that_do_not_rise_are_refused() -> None:
    alarm = CollapseAlarm()
    alarm.observe(4, STEADY)
    with pytest.raises(ValueError, match="rising steps, got step 4 after 4"):
        alarm.observe(4, STEADY)


def test_a_kind_speaks_again_only_after_it_has_recovered() -> None:
    short, recovery = STEADY | {LENGTH: 2.0}, AlarmThresholds().recovery_steps

    def steps(gap: int) -> list[int]:
        return [alarm.step for alarm in events([*series(10), *[short] * 5, *series(gap), *[short] * 8])]

    # The mean is in range from the first steady step on, and still is at the first two short ones that follow.
    assert steps(recovery - 3) == [13]
    assert steps(recovery - 2) == [13, 15 + recovery - 2 + 3]
    # A second alarm holds as long as the first.
    again = [*series(10), *[short] * 3, *series(20), *[short] * 3, *series(1), *[short] * 3]
    assert [alarm.step for alarm in events(again)] == [13, 36]


def test_a_notice_that_becomes_degenerate_output_speaks_once_more() -> None:
    rows = [*series(10), *[STEADY | {KL: 12.0}] * 5, *[STEADY | {KL: 12.0, BASE: -20.0}] * 10]
    assert [(alarm.kind, alarm.stops, alarm.since) for alarm in events(rows)] == [
        (AlarmKind.KL, False, 11),
        (AlarmKind.KL, True, 11),
    ]


def test_since_is_the_first_step_of_the_last_unbroken_stretch() -> None:
    looped, rows = STEADY | {REPETITION: 0.3}, series(8)
    # 9 beyond, 10 not, 11 to 13 beyond: the mean crosses at 13.
    (alarm,) = events([*rows, looped, STEADY, looped, looped, looped])
    assert (alarm.since, alarm.step) == (11, 13)
    # The mean crosses at a step that is itself in range.
    (alarm,) = events([*rows, looped, STEADY | {REPETITION: 0.45}, STEADY | {REPETITION: 0.1}])
    assert (alarm.since, alarm.step) == (9, 11)


@settings(max_examples=30, deadline=None)
@given(split=st.integers(0, 40), seed=st.integers(0, 2**16))
def test_a_resumed_run_that_feeds_its_rows_again_raises_the_same_alarms(split: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [{key: float(value * rng.lognormal(0, 1)) for key, value in STEADY.items()} for _ in range(40)]
    whole = events(rows, SHARPENING)
    first, second = (
        CollapseAlarm(objective=SHARPENING, warmup_steps=2),
        CollapseAlarm(objective=SHARPENING, warmup_steps=2),
    )
    raised = [alarm for step in range(split) for alarm in first.observe(step + 1, rows[step])]
    for step in range(split):
        second.observe(step + 1, rows[step])
    raised += [alarm for step in range(split, 40) for alarm in second.observe(step + 1, rows[step])]
    assert raised == whole
    assert whole != []


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**16), objective=st.sampled_from([None, REWARDED, SHARPENING]))
def test_a_steady_run_with_the_noise_of_real_batches_raises_nothing(seed: int, objective: Objective | None) -> None:
    """Relative sd 12 % per step, about that of 128 completions. The nearest limits (entropy × 2, length × 1/3 or 2 of the start)
    lie more than 8 sd of a mean of three steps away: below 1e-12 in all 50 × 100 steps."""
    rng = np.random.default_rng(seed)
    rows = [
        {key: float(value * np.clip(1 + 0.12 * rng.standard_normal(), 0.4, 1.6)) for key, value in STEADY.items()}
        for _ in range(100)
    ]
    assert events(rows, objective) == []


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), scale=st.floats(1, 50))
def test_only_ratios_to_the_run_itself_count(seed: int, scale: float) -> None:
    """Longer completions with as much more KL and surprise: another model, the same rule."""
    rng = np.random.default_rng(seed)
    rows = [{key: float(value * rng.lognormal(0, 1)) for key, value in STEADY.items()} for _ in range(40)]
    scaled = [row | {key: scale * row[key] for key in (LENGTH, KL, BASE)} for row in rows]

    def what(found: Sequence[Alarm]) -> list[tuple[int, int, AlarmKind, bool]]:
        return [(alarm.step, alarm.since, alarm.kind, alarm.stops) for alarm in found]

    thresholds = AlarmThresholds(min_kl=0.0)
    assert what(events(scaled, None, thresholds)) == what(events(rows, None, thresholds))
    # A score has neither a natural unit nor a natural zero.
    shifted = [row | {SCORE: scale * row[SCORE] + 7, SCORE_SD: scale * row[SCORE_SD]} for row in rows]
    assert what(events(shifted, None, thresholds)) == what(events(rows, None, thresholds))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), spec=st.sampled_from(["sharpening", "tempered(alpha=2)", "entropy_minimisation"]))
def test_a_label_free_run_is_judged_without_labels(seed: int, spec: str) -> None:
    rng = np.random.default_rng(seed)
    rows = [{key: float(value * rng.lognormal(0, 1)) for key, value in STEADY.items()} for _ in range(40)]
    other = [row | {REWARD: float(rng.random()), "validation/accuracy": float(rng.random())} for row in rows]
    objective = parse_objective(spec)[1]
    assert events(rows, objective) == events(other, objective)
    assert events(rows) == events(other)


def test_a_reward_that_holds_keeps_an_alarm_of_a_rewarded_run_from_stopping_it_and_no_other() -> None:
    far = {KL: 12.0, BASE: -14.0}
    (held,) = events(changed(10, 30, far | {REWARD: 0.7}), REWARDED)
    assert (held.stops, "while the reward holds" in held.sentence) == (False, True)
    # Below its start, or below three quarters of its best, it no longer holds.
    (fell,) = events(changed(10, 30, far | {REWARD: 0.2}), REWARDED)
    risen = [STEADY | {REWARD: 1.0}] * 10
    halved = events([*series(10), *risen, *[STEADY | far | {REWARD: 0.6}] * 20], REWARDED)
    # The first judged window is its own best, so the start must count too.
    (lost,) = events(changed(3, 30, far | {REWARD: 0.45}), REWARDED)
    assert lost.stops
    (label_free,) = events(changed(10, 30, far | {REWARD: 0.7}), SHARPENING)
    assert fell.stops
    assert [alarm.stops for alarm in halved][-1]
    assert label_free.stops


def test_groups_without_variance_are_failed_where_the_reward_is_lost_and_solved_where_it_is_full() -> None:
    (solved,) = events(changed(10, 30, {ZERO: 1.0, ANSWERS: 1.0, REWARD: 1.0}), REWARDED)
    (failed,) = events(changed(10, 30, {ZERO: 1.0, ANSWERS: 1.0, REWARD: 0.0}), REWARDED)
    (unlabelled,) = events(changed(10, 30, {ZERO: 1.0, ANSWERS: 1.0, REWARD: 0.0}), SHARPENING)
    assert (solved.stops, failed.stops, unlabelled.stops) == (False, True, False)
    assert "mean reward of 0.00 (0.50 at the start)" in failed.sentence
    assert "reward" not in unlabelled.sentence


def test_ratios_to_next_to_nothing_are_no_alarm() -> None:
    """A base that is all but deterministic, or that never gives an answer that can be read."""
    certain = STEADY | {KL: 0.001, BASE: -0.05, ENTROPY: 0.01}
    assert events([*[certain] * 10, *[certain | {KL: 0.5, BASE: -0.6, ENTROPY: 0.2}] * 20]) == []
    (notice,) = events([STEADY | {ANSWERS: 0.0, ZERO: 1.0}] * 20)
    assert (notice.kind, notice.stops) == (AlarmKind.ZERO_VARIANCE, False)


def test_a_base_that_ran_into_the_limit_may_learn_to_stop() -> None:
    rambling = [STEADY | {TRUNCATED: 0.8}] * 10
    (alarm,) = events([*rambling, *[STEADY | {LENGTH: 5.0}] * 20])
    assert (alarm.kind, alarm.stops) == (AlarmKind.LENGTH, False)


def tempered_rows(base: np.ndarray, powers: Sequence[float]) -> list[dict[str, float]]:
    """Exact metrics of pi ∝ base^power over enumerated completions of 10 tokens."""
    rows = []
    for power in powers:
        logits = power * np.log(base)
        policy = np.exp(logits - logits.max())
        policy /= policy.sum()
        logprob = np.log(np.maximum(policy, 1e-300))
        kl, surprise = float(policy @ (logprob - np.log(base))), float(policy @ np.log(base))
        entropy = -float(policy @ logprob) / 10
        rows.append(STEADY | {KL: kl, BASE: surprise, ENTROPY: entropy, LENGTH: 10.0})
    return rows


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), size=st.integers(2, 60), concentration=st.floats(0.05, 5))
def test_no_power_of_the_base_however_sharp_is_called_degenerate(seed: int, size: int, concentration: float) -> None:
    """KL = E[log pi] - E[log base] <= -E[log base] <= H(base): exact, so the rule may not even give notice of the KL."""
    base = np.random.default_rng(seed).dirichlet([concentration] * size) + 1e-12
    rows = tempered_rows(base / base.sum(), [1.0] * 3 + [1.3**step for step in range(20)])
    found = events(rows, SHARPENING, AlarmThresholds(min_kl=0.0))
    assert {alarm.kind for alarm in found} <= {AlarmKind.ENTROPY}
    assert not any(alarm.stops for alarm in found)


@pytest.mark.parametrize(
    ("spec", "change", "advised"),
    [
        ("sharpening", {LENGTH: 2.0}, "normalise the likelihood by length"),
        ("sharpening(normalisation=mean)", {LENGTH: 2.0}, "as tempered does"),
        ("sharpening(normalisation=mean)", {REPETITION: 0.6}, "normalisation=sum"),
        ("sharpening", {KL: 12.0, BASE: -14.0}, "as tempered does"),
        ("sharpening", {SCORE: -9.0}, "as tempered does"),
        ("tempered(alpha=2)", {KL: 12.0, BASE: -14.0}, "alpha nearer to 1"),
        ("task_reward", {KL: 12.0, BASE: -14.0, REWARD: 0.1}, "as tilted does"),
        ("tilted(alpha=1,beta_inv=100)", {KL: 12.0, BASE: -14.0, REWARD: 0.1}, "a smaller beta_inv"),
        ("hybrid(alpha=-30,beta_inv=100)", {ENTROPY: 2.0, REWARD: 0.1}, "weaken the likelihood penalty"),
        ("sharpening", {ENTROPY: 0.01}, "this is what sharpening aims at"),
        ("task_reward", {ZERO: 1.0, REWARD: 1.0}, "harder problems"),
        ("task_reward", {ZERO: 1.0, REWARD: 0.3}, "easier problems"),
    ],
)
def test_the_advice_fits_kind_and_objective(spec: str, change: dict[str, float], advised: str) -> None:
    alarm = events(changed(10, 20, change), parse_objective(spec)[1], rate=0.01)[0]
    assert advised in alarm.advice
    assert (
        not alarm.stops or "optimizer.learning_rate (now 0.01) or raise optimizer.warmup_steps (now 2)" in alarm.advice
    )


def test_an_event_is_a_row_of_json_with_its_schema() -> None:
    (alarm,) = events(changed(10, 20, {ZERO: 1.0}))
    without_answers = [
        {key: value for key, value in row.items() if key != ANSWERS} for row in changed(10, 20, {ZERO: 1.0})
    ]
    for event in (alarm, *events(without_answers)):
        row = json.loads(json.dumps(event.as_json(), allow_nan=False))
        assert set(row) == {"step", "since", "kind", "sentence", "figures", "advice", "stops", "schema"}
        assert (row["kind"], row["schema"], row["stops"]) == ("zero_variance", 1, False)
        assert all(math.isfinite(value) for value in row["figures"].values())


def recorded(name: str) -> tuple[list[Alarm], list[dict[str, float | None]]]:
    run = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    alarm = CollapseAlarm(objective=parse_objective(run["objective"])[1], learning_rate=run["learning_rate"])
    return [raised for row in run["rows"] for raised in alarm.observe(row["step"], row)], run["rows"]


def test_a_recorded_run_that_collapsed_is_stopped_before_its_accuracy_is_gone() -> None:
    found, rows = recorded("collapsing_run")
    checks = {row["step"]: row["validation/accuracy"] for row in rows if "validation/accuracy" in row}
    stopping = [alarm for alarm in found if alarm.stops]
    assert (stopping[0].kind, stopping[0].since, stopping[0].step) == (AlarmKind.KL, 4, 6)
    assert next(step for step, accuracy in checks.items() if accuracy < 0.05) == 8
    assert {alarm.kind for alarm in stopping} == {
        AlarmKind.KL,
        AlarmKind.SCORE,
        AlarmKind.LENGTH,
        AlarmKind.ZERO_VARIANCE,
    }


def test_a_recorded_healthy_run_is_silent() -> None:
    found, rows = recorded("healthy_run")
    assert found == []
    assert len(rows) == 25
