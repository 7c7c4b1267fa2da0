"""What a run is bound to, and what is refused before it begins."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from model_families import make_folder

from bsharp.config import ConfigError, EvaluationConfig, ProblemsConfig, SamplingConfig, TrainConfig, ValidationConfig
from bsharp.experiment import build_workbench, evaluate_model, train
from bsharp.runlog import RunDirectory

REWARD = "def judge(completions, **columns):\n    return [{value} for _ in completions]\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder("qwen3", tmp_path_factory.mktemp("models") / "qwen3")


def problems_file(path: Path, splits: dict[str, int], answer: str | None = None, **more: Any) -> Path:
    rows = [
        {"prompt": f"What is {number} + {place}?", "answer": answer or str(number + place), "part": split, **more}
        for place, (split, count) in enumerate(splits.items())
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def config(model: Path, data: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(
        model=str(model),
        tasks=("data",),
        problems=ProblemsConfig(data=str(data), split_field="part", **changes),
        steps=1,
        sampling=SamplingConfig(prompts_per_step=2, group_size=2, max_new_tokens=4),
        validation=ValidationConfig(problems=2, samples=1, every=1),
    )


def identity(settings: TrainConfig) -> dict[str, Any]:
    bench = build_workbench(settings.model, settings.tasks, problems=settings.problems)
    return bench.manifest()["identity"]


EVERY = {"train": 4, "validation": 2, "test": 2}


def test_a_run_is_bound_to_its_problems_their_columns_its_reward_and_its_chat_template(
    model: Path, tmp_path: Path
) -> None:
    data = problems_file(tmp_path / "mine.jsonl", EVERY, level=1)
    judge = tmp_path / "judge.py"
    judge.write_text(REWARD.format(value=0.0), encoding="utf-8")
    settings = config(model, data, reward=f"{judge}:judge")
    first = identity(settings)
    assert identity(settings) == first
    problems_file(tmp_path / "mine.jsonl", EVERY, level=2)
    changed = identity(settings)
    assert changed["problems"] != first["problems"]
    judge.write_text(REWARD.format(value=1.0), encoding="utf-8")
    assert identity(settings)["reward"] != changed["reward"]
    other = tmp_path / "other"
    other.mkdir()
    for file in model.iterdir():
        text = file.read_bytes()
        (other / file.name).write_bytes(text + b"\n{# reworded #}" if file.name == "chat_template.jinja" else text)
    assert identity(dataclasses.replace(settings, model=str(other)))["prompts"] != first["prompts"]


def test_a_changed_reward_is_not_gone_on_with(model: Path, tmp_path: Path) -> None:
    data, judge = problems_file(tmp_path / "mine.jsonl", EVERY), tmp_path / "judge.py"
    judge.write_text(REWARD.format(value=0.0), encoding="utf-8")
    settings = config(model, data, reward=f"{judge}:judge")
    train(settings, tmp_path / "run")
    judge.write_text(REWARD.format(value=1.0), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"belongs to another run \(manifest\.reward: "):
        train(settings, tmp_path / "run")


@pytest.mark.parametrize("missing", ["validation", "test"])
def test_a_split_without_problems_is_one_line_before_anything_is_written(
    model: Path, tmp_path: Path, missing: str
) -> None:
    data = problems_file(tmp_path / "mine.jsonl", {split: n for split, n in EVERY.items() if split != missing})
    problems = ProblemsConfig(data=str(data), split_field="part")
    asked = EvaluationConfig(problems=2, samples=1)

    def begin() -> object:
        if missing == "test":
            return evaluate_model(str(model), ["data"], asked, tmp_path / "run", problems=problems)
        return train(config(model, data), tmp_path / "run")

    with pytest.raises(ConfigError, match=f"there are no {missing} problems"):
        begin()
    assert not (tmp_path / "run" / "config.json").exists()


def test_right_answers_that_no_grader_can_read_are_one_line(model: Path, tmp_path: Path) -> None:
    data = problems_file(tmp_path / "mine.jsonl", EVERY, answer="\\frac{")
    with pytest.raises(ConfigError, match="none of 4 right answers of data can be read by its grader"):
        train(config(model, data), tmp_path / "run")


def test_an_evaluation_reads_the_split_it_asks_and_nothing_else(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "gsm8k"
    folder.mkdir(parents=True)
    rows = [{"question": f"What is {n} + 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(3)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked = EvaluationConfig(problems=2, samples=1, max_new_tokens=4)
    problems = ProblemsConfig(data_dir=str(tmp_path / "data"))
    records = evaluate_model(str(model), ["gsm8k"], asked, tmp_path / "run", problems=problems)
    assert {record["task"] for record in records} == {"gsm8k"}
    manifest = RunDirectory(tmp_path / "run").read_json("manifest.json")
    assert list(manifest["identity"]["problems"]) == ["gsm8k test"]
