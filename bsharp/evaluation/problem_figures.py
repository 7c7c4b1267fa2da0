"""Records → one number per seed and problem for every figure. NumPy only.

Ungraded samples are treated as `bsharp.statistics.samples` says; a problem left with too few graded samples for a figure
holds NaN there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bsharp.seeding import generator
from bsharp.statistics import pass_at_k
from bsharp.statistics.distinct import first_of_equals
from bsharp.statistics.maj_at_k import maj_at_k_of_classes
from bsharp.statistics.samples import Record, SampleTable, distinct_answers, means_without_grades, sample_table
from bsharp.statistics.score import reward_weighted_scores

__all__ = ["ProblemFigures", "problem_figures", "vote_sizes"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ProblemFigures(SampleTable):
    """The samples of one model or regime with the figures of its S seeds and P problems.

    `values` maps a figure's name to (S, P); pass@k and maj@k are under `pass@k` and `maj@k` with the number in place of k.
    Greedy figures are absent where no greedy completion was drawn.
    """

    values: Mapping[str, Array]

    @property
    def ungraded_samples(self) -> int:
        return int((~self.graded).sum())

    @property
    def ungraded_greedy(self) -> int:
        return int((~self.greedy_graded).sum())

    @property
    def base_scored(self) -> bool:
        return bool(self.scored.all())


def vote_sizes(samples: int) -> list[int]:
    """k of pass@k and maj@k: the powers of two up to n, and n itself."""
    powers = [2**exponent for exponent in range(samples.bit_length()) if 2**exponent <= samples]
    return powers if powers[-1] == samples else [*powers, samples]


def problem_figures(records_by_seed: Sequence[Iterable[Record]], name: str) -> ProblemFigures:
    """Figures of every seed and problem; `name` is what error messages call the model. The order of records is free.

    Each record is read once and let go. Raises ValueError where `sample_table` does, and for samples of which a base scored
    only some.
    """
    table = sample_table(records_by_seed, name)
    if table.scored.any() and not table.scored.all():
        raise ValueError(f"{name}: only some samples have a base_logprob; evaluate all with the same base, or none")
    values = _sample_figures(table) | _vote_figures(table)
    if table.greedy_graded.size:
        values["greedy_accuracy"] = np.where(table.greedy_graded, table.greedy_correct, np.nan)
    return ProblemFigures(**{name: value for name, value in vars(table).items() if name in _FIELDS}, values=values)


_FIELDS = SampleTable.__dataclass_fields__  # without what was computed and kept on the way


def _sample_figures(table: SampleTable) -> dict[str, Array]:
    """Means over the samples of a problem, (S, P) each."""
    correct = np.where(table.graded, table.correct, np.nan)
    with np.errstate(invalid="ignore"):  # 0/0 where nothing is graded: NaN is what is meant
        accuracy, exact_match, reward = (
            np.nansum(kind, -1) / table.graded.sum(-1) for kind in (correct, table.exact_matches, table.rewards)
        )
    return means_without_grades(table) | {
        "accuracy": accuracy,
        "exact_match": exact_match,
        "reward": reward,
        "ungraded": (~table.graded).mean(-1),
        "unparseable": table.unparseable.mean(-1),
    }


def _vote_figures(table: SampleTable) -> dict[str, Array]:
    """pass@k, maj@k, the reward-weighted score and the number of distinct answers, (S, P) each."""
    seeds, problems, samples = table.graded.shape
    ks = vote_sizes(samples)
    counts, rights = table.graded.sum(-1), table.correct.sum(-1)
    figures = {f"pass@{k}": np.full((seeds, problems), np.nan) for k in ks}
    for k in ks:
        enough = counts >= k
        figures[f"pass@{k}"][enough] = pass_at_k(counts[enough], rights[enough], k)
    classes = table.classes
    votes = maj_at_k_of_classes(
        classes.sizes,
        classes.right / np.maximum(classes.sizes, 1),
        (table.graded & ~table.answered).sum(-1).ravel(),
        ks,
        # Used only where there are too many samples to enumerate.
        rng=lambda row: generator(row // problems, "maj_at_k", table.problem_ids[row % problems]),
    )
    figures |= {f"maj@{k}": votes[:, place].reshape(seeds, problems) for place, k in enumerate(ks)}
    rows = (seeds * problems, samples)
    # The first of equal responses stands for them.
    distinct = first_of_equals(table.responses.reshape(rows), table.graded.reshape(rows)) == np.arange(samples)
    score = reward_weighted_scores(table.logprobs.reshape(rows), table.rewards.reshape(rows), distinct)
    return figures | {
        "reward_weighted_score": score.reshape(seeds, problems),
        "distinct_answers": distinct_answers(table),
    }
