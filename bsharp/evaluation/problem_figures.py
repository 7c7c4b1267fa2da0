"""Records → one number per seed and problem for every figure. NumPy only.

Samples whose reward is null (grader timeout or error) are UNGRADED: they leave the denominator of their problem in every
figure that needs a grade, and count in those that do not (length, KL, entropy, truncation). A problem left with too few
graded samples for a figure holds NaN there; what becomes of it is decided, and said, where figures are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsharp.seeding import generator
from bsharp.statistics import maj_at_k, pass_at_k, reward_weighted_score

__all__ = ["ProblemFigures", "problem_figures", "vote_sizes"]

Array = NDArray[np.float64]
Record = Mapping[str, Any]

UNGRADED_STATUSES = ("timeout", "error")


@dataclass(frozen=True)
class ProblemFigures:
    """Figures of one model or regime: S seeds, P problems in the order of their ids, n samples each.

    `values` maps a figure's name to (S, P); pass@k and maj@k are under `pass@k` and `maj@k` with the number in place of k.
    Greedy figures are absent where no greedy completion was drawn.
    """

    name: str
    problem_ids: tuple[str, ...]
    gold: tuple[str, ...]
    tasks: tuple[str, ...]
    families: tuple[str, ...]
    roles: tuple[str, ...]
    modes: tuple[str, ...]
    samples: int
    values: Mapping[str, Array]
    ungraded_samples: int
    ungraded_greedy: int
    # Per sample, (S, P, n): what the pooled correlation needs.
    graded: NDArray[np.bool_]
    rewards: Array  # NaN where ungraded
    base_logprobs: Array  # nats, whole response; NaN where no base scored the samples
    base_scored: bool

    @property
    def seeds(self) -> int:
        return len(self.values["accuracy"])


def vote_sizes(samples: int) -> list[int]:
    """k of pass@k and maj@k: the powers of two up to n, and n itself."""
    powers = [2**exponent for exponent in range(samples.bit_length()) if 2**exponent <= samples]
    return powers if powers[-1] == samples else [*powers, samples]


def problem_figures(records_by_seed: Sequence[Sequence[Record]], name: str) -> ProblemFigures:
    """Figures of every seed and problem; `name` is what error messages call the model. The order of records is free.

    Raises ValueError for no seed or no record, a repeated or missing sample, problems that differ between seeds, unequal
    numbers of samples, greedy completions of only some problems, and samples of which a base scored only some.
    """
    if not records_by_seed or not all(records_by_seed):
        raise ValueError(f"{name}: no records for at least one seed; evaluate every seed first")
    tables = [_by_problem(records, f"{name}, seed {index}") for index, records in enumerate(records_by_seed)]
    ids = sorted(tables[0])
    for index, table in enumerate(tables[1:], start=1):
        _require_equal_problems(ids, sorted(table), f"{name}, seed 0", f"{name}, seed {index}")
    sizes = {len(samples) for table in tables for samples, _ in table.values()}
    if len(sizes) > 1:
        raise ValueError(
            f"{name}: problems have between {min(sizes)} and {max(sizes)} samples; every problem needs the same number"
        )
    if (samples := sizes.pop()) == 0:
        raise ValueError(f"{name}: only greedy records; the figures need samples")
    ordered = [[table[problem_id][0] for problem_id in ids] for table in tables]
    greedy = [[table[problem_id][1] for problem_id in ids] for table in tables]
    arrays = _sample_arrays(ordered)
    scored = {record["base_logprob"] is not None for seed in ordered for row in seed for record in row}
    if len(scored) > 1:
        raise ValueError(f"{name}: only some samples have a base_logprob; evaluate all with the same base, or none")
    values = _sample_figures(arrays) | _vote_figures(ordered, arrays)
    found = [record for row in greedy for record in row if record is not None]
    if found and len(found) < len(tables) * len(ids):
        raise ValueError(
            f"{name}: {len(found)} greedy records for {len(tables) * len(ids)} problems; evaluate all or none"
        )
    if found:
        values["greedy_accuracy"] = np.array(
            [[_correct(record) for record in row if record is not None] for row in greedy]
        )
    first = [row[0] for row in ordered[0]]
    return ProblemFigures(
        name=name,
        problem_ids=tuple(ids),
        gold=tuple(str(record["gold"]) for record in first),
        tasks=tuple(record["task"] for record in first),
        families=tuple(record["family"] for record in first),
        roles=tuple(record["role"] for record in first),
        modes=tuple(record["mode"] for record in first),
        samples=samples,
        values=values,
        ungraded_samples=int((~arrays["graded"]).sum()),
        ungraded_greedy=sum(not _graded(record) for record in found),
        graded=arrays["graded"],
        rewards=arrays["reward"],
        base_logprobs=arrays["base_logprob"],
        base_scored=scored == {True},
    )


def require_paired(ours: ProblemFigures, theirs: ProblemFigures) -> None:
    """Raise ValueError unless both models met the same problems with the same number of samples."""
    _require_equal_problems(ours.problem_ids, theirs.problem_ids, ours.name, theirs.name)
    if ours.samples != theirs.samples:
        raise ValueError(
            f"{ours.name} has {ours.samples} samples per problem, {theirs.name} has {theirs.samples}; evaluate both alike"
        )
    for problem_id, ours_gold, theirs_gold in zip(ours.problem_ids, ours.gold, theirs.gold, strict=True):
        if ours_gold != theirs_gold:
            raise ValueError(
                f"problem {problem_id} has gold {ours_gold!r} in {ours.name} and {theirs_gold!r} in {theirs.name}; "
                "evaluate both on the same problem set"
            )


def _require_equal_problems(ours: Sequence[str], theirs: Sequence[str], our_name: str, their_name: str) -> None:
    for missing, lacking, having in (
        (sorted(set(theirs) - set(ours)), our_name, their_name),
        (sorted(set(ours) - set(theirs)), their_name, our_name),
    ):
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(
                f"{lacking} lacks problem {missing[0]}{more} that {having} has; paired figures need the same problems: "
                "evaluate both with the same evaluation settings"
            )


def _by_problem(records: Sequence[Record], name: str) -> dict[str, tuple[list[Record], Record | None]]:
    """Problem id → (its samples in order, its greedy record or None)."""
    samples: dict[str, dict[int, Record]] = {}
    greedy: dict[str, Record] = {}
    for record in records:
        problem_id, sample = record["problem_id"], record["sample"]
        known = samples.setdefault(problem_id, {})
        if (problem_id in greedy) if record["greedy"] else (sample in known):
            kind = "greedy record" if record["greedy"] else f"sample {sample}"
            raise ValueError(f"{name}: {kind} of problem {problem_id} occurs twice; were two evaluations joined?")
        if record["greedy"]:
            greedy[problem_id] = record
        else:
            known[sample] = record
    ordered = {}
    for problem_id, known in samples.items():
        if sorted(known) != list(range(len(known))):
            raise ValueError(
                f"{name}: problem {problem_id} lacks sample {min(set(range(len(known))) - set(known))}; records are incomplete"
            )
        ordered[problem_id] = ([known[index] for index in range(len(known))], greedy.get(problem_id))
    return ordered


def _graded(record: Record) -> bool:
    return record["reward"] is not None and record["status"] not in UNGRADED_STATUSES


def _correct(record: Record) -> float:
    return float(record["status"] == "correct") if _graded(record) else np.nan


def _sample_arrays(ordered: list[list[list[Record]]]) -> dict[str, Any]:
    """(S, P, n) each."""

    def table(field: Any, dtype: Any = np.float64) -> Any:
        return np.array([[[field(record) for record in row] for row in seed] for seed in ordered], dtype=dtype)

    return {
        "graded": table(_graded, np.bool_),
        "correct": table(_correct),
        "exact": table(lambda r: r["exact_match"] if _graded(r) else np.nan),
        "reward": table(lambda r: r["reward"] if _graded(r) else np.nan),
        "length": table(lambda r: r["length"]),
        "logprob": table(lambda r: r["logprob"]),
        "base_logprob": table(lambda r: np.nan if r["base_logprob"] is None else r["base_logprob"]),
        "truncated": table(lambda r: r["finish_reason"] == "length"),
        "unparseable": table(lambda r: r["status"] == "unparseable"),
    }


def _sample_figures(arrays: Mapping[str, Any]) -> dict[str, Array]:
    """Means over the samples of a problem, (S, P) each."""
    graded = arrays["graded"]
    with np.errstate(invalid="ignore"):  # 0/0 where nothing is graded: NaN is what is meant
        over_graded = {key: np.nansum(arrays[key], -1) / graded.sum(-1) for key in ("correct", "exact", "reward")}
    return {
        "accuracy": over_graded["correct"],
        "exact_match": over_graded["exact"],
        "reward": over_graded["reward"],
        "ungraded": (~graded).mean(-1),
        "unparseable": arrays["unparseable"].mean(-1),
        "truncated": arrays["truncated"].mean(-1),
        "length": arrays["length"].mean(-1),
        "kl_to_base": (arrays["logprob"] - arrays["base_logprob"]).mean(-1),
        "negative_logprob": -arrays["logprob"].mean(-1),
    }


def _vote_figures(ordered: list[list[list[Record]]], arrays: Mapping[str, Any]) -> dict[str, Array]:
    """pass@k, maj@k, the reward-weighted score and the number of distinct answers, (S, P) each."""
    graded = arrays["graded"]
    seeds, problems, samples = graded.shape
    ks = vote_sizes(samples)
    counts, correct = graded.sum(-1), np.nansum(arrays["correct"], -1)
    figures = {f"{kind}@{k}": np.full((seeds, problems), np.nan) for kind in ("pass", "maj") for k in ks}
    figures |= {key: np.full((seeds, problems), np.nan) for key in ("reward_weighted_score", "distinct_answers")}
    for k in ks:
        enough = counts >= k
        figures[f"pass@{k}"][enough] = pass_at_k(counts[enough], correct[enough], k)
    for s, p in np.ndindex(seeds, problems):
        kept = np.flatnonzero(graded[s, p])
        if not len(kept):
            continue
        row = ordered[s][p]
        answers = [row[i]["answer"] for i in kept]
        usable = [k for k in ks if k <= len(kept)]
        rng = generator(s, "maj_at_k", row[0]["problem_id"])  # used only where there are too many samples to enumerate
        for k, credit in zip(usable, maj_at_k(answers, arrays["correct"][s, p, kept], usable, rng=rng), strict=True):
            figures[f"maj@{k}"][s, p] = credit
        figures["distinct_answers"][s, p] = len(set(answers) - {None})
        figures["reward_weighted_score"][s, p] = reward_weighted_score(
            arrays["logprob"][s, p, kept], arrays["reward"][s, p, kept], [tuple(row[i]["token_ids"]) for i in kept]
        )
    return figures
