"""Rollouts alone against transformers' generate, and rows that end at different steps against rows that end together."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from speed.processes import measure
from speed.report import interval, mebibytes, median, number, ratio, table
from speed.setting import Setting
from speed.workloads import MODELS, WORKLOADS, Workload, make_folder

__all__ = ["run"]

DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
CACHES = ("dynamic", "static")
AHEAD = {"tiny": 2}
"""Calls of each turn that are not counted where they are short."""
EARLY = {"half": 2.0, "few": 0.25}
"""Ends expected within the token limit of a row: after half of it on average, or hardly ever before it."""


def run(setting: Setting) -> dict[str, Any]:
    found: dict[str, Any] = {"against transformers": {}, "rows that end early": {}}
    for name in setting.models or ("tiny", "6M", "50M"):
        workload = WORKLOADS[name]
        rounds = setting.rounds({"tiny": 9, "50M": 2}.get(name, 3))
        found["against transformers"][name] = _against_transformers(setting, name, workload, rounds)
        found["rows that end early"][name] = _early_ends(setting, name, workload, rounds)
    return found


def _against_transformers(setting: Setting, name: str, workload: Workload, rounds: int) -> dict[str, Any]:
    variants: dict[str, dict[str, Any]] = {}
    for ends in ("equal lengths", "natural ends"):
        fixed = ends == "equal lengths"
        natural = MODELS[name] is not None and not fixed
        folder = make_folder(name, setting.folder, EARLY["half"] / workload.tokens if natural else None)
        common = {"folder": str(folder), "workload": asdict(workload), "fixed_length": fixed}
        for dtype, label in DTYPES.items():
            variants[f"{ends}, {label}, ours"] = common | {"kind": "decode", "dtype": dtype}
            for cache in CACHES:
                variants[f"{ends}, {label}, {cache} cache"] = common | {
                    "kind": "transformers",
                    "dtype": dtype,
                    "cache": cache,
                }
    measured = measure(variants, rounds, 1, setting.lock, ahead=AHEAD.get(name, 0))
    print(f"\n### {workload}: seconds, median (min–max) of {rounds}\n")
    rows = []
    for key, one in measured.items():
        ours = measured[key.rpartition(", ")[0] + ", ours"]
        rows.append(
            [
                key,
                interval(one.values("seconds")),
                f"{median(one.values('tokens')):,.0f}" if one.steps else "failed",
                "" if one is ours else f"{ratio(one.values('seconds'), ours.values('seconds')):.2f}",
                mebibytes(one.values("peak_bytes")),
            ]
        )
    print(table(["variant", "seconds", "tokens", "ours is … times as fast", "peak MiB"], rows), flush=True)
    return {key: one.as_dict() for key, one in measured.items()}


def _early_ends(setting: Setting, name: str, workload: Workload, rounds: int) -> dict[str, Any]:
    """The same model and prompts with EOS masked out and with EOS drawn: never slower, and the fewer tokens the faster."""
    rates = {key: ends / workload.tokens for key, ends in EARLY.items()} if MODELS[name] else {"trained": None}
    variants = {
        f"{key}, {label}, {ends}": {
            "kind": "decode",
            "folder": str(make_folder(name, setting.folder, rate)),
            "workload": asdict(workload),
            "dtype": dtype,
            "fixed_length": ends == "together",
        }
        for key, rate in rates.items()
        for dtype, label in DTYPES.items()
        for ends in ("together", "early")
    }
    measured = measure(variants, rounds, 1, setting.lock, ahead=AHEAD.get(name, 0))
    print(f"\n### {workload}: rows that end early against rows that end together\n")
    rows = []
    for key in variants:
        if key.endswith(", together"):
            together, early = measured[key], measured[key.removesuffix("together") + "early"]
            share = median(early.values("tokens")) / median(together.values("tokens"))
            rows.append(
                [
                    key.removesuffix(", together"),
                    interval(together.values("seconds")),
                    interval(early.values("seconds")),
                    number(share, 2),
                    number(ratio(early.values("seconds"), together.values("seconds")), 3),
                ]
            )
    print(table(["ends", "together", "early", "share of the tokens", "share of the seconds"], rows), flush=True)
    return {key: one.as_dict() for key, one in measured.items()}
