"""Evaluations dealt to processes, and work that is done once although several checks, jobs or pieces ask for it."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from in_process import run_here

from bsharp.config import (
    CompareConfig,
    ConfigError,
    EvaluationConfig,
    SamplingConfig,
    TrainConfig,
    ValidationConfig,
    WeightsConfig,
)
from bsharp.experiment import build_workbench, evaluate_model, regimes_of, saved, train
from bsharp.experiment.comparison import plan_jobs
from bsharp.experiment.jobs import Event, _evaluated_apart, run_jobs
from bsharp.experiment.run import LastCheck
from bsharp.generation import Decoder
from bsharp.models.loading import LanguageModel
from bsharp.runlog import RunDirectory

evaluate_module = sys.modules["bsharp.evaluation.evaluate"]  # the package has a function of this name
TINY = "embedded:tiny"
TASKS = ("math_mini", "gsm8k_lite")
FEW = EvaluationConfig(
    problems=30, samples=4, max_new_tokens=12, max_rows=24
)  # five sampled pieces and two greedy ones
SMALL = CompareConfig(
    regimes=("task_reward", "tempered(alpha=2)"),
    seeds=(0, 1),
    steps=2,
    sampling=SamplingConfig(prompts_per_step=4, group_size=2),
    validation=ValidationConfig(problems=21, samples=2, every=1),
    final_validation_samples=3,
    evaluation=dataclasses.replace(FEW, problems=21, max_new_tokens=48),
    workers=2,
)


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    saved._bench = saved._opened = None
    yield
    saved._bench = saved._opened = None


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How much is made, asked, drawn, graded and scored from here on."""
    counts: Counter[str] = Counter()

    def count(module: Any, name: str, amount: Any) -> None:
        original = getattr(module, name)

        def counting(*arguments: Any, **named: Any) -> Any:
            found = original(*arguments, **named)
            for key, number in amount(found, *arguments).items():
                counts[key] += number
            return found

        monkeypatch.setattr(module, name, counting)

    def rows(groups: Sequence[Sequence[Any]]) -> int:
        return sum(len(group) for group in groups)

    count(evaluate_module, "problem_set", lambda found, *_: {"problems": len(found)})
    count(evaluate_module, "stream_seed", lambda *_: {"seeds": 1})
    count(
        evaluate_module,
        "grade_completions",
        lambda _, rewards, problems, drawn: {"graded": rows(drawn), "grader calls": len({p.task for p in problems})},
    )
    count(evaluate_module, "completion_logprobs", lambda _, base, prompts, drawn, *__: {"scored": rows(drawn)})
    count(Decoder, "generate", lambda found, *_: {"drawn": rows(found), "generate calls": 1})
    count(LanguageModel, "encode", lambda *_: {"encoded": 1})
    return counts


@pytest.mark.parametrize("with_base", [False, True])
def test_several_processes_give_the_records_of_one_to_the_last_bit(tmp_path: Path, with_base: bool) -> None:
    base = TINY if with_base else None
    told: list[tuple[int, int]] = []
    alone = evaluate_model(TINY, TASKS, FEW, tmp_path / "one", base)
    shared = evaluate_model(
        TINY, TASKS, FEW, tmp_path / "two", base, on_progress=lambda *call: told.append(call), workers=2
    )
    assert shared == alone
    written = [(tmp_path / name / "records.jsonl").read_bytes() for name in ("one", "two")]
    assert written[0] == written[1]
    assert written[0].count(b"\n") == 30 * 5
    assert told[0] == (0, 150)
    assert told[-1] == (150, 150)


def test_a_small_evaluation_stays_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("there is nothing to share")

    monkeypatch.setattr("bsharp.experiment.run.evaluate_among", never)
    whole = dataclasses.replace(FEW, max_rows=120)
    assert len(evaluate_model(TINY, TASKS, whole, tmp_path, workers=8)) == 150


def test_an_evaluation_makes_asks_draws_grades_and_scores_everything_once(counted: Counter[str]) -> None:
    bench = build_workbench(TINY, TASKS)
    evaluation = saved.SavedEvaluation({}, None, "scored", FEW).opened(bench, bench.base)
    made = {"problems": 30, "seeds": 30, "encoded": 30}
    assert counted == made
    drawn = {"drawn": 150, "generate calls": 7, "graded": 150, "scored": 150}
    for times in (1, 2):  # the second time nothing is made anew
        evaluation.records()
        calls = counted.pop("grader calls")
        assert times * 7 <= calls <= times * 14
        assert counted == made | {name: times * number for name, number in drawn.items()}
        counted["grader calls"] = calls


def test_pieces_done_one_by_one_share_the_model_the_problems_and_the_prompts(counted: Counter[str]) -> None:
    arguments = {
        "model": TINY,
        "task_names": TASKS,
        "device": "cpu",
        "chat": TrainConfig().chat,
        "weights": WeightsConfig(),
    }
    evaluation = saved.SavedEvaluation(arguments, None, "none", FEW)
    for number in range(7):
        saved.records_of_piece(evaluation, number)
    assert (counted["problems"], counted["encoded"], counted["drawn"]) == (30, 30, 150)
    first = saved.kept_workbench(arguments)
    assert saved.kept_workbench(dict(arguments)) is first
    assert saved.kept_workbench(arguments | {"task_names": TASKS[:1]}) is not first
    adapters = arguments | {"weights": WeightsConfig(lora_rank=2)}
    assert saved.kept_workbench(adapters) is not saved.kept_workbench(adapters)


def test_the_checks_of_a_run_make_its_problems_once_and_the_first_is_that_of_every_run(
    counted: Counter[str], tmp_path: Path
) -> None:
    bench = build_workbench(TINY, TASKS)
    config = TrainConfig(
        steps=4,
        sampling=SamplingConfig(prompts_per_step=4, group_size=2, max_new_tokens=12),
        validation=ValidationConfig(problems=8, samples=2, every=2),
        watch=dataclasses.replace(TrainConfig().watch, snapshot_megabytes=0),
    )
    train(config, tmp_path / "first", bench)
    assert counted["problems"] == 8
    assert counted["scored"] == 3 * 8 * 2  # after steps 0, 2 and 4
    assert counted["drawn"] == 3 * 8 * 2 + 4 * 4 * 2
    before = counted.copy()
    train(dataclasses.replace(config, objective="sharpening", seed=1), tmp_path / "second", bench)
    assert counted["scored"] - before["scored"] == 2 * 8 * 2
    assert counted["drawn"] - before["drawn"] == 2 * 8 * 2 + 4 * 4 * 2
    starts = [next(iter(RunDirectory(tmp_path / name).rows("metrics.jsonl"))) for name in ("first", "second")]
    assert starts[0] == starts[1]
    assert starts[0]["step"] == 0
    # Nor does it matter whether another run came before.
    train(config, tmp_path / "alone", build_workbench(TINY, TASKS))
    assert next(iter(RunDirectory(tmp_path / "alone").rows("metrics.jsonl"))) == starts[0]


def test_the_last_check_holds_the_final_validation_and_counts_its_first_samples(
    counted: Counter[str], tmp_path: Path
) -> None:
    bench = build_workbench(TINY, TASKS)
    config = TrainConfig(
        steps=2,
        sampling=SamplingConfig(prompts_per_step=4, group_size=2),
        validation=ValidationConfig(problems=8, samples=2, every=1),
    )
    last = LastCheck(samples=5)
    train(config, tmp_path / "with", bench, last_check=last)
    assert counted["scored"] == (2 + 2 + 5) * 8  # after steps 0, 1 and 2
    assert last.records is not None
    assert [record["sample"] for record in last.records] == list(range(5)) * 8
    assert {record["policy_version"] for record in last.records} == {2}
    train(config, tmp_path / "without", bench)
    ends = [list(RunDirectory(tmp_path / name).rows("metrics.jsonl"))[-1] for name in ("with", "without")]
    assert ends[0]["validation/accuracy"] == ends[1]["validation/accuracy"]
    again = LastCheck(samples=5)
    train(config, tmp_path / "with", bench, last_check=again)
    assert again.records is None  # nothing was left to do
    few = LastCheck(samples=1)
    train(config, tmp_path / "few", bench, last_check=few)
    assert few.records is not None
    assert len(few.records) == 8


def test_jobs_give_the_same_files_whichever_process_does_which_piece(tmp_path: Path) -> None:
    events: list[Event] = []
    for name, run, count in (("shared", run_jobs, 2), ("alone", run_here, 1)):
        jobs = plan_jobs(SMALL, regimes_of(SMALL), tmp_path / name)
        run(jobs, count, events.append if count == 2 else lambda event: None)
    files = sorted(path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("*_*.jsonl"))
    assert sum(path.name == "records_last.jsonl" for path in files) == 5
    assert any(path.name == "records_best.jsonl" for path in files)
    for path in files:
        assert (tmp_path / "shared" / path).read_bytes() == (tmp_path / "alone" / path).read_bytes(), path
    for folder in (path.parent for path in files if path.name == "records_last.jsonl"):
        found = [RunDirectory(tmp_path / name / folder).read_json("complete.json") for name in ("shared", "alone")]
        assert found[0] | {"seconds": 0} == found[1] | {"seconds": 0}
        assert found[0]["seconds"] > 0
    assert Counter(event.job for event in events if event.phase == "complete").most_common(1)[0][1] == 1
    assert {event.job for event in events if event.phase == "evaluating" and event.done == event.total} == {
        job.name for job in plan_jobs(SMALL, regimes_of(SMALL), tmp_path)
    }


def test_a_job_that_fails_is_told_in_a_line_and_ends_the_others(tmp_path: Path, cancelled_here: list[object]) -> None:
    first, *others = plan_jobs(SMALL, regimes_of(SMALL), tmp_path)
    jobs = [dataclasses.replace(first, identity={"base": "another one"}), *others]
    with pytest.raises(ConfigError, match=f"^{first.name}: what the comparison began with has changed"):
        run_jobs(jobs, 2, lambda event: None)
    assert not any((Path(job.folder) / "complete.json").exists() for job in others[2:])
    assert not cancelled_here  # a pool that is terminated with one in it prints a traceback (CPython 3.11)


def test_the_last_jobs_of_several_workers_are_evaluated_apart_but_for_adapters_and_tuning(tmp_path: Path) -> None:
    def apart(count: int, **changes: Any) -> list[str]:
        config = dataclasses.replace(SMALL, **changes)
        return [job.name for job in _evaluated_apart(plan_jobs(config, regimes_of(config), tmp_path), count)]

    assert apart(1) == []
    assert apart(2) == ["task_reward/seed_0", "tempered/seed_0", "task_reward/seed_1", "tempered/seed_1"]
    assert apart(8)[0] == "base"
    assert apart(2, weights=WeightsConfig(lora_rank=2)) == []
    tuned = [dataclasses.replace(job, evaluation=None) for job in plan_jobs(SMALL, regimes_of(SMALL), tmp_path)]
    assert _evaluated_apart(tuned, 2) == []
