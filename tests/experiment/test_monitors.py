"""What a run records beside its metrics: gradient probes, alarms, snapshots of the weights, and stopping on a collapse."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from bsharp.config import ConfigError, SamplingConfig, TrainConfig, ValidationConfig, WatchConfig
from bsharp.experiment import build_workbench, monitors, train
from bsharp.models import load_language_model
from bsharp.models.weights import flat_weights, load_difference
from bsharp.runlog import RunDirectory

REGIMES = ("task_reward", "sharpening", "tempered(alpha=2)")
SMALL = TrainConfig(
    steps=4,
    objective="sharpening",
    sampling=SamplingConfig(prompts_per_step=4, group_size=4),
    validation=ValidationConfig(problems=8, samples=2, every=2),
    watch=WatchConfig(objectives=REGIMES, every=2, snapshot_every=2),
    checkpoint_every=2,
)


@pytest.fixture(scope="module")
def bench():
    return build_workbench(SMALL.model, SMALL.tasks)


@pytest.fixture(scope="module")
def finished(bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    train(SMALL, out, bench)
    return out


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return list(RunDirectory(folder).rows(name))


def test_the_first_step_and_every_kth_are_probed_with_all_regimes(finished: Path) -> None:
    probed = rows(finished, "gradients.jsonl")
    assert [row["step"] for row in probed] == [1, 2, 4]
    for row in probed:
        assert row["objectives"] == ["task_reward", "sharpening", "tempered"]


def test_the_probe_of_the_runs_own_objective_agrees_with_the_step_it_precedes(finished: Path) -> None:
    metrics = {row["step"]: row for row in rows(finished, "metrics.jsonl")}
    for row in rows(finished, "gradients.jsonl"):
        place = row["objectives"].index("sharpening")
        step = metrics[row["step"]]
        assert row["norm"][place] == pytest.approx(step["grad_norm"], rel=1e-4)
        assert row["variance_trace"][place] == pytest.approx(step["gradient/variance_trace"], rel=1e-3)
        assert row["signal_squared"][place] == pytest.approx(step["gradient/signal_squared"], rel=1e-2, abs=1e-6)


def test_a_probe_changes_nothing_of_the_run(finished: Path, bench, tmp_path: Path) -> None:
    train(dataclasses.replace(SMALL, watch=WatchConfig(snapshot_every=2)), tmp_path, bench)
    last = "last/model.safetensors"
    assert (tmp_path / last).read_bytes() == (finished / last).read_bytes()
    assert not (tmp_path / "gradients.jsonl").exists()


def test_a_killed_run_leaves_the_same_probes_and_snapshots_when_it_goes_on(
    finished: Path, bench, tmp_path: Path
) -> None:
    class Killed(Exception):
        pass

    def kill(step: int, metrics: object) -> None:
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        train(SMALL, tmp_path, bench, [kill])
    train(SMALL, tmp_path, bench)
    for name in ("gradients.jsonl", "snapshots/step_000002.safetensors", "snapshots/step_000004.safetensors"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


def test_the_last_snapshot_is_the_last_policy_minus_the_base(finished: Path, bench) -> None:
    assert sorted(path.name for path in (finished / "snapshots").iterdir()) == [
        "step_000002.safetensors",
        "step_000004.safetensors",
    ]
    moved = load_difference(finished / "snapshots" / "step_000004.safetensors", bench.base.model)
    last = flat_weights(load_language_model(str(finished / "last")).model)
    difference = last - flat_weights(bench.base.model)
    assert float(difference.norm()) > 0
    torch.testing.assert_close(moved, difference, rtol=1e-3, atol=1e-6)


def test_snapshots_that_would_not_all_fit_are_not_begun(bench, tmp_path: Path) -> None:
    watch = WatchConfig(snapshot_every=1, snapshot_megabytes=1.5)  # two of 0.92 MB do not fit
    train(dataclasses.replace(SMALL, steps=2, watch=watch), tmp_path, bench)
    assert not (tmp_path / "snapshots").exists()


class _AlarmAtStepTwo:
    """In place of the collapse alarm: degenerate output at step 2; it also remembers what it was shown."""

    seen: ClassVar[list[int]] = []

    def __init__(self, **context: object) -> None:
        type(self).seen = []

    def observe(self, step: int, metrics: Any) -> list[Any]:
        self.seen.append(step)
        return [self] if step == 2 else []

    sentence = "The completions are empty since step 2."
    stops = True

    def as_json(self) -> dict[str, Any]:
        return {"step": 2, "since": 2, "kind": "length", "sentence": self.sentence, "stops": True}


@pytest.mark.parametrize(("stop", "last_step"), [(True, 2), (False, 4)])
def test_a_collapse_is_told_and_ends_the_run_only_where_asked_to(
    stop: bool, last_step: int, bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitors, "CollapseAlarm", _AlarmAtStepTwo)
    told: list[str] = []
    validation = dataclasses.replace(SMALL.validation, every=4)
    config = dataclasses.replace(SMALL, stop_on_collapse=stop, validation=validation)
    policy, progress = train(config, tmp_path, bench, on_alarm=told.append)
    assert told == [f"collapse alarm: {_AlarmAtStepTwo.sentence}"]
    assert [row["sentence"] for row in rows(tmp_path, "alarms.jsonl")] == [_AlarmAtStepTwo.sentence]
    assert progress.step == last_step
    assert progress.stopped == (_AlarmAtStepTwo.sentence if stop else None)
    assert progress.collapsed == stop
    # The weights at which a run is stopped are checked, whenever that is.
    checked = [row["step"] for row in rows(tmp_path, "metrics.jsonl") if "validation/accuracy" in row]
    assert checked == [0, last_step]
    if stop:
        moved = load_difference(tmp_path / "snapshots" / "step_000002.safetensors", bench.base.model)
        own = flat_weights(policy.model) - flat_weights(bench.base.model)
        torch.testing.assert_close(moved, own, rtol=1e-3, atol=1e-6)
        # Called again, it stays where it was.
        assert train(config, tmp_path, bench)[1].step == 2


def test_a_resumed_run_shows_its_alarm_the_steps_before_first(
    bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitors, "CollapseAlarm", _AlarmAtStepTwo)

    class Killed(Exception):
        pass

    def kill(step: int, metrics: object) -> None:
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        train(SMALL, tmp_path, bench, [kill])
    train(SMALL, tmp_path, bench)
    assert _AlarmAtStepTwo.seen == [0, 1, 2, 3, 4]
    assert len(rows(tmp_path, "alarms.jsonl")) == 1


def test_weights_that_blow_up_raise_an_alarm(bench, tmp_path: Path) -> None:
    optimizer = dataclasses.replace(SMALL.optimizer, learning_rate=1e6, warmup_steps=0)
    told: list[str] = []
    train(dataclasses.replace(SMALL, optimizer=optimizer, watch=WatchConfig()), tmp_path, bench, on_alarm=told.append)
    kinds = {row["kind"]: row["stops"] for row in rows(tmp_path, "alarms.jsonl")}
    assert any(kinds.values()), json.dumps(kinds)
    assert told


def test_a_regime_to_probe_that_does_not_exist_is_refused_before_the_run(bench, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sharpning"):
        train(dataclasses.replace(SMALL, watch=WatchConfig(objectives=("sharpning",))), tmp_path / "run", bench)
    assert not (tmp_path / "run").exists()
