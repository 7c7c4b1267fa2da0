"""The completions browser: records of every model → a small index and compressed chunks of text.

Equal samples of a model are stored once with their count. The index names every problem; its texts lie in chunks of a
few problems each, which the page decompresses when a problem is opened. Records are read once; the texts held meanwhile are
bounded, as are those of the page.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bsharp.reporting.page.embed import json_text
from bsharp.reporting.page.parts import Completions
from bsharp.reporting.page.tally import GRADES, ProblemTally

__all__ = ["COLLAPSED", "completions_part"]

COLLAPSED = (
    "A problem is collapsed under a model if, under at least one seed, all of its samples (two or more) give one and "
    "the same wrong answer, or none of them gives an answer: empty, cut off, or without one that can be read."
)
PROBLEMS_PER_CHUNK = 16
HELD = 8
"""Characters of text held while records are read, per byte of the budget: more than what fits the page compresses to."""

Record = Mapping[str, Any]


def completions_part(
    records_by_model: Mapping[str, Mapping[int, Iterable[Record]]],
    problems: Mapping[str, Any] | None,
    sources: Sequence[tuple[str, str]] = (),
    part_id: str = "completions",
    budget_bytes: int = 9_000_000,
) -> Completions:
    """The browser's data from the records of every model and seed; the base comes first where there is one.

    `problems` is the object of diagnostics/problems.json (gained and lost problems per regime) or None. The chunks,
    as base64 in the page, take at most `budget_bytes`: whole problems are left out evenly until they fit; they stay
    in the index, without text. Beyond HELD times as many characters every second problem's texts are let go, and so on, while
    the records are still being read. Records without a problem_id are skipped. No record at all gives an empty index.
    """
    if budget_bytes < 0:
        raise ValueError(f"budget_bytes is {budget_bytes}; give the bytes the completions may take, 0 or more")
    names = sorted(records_by_model, key=lambda name: name != "base")
    seeds = {name: sorted(records_by_model[name]) for name in names}
    tallies = _Tallies(HELD * budget_bytes)
    for at, name in enumerate(names):
        for seed in seeds[name]:
            for record in records_by_model[name][seed]:
                if isinstance(record, Mapping) and record.get("problem_id") is not None:
                    tallies.add(at, seed, record)
    entries = list(tallies.by_id.values())
    models = [(at, seeds[name]) for at, name in enumerate(names)]
    held, texts = list(range(0, len(entries), tallies.stride)), []
    for place in held:
        texts.append(json_text(entries[place].texts(models)))
        entries[place].forget_texts()
    kept, chunks = _fit(texts, budget_bytes)
    for position, place in enumerate(kept):
        entries[held[place]].chunk = divmod(position, PROBLEMS_PER_CHUNK)
    index = {
        "models": [{"name": name, "seeds": seeds[name]} for name in names],
        "grades": list(GRADES),
        "collapsed": COLLAPSED,
        "problems": [entry.index_row(len(names)) for entry in entries],
        "changed": _changed(problems, {entry.problem_id: at for at, entry in enumerate(entries)}),
    }
    return Completions(part_id, index, chunks, len(entries), len(entries) - len(kept), tuple(sources))


class _Tallies:
    """Every problem by id, in order of appearance; of the texts every `stride`-th problem's, `most` characters in all."""

    def __init__(self, most: int) -> None:
        self.by_id: dict[str, ProblemTally] = {}
        self.stride = 1
        self.characters = 0
        self._most = most
        self._held: list[ProblemTally] = []

    def add(self, model: int, seed: int, record: Record) -> None:
        problem_id = str(record["problem_id"])
        tally = self.by_id.get(problem_id)
        if tally is None:
            tally = self.by_id[problem_id] = ProblemTally(problem_id, record)
            if (len(self.by_id) - 1) % self.stride:
                tally.forget_texts()
            else:
                self._held.append(tally)
        self.characters -= tally.characters
        tally.add(model, seed, record)
        self.characters += tally.characters
        while self.characters > self._most and len(self._held) > 1:
            self._thin()

    def _thin(self) -> None:
        self.stride *= 2
        for tally in self._held[1::2]:
            self.characters -= tally.characters
            tally.forget_texts()
        self._held = self._held[::2]


def _fit(texts: Sequence[str], budget: int) -> tuple[list[int], list[bytes]]:
    """(indices of the problems kept, their chunks): all, or evenly spaced ones whose chunks fit the budget."""
    kept = list(range(len(texts)))
    while kept:
        chunks = [
            gzip.compress(("[" + ",".join(texts[at] for at in group) + "]").encode("utf-8"), compresslevel=6, mtime=0)
            for group in (kept[start : start + PROBLEMS_PER_CHUNK] for start in range(0, len(kept), PROBLEMS_PER_CHUNK))
        ]
        size = sum(4 * math.ceil(len(chunk) / 3) for chunk in chunks)
        if size <= budget:
            return kept, chunks
        count = min(int(len(kept) * budget / size * 0.97), len(kept) - 1)
        kept = [int((at + 0.5) * len(texts) / count) for at in range(count)]
    return [], []


def _changed(problems: Mapping[str, Any] | None, index: Mapping[str, int]) -> list[dict[str, Any]]:
    """Per regime the positions of the problems gained and lost."""
    regimes = (problems or {}).get("regimes") or {}
    return [
        {
            "regime": str(name),
            **{
                change: [index[str(key)] for key in regime.get(change) or () if str(key) in index]
                for change in ("gained", "lost")
            },
        }
        for name, regime in regimes.items()
        if isinstance(regime, Mapping)
    ]
