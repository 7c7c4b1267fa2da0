"""Section 9: what this run does not show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bsharp.reporting.cells import comparable, plain_text, rows
from bsharp.reporting.notes import notes
from bsharp.reporting.page.load import DIAGNOSTICS, RunData
from bsharp.reporting.page.parts import (
    Callout,
    Completions,
    DataTable,
    Definitions,
    Paragraph,
    Part,
    Section,
    every_part,
)
from bsharp.reporting.page.sections.common import diagnose, half_width, notes_in, number_of, percent_text, section_of

__all__ = ["WIDE", "section"]

WIDE = 5.0
"""Points. A comparison that finds nothing with an interval wider to one side than this may have missed what matters."""
TRUNCATED = 0.01
FEW_PROBLEMS = 100


def section(run: RunData, before: Sequence[Section], running: bool = False) -> Section:
    """Every reason to doubt a figure of the page; `before` are the sections that are on it, `running`: the run goes on."""
    warnings = [*_unfinished(run, running), *_unreadable(run), *_stopped(run)]
    if run.results is not None:
        warnings += [*_incomparable(run.results), *_seeds(run.results), *_wide(run.results)]
        warnings += [*_responses(run.results), *_rival(run)]
    parts: list[Part] = [Callout("warning", text) for text in warnings]
    others = [*_left_out(before), *_absent(run)]
    parts += [Callout("note", text) for text in others]
    if not warnings:
        parts.insert(
            0, Paragraph("No comparison is under-powered, no run stopped early and few responses were cut off.")
        )
    parts.append(Definitions(ALWAYS))
    parts += _notes(run)
    return section_of("limits", "What this run does not show", parts, "")


ALWAYS = (
    ("Other models and data", "One base and one set of problems: the intervals cover other problems of the same kind and other "
     "seeds, not other models, sizes or domains."),
    ("Several comparisons", "Intervals are at 95 % each. Of twenty changes without any effect one is expected to look clear."),
    ("Causes", "A regime differs from another by its objective and its learning rate; the rates were chosen as stated under "
     "choices that used labels."),
)  # fmt: skip


def _unfinished(run: RunData, running: bool) -> Iterator[str]:
    if run.kind == "comparison" and run.results is None:
        missing = [name for name in run.planned if name not in run.finished]
        shown = ", ".join(plain_text(name) for name in missing[:6]) + (" and more" if len(missing) > 6 else "")
        if missing:
            yield f"The comparison is unfinished: {len(missing)} of {len(run.planned)} jobs are missing ({shown})."
        else:
            yield "All jobs are done, but the comparison has not written its results yet."
    if run.kind == "training":
        yield (
            "One training run has one seed and no comparison: it shows neither how much training varies nor what another "
            "objective would have done. `bsharp compare` does."
        )
    for job in run.runs if run.kind == "training" else ():
        if not job.trained:
            steps = job.config.get("steps", "an unknown number of")
            yield f"Training is {'running' if running else 'unfinished'}: {job.last_step} of {steps} steps."


def _unreadable(run: RunData) -> Iterator[str]:
    yield from (plain_text(sentence) for sentence in run.unreadable)


def _seeds(results: Mapping[str, Any]) -> Iterator[str]:
    counts = {name: regime["counts"]["seeds"] for name, regime in results["regimes"].items()}
    for seeds, consequence in (
        (1, "one seed: their intervals cover problems only, and how much training itself varies is unknown"),
        (2, "two seeds: a spread from two runs is uncertain by a factor of ten, so intervals are very wide"),
    ):
        names = [plain_text(name) for name, count in counts.items() if count == seeds]
        if names:
            yield f"{', '.join(names)}: {consequence}."
    problems, samples = (results["base"]["counts"][key] for key in ("problems", "samples_per_problem"))
    if problems < FEW_PROBLEMS:
        yield f"Only {problems} problems were evaluated; differences of a few points cannot be seen."
    if samples < 4:
        yield f"Only {samples} samples per problem: pass@k, maj@k and calibration say little."


def _incomparable(results: Mapping[str, Any]) -> Iterator[str]:
    if not comparable(results):
        yield (
            "No figure of this page says which model is better: too few problems have a right answer of any model. Differences, "
            "votes, calibration and gained problems are shown as they are and mean nothing."
        )


def _wide(results: Mapping[str, Any]) -> Iterator[str]:
    """Comparisons whose interval includes 0: under-powered those wider than ± `WIDE` points, widest first, then all."""
    if not comparable(results):
        return
    compared = {f"{name} against base": regime["delta"] for name, regime in results["regimes"].items()}
    for name, others in results["differences"].items():
        compared |= {f"{name} against {other}": figure for other, figure in others.items()}
    undecided = {
        name: half_width(figure) or 0.0
        for name, figure in compared.items()
        if number_of(figure, "low", 1) <= 0 <= number_of(figure, "high", -1)
    }
    wide = sorted((name for name, width in undecided.items() if width > WIDE), key=lambda name: -undecided[name])
    if wide:
        shown = _some([f"{name} (± {undecided[name]:.1f})" for name in wide])
        yield (
            f"Under-powered: {len(wide)} of {len(compared)} comparisons have an interval that includes 0 and is wider than "
            f"± {WIDE:g} points: {shown}. More seeds, then more problems, narrow them."
        )
    if undecided:
        yield f"Undecided: the interval includes 0 for {_some(list(undecided))}. That is no evidence of equality."


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(map(plain_text, names[:8])) + more


def _responses(results: Mapping[str, Any]) -> Iterator[str]:
    cut = {row.name: row.summary["truncated"] for row in rows(results)}
    cut = {name: figure for name, figure in cut.items() if (figure.get("estimate") or 0) > TRUNCATED}
    if cut:
        shown = ", ".join(f"{plain_text(name)} {percent_text(figure)} %" for name, figure in cut.items())
        told = "One that did not come to its answer counts as wrong; raise max_new_tokens."
        yield f"Responses were cut off at the token limit: {shown}. {told}"
    ungraded = {row.name: row.summary["counts"]["ungraded_samples"] for row in rows(results)}
    shown = ", ".join(f"{plain_text(name)} {count}" for name, count in ungraded.items() if count)
    if shown:
        yield f"Samples that could not be graded (timeout or error) and count in no accuracy: {shown}."


def _stopped(run: RunData) -> Iterator[str]:
    for job in run.runs:
        if not job.stopped:
            continue
        text = f"{plain_text(job.name)} stopped early ({job.stopped})"
        if job.complete is not None:
            yield f"{text}; the weights of step {job.complete.get('last_step')} are evaluated."
        else:
            yield f"{text}; the weights of step {job.progress.get('step')} are its last."


def _rival(run: RunData) -> Iterator[str]:
    verdict = (run.results or {}).get("verdict", {})
    chosen, shares = verdict.get("chosen"), verdict.get("choice_shares") or {}
    if not chosen:
        return
    text = (
        f"The rival in the verdict, {plain_text(chosen)}, is the label-free regime with the highest validation accuracy: a "
        "choice that used labels and favours the rival."
    )
    others = {name: share for name, share in shares.items() if name != chosen and share >= 0.05}
    if others:
        told = ", ".join(f"{plain_text(name)} {100 * share:.0f} %" for name, share in others.items())
        text += f" It was not a sure choice; in bootstrap replicates others won: {told}."
    yield text


def _left_out(before: Sequence[Section]) -> Iterator[str]:
    for part in every_part(part for section in before for part in section.parts):
        if isinstance(part, Completions) and part.left_out:
            yield (
                f"The completions of {part.left_out} of {part.problems} problems are not in this page, to keep it small; the raw "
                "records hold them all."
            )
    for section in before:
        for part in section.parts:
            if isinstance(part, Callout) and part.text.startswith(UNBUILT):
                yield f"The section “{section.title}” is missing from this page."


UNBUILT = "This section could not be built"


def _absent(run: RunData) -> Iterator[str]:
    missing = [name for name in DIAGNOSTICS if name not in run.diagnostics]
    if run.kind == "comparison" and missing:
        yield f"Not computed: {', '.join(missing)}. Compute with `{diagnose(run, *missing)}`."
    surface = run.diagnostics.get("surface") or {}
    if surface.get("note"):
        yield f"{'Missing from the loss surface' if surface.get('planes') else 'No loss surface'}: {plain_text(surface['note'])}."
    if run.runs and not any(job.gradients for job in run.runs):
        yield "No gradients of other objectives were logged over training."


def _notes(run: RunData) -> Iterator[Part]:
    """What the results say about themselves, and every note of an estimate, counted by file."""
    if run.results is not None:
        choices = [plain_text(choice) for choice in run.results["choices_using_labels"]]
        lines = [line for line in notes(run.results, families=True) if not line.startswith("- ") and line[-1:] != ":"]
        yield DataTable(
            "notes",
            "Notes of the comparison",
            "What the figures rest on, and every choice that looked at right answers.",
            ("about", "note"),
            [["figures", line] for line in lines] + [["choice that used labels", choice] for choice in choices],
            folded=True,
        )
    files: dict[str, object] = dict(run.diagnostics)
    if run.summary is not None:
        files["summary"] = run.summary
    found = [
        [note, name, str(count)]
        for name, content in files.items()
        for note, count in Counter(notes_in(content)).most_common()
    ]
    if found:
        yield DataTable(
            "flagged",
            "Flagged estimates",
            "Notes that estimates carry, with the number of estimates that carry them.",
            ("note", "where", "estimates"),
            found,
            numeric=(2,),
            folded=True,
        )
