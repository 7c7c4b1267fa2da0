"""The completions browser: records of every model → a small index and compressed chunks of text.

Equal samples of a model are stored once with their count. The index names every problem; its texts lie in chunks of a
few problems each, which the page decompresses when a problem is opened.
"""

from __future__ import annotations

import gzip
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bsharp.reporting.page.embed import json_text
from bsharp.reporting.page.parts import Completions

__all__ = ["COLLAPSED", "completions_part"]

COLLAPSED = (
    "A problem is collapsed under a model if, under at least one seed, all of its samples (two or more) give one and "
    "the same wrong answer, or none of them gives an answer: empty, cut off, or without one that can be read."
)
PROBLEMS_PER_CHUNK = 16
GRADES = ("correct", "wrong", "unparseable", "timeout", "error", "truncated")
_KEPT = ("text", "base_logprob", "logprob", "reward", "status", "answer", "length", "finish_reason", "greedy")
_QUESTION_SHOWN = 160  # characters of a question in the index; the whole one lies in its chunk

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
    in the index, without text. Records without a problem_id are skipped. No record at all gives an empty index.
    """
    if budget_bytes < 0:
        raise ValueError(f"budget_bytes is {budget_bytes}; give the bytes the completions may take, 0 or more")
    names = sorted(records_by_model, key=lambda name: name != "base")
    seeds = {name: sorted(records_by_model[name]) for name in names}
    found: dict[str, _Problem] = {}
    for at, name in enumerate(names):
        for seed in seeds[name]:
            for record in records_by_model[name][seed]:
                if isinstance(record, Mapping) and record.get("problem_id") is not None:
                    key = str(record["problem_id"])
                    if key not in found:
                        found[key] = _Problem(key, record)
                    found[key].add(at, seed, record)
    entries = list(found.values())
    texts = [json_text(entry.texts([(at, seeds[name]) for at, name in enumerate(names)])) for entry in entries]
    kept, chunks = _fit(texts, budget_bytes)
    for position, entry in enumerate(kept):
        entries[entry].chunk = divmod(position, PROBLEMS_PER_CHUNK)
    index = {
        "models": [{"name": name, "seeds": seeds[name]} for name in names],
        "grades": list(GRADES),
        "collapsed": COLLAPSED,
        "problems": [entry.index_row(len(names)) for entry in entries],
        "changed": _changed(problems, {entry.problem_id: at for at, entry in enumerate(entries)}),
    }
    return Completions(part_id, index, chunks, len(entries), len(entries) - len(kept), tuple(sources))


class _Problem:
    """What the records say about one problem: samples[(model, seed)] in the order of the records."""

    def __init__(self, problem_id: str, record: Record) -> None:
        self.problem_id = problem_id
        self.facts = {key: record.get(key) for key in ("task", "family", "role", "mode", "difficulty")}
        self.question = str(record.get("question") or "")
        self.gold = str(record.get("gold") if record.get("gold") is not None else "")
        self.samples: dict[tuple[int, int], list[Record]] = {}
        self.chunk: tuple[int, int] | None = None

    def add(self, model: int, seed: int, record: Record) -> None:
        self.samples.setdefault((model, seed), []).append({key: record.get(key) for key in _KEPT})

    def index_row(self, models: int) -> dict[str, Any]:
        by_model = [
            [s for (m, _), group in self.samples.items() if m == model for s in group] for model in range(models)
        ]
        return {
            "id": self.problem_id,
            **self.facts,
            "question": self.question[:_QUESTION_SHOWN],
            "chunk": self.chunk,
            "right": [_share_right(samples) for samples in by_model],
            "grades": [sum(1 << bit for bit in sorted(_grades(samples))) for samples in by_model],
            "collapsed": sorted({model for (model, _), samples in self.samples.items() if _collapsed(samples)}),
        }

    def texts(self, models: Sequence[tuple[int, Sequence[int]]]) -> dict[str, Any]:
        return {
            "question": self.question,
            "gold": self.gold,
            "samples": [[_grouped(self.samples.get((at, seed), [])) for seed in seeds] for at, seeds in models],
        }


def _drawn(samples: Sequence[Record]) -> list[Record]:
    return [sample for sample in samples if not sample["greedy"]] or list(samples)


def _share_right(samples: Sequence[Record]) -> float | None:
    """Share of the samples that are correct, of those the grader could judge; None where there is none."""
    rewards = [sample["reward"] for sample in _drawn(samples) if sample["reward"] is not None]
    right = [sample["status"] == "correct" for sample in _drawn(samples) if sample["reward"] is not None]
    return round(sum(right) / len(rewards), 4) if rewards else None


def _grades(samples: Sequence[Record]) -> set[int]:
    grades = {GRADES.index(sample["status"]) for sample in samples if sample["status"] in GRADES}
    return grades | ({GRADES.index("truncated")} if any(s["finish_reason"] == "length" for s in samples) else set())


def _collapsed(samples: Sequence[Record]) -> bool:
    drawn = _drawn(samples)
    if len(drawn) < 2:
        return False
    answers = {None if sample["answer"] is None else str(sample["answer"]) for sample in drawn}
    return len(answers) == 1 and all(sample["status"] in ("wrong", "unparseable") for sample in drawn)


def _grouped(samples: Sequence[Record]) -> list[list[Any]]:
    """Rows [count, greedy, text, base_logprob, logprob, reward, status, answer, length, truncated], most frequent first."""
    counts: Counter[tuple[Any, ...]] = Counter()
    for sample in samples:
        counts[
            (
                bool(sample["greedy"]),
                str(sample["text"] if sample["text"] is not None else ""),
                _rounded(sample["base_logprob"]),
                _rounded(sample["logprob"]),
                _rounded(sample["reward"]),
                str(sample["status"]),
                None if sample["answer"] is None else str(sample["answer"]),
                _rounded(sample["length"]),
                sample["finish_reason"] == "length",
            )
        ] += 1
    ordered = sorted(counts.items(), key=lambda item: (not item[0][0], -item[1]))
    return [[count, *row] for row, count in ordered]


def _rounded(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return round(value, 3)


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
