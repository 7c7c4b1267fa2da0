"""How time and memory of a step grow as one size after another doubles, measured against the operations it needs."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from speed.flops import Layout, phases
from speed.processes import Measured, measure
from speed.report import interval, mebibytes, median, number, table
from speed.setting import Setting
from speed.workloads import Workload, make_folder, prompts

__all__ = ["run"]

BASE = Workload("6M", 8, 4, 24)
DOUBLINGS = 4
LONGEST = 20.0
"""Seconds of a step beyond which a series ends."""
SERIES = {
    "group": "completions per problem",
    "prompts": "problems per step",
    "tokens": "response tokens",
    "prompt_tokens": "prompt tokens",
    "vocabulary": "vocabulary",
}
SMALLEST_VOCABULARY = 2000


def run(setting: Setting) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for size in setting.series or SERIES:
        words = SERIES[size]
        points = dict(_point(setting, size, doubling) for doubling in range(DOUBLINGS + 1))
        variants = {name: variant for name, (variant, _) in points.items()}
        measured = measure(variants, setting.rounds(3), 1, setting.lock, LONGEST)
        print(f"\n### {words}\n")
        rows: list[list[str]] = []
        before: dict[str, float] | None = None
        figures = {}
        for name, one in measured.items():
            if not one.steps:
                rows.append([name, one.error or f"more than {LONGEST:.0f} s", *["–"] * 8])
                continue
            now = _figures(one, points[name][1])
            figures[name] = now
            rows.append(
                [
                    name,
                    interval(one.values("rollout")),
                    interval(one.values("update")),
                    *(number(now[f"{part} ns/kFLOP"]) for part in ("rollout", "update")),
                    *(
                        number(now[f"{part} ns/kFLOP"] / before[f"{part} ns/kFLOP"], 2) if before else ""
                        for part in ("rollout", "update")
                    ),
                    number(now["step"] / before["step"], 2) if before else "",
                    mebibytes([now["step_bytes"]]),
                    number(now["step_bytes"] / before["step_bytes"], 2) if before else "",
                ]
            )
            before = now
        columns = [
            words,
            "rollout s",
            "update s",
            "rollout ns/kFLOP",
            "update ns/kFLOP",
            "rollout: times before",
            "update: times before",
            "step seconds: times before",
            "MiB over loading",
            "memory: times before",
        ]
        print(table(columns, rows), flush=True)
        found[size] = {"figures": figures, "points": {key: one.as_dict() for key, one in measured.items()}}
    return found


def _point(setting: Setting, size: str, doubling: int) -> tuple[str, tuple[dict[str, Any], dict[str, int]]]:
    """The variant and the operations of its parts."""
    workload, changes = BASE, {}
    if size == "vocabulary":
        changes = {"vocab_size": SMALLEST_VOCABULARY * 2**doubling}
        label = changes["vocab_size"]
    else:
        label = getattr(BASE, size) * 2**doubling
        workload = replace(BASE, **{size: label})
    folder = make_folder(BASE.model, setting.folder, **changes)
    layout = Layout.of(AutoConfig.from_pretrained(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lengths = [len(tokenizer(text)["input_ids"]) for text in prompts(workload, 1)[0]]
    counted = phases(layout, lengths, workload.group, workload.tokens)
    flops = {name: phase.flops(layout) for name, phase in counted.items()}
    variant = {"kind": "ours", "folder": str(folder), "workload": asdict(workload)}
    return f"{label:,}", (variant, flops)


def _figures(one: Measured, flops: dict[str, int]) -> dict[str, float]:
    update = [u + s for u, s in zip(one.values("update"), one.values("logprobs"), strict=True)]
    return {
        "step": median(one.values("seconds")),
        "rollout ns/kFLOP": 1e12 * median(one.values("rollout")) / flops["rollout"],
        "update ns/kFLOP": 1e12 * median(update) / (flops["update"] + flops["scoring"]),
        "step_bytes": max(one.values("step_bytes")),
    }
