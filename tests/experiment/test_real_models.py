"""The paper's three families, reduced, on real GSM8K problems: the same `compare`, to its end."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from in_process import run_here
from model_families import make_folder
from public_data import data_dir, needs_public_data

from bsharp.config import (
    AlgorithmConfig,
    CompareConfig,
    ConfigError,
    DiagnoseConfig,
    EvaluationConfig,
    ProblemsConfig,
    SamplingConfig,
    ValidationConfig,
    WeightsConfig,
)
from bsharp.evaluation import validate_results
from bsharp.experiment import compare, comparison
from bsharp.runlog import RunDirectory

LORA = WeightsConfig(lora_rank=2)
LOW_PRECISION = WeightsConfig(dtype="bfloat16", gradient_checkpointing=True)

CASES = [
    pytest.param("llama3_2", WeightsConfig(), None, id="llama-fp32"),
    pytest.param("qwen2_5", LOW_PRECISION, 20.0, id="qwen2.5-bf16-checkpointed-tis"),
    pytest.param("qwen3", LORA, 20.0, id="qwen3-lora-tis"),
]


def small(folder: Path, **changes: Any) -> CompareConfig:
    return CompareConfig(
        model=str(folder),
        tasks=("gsm8k",),
        problems=ProblemsConfig(data_dir=str(data_dir())),
        regimes=("task_reward", "sharpening"),
        seeds=(0,),
        steps=2,
        sampling=SamplingConfig(prompts_per_step=3, group_size=2, max_new_tokens=12),
        validation=ValidationConfig(problems=4, samples=2, every=2),
        final_validation_samples=2,
        evaluation=EvaluationConfig(problems=6, samples=2, max_new_tokens=12),
        workers=1,
        **changes,
    )


@needs_public_data
@pytest.mark.parametrize(("family", "weights", "cap"), CASES)
def test_a_comparison_of_a_random_model_on_gsm8k_ends_without_a_conclusion(
    family: str, weights: WeightsConfig, cap: float | None, tmp_path: Path
) -> None:
    folder = make_folder(family, tmp_path / "model", dtype=weights.dtype)
    config = small(folder, weights=weights, algorithm=AlgorithmConfig(importance_cap=cap))
    results = compare(config, tmp_path / "run", diagnose_settings=DiagnoseConfig(alignment_problems=16, workers=1))
    validate_results(results)
    assert results["verdict"]["comparable"] is False
    assert results["verdict"]["sentence"].startswith("nothing to compare: 0 of ")
    assert results["base"]["accuracy"]["high"] > 0.2  # 0 of 6 problems is no certainty
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "0 of 36 completions of 3 models are right" in page
    run = tmp_path / "run" / "task_reward" / "seed_0"
    rows = [row for row in RunDirectory(run).rows("metrics.jsonl") if row["step"] > 0]
    assert len(rows) == 2
    assert all(row["sampling_logp_difference/max"] is not None for row in rows)
    assert (run / "last" / "adapter_config.json").exists() == (weights.lora_rank is not None)
    record = next(iter(RunDirectory(run).rows("records_last.jsonl")))
    assert record["task"] == "gsm8k"
    assert record["problem_id"].startswith("gsm8k/test/")


@needs_public_data
def test_evaluating_another_task_than_trained_on_asks_its_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "run_jobs", run_here)
    monkeypatch.setattr(comparison, "diagnose", lambda *arguments, **named: [])
    folder = make_folder("qwen2_5", tmp_path / "model")
    config = dataclasses.replace(
        small(folder), evaluation_tasks=("math500", "amc23"), regimes=("task_reward",), steps=1
    )
    compare(config, tmp_path / "run")
    rows = list(RunDirectory(tmp_path / "run" / "base").rows("records_last.jsonl"))
    assert {row["task"] for row in rows} == {"math500", "amc23"}
    checks = list(RunDirectory(tmp_path / "run" / "base").rows("validation_last.jsonl"))
    assert {row["task"] for row in checks} == {"gsm8k"}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["evaluation_tasks"] == ["math500", "amc23"]


@needs_public_data
def test_a_prompt_beyond_the_context_is_one_line_before_anything_is_written(tmp_path: Path) -> None:
    folder = make_folder("qwen3", tmp_path / "model", max_position_embeddings=64)
    with pytest.raises(ConfigError, match=r"the prompt of gsm8k/.* has \d+ tokens.*64 positions"):
        compare(small(folder), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_own_problems_must_be_among_the_tasks(tmp_path: Path) -> None:
    config = CompareConfig(problems=ProblemsConfig(data=str(tmp_path / "mine.jsonl")))
    with pytest.raises(ConfigError, match="put data among --tasks"):
        compare(config, tmp_path / "run")
