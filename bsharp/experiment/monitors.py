"""What watches a training run: the probe of gradients and the collapse alarm, bound to one run's settings and directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bsharp.config import TrainConfig
from bsharp.diagnostics.alarm import CollapseAlarm
from bsharp.diagnostics.alignment import gradient_probe
from bsharp.experiment.setup import objective_of, regime_of
from bsharp.models.loading import LanguageModel
from bsharp.rollouts import RolloutBatch
from bsharp.runlog import RunDirectory
from bsharp.seeding import stream_seed
from bsharp.training import Alarms, Probe

__all__ = ["alarms_for", "probe_for"]


def probe_for(config: TrainConfig, base: LanguageModel) -> Probe | None:
    """Compares the gradients of `config.watch.objectives` on the run's rollouts every `config.watch.every` steps."""
    objectives = dict(regime_of(spec) for spec in config.watch.objectives)
    if not objectives:
        return None

    def probe(policy: LanguageModel, batch: RolloutBatch, step: int) -> Mapping[str, Any] | None:
        if step != 1 and step % config.watch.every:
            return None
        return gradient_probe(
            policy,
            base,
            batch,
            objectives,
            config.algorithm,
            config.sampling,
            step=step,
            microbatch_rows=config.microbatch_rows,
            seed=stream_seed(config.seed, "probe", step),
            megabytes=config.watch.gradient_megabytes,
        )

    return probe


def alarms_for(config: TrainConfig, run: RunDirectory, on_alarm: Callable[[str], None] | None = None) -> Alarms:
    """The collapse alarm of a run. One that is resumed has first seen what the run had logged before."""
    alarm: CollapseAlarm | None = None

    def observe(step: int, metrics: Mapping[str, float | None]) -> list[dict[str, Any]]:
        nonlocal alarm
        if alarm is None:
            alarm = CollapseAlarm(
                objective=objective_of(config.objective),
                learning_rate=config.optimizer.learning_rate,
                warmup_steps=config.optimizer.warmup_steps,
            )
            for row in run.rows("metrics.jsonl"):
                if row["step"] < step:
                    alarm.observe(row["step"], {key: value for key, value in row.items() if key != "step"})
        raised = alarm.observe(step, metrics)
        if on_alarm:
            for item in raised:
                on_alarm(f"{'collapse alarm' if item.stops else 'notice'}: {item.sentence}")
        return [item.as_json() for item in raised]

    return observe
