"""Records → one number per seed and problem for every figure. NumPy only.

Ungraded samples are treated as `bsharp.statistics.samples` says; a problem left with too few graded samples for a figure
holds NaN there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bsharp.seeding import generator
from bsharp.statistics import maj_at_k, pass_at_k, reward_weighted_score
from bsharp.statistics.samples import (
    Record,
    SampleTable,
    correctness,
    distinct_answers,
    is_graded,
    means_without_grades,
    sample_table,
)

__all__ = ["ProblemFigures", "problem_figures", "vote_sizes"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ProblemFigures(SampleTable):
    """The samples of one model or regime with the figures of its S seeds and P problems.

    `values` maps a figure's name to (S, P); pass@k and maj@k are under `pass@k` and `maj@k` with the number in place of k.
    Greedy figures are absent where no greedy completion was drawn.
    """

    values: Mapping[str, Array]
    ungraded_samples: int
    ungraded_greedy: int
    # Per sample, (S, P, n): what the pooled correlation needs.
    graded: NDArray[np.bool_]
    rewards: Array  # NaN where ungraded
    base_scored: bool


def vote_sizes(samples: int) -> list[int]:
    """k of pass@k and maj@k: the powers of two up to n, and n itself."""
    powers = [2**exponent for exponent in range(samples.bit_length()) if 2**exponent <= samples]
    return powers if powers[-1] == samples else [*powers, samples]


def problem_figures(records_by_seed: Sequence[Sequence[Record]], name: str) -> ProblemFigures:
    """Figures of every seed and problem; `name` is what error messages call the model. The order of records is free.

    Raises ValueError where `sample_table` does, and for samples of which a base scored only some.
    """
    table = sample_table(records_by_seed, name)
    scored = table.array(lambda r: r["base_logprob"] is not None)
    if scored.any() and not scored.all():
        raise ValueError(f"{name}: only some samples have a base_logprob; evaluate all with the same base, or none")
    graded = table.array(is_graded).astype(np.bool_)
    correct = table.array(correctness)
    rewards = table.array(lambda r: r["reward"] if is_graded(r) else np.nan)
    values = _sample_figures(table, graded, correct, rewards) | _vote_figures(table, graded, correct)
    if table.greedy:
        values["greedy_accuracy"] = np.array([[correctness(record) for record in row] for row in table.greedy])
    return ProblemFigures(
        **vars(table),
        values=values,
        ungraded_samples=int((~graded).sum()),
        ungraded_greedy=sum(not is_graded(record) for row in table.greedy for record in row),
        graded=graded,
        rewards=rewards,
        base_scored=bool(scored.all()),
    )


def _sample_figures(table: SampleTable, graded: NDArray[np.bool_], correct: Array, rewards: Array) -> dict[str, Array]:
    """Means over the samples of a problem, (S, P) each."""
    exact = table.array(lambda r: r["exact_match"] if is_graded(r) else np.nan)
    with np.errstate(invalid="ignore"):  # 0/0 where nothing is graded: NaN is what is meant
        accuracy, exact_match, reward = (np.nansum(kind, -1) / graded.sum(-1) for kind in (correct, exact, rewards))
    return means_without_grades(table) | {
        "accuracy": accuracy,
        "exact_match": exact_match,
        "reward": reward,
        "ungraded": (~graded).mean(-1),
        "unparseable": table.array(lambda r: r["status"] == "unparseable").mean(-1),
    }


def _vote_figures(table: SampleTable, graded: NDArray[np.bool_], correct: Array) -> dict[str, Array]:
    """pass@k, maj@k, the reward-weighted score and the number of distinct answers, (S, P) each."""
    seeds, problems, samples = graded.shape
    ks = vote_sizes(samples)
    counts, rights = graded.sum(-1), np.nansum(correct, -1)
    figures = {f"{kind}@{k}": np.full((seeds, problems), np.nan) for kind in ("pass", "maj") for k in ks}
    figures |= {
        "reward_weighted_score": np.full((seeds, problems), np.nan),
        "distinct_answers": table.by_problem(distinct_answers),
    }
    for k in ks:
        enough = counts >= k
        figures[f"pass@{k}"][enough] = pass_at_k(counts[enough], rights[enough], k)
    for s, p in np.ndindex(seeds, problems):
        row = [record for record in table.records[s][p] if is_graded(record)]
        if not row:
            continue
        usable = [k for k in ks if k <= len(row)]
        rng = generator(s, "maj_at_k", table.problem_ids[p])  # used only where there are too many samples to enumerate
        answers, credits = [record["answer"] for record in row], [correctness(record) for record in row]
        for k, credit in zip(usable, maj_at_k(answers, credits, usable, rng=rng), strict=True):
            figures[f"maj@{k}"][s, p] = credit
        figures["reward_weighted_score"][s, p] = reward_weighted_score(
            [record["logprob"] for record in row],
            [record["reward"] for record in row],
            [tuple(record["token_ids"]) for record in row],
        )
    return figures
