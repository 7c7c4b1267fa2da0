"""The notes below a comparison: what its figures rest on, and what a reader of a number should know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bsharp.reporting.cells import (
    BASE,
    Column,
    Results,
    Row,
    best_columns,
    best_rows,
    columns,
    family_columns,
    largest_k,
    plain_text,
    problems_title,
    rows,
)
from bsharp.statistics import ONE_SEED

__all__ = ["STARS", "notes"]

STARS = "* the 95 % interval of the change excludes 0; not corrected for the number of comparisons"


def notes(results: Results, families: bool = False) -> list[str]:
    """One note per line, those of all printed figures included; `families` says that those of families are printed too."""
    lines = [_what(results), "KL: policy‖base, per sequence.", *_stopped(results)]
    repeated = [name for name in results["regimes"] if results["regimes"][name]["best_by_validation"] is not None]
    shown = {row.name for row in best_rows(results)}
    repeated = [plain_text(name) for name in repeated if name not in shown]
    if repeated:
        lines.append(f"The best checkpoint by validation is the last one in every seed: {', '.join(repeated)}.")
    ungraded = sum(row.summary["counts"]["ungraded_samples"] for row in rows(results))
    if ungraded:
        lines.append(f"{ungraded} samples could not be graded (timeout or error); they count in no accuracy.")
    lines += _figure_notes(results)
    if families:
        lines += _family_notes(results)
    choices = [f"- {plain_text(choice)}" for choice in results["choices_using_labels"]]
    return lines + (["Choices that used labels:", *choices] if choices else [])


def _what(results: Results) -> str:
    counts, config = results["base"]["counts"], results["config"].get("evaluation", {})
    seeds = max((regime["counts"]["seeds"] for regime in results["regimes"].values()), default=1)
    text = f"{counts['problems']} {problems_title(results)} × {counts['samples_per_problem']} samples"
    if "temperature" in config:
        text += f" at temperature {config['temperature']:g}"
    if config.get("fixed_length"):
        text += f", all of fixed length ({config.get('max_new_tokens')} tokens, EOS masked out)"
    if seeds == 1:
        text += ", 1 training seed: intervals cover problems only. Brackets: 95 % intervals, bootstrap over problems. "
    else:
        text += f", {seeds} training seeds. "
        text += "Brackets: 95 % intervals, bootstrap over problems combined with a t interval over seeds; base: problems only. "
    return text + "Δ is paired: same problems, same random streams."


def _stopped(results: Results) -> Iterator[str]:
    for name, regime in results["regimes"].items():
        best = regime["best_by_validation"]
        for place, reason in enumerate(regime["stopped"]):
            seed, step = regime["seeds"][place], regime["last_steps"][place]
            if reason is not None:
                yield (
                    f"{plain_text(name)}: seed {seed} stopped early ({plain_text(reason)}); weights of step {step} are evaluated."
                )
            if best is not None and best["steps"][place] is None:
                yield (
                    f"{plain_text(name)}: seed {seed} had no validation check; its last weights also stand for its best ones."
                )


def _parts(figure: Mapping[str, Any] | None) -> list[str]:
    """The single notes of a figure; that of one seed is in the first line for all of them."""
    note = "" if figure is None else figure.get("note", "")
    return [plain_text(part) for part in note.split("; ") if part and part != ONE_SEED]


def _figure_notes(results: Results) -> list[str]:
    """`2 of 512 problems left out: … (pass@16: base, tilted)`."""
    found: dict[str, dict[str, list[str]]] = {}
    last = [(row, columns(results), "") for row in rows(results)]
    best = [(row, best_columns(results), " (best)") for row in best_rows(results)]
    for row, shown, suffix in [*last, *best]:
        for note, titles in _by_note(row, shown).items():
            found.setdefault(note, {}).setdefault(", ".join(titles), []).append(plain_text(row.name) + suffix)
    lines = []
    for note, where in found.items():
        places = "; ".join(f"{titles}: {', '.join(names)}" for titles, names in where.items())
        lines.append(f"{note} ({places}).")
    return lines


def _by_note(row: Row, shown: Sequence[Column]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for column in shown:
        if column.figure is None or (row.name == BASE and column.title in ("Δ to base", "KL")):
            continue  # of the base these are 0 by definition
        for note in _parts(column.figure(row.summary)):
            found.setdefault(note, []).append(column.title)
    return found


def _family_notes(results: Results) -> list[str]:
    """The notes of the figures of families: by family, which are many, only how many figures have them."""
    found: dict[str, int] = {}
    for row in rows(results):
        for family in row.summary["families"].values():
            for note, titles in _by_note(Row(row.name, family), family_columns(largest_k(results["base"]))).items():
                found[note] = found.get(note, 0) + len(titles)
    return [f"{note} ({count} figure{'s' * (count != 1)} of families)." for note, count in found.items()]
