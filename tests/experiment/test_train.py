"""Whole training runs on the embedded base, small: what must hold of every run whatever its regime."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from bsharp.config import (
    AlgorithmConfig,
    ConfigError,
    OptimizerConfig,
    SamplingConfig,
    TrainConfig,
    ValidationConfig,
)
from bsharp.experiment import build_workbench, load_tasks, train
from bsharp.experiment.run import validation_metrics
from bsharp.generation import LogitsError
from bsharp.models import weights_hash
from bsharp.runlog import RunDirectory
from bsharp.tasks import ProceduralTask, Split
from bsharp.training import Progress, check_trainable, checkpoints, loop

SMALL = TrainConfig(
    steps=4,
    sampling=SamplingConfig(prompts_per_step=4, group_size=4),
    validation=ValidationConfig(problems=8, samples=2, every=2),
    checkpoint_every=2,
)
REGIMES = (
    "task_reward",
    "tilted(alpha=2,beta_inv=100)",
    "sharpening",
    "sharpening(normalisation=mean)",
    "tempered(alpha=2)",
    "hybrid(alpha=1,beta_inv=100)",
    "entropy_minimisation",
)
LOGGED = (
    "reward", "score/mean", "kl(policy||base)/k1_nats_per_sequence", "kl(policy||base)/k3_nats_per_token",
    "entropy/exact_nats_per_token", "grad_norm", "gradient/variance_trace", "gradient/signal_to_noise",
    "sampling_logp_difference/max", "completions/mean_length", "completions/clipped_ratio", "frac_reward_zero_std",
    "frac_score_zero_std", "clip_ratio/low_mean", "importance_ratio/max", "tokens_per_second/rollout",
)  # fmt: skip


@pytest.fixture(scope="module")
def bench():
    return build_workbench(SMALL.model, SMALL.tasks)


def metrics_of(path: Path) -> list[dict]:
    """All rows without the timings, which no seed can fix."""
    rows = list(RunDirectory(path).rows("metrics.jsonl"))
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "tokens_per_second/"))} for row in rows]


def same_weights(first: Path, second: Path) -> bool:
    return (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


@pytest.mark.parametrize("regime", REGIMES)
def test_every_regime_logs_the_same_indicators_at_every_step_and_leaves_the_base_alone(
    regime: str, bench, tmp_path: Path
) -> None:
    before = weights_hash(bench.base.model)
    config = dataclasses.replace(SMALL, objective=regime, steps=2)
    policy, progress = train(config, tmp_path, bench)
    rows = list(RunDirectory(tmp_path).rows("metrics.jsonl"))
    assert [row["step"] for row in rows] == [0, 1, 2]
    for row in rows[1:]:
        assert set(LOGGED) <= set(row)
        assert row["sampling_logp_difference/max"] < 1e-4
    assert rows[1]["kl(policy||base)/k1_nats_per_sequence"] == pytest.approx(0.0, abs=1e-4)
    assert "kl(policy||base)/exact_nats_per_token" in rows[2]
    assert weights_hash(bench.base.model) == before == bench.base_hash
    assert weights_hash(policy.model) != before
    assert progress.step == 2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"algorithm": AlgorithmConfig(advantage="gae", loss="ppo_clip", epochs=2, minibatches=2)},
        {"sampling": SamplingConfig(prompts_per_step=4, group_size=4, fixed_length=True, max_new_tokens=24)},
    ],
    ids=["rloo", "ppo_with_critic", "fixed_length"],
)
def test_the_same_config_and_seed_give_the_same_run_bit_for_bit_also_across_a_kill(
    changes: dict, bench, tmp_path: Path
) -> None:
    config = dataclasses.replace(SMALL, **changes)
    train(config, tmp_path / "whole", bench)
    train(config, tmp_path / "again", bench)
    assert same_weights(tmp_path / "whole" / "last", tmp_path / "again" / "last")
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "again")

    class Killed(Exception):
        pass

    def kill(step: int, metrics: object) -> None:
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        train(config, tmp_path / "killed", bench, [kill])
    assert [row["step"] for row in metrics_of(tmp_path / "killed")] == [0, 1, 2, 3]
    train(config, tmp_path / "killed", bench)
    assert same_weights(tmp_path / "whole" / "last", tmp_path / "killed" / "last")
    assert same_weights(tmp_path / "whole" / "best", tmp_path / "killed" / "best")
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "killed")


def test_another_seed_is_another_run(bench, tmp_path: Path) -> None:
    train(dataclasses.replace(SMALL, steps=1), tmp_path / "a", bench)
    train(dataclasses.replace(SMALL, steps=1, seed=1), tmp_path / "b", bench)
    assert metrics_of(tmp_path / "a")[1] != metrics_of(tmp_path / "b")[1]


def test_a_finished_run_called_again_changes_nothing(bench, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, steps=2)
    train(config, tmp_path, bench)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    _, progress = train(config, tmp_path, bench)
    assert progress.step == 2
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_directory_of_another_run_is_refused_with_the_difference_and_left_alone(bench, tmp_path: Path) -> None:
    train(dataclasses.replace(SMALL, steps=1), tmp_path, bench)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=r"steps: 1 there, 2 asked for"):
        train(dataclasses.replace(SMALL, steps=2), tmp_path, bench)
    other_base = dataclasses.replace(bench, base_hash="0" * 16)
    with pytest.raises(ConfigError, match=r"manifest.base_weights"):
        train(dataclasses.replace(SMALL, steps=1), tmp_path, other_base)
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_training_and_the_choice_of_the_best_checkpoint_never_see_a_test_problem(
    bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[str] = set()
    original = ProceduralTask.problems

    def spy(self, split, *rest, **named):
        asked.add(str(Split(split)))
        return original(self, split, *rest, **named)

    monkeypatch.setattr(ProceduralTask, "problems", spy)
    _, progress = train(SMALL, tmp_path, bench)
    assert asked == {"train", "validation"}
    rows = [row for row in metrics_of(tmp_path) if row["step"] and "validation/accuracy" in row]
    best = max(rows, key=lambda row: row["validation/accuracy"])
    assert progress.best_step == best["step"]


def test_weights_that_blow_up_end_the_run_at_the_last_good_ones_and_say_so(bench, tmp_path: Path) -> None:
    config = dataclasses.replace(
        SMALL,
        objective="tempered(alpha=2)",
        optimizer=OptimizerConfig(name="SGD", learning_rate=1e38, options={}, warmup_steps=0),
    )
    policy, progress = train(config, tmp_path, bench)
    assert progress.stopped is not None
    assert "lower optimizer.learning_rate" in progress.stopped
    assert progress.step < SMALL.steps
    assert all(bool(parameter.isfinite().all()) for parameter in policy.model.parameters())
    assert metrics_of(tmp_path)[-1]["grad_norm"] is None
    before = metrics_of(tmp_path)
    _, again = train(config, tmp_path, bench)
    assert again.stopped == progress.stopped
    assert metrics_of(tmp_path) == before


def test_logits_that_give_no_distribution_put_the_run_back_to_its_last_checkpoint_for_good(
    bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(SMALL, steps=6)
    train(config, tmp_path / "whole", bench)
    original = loop.collect_rollouts

    def broken(*arguments):
        if arguments[-1] == 5:
            raise LogitsError("no distribution")
        return original(*arguments)

    monkeypatch.setattr(loop, "collect_rollouts", broken)
    _, progress = train(config, tmp_path / "broken", bench)
    assert (progress.step, progress.stopped_at) == (4, 5)
    rows = metrics_of(tmp_path / "broken")
    assert rows[:-1] == metrics_of(tmp_path / "whole")[:5]
    assert rows[-1] == {"step": 5, "grad_norm": None}
    monkeypatch.undo()
    _, again = train(config, tmp_path / "broken", bench)
    assert again.stopped == progress.stopped
    assert metrics_of(tmp_path / "broken") == rows


def test_a_setting_refused_before_the_run_leaves_no_directory_bound_to_it(bench, tmp_path: Path) -> None:
    wrong = [
        {"sampling": SamplingConfig(top_p=0.9)},
        {"optimizer": OptimizerConfig(name="Adamm")},
        {"objective": "shapening"},
        {"validation": ValidationConfig(problems=1)},
        {"sampling": SamplingConfig(max_new_tokens=100_000)},
    ]
    for changes in wrong:
        with pytest.raises(ConfigError):
            train(dataclasses.replace(SMALL, steps=1, **changes), tmp_path, bench)
    assert not list(tmp_path.iterdir())


def test_difficulties_choose_the_size_of_the_numbers() -> None:
    task = load_tasks(["math_mini"], [3])["math_mini"]
    assert {problem.difficulty for problem in task.problems(Split.TEST, 50, 0)} == {3}
    assert task.size(Split.TRAIN) > 0


def test_checkpoints_hold_safetensors_and_json_only(bench, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, algorithm=AlgorithmConfig(advantage="gae"))
    train(config, tmp_path, bench)
    kinds = {path.suffix for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()}
    assert kinds <= {".safetensors", ".json", ".jinja", ".md"}
    assert json.loads((tmp_path / "config.json").read_text())["algorithm"]["advantage"] == "gae"


def test_a_half_written_checkpoint_is_never_resumed_from(bench, tmp_path: Path) -> None:
    (tmp_path / "step_000007.part").mkdir()
    assert checkpoints.latest_checkpoint(tmp_path) is None
    (tmp_path / "step_000002").mkdir()
    (tmp_path / "step_000010").mkdir()
    assert checkpoints.latest_checkpoint(tmp_path) == tmp_path / "step_000010"
    assert Progress().best_step is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": SamplingConfig(top_p=0.9)}, r"sampling.top_p = 0.9 .* set sampling.top_p = 1"),
        ({"sampling": SamplingConfig(group_size=1)}, r"sampling.group_size = 1; raise it to at least 2"),
        ({"algorithm": AlgorithmConfig(minibatches=99)}, r"algorithm.minibatches = 99 exceeds"),
        ({"algorithm": AlgorithmConfig(epochs=2)}, r"choose loss = ppo_clip"),
    ],
)
def test_settings_that_would_train_on_something_else_than_they_say_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_trainable(dataclasses.replace(SMALL, **changes))


@pytest.mark.parametrize(
    "algorithm",
    [
        AlgorithmConfig(advantage="gae", loss="ppo_clip", reduction="token_mean", epochs=2, minibatches=2),
        AlgorithmConfig(advantage="group_z_score", loss="ppo_clip", reduction="sequence_mean", clip_high=0.28),
    ],
    ids=["ppo_with_critic", "grpo"],
)
def test_ppo_with_a_critic_and_grpo_learn(algorithm: AlgorithmConfig, bench, tmp_path: Path) -> None:
    config = dataclasses.replace(
        SMALL,
        steps=14,
        algorithm=algorithm,
        sampling=SamplingConfig(prompts_per_step=16, group_size=8),
        validation=ValidationConfig(problems=64, samples=4, every=14),
        checkpoint_every=14,
    )
    train(config, tmp_path, bench)
    rows = [row for row in metrics_of(tmp_path) if "validation/accuracy" in row]
    # 256 samples a check: the standard error of the difference is at most 4.4 points. 10 points: false alarm about 1 %.
    assert rows[-1]["validation/accuracy"] > rows[0]["validation/accuracy"] + 0.10
    assert all(math.isfinite(row["grad_norm"]) for row in metrics_of(tmp_path)[1:])


def test_the_validation_kl_is_positive_where_the_policy_likes_its_samples_better_than_the_base() -> None:
    records = [
        {"reward": 0.75, "status": "correct", "logprob": -1.0, "base_logprob": -3.0},
        {"reward": None, "status": "timeout", "logprob": -2.0, "base_logprob": -2.5},
        {"reward": 0.25, "status": "wrong", "logprob": -4.0, "base_logprob": -3.5},
        {"reward": 0.5, "status": "wrong", "logprob": -1.0, "base_logprob": -1.0},
    ]
    metrics = validation_metrics(records)
    assert metrics["validation/kl(policy||base)/k1_nats_per_sequence"] == pytest.approx((2.0 + 0.5 - 0.5 + 0.0) / 4)
    assert metrics["validation/accuracy"] == pytest.approx(1 / 3)  # correct ones among those graded
    assert math.isnan(validation_metrics(records[1:2])["validation/accuracy"])
