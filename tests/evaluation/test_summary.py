"""Figures with intervals, recomputed from records with plain Python."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest

from bsharp.evaluation import problem_figures, summarize
from bsharp.evaluation.summary import accuracy_difference


def accuracies(records: list[dict[str, Any]], greedy: bool = False, family: str | None = None) -> dict[str, float]:
    """Accuracy by problem; only for records that are all graded."""
    found: dict[str, list[bool]] = {}
    for record in records:
        if record["greedy"] == greedy and family in (None, record["family"]):
            found.setdefault(record["problem_id"], []).append(record["status"] == "correct")
    return {problem_id: sum(values) / len(values) for problem_id, values in found.items()}


def average(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


def figures_in(summary: Any) -> list[dict[str, Any]]:
    if isinstance(summary, dict):
        if "estimate" in summary:
            return [summary]
        return [figure for value in summary.values() for figure in figures_in(value)]
    return []


def test_estimates_are_means_over_problems_and_seeds_and_differences_are_paired(simulate: Any) -> None:
    seeds, base = [simulate(seed, accuracy=0.8) for seed in (1, 2, 3)], simulate(0, accuracy=0.3, base=True)
    summary = summarize(seeds, base)
    for greedy, key, delta in ((False, "accuracy", "delta"), (True, "greedy_accuracy", "greedy_delta")):
        expected = average(average(accuracies(records, greedy).values()) for records in seeds)
        assert summary[key]["estimate"] == pytest.approx(expected)
        before = average(accuracies(base, greedy).values())
        assert summary[delta]["estimate"] == pytest.approx(expected - before)
    assert summary["pass_at_k"]["1"]["estimate"] == pytest.approx(summary["accuracy"]["estimate"])
    for name in ("pass_at_k", "maj_at_k"):
        for k in ("1", "2", "4"):
            change = summary[name][k]["estimate"] - summarize([base], is_base=True)[name][k]["estimate"]
            assert summary[f"{name}_delta"][k]["estimate"] == pytest.approx(change)
    assert summary["counts"] == {
        "seeds": 3,
        "problems": 12,
        "samples_per_problem": 4,
        "ungraded_samples": 0,
        "ungraded_greedy": 0,
    }


def test_entropy_is_the_ratio_of_all_nats_to_all_tokens_averaged_over_seeds(simulate: Any) -> None:
    seeds = [simulate(seed) for seed in (1, 2)]
    ratios = []
    for records in seeds:
        sampled = [record for record in records if not record["greedy"]]
        ratios.append(-sum(r["logprob"] for r in sampled) / sum(r["length"] for r in sampled))
    summary = summarize(seeds, simulate(0, base=True))
    assert summary["entropy"]["estimate"] == pytest.approx(average(ratios))
    assert summary["entropy"]["unit"] == "nats/token"


def test_the_entropy_interval_is_as_wide_as_a_bootstrap_of_the_ratio_itself(simulate: Any) -> None:
    records = simulate(0, problems=200, greedy=False, base=True)
    figures = problem_figures([records], "model")
    nats, tokens = figures.values["negative_logprob"][0], figures.values["length"][0]
    drawn = np.random.default_rng(0).integers(0, 200, size=(4000, 200))
    low, high = np.quantile(nats[drawn].sum(1) / tokens[drawn].sum(1), [0.025, 0.975])
    entropy = summarize([records], is_base=True)["entropy"]
    # Both widths carry a bootstrap error of about 2 %; stratification by family changes little here.
    assert entropy["high"] - entropy["low"] == pytest.approx(high - low, rel=0.12)


def test_the_correlation_pools_covariances_within_problems_before_it_divides(simulate: Any) -> None:
    records = simulate(3, ungraded=0.2, base=True)
    moments = np.zeros(3)
    for problem_id in {record["problem_id"] for record in records}:
        kept = [r for r in records if r["problem_id"] == problem_id and not r["greedy"] and r["reward"] is not None]
        if len(kept) > 1:
            covariance = np.cov([r["reward"] for r in kept], [r["base_logprob"] for r in kept])
            moments += covariance[0, 1], covariance[0, 0], covariance[1, 1]
    expected = moments[0] / np.sqrt(moments[1] * moments[2])
    assert summarize([records], is_base=True)["corr_reward_base_logprob"]["estimate"] == pytest.approx(expected)


def test_a_paired_difference_does_not_carry_the_noise_between_problems(simulate: Any) -> None:
    base = simulate(0, problems=40, samples=10, base=True)
    better = [dict(record) for record in base]
    for place in range(40):  # one more right sample on every problem, wherever one was wrong
        wrong = [
            r for r in better if r["problem_id"] == f"task/{place}" and r["status"] != "correct" and not r["greedy"]
        ]
        wrong[0] |= {"status": "correct", "answer": "7", "reward": 1.0}
    summary = summarize([better], base)
    assert summary["delta"]["estimate"] == pytest.approx(0.1)
    assert summary["delta"]["high"] - summary["delta"]["low"] == pytest.approx(0.0, abs=1e-9)
    assert summary["accuracy"]["high"] - summary["accuracy"]["low"] > 0.05


def test_the_base_is_its_own_reference(simulate: Any) -> None:
    summary = summarize([simulate(0, base=True)], is_base=True)
    for figure in (summary["delta"], summary["greedy_delta"], *summary["pass_at_k_delta"].values()):
        assert (figure["estimate"], figure["low"], figure["high"]) == (0.0, 0.0, 0.0)
    assert summary["kl_to_base"]["estimate"] == 0.0
    assert "seed" not in summary["accuracy"].get("note", "")


def test_slices_are_the_figures_of_their_own_problems(simulate: Any) -> None:
    seeds, base = [simulate(seed) for seed in (1, 2)], simulate(0, base=True)
    summary = summarize(seeds, base)
    for family, figures in summary["families"].items():
        expected = average(average(accuracies(records, family=family).values()) for records in seeds)
        assert figures["accuracy"]["estimate"] == pytest.approx(expected)
        before = average(accuracies(base, family=family).values())
        assert figures["delta"]["estimate"] == pytest.approx(expected - before)
        assert list(figures["pass_at_k"]) == list(figures["maj_at_k"]) == ["4"]
    assert (
        {f["role"] for f in summary["families"].values()} == set(summary["roles"]) == {"standard", "rare", "transfer"}
    )
    assert {name: f["mode"] for name, f in summary["families"].items()} == {
        "family0": "right",
        "family1": "none",
        "family2": "wrong",
    }
    for kind in ("tasks", "families", "roles"):
        assert sum(figures["problems"] for figures in summary[kind].values()) == 12


def test_problems_without_enough_grades_are_left_out_and_counted(simulate: Any) -> None:
    records = simulate(0, base=True)
    for record in records:
        if record["problem_id"] == "task/0" or (record["problem_id"] == "task/1" and record["sample"] == 0):
            record |= {"status": "error", "reward": None, "answer": None}
    summary = summarize([records], is_base=True)
    kept = [value for problem_id, value in accuracies(records).items() if problem_id != "task/0"]
    expected = 4 / 3 * accuracies(records)["task/1"]
    kept[0] = expected  # three graded samples instead of four
    assert summary["accuracy"]["estimate"] == pytest.approx(average(kept))
    assert (summary["accuracy"]["n"], summary["pass_at_k"]["4"]["n"]) == (11, 10)
    assert summary["pass_at_k"]["4"]["note"].startswith("2 of 12 problems left out")
    assert summary["length"]["n"] == 12
    assert summary["ungraded"]["estimate"] == pytest.approx(5 / 48)
    assert (summary["counts"]["ungraded_samples"], summary["counts"]["ungraded_greedy"]) == (5, 2)


def test_a_figure_nobody_could_grade_is_null_with_the_reason(simulate: Any) -> None:
    summary = summarize([simulate(0, ungraded=1.0, base=True)], is_base=True)
    assert summary["accuracy"]["estimate"] is None
    assert summary["accuracy"]["n"] == 0
    assert "12 of 12 problems left out" in summary["accuracy"]["note"]


def test_summaries_are_json_without_nan_and_independent_of_the_order_of_records(simulate: Any) -> None:
    seeds, base = [simulate(seed, ungraded=0.3) for seed in (1, 2)], simulate(0, base=True)
    summary = summarize(seeds, base)
    shuffled = [random.Random(1).sample(records, len(records)) for records in seeds]
    text = json.dumps(summary, allow_nan=False, sort_keys=True)
    assert json.loads(text) == summary
    assert json.dumps(summarize(shuffled, base[::-1]), sort_keys=True) == text


def test_every_figure_lies_in_its_interval(simulate: Any) -> None:
    figures = figures_in(summarize([simulate(seed) for seed in (1, 2, 3)], simulate(0, base=True)))
    assert len(figures) > 80
    for figure in figures:
        if figure["low"] is not None:
            assert figure["low"] - 1e-12 <= figure["estimate"] <= figure["high"] + 1e-12


def test_a_single_seed_says_that_its_interval_covers_problems_only(simulate: Any) -> None:
    assert "one seed" in summarize([simulate(1)], simulate(0, base=True))["delta"]["note"]


def test_without_greedy_records_the_greedy_figures_are_null(simulate: Any) -> None:
    summary = summarize([simulate(1, greedy=False)], simulate(0, base=True))
    assert summary["greedy_accuracy"] is None
    assert summary["greedy_delta"] is None


def test_pairing_refuses_other_problems_other_answers_and_other_sample_counts(simulate: Any) -> None:
    base = simulate(0, base=True)
    with pytest.raises(ValueError, match=r"^model lacks problem task/10 and 1 more that base has"):
        summarize([simulate(1, problems=10)], base)
    with pytest.raises(ValueError, match=r"^base lacks problem task/12 that model has"):
        summarize([simulate(1, problems=13)], base)
    with pytest.raises(ValueError, match="model has 3 samples per problem, base has 4"):
        summarize([simulate(1, samples=3)], base)
    other = [record | {"gold": "8"} for record in simulate(1)]
    with pytest.raises(ValueError, match="problem task/0 has gold '8' in model and '7' in base"):
        summarize([other], base)
    with pytest.raises(ValueError, match="2 seeds and no base"):
        summarize([simulate(1), simulate(2)])


def test_modes_are_slices_of_the_standard_families_alone(simulate: Any) -> None:
    records, base = simulate(1, problems=24), simulate(0, problems=24, base=True)
    for record in [*records, *base]:
        if record["family"] == "family1":
            record |= {"role": "standard", "mode": "wrong"}
    summary = summarize([records], base)
    assert set(summary["modes"]) == {"right", "wrong"}  # family2 is of mode wrong, but transfer
    for mode, family in (("right", "family0"), ("wrong", "family1")):
        assert summary["modes"][mode]["problems"] == 8
        for key in ("accuracy", "delta"):
            found, expected = summary["modes"][mode][key], summary["families"][family][key]
            assert (found["estimate"], found["low"]) == (expected["estimate"], expected["low"])


def test_a_model_without_a_base_has_no_figure_that_needs_one(simulate: Any) -> None:
    scored = simulate(1)
    bare = [record | {"base_logprob": None} for record in scored]
    nothing, half = summarize([bare]), summarize([scored])
    for summary, note in ((nothing, "no base given"), (half, "no records of the base given")):
        deltas = [summary["delta"], summary["greedy_delta"] or summary["delta"], *summary["pass_at_k_delta"].values()]
        for figure in (*deltas, *summary["maj_at_k_delta"].values(), summary["families"]["family0"]["delta"]):
            assert (figure["estimate"], figure["low"], figure["note"]) == (None, None, note)
    for key in ("kl_to_base", "corr_reward_base_logprob"):
        assert (nothing[key]["estimate"], nothing[key]["note"]) == (None, "no base given")
        expected = summarize([scored], simulate(0, base=True))[key]["estimate"]
        assert half[key]["estimate"] == pytest.approx(expected)
    assert nothing["accuracy"] == half["accuracy"]
    assert "seed" not in nothing["accuracy"].get("note", "")
    with pytest.raises(ValueError, match="only some samples have a base_logprob"):
        summarize([[*bare[:3], *scored[3:]]])
    with pytest.raises(ValueError, match="is said to be the base, but another base is given"):
        summarize([scored], simulate(0, base=True), is_base=True)


def test_a_model_equal_to_the_base_may_still_differ_on_problems_not_seen(simulate: Any) -> None:
    base = simulate(0, base=True)
    for figure in (summarize([base], base)["delta"], summarize([base], base)["families"]["family0"]["delta"]):
        assert figure["estimate"] == 0
        assert figure["high"] == -figure["low"] == pytest.approx(1 - 0.025 ** (1 / figure["n"]))
        assert "no problem changed" in figure["note"]
    one = problem_figures([base], "one")
    assert accuracy_difference(one, one)["high"] > 0


def test_values_that_are_not_finite_are_left_out_with_their_own_reason(simulate: Any) -> None:
    records = simulate(1)
    records[0]["base_logprob"] = -np.inf
    summary = summarize([records], simulate(0, base=True))
    assert summary["kl_to_base"]["n"] == 11
    assert summary["kl_to_base"]["note"].startswith("1 of 12 problems left out: values that are not finite")
    assert summary["corr_reward_base_logprob"]["estimate"] is not None


def test_the_correlation_of_one_seed_says_so_and_that_of_the_base_does_not(simulate: Any) -> None:
    base = simulate(0, base=True)
    assert "one seed" in summarize([simulate(1)], base)["corr_reward_base_logprob"]["note"]
    assert "seed" not in summarize([base], is_base=True)["corr_reward_base_logprob"].get("note", "")


def test_differences_between_regimes_are_antisymmetric(simulate: Any) -> None:
    first = problem_figures([simulate(seed, accuracy=0.9) for seed in (1, 2)], "a")
    second = problem_figures([simulate(seed, accuracy=0.2) for seed in (3, 4)], "b")
    forward, backward = accuracy_difference(first, second), accuracy_difference(second, first)
    assert forward["estimate"] == pytest.approx(-backward["estimate"])
    assert forward["estimate"] == pytest.approx(float(np.mean(first.values["accuracy"] - second.values["accuracy"])))
