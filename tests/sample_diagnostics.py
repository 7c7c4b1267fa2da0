"""Contents of the diagnostics that need a model, made up, by their schemas."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

__all__ = ["FAMILIES", "estimated", "hand_made_diagnostics"]

FAMILIES = (("add", "standard", "right"), ("mean", "standard", "wrong"), ("years", "rare", "none"))

Record = dict[str, Any]


def estimated(value: float | None, width: float = 0.1, unit: str = "fraction", note: str = "", n: int = 12) -> Record:
    """An estimate as JSON."""
    low, high = (None, None) if value is None else (value - width, value + width)
    found = {"estimate": value, "low": low, "high": high, "n": n, "unit": unit}
    return found | ({"note": note} if note else {})


@cache
def hand_made_diagnostics(names: tuple[str, ...]) -> dict[str, Any]:
    """Contents of the diagnostics that need a model, by their schemas; the first name is that of the task reward."""
    return {
        "alignment": {"schema": 1, "points": [_point(names, "base", 0), _point(names, f"{names[0]}/seed_0", 12)]},
        "mistakes": _mistakes(names),
        "sensitivity": _sensitivity(names),
        "surface": _surface(names),
    }


def _point(names: Sequence[str], checkpoint: str, step: int) -> dict[str, Any]:
    matrix = [[estimated(1.0 if a == b else 0.3 - 0.1 * abs(i - j), unit="cosine") for j, b in enumerate(names)]
              for i, a in enumerate(names)]  # fmt: skip
    plain = [[entry["estimate"] for entry in row] for row in matrix]
    undefined = estimated(None, unit="cosine", note="a squared norm is not above 0")
    return {
        "checkpoint": checkpoint,
        "step": step,
        "problems": 24,
        "samples": 8,
        "objectives": list(names),
        "advantage": "leave_one_out",
        "euclidean": {
            "matrix": matrix,
            "noise_floor": [estimated(0.4, unit="cosine") for _ in names],
            "debiased": [
                [undefined if a == names[-1] else entry for entry, a in zip(row, names, strict=True)] for row in matrix
            ],
        },
        "groups": {
            group: {"matrix": plain, "noise_floor": [0.4] * len(names), "share_of_norm": [share] * len(names)}
            for group, share in (("embedding", 0.2), ("layer 0 attention", 0.3), ("layer 0 mlp", 0.5))
        },
        "fisher": {"matrix": matrix},
        "variance": [
            {
                "objective": name,
                "variance_trace": estimated(0.5, unit="squared norm"),
                "signal_squared": estimated(1.0, unit="squared norm"),
                "signal_to_noise": estimated(2.0, unit="ratio"),
            }
            for name in names
        ],
    }


def _mistakes(names: Sequence[str]) -> dict[str, Any]:
    def change(value: float, unit: str) -> dict[str, Any]:
        return {
            key: estimated(value * sign, 0.2, unit) for key, sign in (("right", 0.5), ("mistake", -0.5), ("margin", 1))
        }

    def effect(name: str, mode: str) -> float:
        return -1.0 if name == "sharpening" and mode == "wrong" else 1.0

    types = [
        {
            "task": "math_mini",
            "family": family,
            "type": kind,
            "role": role,
            "mode": mode,
            "problems": 4,
            "usual": True,
            "base": change(0.3, "nats"),
            "first_step": {name: change(0.5 * effect(name, mode), "nats per unit length") for name in names},
            "trained": {name: change(2 * effect(name, mode), "nats") for name in names},
        }
        for (family, role, mode), kind in zip(FAMILIES, ("dropped carry", "sum for mean", "off by one"), strict=True)
    ]
    counts = {"corrected": 2, "amplified": 1, "undecided": 0, "types": 3}
    return {
        "schema": 1,
        "problems": 12,
        "objectives": list(names),
        "regimes": list(names),
        "notes": ["solutions are written in one canonical way"],
        "types": types,
        "oracle_cosine": {
            name: {
                "all": estimated(0.2, unit="cosine"),
                "families": {family: estimated(0.1, unit="cosine") for family, *_ in FAMILIES},
            }
            for name in names
        },
        "margin_cosine": {
            name: {
                "all": estimated(-0.1, unit="cosine"),
                "families": {family: estimated(0.1, unit="cosine") for family, *_ in FAMILIES},
            }
            for name in names
        },
        "summary": {stage: dict.fromkeys(names, counts) for stage in ("first_step", "trained")},
        "wrong_mode_summary": {stage: dict.fromkeys(names, counts) for stage in ("first_step", "trained")},
    }


def _sensitivity(names: Sequence[str]) -> dict[str, Any]:
    def figures(model: str, keeps: bool) -> dict[str, Any]:
        found: dict[str, Any] = {
            "answer_changed": estimated(0.2 + 0.05 * len(model) / 10) if keeps else None,
            "correctness_changed": estimated(0.1),
            "accuracy_original": estimated(0.5),
            "accuracy_changed": estimated(0.45),
        }
        delta = None if model == "base" else estimated(0.02)
        return found | {"answer_changed_delta": delta if keeps else None, "correctness_changed_delta": delta}

    models = ("base", *names)
    return {
        "schema": 1,
        "problems": 12,
        "samples": 4,
        "notes": ["greedy decoding: no sampling noise"],
        "changes": [
            {
                "change": change,
                "description": f"other {change}",
                "example": ["2 + 7 = ?", "7 + 2 = ?"],
                "problems": 12,
                "models": {model: figures(model, change != "numbers") for model in models},
            }
            for change in ("order", "spacing", "numbers")
        ],
        "overall": {model: figures(model, True) for model in models},
        "control": {model: {"answer_changed": estimated(0.0, 0.0)} for model in models},
    }


def _surface(names: Sequence[str]) -> dict[str, Any]:
    grid = [-2.0, -1.0, 0.0, 1.0, 2.0]
    quantities = {"reward": "reward", "base_logprob": "nats/sequence", "kl": "nats/sequence", "entropy": "nats/token"}

    def values(x: float, y: float) -> float:
        return round(0.4 + 0.1 * x - 0.02 * y * y, 4)

    planes = [
        {
            "name": name,
            "axes": [{"label": "sharpening", "norm": 1.5}, {"label": "task_reward", "norm": 1.8}],
            "angle_degrees": 70.0,
            "x": grid,
            "y": grid,
            "values": {
                key: {
                    "mean": [[None if (x, y) == (2.0, 2.0) else values(x, y) for x in grid] for y in grid],
                    "standard_error": [[0.01 for _ in grid] for _ in grid],
                }
                for key in quantities
            },
            "anchors": [{"name": "base", "x": 0.0, "y": 0.0}, {"name": "sharpening", "x": 1.5, "y": 0.0}],
            "paths": [
                {
                    "regime": regime,
                    "seed": 0,
                    "steps": [0, 5, 10],
                    "x": [0.0, 0.4, 0.9],
                    "y": [0.0, 0.1, 0.1 * place],
                    "explained": [None, 0.5, 0.7],
                    "explained_overall": 0.65,
                }
                for place, regime in enumerate(names)
            ],
        }
        for name in ("checkpoints", "initial gradients")
    ]
    lines = [
        {
            "name": f"{start} → {end}",
            "label_from": start,
            "label_to": end,
            "t": [0.0, 0.5, 1.0],
            "values": {key: {"mean": [0.3, None, 0.5], "standard_error": [0.01, None, 0.02]} for key in quantities},
        }
        for start, end in (("base", "task_reward"), ("sharpening", "task_reward"))
    ]
    about = {key: {"unit": unit, "title": key} for key, unit in quantities.items()}
    return {"schema": 1, "problems": 12, "samples": 4, "seed": 0, "quantities": about, "planes": planes, "lines": lines}
