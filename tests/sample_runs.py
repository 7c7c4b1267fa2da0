"""Run directories without a model: a comparison with every file that the page reads, a training run, an evaluation.

The figures are made up by a fixed rule, so that a page can be checked against its files. results.json and the diagnostics of
records are computed from the made-up records by the code that computes them for real runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sample_diagnostics import FAMILIES, estimated, hand_made_diagnostics

from bsharp.diagnostics.calibration import calibration
from bsharp.diagnostics.drift import drift
from bsharp.diagnostics.gained_lost import gained_lost
from bsharp.evaluation import RegimeRecords, build_results, summarize

__all__ = ["REGIMES", "make_comparison", "make_evaluation", "make_training"]

REGIMES = {
    "task_reward": "task_reward",
    "sharpening": "sharpening",
    "tilted": "tilted(alpha=1,beta_inv=100)",
}
SKILL = {"base": 0.0, "task_reward": 1.5, "sharpening": 0.4, "tilted": 1.2}
SHARPNESS = {"base": 0.0, "task_reward": 0.2, "sharpening": 0.9, "tilted": 0.3}
MANIFEST = {
    "identity": {"base_weights": "0123456789abcdef", "code": "fedcba9876543210", "bsharp": "0.1.0"},
    "versions": {"python": "3.11.7", "torch": "2.13.0", "numpy": "2.4.6"},
    "machine": {"system": "Linux", "processor": "a processor", "cores": 2},
}

Record = dict[str, Any]


def make_comparison(
    folder: Path,
    *,
    regimes: Mapping[str, str] = REGIMES,
    seeds: Sequence[int] = (0, 1),
    steps: int = 12,
    problems: int = 12,
    samples: int = 4,
    diagnostics: bool = True,
    finished: bool = True,
    alarms: bool = True,
    text: str | None = None,
    outcome: str | None = None,
) -> Path:
    """Write a comparison into `folder` and return it; `text` takes the place of every completion's text.

    With an `outcome` (wrong, unparseable, truncated or timeout) that is what becomes of every completion of every model.

    Without `finished` the last regime's last seed is missing, the one before it has not ended and its metrics end within
    a line, and there are no results.
    """
    config = {
        "model": "embedded:tiny",
        "tasks": ["math_mini"],
        "regimes": [spec if spec.partition("(")[0] == name else f"{name}={spec}" for name, spec in regimes.items()],
        "seeds": list(seeds),
        "steps": steps,
        "sampling": {"prompts_per_step": 4, "group_size": 8, "max_new_tokens": 48},
        "evaluation": {"split": "test", "temperature": 1.0, "fixed_length": False, "max_new_tokens": 48},
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "manifest.json", MANIFEST)
    base = [_with_outcome(row, outcome) for row in _records("base", 0, problems, samples, text)]
    _write_job(folder / "base", config, base, 21.5)
    jobs = [(name, seed) for seed in seeds for name in regimes]
    found: dict[tuple[str, int], tuple[list[Record], list[Record]]] = {}
    for place, (name, seed) in enumerate(jobs):
        if not finished and place == len(jobs) - 1:
            continue
        path = folder / name / f"seed_{seed}"
        records, metrics = _records(name, seed, problems, samples, text), _metrics(name, seed, steps)
        if outcome is not None:
            records = [_with_outcome(row, outcome) for row in records]
            zero = None if outcome == "timeout" else 0.0
            metrics = [row | ({"validation/accuracy": zero} if "validation/accuracy" in row else {}) for row in metrics]
        found[name, seed] = records, metrics
        job_config = config | {"objective": regimes[name], "seed": seed, "threads": 1}
        running = not finished and place == len(jobs) - 2
        _write_job(path, job_config, None if running else records, None if running else 40.0 + place)
        _write_rows(path / "metrics.jsonl", metrics[: steps // 2] if running else metrics)
        if running:
            with (path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write('{"step": 99, "reward": 0.')
        _write_rows(path / "gradients.jsonl", _probes(regimes, seed, steps))
        snapshot = path / "snapshots" / f"step_{steps:06d}.safetensors"
        snapshot.parent.mkdir()
        snapshot.touch()
        if alarms and name == "sharpening":
            _write_rows(path / "alarms.jsonl", [_alarm(steps)])
    if finished:
        _write_json(folder / "results.json", _results(base, found, regimes, seeds, config))
    if diagnostics:
        _write_diagnostics(folder / "diagnostics", base, found, regimes)
    return folder


def make_training(
    folder: Path, regime: str = "sharpening", steps: int = 12, progress: Mapping[str, Any] | None = None
) -> Path:
    """The directory of one training run; `progress` is what its last checkpoint knows, by default that it reached the end."""
    config = {"model": "embedded:tiny", "objective": REGIMES[regime], "seed": 3, "steps": steps, "threads": 1}
    _write_json(folder / "config.json", config | {"sampling": {"prompts_per_step": 4, "group_size": 8}})
    _write_json(folder / "manifest.json", MANIFEST)
    known = {
        "step": steps,
        "best_step": None,
        "best_accuracy": 0.5,
        "stopped": None,
        "collapsed": False,
        "stopped_at": None,
    }
    known |= progress or {}
    _write_rows(folder / "metrics.jsonl", _metrics(regime, 3, known["stopped_at"] or known["step"]))
    _write_json(folder / "checkpoints" / f"step_{known['step']:06d}" / "progress.json", known)
    return folder


def make_evaluation(folder: Path) -> Path:
    """The directory of one evaluation."""
    records = _records("base", 0, 12, 4, None)
    _write_json(folder / "config.json", {"model": "embedded:tiny", "base": None, "tasks": ["math_mini"]})
    _write_json(folder / "manifest.json", MANIFEST)
    _write_rows(folder / "records.jsonl", records)
    _write_json(folder / "summary.json", summarize([records]))
    return folder


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_job(path: Path, config: Mapping[str, Any], records: list[Record] | None, seconds: float | None) -> None:
    _write_json(path / "config.json", config)
    _write_json(path / "manifest.json", MANIFEST)
    if records is not None:
        _write_rows(path / "records_last.jsonl", records)
    if seconds is not None:
        done = {"last_step": config["steps"], "best_step": config["steps"], "stopped": None, "seconds": seconds}
        _write_json(path / "complete.json", done)


def _records(model: str, seed: int, problems: int, samples: int, text: str | None) -> list[Record]:
    """Problems from never to always solved; a sharper model's samples agree more often."""
    rng = np.random.default_rng([len(model), seed])
    records = []
    for place in range(problems):
        family, role, mode = FAMILIES[place % len(FAMILIES)]
        shift = -SKILL.get(model, 0.5) if mode == "wrong" and model == "sharpening" else SKILL.get(model, 0.5)
        chance = 1 / (1 + math.exp(-(4 * place / problems - 2 + shift)))
        common = rng.random() < chance
        for sample in range(samples + 1):
            right = bool(common) if rng.random() < SHARPNESS.get(model, 0.5) else bool(rng.random() < chance)
            answer = str(place + 7) if right else str(place + 8 + int(rng.integers(2)))
            tokens = [int(token) for token in rng.integers(0, 9, size=int(rng.integers(6, 20)))]
            logprob = -float(rng.exponential(3)) - 0.1
            records.append(
                {
                    "schema": 1,
                    "problem_id": f"math_mini/{family}/{place},7",
                    "task": "math_mini",
                    "family": family,
                    "role": role,
                    "mode": mode,
                    "difficulty": 1 + place % 3,
                    "question": f"{place} + 7 = ?",
                    "gold": str(place + 7),
                    "grader": "BoxedAnswerReward",
                    "checkpoint": "last",
                    "sample": 0 if sample == samples else sample,
                    "greedy": sample == samples,
                    "policy_version": 0,
                    "temperature": None if sample == samples else 1.0,
                    "fixed_length": False,
                    "token_ids": tokens,
                    "text": f" {place}+7={answer}; \\boxed{{{answer}}}" if text is None else text,
                    "finish_reason": "length" if len(tokens) == 19 else "eos",
                    "length": len(tokens),
                    "logprob": logprob,
                    "base_logprob": logprob if model == "base" else logprob - float(rng.exponential(1)),
                    "status": "correct" if right else "wrong",
                    "detail": "",
                    "answer": answer,
                    "reward": float(right),
                    "exact_match": right,
                }
            )
    return records


def _with_outcome(record: Record, outcome: str | None) -> Record:
    """The record with its grade, and where it was cut its end, as `outcome` says."""
    if outcome is None:
        return record
    status = "unparseable" if outcome == "truncated" else outcome
    changed: Record = {"status": status, "exact_match": False, "reward": None if outcome == "timeout" else 0.0}
    changed["answer"] = "1" if outcome == "wrong" else None
    if outcome == "truncated":
        changed |= {"finish_reason": "length", "length": 48, "token_ids": [1, 2, 3, 4] * 12}
    elif outcome != "timeout":
        changed["finish_reason"] = "eos"
    return record | changed


def _metrics(regime: str, seed: int, steps: int) -> list[Record]:
    rows: list[Record] = [{"step": 0, "validation/accuracy": 0.35}]
    for step in range(1, steps + 1):
        t = step / steps
        wave = 0.02 * math.sin(3 * step + seed)
        row = {
            "step": step,
            "reward": 0.35 + 0.3 * t * SKILL.get(regime, 0.5) + wave,
            "score/mean": -4 + 2 * t + wave,
            "base_logprob/mean_nats_per_sequence": -5 + 2 * t,
            "kl(policy||base)/k1_nats_per_sequence": 1.5 * t + wave,
            "entropy/exact_nats_per_token": 0.26 * (1 - t) + 0.05,
            "completions/mean_length": 20 - 4 * t + wave,
            "completions/clipped_ratio": 0.01 * step,
            "completions/repetition_rate": 0.02 * t,
            "completions/distinct_answers_per_problem": 5 - 3 * t,
            "frac_score_zero_std": 0.2 + 0.5 * t,
            "grad_norm": 2 + math.exp(3 * t),
            "gradient/variance_trace": 0.5 * math.exp(3 * t),
            "gradient/signal_to_noise": 3 - 2 * t + wave,
            "time/rollout_seconds": 0.5,
            "time/update_seconds": 1.0,
            "loss/policy": None,
        }
        rows.append(row | ({"validation/accuracy": 0.35 + 0.4 * t + wave} if step % 4 == 0 else {}))
    return rows


def _alarm(steps: int) -> Record:
    return {
        "schema": 1,
        "step": steps - 2,
        "since": steps - 4,
        "kind": "entropy",
        "sentence": f"Entropy fell to 0.01 nats/token (0.26 at the start) since step {steps - 4}: the policy no longer explores",
        "figures": {"entropy": 0.01},
        "advice": "Lower optimizer.learning_rate.",
        "stops": True,
    }


def _probes(regimes: Mapping[str, str], seed: int, steps: int) -> list[Record]:
    names = list(regimes)
    task = next(name for name, spec in regimes.items() if spec == "task_reward")
    rows = []
    for step in range(1, steps + 1, 5):
        shift = 0.02 * step + 0.01 * seed
        rows.append(
            {
                "schema": 1,
                "step": step,
                "objectives": names,
                "advantage": "leave_one_out",
                "problems": 4,
                "group_size": 8,
                "task": task,
                "cosine": [[1.0 if a == b else 0.3 - shift for b in names] for a in names],
                "cosine_to_task": [estimated(1.0 if name == task else 0.3 - shift, unit="cosine") for name in names],
                "noise_floor": [estimated(0.4, unit="cosine") for _ in names],
                "fisher": [[1.0 if a == b else 0.3 for b in names] for a in names],
                "norm": [1.0 for _ in names],
                "variance_trace": [0.5 for _ in names],
                "signal_squared": [1.0 for _ in names],
                "signal_to_noise": [estimated(2.0 - shift, unit="ratio") for _ in names],
            }
        )
    return rows


def _results(
    base: list[Record],
    found: Mapping[tuple[str, int], tuple[list[Record], list[Record]]],
    regimes: Mapping[str, str],
    seeds: Sequence[int],
    config: Mapping[str, Any],
) -> dict[str, Any]:
    collected = {
        name: RegimeRecords(
            objective=spec if spec.partition("(")[0] == name else f"{name}={spec}",
            seeds=list(seeds),
            learning_rate=1e-3,
            last=[found[name, seed][0] for seed in seeds],
            metrics=[found[name, seed][1] for seed in seeds],
            last_steps=[config["steps"]] * len(seeds),
            stopped=[None] * len(seeds),
            validation_samples=100,
            validation_last=[[row for row in found[name, seed][0] if not row["greedy"]] for seed in seeds],
        )
        for name, spec in regimes.items()
    }
    return build_results(base, collected, config, MANIFEST, ["the learning rates of this run: by whoever set them"])


def _write_diagnostics(
    folder: Path,
    base: list[Record],
    found: Mapping[tuple[str, int], tuple[list[Record], list[Record]]],
    regimes: Mapping[str, str],
) -> None:
    trained = {name: [records for (other, _), (records, _) in found.items() if other == name] for name in regimes}
    by_model = {"base": [base], **{name: records for name, records in trained.items() if records}}
    _write_json(folder / "problems.json", gained_lost(by_model))
    _write_json(folder / "calibration.json", calibration(by_model))
    _write_json(folder / "drift.json", drift(by_model))
    for name, content in hand_made_diagnostics(tuple(regimes)).items():
        _write_json(folder / f"{name}.json", content)
