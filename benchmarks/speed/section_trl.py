"""Whole training steps against TRL's, on the same models, prompts, groups and lengths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from speed.processes import Measured, measure
from speed.report import interval, mebibytes, median, number, ratio, table
from speed.setting import Setting
from speed.workloads import WORKLOADS, Workload, make_folder

__all__ = ["best_by_precision", "microbatches", "run", "trl_table"]

PRECISIONS = ("fp32", "autocast", "bf16")
REGIMES = {"no reference": "task_reward", "reference": "tilted(alpha=1,beta_inv=100)"}
OURS = {"float32": "fp32", "bfloat16": "bf16"}
AHEAD = {"tiny": 2}
"""Steps of each turn that are not counted where steps are short; beyond a second they make no difference."""
PARTS = ("seconds", "rollout", "grading", "logprobs", "update")


def run(setting: Setting) -> dict[str, Any]:
    """Measure every workload and print its table."""
    found: dict[str, Any] = {}
    for name in setting.models or ("tiny", "6M", "50M"):
        workload = WORKLOADS[name]
        folder = str(make_folder(name, setting.folder))
        tuning = measure(tuning_variants(folder, workload), 2, 1 if name == "tiny" else 0, setting.lock)
        chosen = microbatches(tuning, workload)
        print(f"\n### {workload}: TRL's micro-batch, GRPO without reference, faster of two steps\n")
        print(tuning_table(tuning), flush=True)
        rounds = setting.rounds({"tiny": 9, "50M": 2}.get(name, 3))
        variants = final_variants(folder, workload, chosen, tuning)
        measured = measure(variants, rounds, 1, setting.lock, ahead=AHEAD.get(name, 0))
        print(f"\n### {workload}: seconds a step, median (min–max) of {rounds}\n")
        print(trl_table(measured, workload))
        print(f"\n{comparison(measured)}\n", flush=True)
        found[name] = {
            "workload": asdict(workload),
            "microbatch_rows_tried": {key: value.as_dict() for key, value in tuning.items()},
            "microbatch_rows_chosen": chosen,
            "variants": {key: value.as_dict() for key, value in measured.items()},
        }
    return found


def tuning_variants(folder: str, workload: Workload) -> dict[str, dict[str, Any]]:
    """TRL's cheapest trainer (GRPO without a reference) at every precision in several sizes of micro-batch."""
    # The whole batch at once is the fastest for the smallest model only.
    divisors = (1, 4, 16) if workload.model == "tiny" else (4, 16)
    sizes = [max(1, workload.rows // divisor) for divisor in divisors]
    return {
        f"{precision}/{rows}": trl_variant(folder, workload, "grpo", precision, False, rows)
        for precision in PRECISIONS
        for rows in sizes
    }


def trl_variant(
    folder: str, workload: Workload, trainer: str, precision: str, reference: bool, rows: int | None
) -> dict[str, Any]:
    return {
        "kind": "trl",
        "folder": folder,
        "workload": asdict(workload),
        "trainer": trainer,
        "precision": precision,
        "reference": reference,
        "microbatch_rows": rows,
    }


def microbatches(tuning: Mapping[str, Measured], workload: Workload) -> dict[str, int]:
    """The fastest size of micro-batch at each precision; the whole batch where none of them ran."""
    chosen: dict[str, int] = {}
    for precision in PRECISIONS:
        seconds = {
            int(key.partition("/")[2]): min(value.values("seconds"))
            for key, value in tuning.items()
            if key.startswith(precision + "/") and value.steps
        }
        chosen[precision] = min(seconds, key=seconds.__getitem__) if seconds else workload.rows
    return chosen


def tuning_table(tuning: Mapping[str, Measured]) -> str:
    rows = [
        [
            *name.split("/"),
            *(number(min(one.values(part), default=float("nan"))) for part in ("seconds", "rollout", "update")),
            mebibytes(one.values("peak_bytes")),
        ]
        for name, one in tuning.items()
    ]
    return table(["precision", "rows at once", "step", "rollout", "update", "peak MiB"], rows)


def final_variants(
    folder: str, workload: Workload, chosen: Mapping[str, int], tuning: Mapping[str, Measured]
) -> dict[str, dict[str, Any]]:
    """Both trainers with and without reference in fp32 and in the faster of the two bf16 precisions, and this package."""
    fastest = {
        precision: min(tuning[f"{precision}/{rows}"].values("seconds"), default=math.inf)
        for precision, rows in chosen.items()
        if f"{precision}/{rows}" in tuning
    }
    best = min(("autocast", "bf16"), key=lambda precision: fastest.get(precision, math.inf))
    variants = {
        f"TRL {trainer.upper()} {precision}, {name}": trl_variant(
            folder, workload, trainer, precision, name == "reference", chosen[precision]
        )
        for precision in ("fp32", best)
        for trainer in ("rloo", "grpo")
        for name in REGIMES
    }
    for dtype, precision in OURS.items():
        for name, regime in REGIMES.items():
            variants[f"ours {precision}, {name}"] = {
                "kind": "ours",
                "folder": folder,
                "workload": asdict(workload),
                "dtype": dtype,
                "regime": regime,
            }
    return variants


def trl_table(measured: Mapping[str, Measured], workload: Workload) -> str:
    columns = [
        "variant",
        "step",
        "rollout",
        "grading",
        "log-probabilities",
        "update",
        "tokens/s",
        "peak MiB",
        "over loading",
    ]
    rows = []
    for name, one in measured.items():
        if not one.steps:
            rows.append([name, "failed", *["–"] * (len(columns) - 2)])
            continue
        rows.append(
            [
                name,
                interval(one.values("seconds")),
                *(number(median(one.values(part))) for part in PARTS[1:]),
                f"{workload.response_tokens / median(one.values('seconds')):,.0f}",
                mebibytes(one.values("peak_bytes")),
                mebibytes(one.values("step_bytes")),
            ]
        )
    return table(columns, rows)


def comparison(measured: Mapping[str, Measured]) -> str:
    """How many times as fast this package is as TRL: precision by precision, and the best of each side."""
    rows: list[Sequence[object]] = []
    for name in REGIMES:
        for precision in ("fp32", "best"):
            ours = best_by_precision(measured, "ours", precision, name)
            for trainer in ("TRL RLOO", "TRL GRPO"):
                theirs = best_by_precision(measured, trainer, precision, name)
                if ours and theirs:
                    times = [f"{ratio(theirs.values(part), ours.values(part)):.2f}" for part in ("seconds", "rollout")]
                    memory = max(theirs.values("step_bytes")) / max(1, max(ours.values("step_bytes")))
                    rows.append([f"{name}, {precision}", theirs.name, ours.name, *times, f"{memory:.2f}"])
    return table(
        ["compared", "TRL", "ours", "step: times as fast", "rollout alone", "memory over loading: ratio"], rows
    )


def best_by_precision(measured: Mapping[str, Measured], side: str, precision: str, reference: str) -> Measured | None:
    """The variant of that side with the smallest median; `best` looks through all precisions."""
    candidates = [
        one
        for name, one in measured.items()
        if one.steps
        and name.startswith(side)
        and name.endswith(f", {reference}")
        and (precision == "best" or f" {precision}," in name)
    ]
    return min(candidates, key=lambda one: median(one.values("seconds"))) if candidates else None
