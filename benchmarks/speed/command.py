"""The measuring stick: speed and memory against TRL, transformers and what the machine can do, in one run.

    make bench                                            # all sections, about an hour on two cores
    python benchmarks/speed --sections trl --models 6M    # one of them
    python benchmarks/speed --quick                       # fewer repetitions

Variants take turns, each in a process of its own, and only one computes at a time; figures are medians with the lowest and
the highest value. Tables go to standard output, every single measurement to a JSON file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]

SECTIONS = ("trl", "limits", "generate", "memory", "growth-engine", "gpu")


def main(arguments: Sequence[str]) -> None:
    """Measure, print and write; with --worker be one of the measured processes."""
    if arguments[:1] == ["--worker"]:
        from speed.worker import serve

        serve(json.loads(arguments[1]))
        return
    options = _parser().parse_args(arguments)
    _measure(options, arguments)


def _measure(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    from speed.machine import describe
    from speed.processes import Lock
    from speed.setting import Setting

    found = {"command": ["python", "benchmarks/speed", *arguments], **describe(), "sections": {}}
    print(
        f"{found['hardware']}, {found['cores']} cores; " + ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    )
    with tempfile.TemporaryDirectory(prefix="speed-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        setting = Setting(
            folder, options.quick, tuple(options.models), tuple(options.series), Lock(options.lock), options.reduced
        )
        for name in options.sections:
            started = time.perf_counter()
            print(f"\n## {name}\n", flush=True)
            found["sections"][name] = _section(name)(setting)
            print(f"\n{time.perf_counter() - started:.0f} s", flush=True)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten to {options.out}")


def _section(name: str):
    import importlib

    return importlib.import_module(f"speed.section_{name.replace('-', '_')}").run


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults, and the description as it stands."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("benchmarks/speed", description=__doc__, formatter_class=_Help)
    parser.add_argument("--sections", nargs="*", default=list(SECTIONS), choices=SECTIONS, help="what is measured")
    parser.add_argument(
        "--models", nargs="*", default=[], help="tiny, 6M, 50M; those of the section where none is named"
    )
    parser.add_argument(
        "--series", nargs="*", default=[], help="growth-engine: group, prompts, tokens, prompt_tokens, vocabulary; all"
    )
    parser.add_argument("--quick", action="store_true", help="a third of the repetitions")
    parser.add_argument("--reduced", action="store_true", help="gpu: two narrow layers, on any device")
    parser.add_argument("--out", type=Path, default=Path("runs/bench.json"), help="where every measurement is written")
    parser.add_argument("--folder", type=Path, help="keep the models made here; a temporary folder where none is named")
    parser.add_argument("--lock", help="a lock file shared with other measurements on this machine")
    return parser
