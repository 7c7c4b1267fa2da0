"""A run directory: resolved config, manifest, metrics and records. Append-only, and safe against a crash. No torch.

run/
  config.json      the resolved config
  manifest.json    what it ran on: versions, machine, hash of the base's weights, hash of the code
  metrics.jsonl    one line per training step
  *.jsonl          records, one line per sample
  checkpoints/     step_000040/ …
  complete.json    written last: its presence says that the run ended as it should
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from bsharp.version import __version__

__all__ = ["RunDirectory", "SampleFile", "code_hash", "differences", "manifest"]

# What can change a figure. Tables and the command line are left out: a better table must not void a run.
_RESULT_CODE = (
    "algorithm",
    "diagnostics/alarm.py",
    "diagnostics/alignment.py",
    "diagnostics/objective_gradients.py",
    "evaluation/evaluate.py",
    "experiment/jobs.py",
    "experiment/monitors.py",
    "experiment/run.py",
    "generation",
    "masking.py",
    "models",
    "rewards",
    "rollouts",
    "seeding.py",
    "statistics/gradient_noise.py",
    "statistics/repetition.py",
    "tasks",
    "training",
    "types.py",
)


_encode = json.JSONEncoder(ensure_ascii=False).encode


class RunDirectory:
    """One directory per run; every file is either appended to line by line or replaced as a whole.

    Raises NotADirectoryError where a file has its name.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.is_file():
            raise NotADirectoryError(
                f"{self.path} is a file; name a directory, which need not exist, for what is written"
            )
        self.path.mkdir(parents=True, exist_ok=True)

    def write_json(self, name: str, value: Any) -> None:
        """Replace `name` in one step: a reader or a crash sees the old file or the new one, never half of it."""
        target = self.path / name
        temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, target)

    def read_json(self, name: str) -> Any:
        """The value of `name`, or None where there is no such file."""
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add one line and hand it to the operating system at once."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def write_rows(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace `name` by these lines in one step."""
        target = self.path / name
        temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(_encode(row) + "\n" for row in rows)
            os.replace(temporary, target)
        except BaseException:  # the rows may be made while they are written
            temporary.unlink(missing_ok=True)
            raise

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """The lines of `name`. A last line cut off by a crash is left out; a broken line elsewhere is an error. Bytes that
        are no UTF-8 become U+FFFD.
        """
        return _rows(self.path / name, json.loads)

    def samples(self, name: str) -> SampleFile:
        """The records of `name`, read from the file by every iteration."""
        return SampleFile(self.path / name)

    def truncate_after(self, name: str, step: int) -> None:
        """Drop the lines with a `step` beyond `step`: what a killed run wrote after its last checkpoint."""
        kept = [row for row in self.rows(name) if row["step"] <= step]
        if (self.path / name).exists():
            self.write_rows(name, kept)

    def clear(self) -> None:
        """Remove everything in the directory."""
        shutil.rmtree(self.path)
        self.path.mkdir(parents=True)


@dataclass(frozen=True)
class SampleFile:
    """Evaluation records in a file: `rows`, read anew by every iteration, with `token_ids` left as the text of their list.

    `[17, 4]` is `"17, 4"`: enough to tell responses apart, in half the time that making the numbers takes.
    """

    path: Path

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return _rows(self.path, _with_ids_as_text)


def _rows(path: Path, read: Callable[[str], Any]) -> Iterator[Any]:
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return
            try:
                yield read(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is not JSON ({error}); restore or delete the file") from None


_IDS = '"token_ids": ['


def _with_ids_as_text(line: str) -> Any:
    # In JSON this can be nothing but the key: a quote within a string has a backslash before it.
    begin = line.find(_IDS) + len(_IDS)
    end = line.find("]", begin)
    row = None
    if begin >= len(_IDS) and end > 0:
        with contextlib.suppress(json.JSONDecodeError):  # no list of numbers
            row = json.loads(f'{line[: begin - 1]}"{line[begin:end]}"{line[end + 1 :]}')
    if row is None:
        row = json.loads(line)
    if isinstance(row, dict) and isinstance(ids := row.get("token_ids"), list):
        row["token_ids"] = ", ".join(map(str, ids))
    return row


def code_hash(parts: Sequence[str] = _RESULT_CODE) -> str:
    """SHA-256 over the source files that can change a figure (16 hex digits), or over other files and folders of the package."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for part in parts:
        path = root / part
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix in {".py", ".toml"}:
                digest.update(f"{file.relative_to(root).as_posix()}\n".encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def manifest(base_weights_hash: str, **extra: Any) -> dict[str, Any]:
    """What a run ran on. `identity` decides whether finished work can be used again."""
    packages = (
        "torch",
        "transformers",
        "tokenizers",
        "safetensors",
        "numpy",
        "scipy",
        "math-verify",
        "peft",
        "datasets",
    )
    return {
        "identity": {"base_weights": base_weights_hash, "code": code_hash(), "bsharp": __version__},
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
        "machine": {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count()},
        **extra,
    }


def differences(ours: Any, theirs: Any, prefix: str = "") -> list[str]:
    """Readable lines `key: theirs → ours` for everything that differs between two nested JSON values."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        lines = []
        for key in sorted(set(ours) | set(theirs)):
            lines += differences(ours.get(key, "absent"), theirs.get(key, "absent"), f"{prefix}{key}.")
        return lines
    return [] if ours == theirs else [f"{prefix.rstrip('.')}: {theirs!r} there, {ours!r} asked for"]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
