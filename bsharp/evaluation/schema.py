"""The schema of results.json, version 1: what every key means, with its unit and estimator.

`validate_results` checks a results object; `schema_markdown` writes the same descriptions as docs/results-schema.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bsharp.statistics.maj_at_k import EXACT_SAMPLES
from bsharp.statistics.verdict import LEAST_SOLVED

__all__ = ["SCHEMA_VERSION", "Results", "schema_markdown", "validate_results"]

SCHEMA_VERSION = 1


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Figure(_Strict):
    """An estimate with its 95 % interval. Every figure of the file has this form."""

    estimate: float | None = Field(description="the estimate; null where it cannot be made, then `note` says why")
    low: float | None = Field(description="lower end of the 95 % interval; null where there is none")
    high: float | None = Field(description="upper end of the 95 % interval; null where there is none")
    n: int = Field(ge=0, description="number of problems the figure rests on")
    unit: str = Field(
        description="`fraction` (0 to 1; of a difference, −1 to 1), `points` (hundredths of it), `tokens`, `answers`, "
        "`correlation`, `nats/sequence`, `nats/token` or `reward`"
    )
    note: str = Field(default="", description="what the reader should know: few seeds, problems left out, no variance")


ByK = Annotated[dict[str, Figure], Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Counts(_Strict):
    """What a summary rests on."""

    seeds: int = Field(ge=1, description="training seeds, each evaluated on its own; 1 for the base")
    problems: int = Field(ge=1, description="problems evaluated, the same for every seed and model")
    samples_per_problem: int = Field(ge=1, description="samples of each problem and seed (n of pass@k); greedy apart")
    ungraded_samples: int = Field(ge=0, description="samples without a reward (grader timeout or error), all seeds")
    ungraded_greedy: int = Field(ge=0, description="greedy completions without a reward, all seeds")


class Slice(_Strict):
    """Figures of one family, role or task; pass@k and maj@k at k = n only."""

    problems: int = Field(ge=1, description="problems of this slice")
    accuracy: Figure = Field(
        description="share of samples graded correct (mathematically equivalent to the gold answer), mean over problems "
        "and seeds; ungraded samples leave the denominator of their problem"
    )
    delta: Figure = Field(
        description="accuracy minus the base's on the same problems and random streams (paired); 0 for the base; null where a "
        "model is evaluated without the base's records"
    )
    greedy_accuracy: Figure | None = Field(
        description="share of problems whose greedy completion is correct; null if none was drawn"
    )
    pass_at_k: ByK = Field(
        description="by k: probability that at least one of k samples is correct, unbiased, 1 − C(n−c, k)/C(n, k); "
        "problems with fewer than k graded samples are left out and counted in the note"
    )
    pass_at_k_delta: ByK = Field(description="by k: pass@k minus the base's, paired by problem")
    maj_at_k: ByK = Field(
        description="by k: credit of the plurality vote among k samples drawn without replacement, exact up to "
        f"{EXACT_SAMPLES} samples; ties share credit, a sample without an answer is drawn but never votes"
    )
    length: Figure = Field(description="response tokens, EOS included, mean over samples")
    kl_to_base: Figure = Field(
        description="KL(policy‖base) at the sampling temperature, k1 estimator: mean of log π − log π_ref of whole "
        "sampled responses; 0 for the base; null where no base scored the samples"
    )


class FamilySlice(Slice):
    """Figures of one family."""

    role: str = Field(
        description="standard, rare, unsolved or transfer (never in training); none for a task without families"
    )
    mode: str = Field(
        description="of a standard or transfer family: whether the strategy the base prefers is, by construction of the "
        "base, right or wrong; none otherwise"
    )
    task: str = Field(description="the task it belongs to")


class Summary(Slice):
    """Figures of one checkpoint (of each seed) over all evaluated problems; pass@k and maj@k for k = 1, 2, 4, … n."""

    counts: Counts = Field(description="what the figures rest on")
    greedy_delta: Figure | None = Field(
        description="greedy accuracy minus the base's, paired by problem; null if either has no greedy completions"
    )
    maj_at_k_delta: ByK = Field(description="by k: maj@k minus the base's, paired by problem")
    entropy: Figure = Field(
        description="entropy of the policy per token at the sampling temperature: −Σ log π over Σ tokens of all samples "
        "(a ratio of means), interval by linearisation"
    )
    exact_match: Figure = Field(
        description="share of graded samples whose extracted answer equals the gold answer as a string"
    )
    reward: Figure = Field(description="raw task reward, mean over graded samples")
    reward_weighted_score: Figure = Field(
        description="Σ π(y) r(y) / Σ π(y) over the distinct graded samples of a problem, mean over problems"
    )
    truncated: Figure = Field(description="share of samples that reached the token limit without EOS")
    unparseable: Figure = Field(description="share of samples in which no answer could be read")
    ungraded: Figure = Field(description="share of samples whose grader timed out or failed; they count in no accuracy")
    distinct_answers: Figure = Field(
        description="different extracted answers among the graded samples of a problem, mean over problems"
    )
    corr_reward_base_logprob: Figure = Field(
        description="Corr(r, log π_ref) within problems, pooled: Σ_x Cov_x / √(Σ_x Var_x r · Σ_x Var_x log π_ref), under "
        "the evaluated policy's samples; covariances and variances averaged over seeds first; null where either never varies, "
        "or no base scored the samples"
    )


class FullSummary(Summary):
    """A summary with the figures of its tasks, families and roles."""

    tasks: dict[str, Slice] = Field(description="the figures of each task")
    families: dict[str, FamilySlice] = Field(description="the figures of each family")
    roles: dict[str, Slice] = Field(description="the figures of each role: standard, rare, unsolved, transfer")
    modes: dict[str, Slice] = Field(description="the figures of the standard families of each mode: right, wrong, none")


class BestCheckpoint(Summary):
    """Each seed at the checkpoint with the highest validation accuracy."""

    steps: list[int | None] = Field(
        description="the chosen step of each seed; the choice used validation labels; null for a seed that stopped before "
        "its first check, whose last weights stand here"
    )


class Stability(_Strict):
    """A word by a fixed rule on named statistics, and the figures behind it."""

    word: str = Field(
        description="stable, noisy, declining or collapsed; `no signal` where no completion was ever right, or graded"
    )
    why: str = Field(description="the figures behind the word, as a phrase")
    figures: dict[str, float | None] = Field(
        description="the statistics of the rule by name; their units are in the names"
    )


class Regime(FullSummary):
    """One regime over its seeds. The figures at this level are those of the LAST checkpoint."""

    objective: str = Field(description="the regime as it was asked for, e.g. tilted(alpha=2,beta_inv=100)")
    label_free: bool = Field(description="whether the objective gives the task reward no weight")
    learning_rate: float = Field(gt=0, description="peak learning rate")
    seeds: list[int] = Field(min_length=1, description="run seeds")
    last_steps: list[int] = Field(description="the step whose weights are evaluated as the last ones, by seed")
    stopped: list[str | None] = Field(
        description="why a seed's run ended early, its weights then put back to the last good checkpoint, that of "
        "`last_steps`; null for a seed that ran to its end"
    )
    stability: Stability = Field(description="how the training went")
    best_by_validation: BestCheckpoint | None = Field(
        description="the same figures at the best checkpoint by validation accuracy; null if it was not evaluated"
    )


class Answers(_Strict):
    """What became of the sampled completions of all models together, base and every seed included; greedy apart."""

    models: int = Field(ge=1, description="the base and the regimes")
    problems: int = Field(ge=1, description="problems evaluated")
    solved: int = Field(ge=0, description="problems for which any completion of any model is right")
    completions: int = Field(ge=1, description="sampled completions")
    correct: int = Field(ge=0, description="right ones")
    unparseable: int = Field(ge=0, description="those in which no answer could be read")
    ungraded: int = Field(ge=0, description="those whose grader timed out or failed")
    truncated: int = Field(ge=0, description="those cut at the token limit")


class Verdict(_Strict):
    """The task-reward regime against the best label-free one; the choice of that one is repeated inside the bootstrap."""

    sentence: str = Field(description="the verdict in one sentence")
    gain: Figure | None = Field(
        description="accuracy of task_reward minus that of the chosen rival, points, last checkpoints, same test problems; "
        "null if there is no task_reward or no rival"
    )
    chosen: str | None = Field(
        description="the label-free regime with the highest validation accuracy; null without a verdict"
    )
    choice_shares: dict[str, Share] = Field(
        description="share of bootstrap replicates in which each rival was the chosen one"
    )
    level: Share = Field(description="level of the interval of `gain`")
    comparable: bool = Field(
        default=True,
        description=f"false where fewer than {LEAST_SOLVED} problems are solved by any model at all: no figure of the file then "
        "says which model is better, and `sentence` begins with `nothing to compare` and gives the reason",
    )
    answers: Answers | None = Field(default=None, description="the counts that this is decided on")


class Results(_Strict):
    """The whole file."""

    schema_version: Literal[1] = Field(description="1; raised whenever a key changes its meaning")
    base: FullSummary = Field(
        description="the base before any training; one seed, so its intervals are over problems only"
    )
    regimes: dict[str, Regime] = Field(
        description="each regime under its own name, e.g. task_reward, tilted, sharpening, tempered"
    )
    differences: dict[str, dict[str, Figure]] = Field(
        description="`differences[a][b]`: accuracy of regime a minus that of regime b at the last checkpoint, paired by "
        "problem and seed; a comes before b"
    )
    verdict: Verdict = Field(description="what can be concluded")
    choices_using_labels: list[str] = Field(
        description="every choice of this comparison that used labels, one sentence each"
    )
    config: dict[str, Any] = Field(description="the resolved configuration")
    manifest: dict[str, Any] = Field(description="versions, machine, hash of the base's weights and of the code")


def validate_results(results: Mapping[str, Any]) -> Results:
    """`results` as typed objects; raises ValueError, one line naming the first key that is missing, unknown or wrong."""
    version = results.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"results have schema_version {version!r}, this version of bsharp reads {SCHEMA_VERSION}; rerun the comparison"
        )
    try:
        return Results.model_validate(dict(results))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        seen = "" if first["type"] == "missing" else f", got {str(first['input'])[:80]!r}"
        more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ValueError(
            f"results.json: {key}: {first['msg']}{seen}{more}; docs/results-schema.md lists the keys"
        ) from None


_PAGE = """# results.json, schema version {version}

`bsharp compare` writes `results.json` into its run directory. It is one JSON object; the tables below list every key.
Numbers are never NaN: what cannot be estimated is null, with the reason beside it.

Intervals are at the 95 % level. They combine a bootstrap over problems with a t interval over training seeds; with one seed
(the base always, or a run with a single seed) they cover problems only, and `note` says so. Differences are paired:
every model meets the same problems on the same random streams.

The JSONL records beside the file hold every sample; all figures but the stability word follow from them.

This page is the output of `bsharp.evaluation.schema_markdown()`.
"""


def schema_markdown() -> str:
    """docs/results-schema.md: every key of every object with type and description."""
    parts = [_PAGE.format(version=SCHEMA_VERSION)]
    for model in (
        Results,
        FullSummary,
        Summary,
        Regime,
        BestCheckpoint,
        Slice,
        FamilySlice,
        Counts,
        Stability,
        Verdict,
        Answers,
        Figure,
    ):
        inherited = {name for base in model.__mro__[1:] for name in getattr(base, "__annotations__", {})}
        parts.append(f"\n## {model.__name__}\n\n{model.__doc__}\n")
        parents = [base.__name__ for base in model.__bases__ if base is not _Strict]
        if parents:
            parts.append(f"\nAll keys of {parents[0]}, and:\n")
        parts.append("\n| key | type | meaning |\n|---|---|---|\n")
        for name, field in model.model_fields.items():
            if name not in inherited:
                parts.append(f"| `{name}` | {_type_name(field.annotation)} | {field.description} |\n")
    return "".join(parts)


def _type_name(annotation: Any) -> str:
    """A type as a JSON reader would say it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin is Literal:
        return "integer"
    if origin is dict:
        return "object" if arguments[1] is Any else f"object of {_type_name(arguments[1])}"
    if origin is list:
        return f"list of {_type_name(arguments[0])}"
    if arguments:
        return " or ".join(_type_name(argument) for argument in arguments)
    plain = {float: "number", int: "integer", str: "string", bool: "boolean", type(None): "null"}
    return plain.get(annotation) or f"[{annotation.__name__}](#{annotation.__name__.lower()})"
