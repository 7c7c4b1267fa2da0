"""docs/diagnostics.md against what the modules emit: every key is named in its file's section, and nothing else is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hand_made_records import simulated
from small_models import every_response, small_model

from bsharp.algorithm import parse_objective
from bsharp.config import AlgorithmConfig, SamplingConfig
from bsharp.diagnostics.alarm import AlarmKind, CollapseAlarm
from bsharp.diagnostics.alignment import alignment_point, gradient_probe
from bsharp.diagnostics.calibration import calibration
from bsharp.diagnostics.drift import drift
from bsharp.diagnostics.gained_lost import gained_lost
from bsharp.diagnostics.mistakes import mistake_table
from bsharp.diagnostics.sensitivity import sensitivity_table
from bsharp.diagnostics.surface import RunPath, surface
from bsharp.diagnostics.surface_points import SurfaceSampling
from bsharp.masking import pad_right
from bsharp.models.loading import LanguageModel, load_language_model
from bsharp.models.logprobs import response_logprobs
from bsharp.models.weights import flat_weights
from bsharp.rewards import reward_for
from bsharp.rollouts import RolloutBatch
from bsharp.tasks import Split, load_task

PAGE = (Path(__file__).parents[2] / "docs" / "diagnostics.md").read_text(encoding="utf-8")
OBJECTIVES = dict(parse_objective(spec) for spec in ("task_reward", "sharpening"))
TASK = load_task("gsm8k_lite")
ESTIMATE = {"estimate", "low", "high", "n", "unit", "note"}


def rollouts(policy: LanguageModel) -> RolloutBatch:
    rng = np.random.default_rng(0)
    pool = every_response(4, 3, (0,))
    responses = [pool[int(place)] for place in rng.integers(0, len(pool), 32)]
    token_ids, mask = pad_right(responses, policy.pad_token_id)
    prompts = tuple([(1, 2)] * 32)
    return RolloutBatch(
        prompt_token_ids=prompts,
        response_token_ids=token_ids,
        mask=mask,
        behaviour_logprobs=response_logprobs(policy, prompts, token_ids, mask),
        rewards=torch.as_tensor(rng.integers(0, 2, 32), dtype=torch.float64),
        valid=torch.ones(32, dtype=torch.bool),
        group_index=torch.arange(32) // 4,
        truncated=torch.zeros(32, dtype=torch.bool),
    )


def gradients_at(make: Callable[..., dict[str, Any]], **keys: Any) -> list[dict[str, Any]]:
    policy = small_model(vocab_size=4, seed=1)
    arguments = (policy, policy, rollouts(policy), OBJECTIVES, AlgorithmConfig(), SamplingConfig(max_new_tokens=3))
    return [make(*arguments, microbatch_rows=64, seed=0, megabytes=size, **keys) for size in (1e3, 1e-3)]


@cache
def embedded() -> LanguageModel:
    base = load_language_model("embedded:tiny")
    base.model.requires_grad_(False)
    return base


def alarms() -> list[dict[str, Any]]:
    """All kinds: a steady start, and then everything out of range."""
    steady = {
        "entropy/exact_nats_per_token": 0.3,
        "completions/mean_length": 24.0,
        "completions/clipped_ratio": 0.0,
        "completions/repetition_rate": 0.0,
        "completions/distinct_answers_per_problem": 3.0,
        "kl(policy||base)/k1_nats_per_sequence": 0.5,
        "base_logprob/mean_nats_per_sequence": -6.0,
        "frac_score_zero_std": 0.1,
        "score/mean": -2.0,
        "score/std": 2.0,
        "reward": 0.5,
        "grad_norm": 2.0,
    }
    off = [2.0, 1.0, 1.0, 1.0, 0.1, 50.0, -60.0, 1.0, -50.0, 2.0, 0.0, math.nan]
    rows = [steady] * 6 + [dict(zip(steady, off, strict=True))] * 4
    alarm = CollapseAlarm(objective=OBJECTIVES["task_reward"])
    return [raised.as_json() for step, row in enumerate(rows, start=1) for raised in alarm.observe(step, row)]


def mistakes() -> dict[str, Any]:
    direction = torch.ones(len(flat_weights(embedded().model)))
    policies = {"regime": [embedded]}
    task = load_task("math_mini")
    return mistake_table(
        embedded(), policies, {task.name: task}, {"objective": direction}, problems_per_family=1, seed=0
    )


def sensitivity() -> dict[str, Any]:
    problems = TASK.problems(Split.TEST, 2, seed=0, families=["share", "spend"])
    return sensitivity_table(
        embedded(),
        {"regime": [embedded]},
        {TASK.name: TASK},
        {TASK.name: reward_for(TASK)},
        problems=problems,
        samples=1,
        seed=0,
        max_new_tokens=8,
    )


def loss_surface() -> dict[str, Any]:
    base, size = embedded(), len(flat_weights(embedded().model))
    draw = torch.Generator().manual_seed(0)
    directions = {name: 1e-3 * torch.randn(size, generator=draw) for name in "abcd"}
    return surface(
        base,
        directions,
        ("a", "b"),
        TASK.problems(Split.TEST, 2, seed=0, families=["share"]),
        {TASK.name: TASK},
        {TASK.name: reward_for(TASK)},
        SurfaceSampling(samples=1, max_new_tokens=2),
        gradients=("c", "d"),
        paths=[RunPath("a", 0, [(0, torch.zeros(size)), (5, directions["a"])])],
        grid=3,
        line_points=7,
    )


RECORDS = {"base": [simulated(0, base=True)], "regime": [simulated(seed, skill=1.0) for seed in (1, 2)]}
# file → (what the modules emit, keys under which the keys of an object are names: "key", or "key/" for the second level)
EMITTED: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "gradients.jsonl": (lambda: gradients_at(gradient_probe, step=1), set()),
    "alarms.jsonl": (alarms, set()),
    "alignment.json": (
        lambda: {"schema": 1, "points": gradients_at(alignment_point, checkpoint="base", step=0)},
        {"groups"},
    ),
    "mistakes.json": (mistakes, {"first_step", "trained", "oracle_cosine", "margin_cosine", "families"}),
    "sensitivity.json": (sensitivity, {"models", "overall", "control"}),
    "surface.json": (loss_surface, set()),
    "drift.json": (lambda: drift(RECORDS), {"models", "families"}),
    "calibration.json": (lambda: calibration(RECORDS), {"models", "changes"}),
    "problems.json": (
        lambda: gained_lost(RECORDS),
        {"problems", "regimes", "by_family", "by_base", "by_difficulty"},
    ),
}


def keys_of(value: Any, named: set[str], names: bool = False) -> Iterator[str]:
    """Keys at every depth; those of an estimate and those that are names of models, objectives or problems apart."""
    if isinstance(value, Mapping):
        if not names:
            yield from value.keys() - (ESTIMATE if {"estimate", "low", "n"} <= value.keys() else set())
        for key, part in value.items():
            yield from keys_of(part, named, not names and key in named)
    elif isinstance(value, list):
        for part in value:
            yield from keys_of(part, named)


def section(heading: str) -> str:
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"no section {heading}"
    return found[1]


def named_in(text: str) -> set[str]:
    return set(re.findall(r"`([a-z_]+)`", text))


@pytest.mark.parametrize("file", EMITTED)
def test_every_key_that_is_written_is_named_on_the_page_and_no_row_is_about_another(file: str) -> None:
    make, named = EMITTED[file]
    written = set(keys_of(make(), named))
    assert sorted(written - named_in(section(file))) == []
    rows = [line.split("|")[1] for line in section(file).splitlines() if line.startswith("| `")]
    kinds = {str(kind) for kind in AlarmKind} | {"kind"}
    assert sorted(named_in(" ".join(rows)) - written - ({"note"} if file == "surface.json" else set()) - kinds) == []


def test_all_kinds_of_alarms_are_raised_here_and_named_on_the_page() -> None:
    assert {row["kind"] for row in alarms()} == {str(kind) for kind in AlarmKind} <= named_in(section("alarms.jsonl"))


def test_the_keys_of_an_estimate_are_named_on_the_page() -> None:
    assert named_in(section("Estimates")) >= ESTIMATE
