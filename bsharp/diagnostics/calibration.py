"""Over-confident and wrong: the vote's confidence against its accuracy, before and after training. NumPy only.

The modal answer of a problem is the one most of its graded samples give; its CONFIDENCE is its share of the graded samples,
its CREDIT 1 where it is right and 0 where it is wrong (`vote_share`). Unparseable samples never vote but count in the share;
tied answers share the credit; where nobody votes both are 0. A problem without graded samples in any seed is left out of
that model's figures, and of its differences to the base, and notes count it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsharp.seeding import generator
from bsharp.statistics import Estimate, expected_calibration_error, problem_and_seed_interval
from bsharp.statistics.calibration import calibration_bins, calibration_error_change
from bsharp.statistics.distinct import Classes
from bsharp.statistics.samples import (
    Record,
    SampleTable,
    left_out,
    noted,
    paired_tables,
    undefined,
)

__all__ = ["calibration"]

Array = NDArray[np.float64]
BINS = 10
PAIRS_AT_ONCE = 1 << 20
"""Pairs of an answer of a model and one of its base that are compared at once; at least one problem's."""
NO_VOTE = "no problem has a vote: no completion holds an answer that can be read"
LEAST_PROBLEMS = 10
"""Below this many problems a bin's or a condition's mean is given without an interval."""


@dataclass(frozen=True)
class _Votes:
    """One model's votes, S seeds by P problems; NaN where nothing was graded."""

    confidence: Array
    credit: Array
    # Of each class of equal answers, (S, P, C): its key, its share of the graded samples, its credit, whether it is modal.
    keys: NDArray[np.int64]
    shares: Array
    credits: Array
    modal: NDArray[np.bool_]


def calibration(records_by_model: Mapping[str, Sequence[Iterable[Record]]], base: str = "base") -> dict[str, Any]:
    """{"schema", "models": {model: {"bins", "ece"}}, "changes": {regime: …}} from evaluation records.

    `records_by_model` maps a model to its records, given per training seed and read once; the model named `base` has one. Greedy
    records are left out. All estimates carry 95 % intervals.

    A model's `bins` are ten: confidence in (low, high], 0 in the first; `problems` is their number in the bin, averaged
    over seeds (they add up to the model's problems); `confidence` the mean confidence in the bin and `accuracy` the mean
    credit, both over all seeds' problems together; below 10 different problems without an interval, null in an empty bin.
    `ece` is the expected calibration error (arXiv 1706.04599), per seed and then averaged over seeds; null where no problem
    has a vote, as are the changes where that is so of both models.

    The `changes` of a regime compare each problem with the base, over problems and seeds. Δ is the regime's confidence
    minus the base's, each in its own modal answer; right and wrong are the REGIME'S modal answer (a tie counts in parts).

    | key | figure |
    |---|---|
    | modal_share_change_where_right, …_wrong | mean Δ where the modal answer is right, wrong |
    | answer_share_change_where_right, …_wrong | the same with the base's share of the regime's modal answer in place of its own |
    | right_and_more_certain, right_and_less_certain, wrong_… | shares of all problems: right or wrong, and Δ > 0 or Δ < 0 |
    | same_wrong_answer_more_certain | share of all problems: wrong, the base's modal answer too, and Δ > 0 |
    | ece_change | ECE of the regime minus ECE of the base |

    A regime equal to the base would still show both certain-shares above 0, because Δ is never exactly 0 among few samples:
    read "more" against "less". answer_share_change is above 0 by chance too, because the answer was chosen by the votes it
    is measured on. Raises ValueError for incomplete records, and for models that were not evaluated on the base's problems
    with as many samples.
    """
    if base not in records_by_model:
        raise ValueError(f"calibration needs records of {base!r}, got {', '.join(records_by_model) or 'none'}")
    tables = paired_tables(records_by_model, base)
    votes = {name: _votes(table) for name, table in tables.items()}
    families = tables[base].families
    return {
        "schema": 1,
        "models": {name: _model(found, families, name == base) for name, found in votes.items()},
        "changes": {name: _changes(found, votes[base], families) for name, found in votes.items() if name != base},
    }


def _votes(table: SampleTable) -> _Votes:
    """`vote_share` of every seed and problem, and of every answer its share."""
    shape = (table.seeds, len(table.problem_ids), -1)
    classes: Classes = table.classes
    sizes, right = classes.sizes.reshape(shape), classes.right.reshape(shape)
    graded = table.graded.sum(-1)
    modal = (sizes > 0) & (sizes == sizes.max(-1, keepdims=True))
    with np.errstate(invalid="ignore"):  # 0/0 where nothing is graded: NaN is what is meant
        confidence = sizes.max(-1) / graded
        shares = sizes / graded[..., None]
    credits = right / np.maximum(sizes, 1)
    credit = (credits * modal).sum(-1) / np.maximum(modal.sum(-1), 1)
    credit = np.where(graded > 0, credit, np.nan)
    return _Votes(confidence, credit, classes.keys.reshape(shape), shares, credits, modal)


def _defined(*tables: Array) -> NDArray[np.intp]:
    """Places of the problems that have a vote in every seed of every model."""
    return np.flatnonzero(np.all([np.isfinite(table).all(axis=0) for table in tables], axis=0))


def _left_out(defined: NDArray[np.intp], problems: int) -> str:
    return left_out(problems - len(defined), problems, "no graded sample")


def _model(votes: _Votes, families: Sequence[str], is_base: bool) -> dict[str, Any]:
    places = _defined(votes.confidence)
    note = _left_out(places, len(families))
    confidence, credit = votes.confidence[:, places], votes.credit[:, places]
    strata = [families[place] for place in places.tolist()]
    if is_base:
        confidence, credit = confidence[0], credit[0]
    ece = undefined("fraction", "" if len(places) else "no graded sample")
    if len(places):
        rng = generator(0, "calibration", "ece")
        ece = expected_calibration_error(confidence, credit, rng=rng, bins=BINS, strata=strata, replicates=1000)
        ece = undefined("fraction", NO_VOTE) if not confidence.any() else _not_certain(ece, 0.0)
    return {"bins": _bins(confidence, credit), "ece": noted(replace(ece, unit="fraction"), note).as_json()}


def _bins(confidence: Array, credit: Array) -> list[dict[str, Any]]:
    bin_index = calibration_bins(confidence, BINS)
    rows = []
    for b in range(BINS):
        inside = (bin_index == b).astype(np.float64)
        count = float(inside.sum()) / (1 if inside.ndim == 1 else len(inside))
        rows.append(
            {
                "low": b / BINS,
                "high": (b + 1) / BINS,
                "problems": int(count) if count.is_integer() else count,
                "confidence": float((confidence * inside).sum() / inside.sum()) if count else None,
                "accuracy": _conditional_mean(credit, inside, None, f"bin {b}", bounds=(0.0, 1.0)).as_json(),
            }
        )
    return rows


def _conditional_mean(
    values: Array,
    weights: Array,
    families: Sequence[str] | None,
    key: str,
    bounds: tuple[float, float] | None = None,
    share_difference: bool = False,
) -> Estimate:
    """Σ w v / Σ w over problems and seeds, with the interval over those problems that have weight in any seed.

    A ratio R of means is, to first order, the mean over problems and seeds of R + w (v - R) / mean w, whose mean is R exactly.
    """
    chosen = np.flatnonzero(weights if weights.ndim == 1 else weights.sum(0))
    if not len(chosen):
        return undefined("fraction", "no such problem")
    w, v = weights[..., chosen], values[..., chosen]
    ratio = float((w * v).sum() / w.sum())
    if len(chosen) < LEAST_PROBLEMS:
        note = f"fewer than {LEAST_PROBLEMS} problems: no interval"
        return Estimate(ratio, np.nan, np.nan, len(chosen), "fraction", note)
    # Where every value is the same there is nothing to centre: rounding must not hide a figure that sits on its bound.
    spread = np.ptp(v[w > 0]) > 0
    shares = ratio + w * (v - ratio) / w.mean() if spread else np.full(w.shape, float(v[w > 0][0]))
    return problem_and_seed_interval(
        shares,
        rng=generator(0, "calibration", key),
        unit="fraction",
        strata=None if families is None else [families[place] for place in chosen.tolist()],
        bounds=bounds,
        share_difference=share_difference,
        replicates=1000,
    )


def _not_certain(ece: Estimate, least: float) -> Estimate:
    """A bootstrap of equal problems has no width: the ends then cover a share of problems not seen of 1 − 0.025^(1/P)."""
    if ece.low < ece.high or not np.isfinite(ece.low):
        return ece
    unseen = 1.0 - 0.025 ** (1.0 / ece.n)
    low, high = max(ece.estimate - unseen, least), min(ece.estimate + unseen, 1.0)
    return noted(replace(ece, low=low, high=high), "all problems are alike: the ends cover problems not seen")


def _changes(votes: _Votes, base: _Votes, families: Sequence[str]) -> dict[str, Any]:
    places = _defined(votes.confidence, base.confidence)
    note = _left_out(places, len(families))
    if not len(places):
        return dict.fromkeys(_CHANGES, undefined("fraction", note).as_json())
    strata = [families[place] for place in places.tolist()]
    confidence, right = votes.confidence[:, places], votes.credit[:, places]
    wrong = 1.0 - right
    # Shares of unequal numbers of graded samples may differ by rounding alone.
    change = np.round(confidence - base.confidence[:, places], 12)
    if not confidence.any() and not base.confidence[0, places].any():
        return dict.fromkeys(_CHANGES, noted(undefined("fraction", NO_VOTE), note).as_json())
    answer_change, same_wrong = _modal_answers(votes, base, places)
    more, less = (change > 0).astype(np.float64), (change < 0).astype(np.float64)

    def mean(values: Array, weights: Array, key: str) -> dict[str, Any]:
        return noted(_conditional_mean(values, weights, strata, key, share_difference=True), note).as_json()

    def share(values: Array, key: str) -> dict[str, Any]:
        return noted(_conditional_mean(values, np.ones_like(values), strata, key, bounds=(0.0, 1.0)), note).as_json()

    ece = calibration_error_change(
        confidence,
        right,
        base.confidence[0, places],
        base.credit[0, places],
        rng=generator(0, "calibration", "ece_change"),
        bins=BINS,
        strata=strata,
        replicates=1000,
    )
    found = {
        "modal_share_change_where_right": mean(change, right, "change where right"),
        "modal_share_change_where_wrong": mean(change, wrong, "change where wrong"),
        "answer_share_change_where_right": mean(answer_change, right, "answer where right"),
        "answer_share_change_where_wrong": mean(answer_change, wrong, "answer where wrong"),
        "right_and_more_certain": share(right * more, "right and more"),
        "right_and_less_certain": share(right * less, "right and less"),
        "wrong_and_more_certain": share(wrong * more, "wrong and more"),
        "wrong_and_less_certain": share(wrong * less, "wrong and less"),
        "same_wrong_answer_more_certain": share(same_wrong * more, "same and more"),
        "ece_change": noted(replace(_not_certain(ece, -1.0), unit="fraction"), note).as_json(),
    }
    assert tuple(found) == _CHANGES
    return found


_CHANGES = (
    "modal_share_change_where_right",
    "modal_share_change_where_wrong",
    "answer_share_change_where_right",
    "answer_share_change_where_wrong",
    "right_and_more_certain",
    "right_and_less_certain",
    "wrong_and_more_certain",
    "wrong_and_less_certain",
    "same_wrong_answer_more_certain",
    "ece_change",
)


def _modal_answers(votes: _Votes, base: _Votes, places: NDArray[np.intp]) -> tuple[Array, Array]:
    """(S, P) each: how the modal answer's own share moved, and the part of the modal answers that are wrong and the base's too.

    Tied answers count in equal parts.
    """
    shape = (len(votes.confidence), len(places))
    moved, same_wrong = np.zeros(shape), np.zeros(shape)
    present = base.shares[0] > 0
    step = max(1, PAIRS_AT_ONCE // (votes.keys.shape[-1] * base.keys.shape[-1]))
    for seed in range(shape[0]):
        for start in range(0, len(places), step):
            at = places[start : start + step]
            modal = votes.modal[seed, at]
            tied = np.maximum(modal.sum(-1), 1)
            # (problems, our classes, the base's classes); a class of size 0 has no answer.
            same = (
                (votes.keys[seed, at][:, :, None] == base.keys[0, at][:, None])
                & modal[:, :, None]
                & present[at][:, None]
            )
            mass = (same * base.shares[0, at][:, None]).sum((1, 2)) / tied
            shared = (same & base.modal[0, at][:, None]).any(-1)
            moved[seed, start : start + step] = np.where(modal.any(-1), votes.confidence[seed, at] - mass, 0.0)
            same_wrong[seed, start : start + step] = ((1.0 - votes.credits[seed, at]) * shared).sum(-1) / tied
    return moved, same_wrong
