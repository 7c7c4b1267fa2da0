"""Drift from the base, against plain sums over the records and against the figures of an evaluation."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from hand_made_records import answered, simulated

from bsharp.diagnostics.drift import drift
from bsharp.evaluation import summarize
from bsharp.statistics import repetition_rate

BASE = simulated(0, base=True)
SEEDS = [simulated(seed, skill=1.0) for seed in (1, 2, 3)]


def mean_over_seeds(figure: Any, family: str | None = None) -> float:
    """The mean over seeds of a figure of the sampled records."""
    per_seed = []
    for records in SEEDS:
        per_seed.append(figure([r for r in records if not r["greedy"] and family in (None, r["family"])]))
    return sum(per_seed) / len(per_seed)


@pytest.mark.parametrize("family", [None, "family1"])
def test_every_figure_is_the_plain_mean_over_samples_and_seeds(family: str | None) -> None:
    model = drift({"base": [BASE], "regime": SEEDS})["models"]["regime"]
    found = model["overall"] if family is None else model["families"][family]
    expected = {
        "kl": lambda rows: np.mean([r["logprob"] - r["base_logprob"] for r in rows]),
        "entropy": lambda rows: -sum(r["logprob"] for r in rows) / sum(r["length"] for r in rows),
        "length": lambda rows: np.mean([len(r["token_ids"]) for r in rows]),
        "truncated": lambda rows: np.mean([r["finish_reason"] == "length" for r in rows]),
        "repetition": lambda rows: np.mean([repetition_rate(r["token_ids"]) for r in rows]),
    }
    for key, figure in expected.items():
        assert found[key]["estimate"] == pytest.approx(mean_over_seeds(figure, family), rel=1e-12)
        assert found[key]["low"] < found[key]["estimate"] < found[key]["high"]
    assert found["kl"]["estimate"] > 0.5  # the policy's likelihood minus the base's, not the reverse
    assert found["problems"] == (24 if family is None else 8)


def test_drift_agrees_with_the_figures_of_the_evaluation() -> None:
    found = drift({"base": [BASE], "regime": SEEDS})["models"]
    for name, summary in (("base", summarize([BASE], is_base=True)), ("regime", summarize(SEEDS, BASE))):
        overall = found[name]["overall"]
        for key, theirs in (("kl", "kl_to_base"), ("entropy", "entropy"), ("length", "length")):
            assert overall[key] == summary[theirs]
        assert overall["truncated"] == summary["truncated"]
        assert overall["distinct_answers"] == summary["distinct_answers"]
        for family, figures in summary["families"].items():
            ours = found[name]["families"][family]
            assert (ours["problems"], ours["kl"], ours["length"]) == (
                figures["problems"],
                figures["kl_to_base"],
                figures["length"],
            )


def test_distinct_answers_count_neither_unparseable_nor_ungraded_samples() -> None:
    records = answered([["7", "8", "8", None], ["timeout", "9", "9", "9"], ["timeout"] * 4])
    figure = drift({"base": [records]})["models"]["base"]["overall"]["distinct_answers"]
    assert (figure["estimate"], figure["n"]) == (1.5, 2)
    assert figure["note"].startswith("1 of 3 problems left out: too few graded samples")


def test_the_base_has_no_drift_from_itself_and_a_model_without_a_base_says_so() -> None:
    unscored = [[record | {"base_logprob": None} for record in SEEDS[0]]]
    found = drift({"base": [BASE], "regime": unscored})["models"]
    base, regime = found["base"]["overall"]["kl"], found["regime"]["overall"]["kl"]
    assert (base["estimate"], base["low"], base["high"]) == (0, 0, 0)
    assert (regime["estimate"], regime["note"]) == (None, "no base given")
    assert "one seed" in found["regime"]["overall"]["length"]["note"]
    assert "seed" not in found["base"]["overall"]["length"].get("note", "")


def test_drift_does_not_depend_on_the_order_of_the_records_and_is_json_without_nan() -> None:
    shuffled = [random.Random(1).sample(records, len(records)) for records in SEEDS]
    text = json.dumps(drift({"base": [BASE], "regime": SEEDS}), allow_nan=False)
    assert json.dumps(drift({"base": [BASE[::-1]], "regime": shuffled})) == text


def test_a_base_of_several_seeds_and_other_problems_are_refused() -> None:
    with pytest.raises(ValueError, match="base has records of 2 seeds; the base is evaluated once"):
        drift({"base": [BASE, BASE]})
    with pytest.raises(ValueError, match="lacks problem task/0012 and 11 more"):
        drift({"base": [BASE], "regime": [simulated(1, problems=12)]})


def test_no_answer_of_any_problem_leaves_an_interval_for_problems_not_seen() -> None:
    silent = answered([[None] * 4] * 12)
    found = drift({"base": [silent], "r": [silent]})["models"]["r"]["overall"]["distinct_answers"]
    assert (found["estimate"], found["low"]) == (0.0, 0.0)
    assert found["high"] == pytest.approx(4 * (1 - 0.025 ** (1 / 12)))
