"""Rows of local files: JSON lines, a JSON array, CSV or Parquet."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bsharp.config import ConfigError

__all__ = ["SUFFIXES", "PlacedRow", "read_rows"]

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
PlacedRow = tuple[str, dict[str, Any]]  # where it stands, e.g. `line 3`, and its fields


def read_rows(path: Path) -> list[PlacedRow]:
    """The rows of a file in their order, each with its place (`line 3`, `row 3`).

    A `.json` file holds an array of objects, one object, or one object a line. Raises ConfigError, naming file and place,
    for a file that is not there, cannot be read, has another suffix, or holds something other than rows with named fields.
    """
    try:
        match path.suffix.lower():
            case ".jsonl":
                rows = list(_json_lines(path, path.read_text(encoding="utf-8-sig")))
            case ".json":
                rows = _json(path)
            case ".csv":
                rows = list(_csv(path))
            case ".parquet":
                rows = _parquet(path)
            case suffix:
                raise ConfigError(f"{path}: files that end in {suffix!r} cannot be read; use {', '.join(SUFFIXES)}")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not rows:
        raise ConfigError(f"{path} holds no rows")
    return rows


def _json_lines(path: Path, text: str) -> Iterator[PlacedRow]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{path}, line {number}: not JSON ({error}); write one object a line") from None
            yield _row(path, f"line {number}", value)


def _json(path: Path) -> list[PlacedRow]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # several values: one a line, as the hub's .json files often are
            return list(_json_lines(path, text))
        raise ConfigError(f"{path}: not JSON ({error})") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    values = values if isinstance(values, list) else [values]
    return [_row(path, f"row {number}", value) for number, value in enumerate(values, 1)]


def _row(path: Path, place: str, value: Any) -> PlacedRow:
    if not isinstance(value, dict):
        raise ConfigError(f"{path}, {place}: a {type(value).__name__}, not an object with named fields")
    return place, value


def _csv(path: Path) -> Iterator[PlacedRow]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # solutions exceed the default of 128 KiB
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                if None in row:
                    raise ConfigError(f"{path}, line {reader.line_num}: more cells than the header has names")
                yield f"line {reader.line_num}", dict(row)
        except csv.Error as error:
            raise ConfigError(f"{path}: not CSV after line {reader.line_num} ({error})") from None


def _parquet(path: Path) -> list[PlacedRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise ConfigError(f"{path}: not Parquet ({str(error).splitlines()[0]})") from None
    return [(f"row {number}", row) for number, row in enumerate(table.to_pylist(), 1)]
