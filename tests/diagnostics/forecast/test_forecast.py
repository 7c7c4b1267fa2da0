"""The whole forecast: laws that hold across its parts, extremes, and the coverage of its intervals on exact worlds."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy as np
import pytest
from scipy import stats

from bsharp.algorithm import parse_objective
from bsharp.diagnostics.forecast import forecast
from bsharp.diagnostics.forecast.figures import change_estimate, prediction_table
from bsharp.diagnostics.forecast.samples import BaseSamples, ProblemSamples
from bsharp.seeding import generator
from bsharp.theory.targets import moments, optimum
from bsharp.theory.world import FiniteWorld, random_world

REGIMES = (
    "task_reward",
    "sharpening",
    "sharpening(normalisation=mean)",
    "tempered(alpha=2)",
    "tilted(beta_inv=100)",
    "hybrid(alpha=1,beta_inv=5)",
)
ESTIMATE = {"estimate", "low", "high", "n", "unit"}


def records_of(
    problems: int, samples: int, seed: int = 0, slope: float = 0.0, text: bool = True
) -> list[dict[str, Any]]:
    """Samples whose chance to be right follows the log-likelihood with `slope`; three families."""
    rng = generator(seed, "records")
    found = []
    for index in range(problems):
        level = rng.normal(0.0, 1.5)
        for sample in range(samples):
            logprob, length = -4.0 - float(rng.exponential(3.0)), int(rng.integers(2, 20))
            right = rng.random() < 1 / (1 + math.exp(-(level + slope * (logprob + 7.0))))
            record: dict[str, Any] = {
                "problem_id": f"p{index:03d}",
                "sample": sample,
                "task": "sums",
                "family": f"f{index % 3}",
                "split": "test",
                "logprob": logprob,
                "length": length,
                "reward": float(right),
                "answer": "7" if right else str(rng.integers(3)),
            }
            found.append(record | ({"text": f"{index}-{sample}"} if text else {}))
    return found


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    return records_of(24, 12, slope=0.3)


@pytest.fixture(scope="module")
def content(records: list[dict[str, Any]]) -> dict[str, Any]:
    return forecast(records, REGIMES, source={"model": "m", "records": "r.jsonl"})


def estimates(node: Any, path: str = "") -> list[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "estimate" in node:
            return [(path, node)]
        return [found for key, value in node.items() for found in estimates(value, f"{path}/{key}")]
    if isinstance(node, list):
        return [found for index, value in enumerate(node) for found in estimates(value, f"{path}/{index}")]
    return []


def test_the_forecast_is_plain_json_with_the_documented_parts(content: dict[str, Any]) -> None:
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert list(content) == [
        "schema",
        "source",
        "base",
        "likelihood",
        "tempered",
        "tilt",
        "limit",
        "regimes",
        "families",
        "per_problem",
        "recommendation",
    ]
    assert content["source"] == {
        "model": "m",
        "records": "r.jsonl",
        "tasks": ["sums"],
        "split": "test",
        "problems": 24,
        "left_out": 0,
        "samples": 12,
        "samples_median": 12,
        "samples_max": 12,
        "temperature": 1.0,
        "temperature_known": False,
        "fixed_length": False,
        "fixed_length_known": False,
        "ungraded": 0,
        "partial_rewards": 0,
        "note": "",
    }
    assert list(content["regimes"]) == list(REGIMES)
    assert sorted(content["families"]) == ["f0", "f1", "f2"]


def test_every_estimate_lies_in_its_interval_or_says_why_it_has_none(content: dict[str, Any]) -> None:
    found = estimates(content)
    assert len(found) > 150
    for path, estimate in found:
        assert set(estimate) - {"note"} == ESTIMATE, path
        if estimate["low"] is None:
            assert estimate["note"], path
        else:
            assert estimate["low"] <= estimate["estimate"] <= estimate["high"], path


def test_curves_begin_at_the_base_and_end_at_the_limit(content: dict[str, Any]) -> None:
    base = content["base"]
    for name in ("sum", "mean"):
        curve = content["tempered"][name]
        assert curve["alpha"][0] == 1.0
        assert curve["accuracy"][0]["estimate"] == pytest.approx(base["accuracy"]["estimate"])
        assert curve["delta"][0]["estimate"] == 0.0
        assert curve["length"][0]["estimate"] == pytest.approx(base["length"]["estimate"])
        assert curve["ess"][0] == pytest.approx(12)
        assert np.all(np.diff(curve["ess"]) < 0)
        by_k = content["limit"][name]["by_k"]
        assert by_k["k"] == [1, 2, 4, 8, 12]
        assert by_k["accuracy"][-1] == pytest.approx(content["limit"][name]["accuracy"]["estimate"])
        assert by_k["accuracy"][0] == pytest.approx(base["sampled_accuracy"]["estimate"])
    kl = [point["estimate"] for point in content["tempered"]["sum"]["kl"]]
    assert np.all(np.diff(kl) > 0)


def test_a_strong_tilt_ends_at_pass_at_n_and_never_falls(content: dict[str, Any]) -> None:
    accuracy = [point["estimate"] for point in content["tilt"]["accuracy"]]
    assert np.all(np.diff(accuracy) >= -1e-12)
    assert accuracy[-1] == pytest.approx(content["base"]["pass_at_n"]["estimate"])
    assert content["regimes"]["task_reward"]["accuracy"]["estimate"] == pytest.approx(accuracy[-1])
    assert content["regimes"]["tilted(beta_inv=100)"]["accuracy"] == content["tilt"]["accuracy"][-2] | {
        "low": pytest.approx(content["tilt"]["accuracy"][-2]["low"], abs=0.05),
        "high": pytest.approx(content["tilt"]["accuracy"][-2]["high"], abs=0.05),
    }


def test_delta_is_accuracy_minus_the_bases_everywhere(content: dict[str, Any]) -> None:
    base = content["base"]["accuracy"]["estimate"]
    for part in [*content["regimes"].values(), *content["limit"].values()]:
        assert part["delta"]["estimate"] == pytest.approx(part["accuracy"]["estimate"] - base, abs=1e-9)


def test_families_and_problems_add_up_to_the_whole(content: dict[str, Any]) -> None:
    for key, whole in (
        ("accuracy", content["base"]["accuracy"]),
        ("limit_sum", content["limit"]["sum"]["accuracy"]),
        ("tempered_2", content["regimes"]["tempered(alpha=2)"]["accuracy"]),
        ("tilt_100", content["regimes"]["tilted(beta_inv=100)"]["accuracy"]),
    ):
        parts = [(family["problems"], family[key]["estimate"]) for family in content["families"].values()]
        assert sum(count * value for count, value in parts) / 24 == pytest.approx(whole["estimate"]), key
        if key != "tilt_100":
            values = [problem[key] for problem in content["per_problem"]]
            assert np.mean(values) == pytest.approx(whole["estimate"]), key


def test_label_free_regimes_need_no_label_and_objectives_are_written_out(content: dict[str, Any]) -> None:
    assert [name for name, regime in content["regimes"].items() if regime["label_free"]] == list(REGIMES[1:4])
    assert content["regimes"]["tempered(alpha=2)"]["objective"] == "J = E[l_ref] - KL(policy||base)"


def test_the_order_of_the_records_changes_no_figure(records: list[dict[str, Any]], content: dict[str, Any]) -> None:
    shuffled = random.Random(3).sample(records, len(records))
    assert forecast(shuffled, REGIMES, source={"model": "m", "records": "r.jsonl"}) == content


def test_numbers_of_samples_may_differ_and_ungraded_ones_are_counted(records: list[dict[str, Any]]) -> None:
    ragged = [dict(r) for r in records if not (r["problem_id"] == "p003" and r["sample"] >= 5)]
    ragged[0]["reward"] = None
    found = forecast(ragged, ["task_reward"], alphas=[1, 2], beta_invs=[1])
    source = found["source"]
    assert (source["samples"], source["samples_max"], source["ungraded"]) == (5, 12, 1)
    assert source["samples_median"] == 12
    assert "p003" in found["base"]["no_correct_ids"]
    assert found["base"]["no_correct_upper_bound"] == pytest.approx(1 - 0.05 ** (1 / 5))
    for name in ("sum", "mean"):
        limit = found["limit"][name]
        assert limit["by_k"]["k"] == [1, 2, 4, 8, 12]
        assert limit["by_k"]["accuracy"][-1] == pytest.approx(limit["accuracy"]["estimate"])
        assert limit["by_k"]["note"] == "2 of 24 problems have fewer than 12 samples and count with all theirs"
    assert found["limit"]["majority"]["by_k"]["accuracy"][-1] == pytest.approx(
        found["limit"]["majority"]["accuracy"]["estimate"]
    )
    solved = np.mean([problem["correct"] > 0 for problem in found["per_problem"]])
    assert found["base"]["pass_at_n"]["estimate"] == pytest.approx(solved)
    assert "fewer than 12 samples" in found["base"]["pass_at_n"]["note"]


def test_the_bound_on_a_success_rate_is_that_of_the_problem_without_a_right_sample_that_was_drawn_least() -> None:
    records = [r | {"reward": float(r["problem_id"] > "p001")} for r in records_of(6, 8)]
    records = [r for r in records if not (r["problem_id"] == "p001" and r["sample"] >= 5)]
    records = [r for r in records if not (r["problem_id"] == "p004" and r["sample"] >= 3)]
    found = forecast(records, [], alphas=[1], beta_invs=[1])
    assert found["base"]["no_correct_upper_bound"] == pytest.approx(1 - 0.05 ** (1 / 5))


def test_upper_bounds_are_those_of_clopper_and_pearson(content: dict[str, Any]) -> None:
    for problem in content["per_problem"]:
        test = stats.binomtest(problem["correct"], problem["samples"], alternative="less")
        assert problem["p0_upper"] == pytest.approx(test.proportion_ci(0.95).high)


def test_without_answers_there_is_no_vote_and_without_greedy_completions_no_greedy_accuracy() -> None:
    records = [{key: value for key, value in r.items() if key != "answer"} for r in records_of(4, 4)]
    found = forecast(records, [], alphas=[1, 2], beta_invs=[1])
    assert found["limit"]["majority"]["accuracy"]["estimate"] is None
    assert "no answers" in found["limit"]["majority"]["accuracy"]["note"]
    assert found["limit"]["majority"]["by_k"] == {"k": [], "accuracy": [], "note": ""}
    assert not found["limit"]["majority"]["reliable"]
    assert found["limit"]["majority"]["note"] == "records hold no answers"
    assert found["base"]["greedy_accuracy"] is None
    assert all(problem["majority"] is None for problem in found["per_problem"])


def test_greedy_completions_count_on_their_own() -> None:
    greedy = [
        {"problem_id": f"p{i:03d}", "greedy": True, "logprob": -4.0, "length": 3, "reward": float(i < 3)}
        for i in range(4)
    ]
    found = forecast([*records_of(4, 4), *greedy], [], alphas=[1], beta_invs=[1])
    assert found["base"]["greedy_accuracy"]["estimate"] == 0.75
    assert found["source"]["samples"] == 4


def test_beyond_its_cut_a_curve_is_flagged_and_says_why(content: dict[str, Any]) -> None:
    curve = content["tempered"]["sum"]
    cut = curve["alpha"].index(curve["cut_alpha"])
    assert cut > 1
    assert curve["reliable"] == [place < cut for place in range(len(curve["alpha"]))]
    assert curve["ess"][cut] < 5 <= curve["ess"][cut - 1]
    assert f"α = {curve['cut_alpha']:g}" in curve["note"]
    assert "fewer than 5" in curve["note"]
    sharpened = content["regimes"]["sharpening"]
    assert not sharpened["reliable"]
    assert "drawn once (median), fewer than 3 times" in sharpened["note"]
    assert not sharpened["lower_bound"]


def test_unsolved_problems_make_a_strong_tilt_a_lower_bound() -> None:
    records = records_of(20, 8)
    for record in records:
        if record["problem_id"] < "p005":
            record["reward"] = 0.0
    found = forecast(records, ["task_reward"], alphas=[1], beta_invs=[1e-3, 100])
    unsolved = len(found["base"]["no_correct_ids"])
    assert unsolved >= 5
    assert found["tilt"]["reliable"] == [True, False]
    assert f"{unsolved} of 20 problems have no right sample" in found["tilt"]["note"]
    assert "a lower bound" in found["tilt"]["note"]
    assert found["tilt"]["lower_bound"] == [False, True]
    assert not found["regimes"]["task_reward"]["reliable"]
    assert found["regimes"]["task_reward"]["lower_bound"]
    assert "(a lower bound)" in found["recommendation"]["rules"][2]["figures"]


def test_where_the_optimum_is_the_base_nothing_changes_on_any_problem() -> None:
    """sharpened by nothing: α = 1; s N(ℓ) + o ℓ = 0 with s = -o and h = c - o = 2. Others may change problems not drawn."""
    right = [record | {"reward": 1.0} for record in records_of(6, 4)]
    same, other = "weighted(base_loglikelihood=1,own_loglikelihood=-1,kl_to_base=1)", "tempered(alpha=2)"
    found = forecast(right, [same, other], alphas=[1, 2], beta_invs=[1])
    for part in (found["tempered"]["sum"], found["tempered"]["mean"]):
        assert part["delta"][0] == {
            "estimate": 0,
            "low": 0,
            "high": 0,
            "n": 6,
            "unit": "share",
            "note": "the base itself",
        }
        assert part["kl"][0]["estimate"] == part["kl"][0]["low"] == part["kl"][0]["high"] == 0
    assert found["regimes"][same]["delta"]["high"] == 0
    assert found["regimes"][same]["accuracy"] == found["base"]["accuracy"]
    assert found["regimes"][other]["delta"]["estimate"] == 0 < found["regimes"][other]["delta"]["high"]
    mean = same.replace(")", ",normalisation=mean)")
    assert forecast(right, [mean], alphas=[1], beta_invs=[1])["regimes"][mean]["delta"]["high"] > 0


def test_equal_figures_have_equal_intervals(content: dict[str, Any]) -> None:
    tilt = content["tilt"]
    for key in ("accuracy", "delta", "length", "kl"):
        assert content["regimes"]["tilted(beta_inv=100)"][key] == tilt[key][tilt["beta_inv"].index(100.0)]
        curve = content["tempered"]["sum"]
        assert content["regimes"]["tempered(alpha=2)"][key] == curve[key][curve["alpha"].index(2.0)]
    assert content["limit"]["sum"]["delta"] == content["regimes"]["sharpening"]["delta"]


def test_no_kl_is_negative_or_below_rounding(content: dict[str, Any]) -> None:
    kls = [estimate for path, estimate in estimates(content) if "/kl" in path]
    assert kls
    assert all(kl["low"] >= 0 and (kl["estimate"] == 0 or kl["estimate"] > 1e-12) for kl in kls)
    few = forecast(records_of(3, 4, seed=2), [], alphas=[1.1, 4], beta_invs=[0.01])
    assert all(estimate["low"] >= 0 for path, estimate in estimates(few) if "/kl" in path)


def test_a_vote_that_still_moves_is_flagged() -> None:
    """2 of 3 right: the first sample is right in 2/3, the majority of all three always."""
    records = [
        {"problem_id": f"p{p}", "logprob": -5.0 - s, "length": 3, "reward": float(s > 0), "answer": "7" if s else "8"}
        for p in range(4)
        for s in range(3)
    ]
    moving = forecast(records, [], alphas=[1], beta_invs=[1])["limit"]["majority"]
    assert not moving["reliable"]
    assert moving["note"] == "the vote has not settled: 33.3 points from 2 to 3 samples"
    settled = forecast([r | {"answer": "7", "reward": 1.0} for r in records], [], alphas=[1], beta_invs=[1])
    assert settled["limit"]["majority"]["reliable"]
    assert settled["limit"]["majority"]["note"] == ""


def test_what_records_do_not_say_is_said() -> None:
    records = records_of(4, 4, text=False)
    source = forecast(records, [], alphas=[1], beta_invs=[1])["source"]
    assert "repeats count as different" in source["note"]
    told = [record | {"temperature": 1, "fixed_length": False} for record in records]
    told[0] |= {"reward": 0.5}
    source = forecast(told, [], alphas=[1], beta_invs=[1])["source"]
    assert source["temperature_known"]
    assert source["fixed_length_known"]
    assert source["partial_rewards"] == 1
    told[1]["temperature"] = None
    assert not forecast(told, [], alphas=[1], beta_invs=[1])["source"]["temperature_known"]


def test_notes_are_in_the_words_of_a_forecast() -> None:
    records = [record | {"reward": 1.0} for record in records_of(4, 4)]
    found = forecast(records, [], alphas=[1, 2], beta_invs=[1])
    notes = {estimate.get("note", "") for _, estimate in estimates(found)}
    assert any("all problems have the same value" in note for note in notes)
    assert any("a family has one problem" in note for note in notes)
    assert not any("stratum" in note or "at the bound" in note for note in notes)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"regimes": ["task_reward", "task_reward"]}, "given twice"),
        ({"regimes": ["tsk_reward"]}, "did you mean task_reward"),
        ({"alphas": []}, "alphas"),
        ({"alphas": [0.5]}, "alphas"),
        ({"beta_invs": [0.0]}, "beta_invs"),
        ({"beta_invs": [float("inf")]}, "beta_invs"),
    ],
)
def test_settings_out_of_range_are_refused(changed: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"regimes": ["task_reward"], "alphas": [1.0], "beta_invs": [1.0]} | changed
    with pytest.raises(ValueError, match=message):
        forecast(records_of(3, 3), settings.pop("regimes"), **settings)


def sampled(world: FiniteWorld, name: str, samples: int, rng: np.random.Generator) -> ProblemSamples:
    p = world.base_logprob.exp().numpy()
    rows = rng.choice(len(p), size=samples, p=p / p.sum())
    rewards, responses = world.rewards.numpy()[rows], np.unique(rows, return_inverse=True)[1]
    return ProblemSamples(
        name, "", rewards, rewards, world.base_logprob.numpy()[rows], world.lengths.numpy()[rows], None, responses
    )


def test_intervals_of_the_predicted_change_hold_the_enumerated_one() -> None:
    """40 forecasts of 16 problems with 32 samples: a 95 % interval is missed 8 times or more with probability 0.1 %."""
    worlds = [random_world(seed, 4, 4, success_share=0.4) for seed in range(40)]
    base = np.mean([moments(world.base_logprob, world).reward for world in worlds])
    for spec in ("tempered(alpha=2)", "tilted(alpha=1.5,beta_inv=1)", "sharpening"):
        objective = parse_objective(spec)[1]
        truth = np.mean([moments(optimum(world, objective).log_policy, world).reward for world in worlds]) - base
        hits = 0
        for index in range(40):
            rng = generator(0, "coverage", spec, index)
            drawn = [
                sampled(worlds[place], str(i), 32, rng) for i, place in enumerate(rng.integers(0, 40, 16).tolist())
            ]
            table = prediction_table(BaseSamples(tuple(drawn), (), None, False, 0, 0), objective)
            interval = change_estimate(table.delta, [""] * 16)
            hits += interval.low <= truth <= interval.high
        assert hits > 32, spec
