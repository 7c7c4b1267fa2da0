"""Regimes as strings, as configs and command lines write them: `name=constructor(argument=value,...)`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping

from bsharp.algorithm.objectives import (
    Objective,
    entropy_minimisation,
    hybrid,
    sharpening,
    suggest,
    task_reward,
    tempered,
    tilted,
    weighted,
)

__all__ = ["CONSTRUCTORS", "parse_objective"]

CONSTRUCTORS: Mapping[str, Callable[..., Objective]] = {
    "task_reward": task_reward,
    "tilted": tilted,
    "sharpening": sharpening,
    "tempered": tempered,
    "hybrid": hybrid,
    "entropy_minimisation": entropy_minimisation,
    "weighted": weighted,
}


def parse_objective(spec: str) -> tuple[str, Objective]:
    """Name and objective of `constructor`, `constructor(argument=value,...)` or `name=constructor(...)`.

    The name is the constructor's where none is given. Raises ValueError with the known words for whatever is unknown.

    >>> parse_objective("mild=tilted(alpha=1.25,beta_inv=100)")[0]
    'mild'
    """
    match = re.fullmatch(r"\s*(?:([^=()]*)=)?\s*(\w+)\s*(?:\((.*)\))?\s*", spec)
    if match is None:
        raise ValueError(
            f"cannot read regime {spec!r}; "
            "write constructor, constructor(argument=value) or name=constructor(argument=value)"
        )
    constructor = match[2]
    name = constructor if match[1] is None else match[1].strip()
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.+-]*", name):
        raise ValueError(f"regime name {name!r} cannot be used; begin with a letter, then letters, digits and _.+-")
    if constructor not in CONSTRUCTORS:
        raise ValueError(f"unknown regime {constructor!r}; {suggest(constructor, list(CONSTRUCTORS))}")
    arguments = _parse_arguments(spec, constructor, match[3] or "")
    try:
        return name, CONSTRUCTORS[constructor](**arguments)
    except ValueError as error:
        raise ValueError(f"regime {spec!r}: {error}") from None


def _parse_arguments(spec: str, constructor: str, text: str) -> dict[str, float | str]:
    parameters = inspect.signature(CONSTRUCTORS[constructor]).parameters
    arguments: dict[str, float | str] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise ValueError(f"regime {spec!r}: argument {item!r} has no name; write argument=value")
        if key not in parameters:
            remedy = suggest(key, list(parameters)) if parameters else f"{constructor} takes no argument"
            raise ValueError(f"regime {spec!r}: unknown argument {key!r}; {remedy}")
        if key in arguments:
            raise ValueError(f"regime {spec!r}: argument {key} is given twice; keep one")
        arguments[key] = value.strip("'\"") if key == "normalisation" else _parse_number(spec, key, value)
    required = [key for key, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]
    missing = [key for key in required if key not in arguments]
    if missing:
        example = ",".join(f"{key}=..." for key in required)
        raise ValueError(
            f"regime {spec!r}: {constructor} needs {' and '.join(missing)}; write {constructor}({example})"
        )
    return arguments


def _parse_number(spec: str, key: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"regime {spec!r}: {key} = {value!r} is not a number; write {key}=2, say") from None
