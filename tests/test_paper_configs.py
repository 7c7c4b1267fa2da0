"""Every shipped config is read; those of the paper have its values, and each runs to the end on a reduced model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from in_process import run_here
from model_families import make_folder
from public_data import data_dir, needs_public_data

from bsharp.algorithm import parse_objective, sharpening, task_reward, tempered, tilted
from bsharp.config import CompareConfig, ProblemsConfig, as_dict, load_config
from bsharp.evaluation import validate_results
from bsharp.experiment import compare, comparison, workbench
from bsharp.rewards import reward_for
from bsharp.tasks import Task

CONFIGS = Path(__file__).parents[1] / "configs"
PAPER = sorted((CONFIGS / "paper").glob("*.toml"))

# Model, training task, steps, prompts per step, tokens in training; 2604.16259.
SETTINGS = {
    "llama3.2-3b": ("meta-llama/Llama-3.2-3B-Instruct", "math", 500, 32, 2048),
    "qwen2.5-3b": ("Qwen/Qwen2.5-3B-Instruct", "math", 500, 32, 2048),
    "qwen3-4b": ("Qwen/Qwen3-4B-Instruct-2507", "deepscaler", 1000, 64, 4096),
}
FAMILY = {"llama3.2-3b": "llama3_2", "qwen2.5-3b": "qwen2_5", "qwen3-4b": "qwen3"}


def of_model(path: Path) -> tuple[str, bool]:
    """Name of the model and whether lengths are fixed."""
    return path.stem.removesuffix("-fixed"), path.stem.endswith("-fixed")


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.toml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_shipped_config_is_read_and_its_regimes_have_different_names(path: Path) -> None:
    config = load_config(CompareConfig, path)
    names = [parse_objective(spec)[0] for spec in config.regimes]
    assert len(set(names)) == len(names)


def test_there_is_one_config_for_each_of_the_papers_models_and_length_modes() -> None:
    assert {path.stem for path in PAPER} == {f"{name}{suffix}" for name in SETTINGS for suffix in ("", "-fixed")}


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_values_are_those_of_the_paper(path: Path) -> None:
    config, (name, fixed) = load_config(CompareConfig, path), of_model(path)
    model, task, steps, prompts, tokens = SETTINGS[name]
    assert (config.model, config.tasks, config.steps) == (model, (task,), steps)
    assert config.evaluation_tasks == ("math", "math500", "minerva", "aime24", "aime25", "hmmt")
    assert (config.problems.prompt_format, config.chat.template) == ("paper", "always")
    assert (config.weights.dtype, config.weights.gradient_checkpointing, config.weights.lora_rank) == (
        "bfloat16",
        True,
        None,
    )
    sampling, evaluation = config.sampling, config.evaluation
    assert (sampling.prompts_per_step, sampling.group_size, sampling.max_new_tokens) == (prompts, 8, tokens)
    assert (sampling.temperature, sampling.top_p, sampling.fixed_length) == (1.0, 1.0, fixed)
    assert (evaluation.samples, evaluation.temperature, evaluation.fixed_length) == (16, 1.0, fixed)
    # At a fixed length the evaluated distribution has to be the trained one.
    assert evaluation.max_new_tokens == (8192 if name == "qwen3-4b" and not fixed else tokens)
    algorithm = config.algorithm
    assert (algorithm.advantage, algorithm.loss, algorithm.reduction) == ("leave_one_out", "reinforce", "token_mean")
    assert (algorithm.epochs, algorithm.minibatches, algorithm.importance_cap) == (1, 1, 20.0)
    optimizer = as_dict(config)["optimizer"]
    assert optimizer == {
        "name": "AdamW",
        "learning_rate": 1e-6,
        "options": {"betas": [0.9, 0.999], "weight_decay": 0.01, "fused": True},
        "warmup_steps": 50,
        "warmup_start": 0.1,
        "schedule": "constant",
        "max_grad_norm": 1.0,
    }
    # A process per CPU core would load as many models onto one GPU.
    assert (config.device, config.workers) == ("cuda", 1)


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_regimes_are_the_papers_grid(path: Path) -> None:
    found = [parse_objective(spec)[1] for spec in load_config(CompareConfig, path).regimes]
    grid = [tilted(alpha, beta_inv) for beta_inv in (100, 10_000) for alpha in (1, 1.25, 2, 4)]
    assert found == [task_reward(), sharpening(), *(tempered(alpha) for alpha in (1.25, 2, 4)), *grid]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_configs_of_a_model_differ_in_the_length_mode_alone(name: str) -> None:
    free, fixed = (as_dict(load_config(CompareConfig, CONFIGS / "paper" / f"{name}{s}.toml")) for s in ("", "-fixed"))
    for section in ("sampling", "evaluation"):
        assert (free[section].pop("fixed_length"), fixed[section].pop("fixed_length")) == (False, True)
    for key in ("max_new_tokens", "max_rows"):
        del free["evaluation"][key], fixed["evaluation"][key]
    assert free == fixed


def reduced(config: CompareConfig, folder: Path, data: Path, tokens: int = 8) -> CompareConfig:
    """The same comparison with a small model, two steps, few and short completions, and problems that are on disk."""
    change = dataclasses.replace
    return change(
        config,
        model=str(folder),
        tasks=("gsm8k",),
        evaluation_tasks=("math500", "aime24"),
        steps=2,
        regimes=("task_reward", "sharpening"),
        device="cpu",
        problems=change(config.problems, data_dir=str(data), grader_workers=1),
        sampling=change(config.sampling, prompts_per_step=2, group_size=2, max_new_tokens=tokens, max_rows=64),
        validation=change(config.validation, problems=2, samples=1, every=2),
        final_validation_samples=1,
        evaluation=change(config.evaluation, problems=6, samples=2, max_new_tokens=tokens, max_rows=64),
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first problems of three public sets: whole files would be read, and searched for each other's, by every job."""
    found, root = data_dir(), tmp_path_factory.mktemp("data")
    assert found is not None
    for name in ("gsm8k/train.jsonl", "gsm8k/test.jsonl", "aime24/test.jsonl"):
        (root / name).parent.mkdir(exist_ok=True)
        lines = (found / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (root / name).write_text("".join(lines[:80]), encoding="utf-8")
    problems = json.loads((found / "math500" / "test.json").read_text(encoding="utf-8"))
    (root / "math500").mkdir()
    (root / "math500" / "test.json").write_text(json.dumps(problems[:80]), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def graders() -> dict[str, Any]:
    """Kept from test to test: each holds a process that takes a second to start."""
    return {}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: make_folder(family, root / name, dtype="bfloat16") for name, family in FAMILY.items()}


@needs_public_data
@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_each_config_of_the_paper_runs_to_the_end_on_a_reduced_model_and_concludes_nothing(
    path: Path,
    folders: Mapping[str, Path],
    data: Path,
    graders: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def kept(task: Task, problems: ProblemsConfig) -> Any:
        return graders.setdefault(task.name, reward_for(task, problems))

    name, fixed = of_model(path)
    config = reduced(load_config(CompareConfig, path), folders[name], data)
    monkeypatch.setattr(workbench, "reward_for", kept)
    monkeypatch.setattr(comparison, "run_jobs", run_here)
    monkeypatch.setattr(comparison, "diagnose", lambda *arguments, **named: [])
    results: Any = compare(config, tmp_path / "run")
    validate_results(json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8")))
    assert set(results["base"]["tasks"]) == {"math500", "aime24"}
    assert results["verdict"]["comparable"] is False
    assert results["verdict"]["sentence"].startswith("nothing to compare: ")
    if fixed:
        assert "raise it" not in results["verdict"]["sentence"]
        assert results["base"]["length"]["estimate"] == 8
    rows = [json.loads(line) for line in (tmp_path / "run/task_reward/seed_0/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(row["grad_norm"] is not None for row in rows[1:])
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Nothing to compare" in page
    assert "could not be built" not in page
