"""What the gradients correct: the log-probability of right and of mistaken solutions, under gradients and after training.

Every family of the embedded tasks has its systematic mistakes, each written out as a solution. For a problem x with right
solution y and mistaken solution z, the margin is log π(y|x) − log π(z|x): an objective corrects a mistake where it raises
the margin and amplifies it where it lowers it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from bsharp.diagnostics.response_gradients import (
    ResponseRows,
    ResponseScorer,
    cosine_over_blocks,
    directional_derivatives,
)
from bsharp.masking import pad_right
from bsharp.models.loading import LanguageModel
from bsharp.models.logprobs import response_logprobs
from bsharp.seeding import generator
from bsharp.statistics import Estimate, problem_and_seed_interval
from bsharp.tasks import Role, Split, Task
from bsharp.types import Problem

__all__ = ["MISTAKES_SCHEMA", "has_typed_mistakes", "mistake_table"]

MISTAKES_SCHEMA = 1
BLOCKS = 8
"""Gradients per family whose spread gives the interval of a cosine."""

Array = NDArray[np.float64]
NOTES = (
    "Solutions are scored in their canonical form (every step followed by ';', no prelude, no ending); a policy that "
    "prefers another form moves right and mistaken solutions alike, which the margin does not see.",
    "Intervals of first_step and oracle_cosine cover the problems scored here; the objectives' gradients are taken as given.",
    "first_step is along the plain gradient; AdamW scales every coordinate and so moves in another direction.",
    "oracle_cosine counts the form of a solution too: a gradient that only makes the usual form likelier scores on it; "
    "margin_cosine, of right against mistaken solutions in the same form, does not.",
    "oracle_cosine over all families leans to those whose right solution the base finds least likely: its gradient is longest.",
    "Each interval holds by itself at 95 %: of types that do not move, one in twenty is counted as moved by chance.",
)
NO_MISTAKES = "no task has families with typed mistakes: there is nothing to compare"


_Products = tuple[Array, dict[str, Array]]  # of blocks of gradients with each other and with every objective's


@dataclass(frozen=True)
class _Pairs:
    """Rows of the right and of the mistaken solutions of the same problems, in order."""

    right: list[int]
    mistake: list[int]


@dataclass(frozen=True)
class _Type(_Pairs):
    """A mistake type of a family."""

    fields: Mapping[str, Any]


@dataclass(frozen=True)
class _Scoring:
    """Under which distribution, and how many rows at once, solutions are scored."""

    microbatch_rows: int
    temperature: float
    fixed_length: bool

    def logprobs(self, language_model: LanguageModel, rows: ResponseRows) -> Array:
        """log π of every row, (B,)."""
        values = response_logprobs(
            language_model,
            rows.prompts,
            rows.token_ids,
            rows.mask,
            self.temperature,
            self.fixed_length,
            self.microbatch_rows,
        )
        return values.double().sum(-1).numpy()


def has_typed_mistakes(tasks: Mapping[str, Task]) -> bool:
    """Whether any task has families whose mistakes have types; without, `mistake_table` says so and needs no gradients."""
    return any(family.mistake_types for task in tasks.values() for family in task.families.values())


def mistake_table(
    base: LanguageModel,
    policies: Mapping[str, Sequence[Callable[[], LanguageModel]]],
    tasks: Mapping[str, Task],
    gradients: Mapping[str, Float[Tensor, " N"]],
    *,
    problems_per_family: int,
    seed: int,
    microbatch_rows: int = 64,
    temperature: float = 1.0,
    fixed_length: bool = False,
) -> dict[str, Any]:
    """Per mistake type: log-probabilities under the base, their derivatives along gradients, their changes by training.

    Over test problems, `problems_per_family` of every family: log π(y) of a solution y sums over its tokens and the EOS,
    in nats, under the distribution at `temperature`. With `fixed_length`, as in training of that kind, no EOS ends a
    solution: every EOS is masked out and the rest renormalised. `base` holds the means over problems; `first_step` those
    of d/dt log π_{θ + t·g/‖g‖}(y) at t = 0, for each objective's gradient g of `gradients`; `trained` those of log π −
    log π_base, over problems and seeds. Each has a margin, right − mistake. `oracle_cosine` is the Euclidean cosine of g
    and the gradient of the mean of log π(right solution), `margin_cosine` that of g and the gradient of the mean margin
    over each family's usual mistake: what the first shares by mere form (log π of a canonical solution rises whenever its
    form does) the second does not.

    `gradients` are ASCENT directions at the base (of the objective, not of the loss), (N,) in the order of the parameters
    that are trainable, or of all where the base is frozen. `policies` holds one loader per seed and regime; a loaded policy
    is dropped before the next is asked for, and must share the base's tokenizer. Where the runs trained adapters, `base` is
    the policy as training starts it: its adapter adds nothing yet, and gradients are over the adapter's parameters. Memory:
    5 · 8 gradients beside the given ones. A gradient that is 0 or not finite, or a policy with log-probabilities that are
    not finite, gives null with a note. Tasks without families with mistakes: `types` is empty, with a note. Raises ValueError
    where a gradient has another length, a regime no seed, or a family too few test problems.
    """
    _check(base, policies, gradients, problems_per_family)
    rows, types, families = _solutions(base, tasks, problems_per_family, seed, ends=not fixed_length)
    scoring = _Scoring(microbatch_rows, temperature, fixed_length)
    table: dict[str, Any] = {
        "schema": MISTAKES_SCHEMA,
        "problems": sum(len(pairs.right) for pairs in families.values()),
        "temperature": temperature,
        "fixed_length": fixed_length,
        "objectives": list(gradients),
        "regimes": list(policies),
        "notes": list(NOTES) if types else [NO_MISTAKES],
        "types": [],
        "oracle_cosine": {},
        "margin_cosine": {},
    }
    if types:
        logprobs = scoring.logprobs(base, rows)
        derivatives = directional_derivatives(
            base, rows, gradients, microbatch_rows, temperature=temperature, fixed_length=fixed_length
        )
        changes = {name: _changes(loaders, rows, logprobs, scoring) for name, loaders in policies.items()}
        for number, kind in enumerate(types):
            estimate = _Estimator(kind, seed, number)
            trained = {name: estimate("nats", change, name) for name, change in changes.items()}
            first_step = {name: estimate("nats per unit length", values, name) for name, values in derivatives.items()}
            figures = {"base": estimate("nats", logprobs, "base"), "first_step": first_step, "trained": trained}
            table["types"].append({**kind.fields, "problems": len(kind.right), **figures})
        table |= _cosines(base, rows, families, gradients, seed, scoring)
    table["summary"] = _summary(table["types"], table)
    wrong_mode = [kind for kind in table["types"] if kind["mode"] == "wrong" and kind["usual"]]
    table["wrong_mode_summary"] = _summary(wrong_mode, table)
    return table


class _Estimator:
    """Right, mistake and margin of one type, as means over its problems (and seeds) with their intervals."""

    def __init__(self, kind: _Type, seed: int, number: int) -> None:
        self._kind, self._seed, self._number = kind, seed, number

    def __call__(self, unit: str, values: Array, name: str) -> dict[str, Any]:
        right, mistake = values[..., self._kind.right], values[..., self._kind.mistake]
        return {
            key: self._mean(part, unit, name, key).as_json()
            for key, part in (("right", right), ("mistake", mistake), ("margin", right - mistake))
        }

    def _mean(self, values: Array, unit: str, name: str, key: str) -> Estimate:
        if not np.isfinite(values).all():
            return _undefined(values.shape[-1], unit, "not finite: a gradient of 0, or a policy that broke down")
        rng = generator(self._seed, "mistakes", self._number, unit, name, key)
        return problem_and_seed_interval(values, rng=rng, unit=unit)


def _undefined(problems: int, unit: str, note: str) -> Estimate:
    return Estimate(math.nan, math.nan, math.nan, problems, unit, note)


def _check(
    base: LanguageModel,
    policies: Mapping[str, Sequence[Callable[[], LanguageModel]]],
    gradients: Mapping[str, Tensor],
    problems_per_family: int,
) -> None:
    if problems_per_family < 1:
        raise ValueError(f"problems_per_family = {problems_per_family}; score at least 1 problem of every family")
    empty = [name for name, loaders in policies.items() if not loaders]
    if empty:
        raise ValueError(f"regime {empty[0]!r} has no policy; give one loader per seed, or leave the regime out")
    if getattr(base, "adapter_disabled", False):
        raise ValueError(
            "the base's adapter is disabled, so that no gradient reaches it; give the policy as training starts it "
            "(make_policy), which is the base"
        )
    size = sum(value.numel() for value in ResponseScorer(base).values.values())
    for name, gradient in gradients.items():
        if gradient.shape != (size,):
            raise ValueError(
                f"the gradient of {name!r} has shape {tuple(gradient.shape)}, but the base has {size} trainable parameters; "
                "give one flat vector in their order"
            )


def _solutions(
    base: LanguageModel, tasks: Mapping[str, Task], problems_per_family: int, seed: int, ends: bool
) -> tuple[ResponseRows, list[_Type], dict[str, _Pairs]]:
    """Every solution as a row, the types with their rows, and by family the rows of right solutions and usual mistakes."""
    prompts: list[list[int]] = []
    responses: list[list[int]] = []

    def add(prompt: list[int], text: str) -> int:
        prompts.append(prompt)
        responses.append(_encode_response(base, text, ends))
        return len(prompts) - 1

    types: list[_Type] = []
    pairs: dict[str, _Pairs] = {}
    for task in tasks.values():
        for name, family in task.families.items():
            if not family.mistake_types:
                continue
            mode = family.mode if family.role in (Role.STANDARD, Role.TRANSFER) else "none"
            fields = {"task": task.name, "family": name, "role": str(family.role), "mode": mode}
            problems: list[Problem] = task.problems(Split.TEST, problems_per_family, seed, families=[name])
            encoded = [base.encode(task.prompt(problem)) for problem in problems]
            right = [add(prompt, task.oracle(problem)) for prompt, problem in zip(encoded, problems, strict=True)]
            texts = [family.mistakes(problem) for problem in problems]
            for kind in family.mistake_types:
                mistake = [add(prompt, text[kind][0]) for prompt, text in zip(encoded, texts, strict=True)]
                usual = kind == family.mistake_types[0]
                if usual:
                    known = pairs.setdefault(name, _Pairs([], []))
                    known.right.extend(right)
                    known.mistake.extend(mistake)
                types.append(_Type(right, mistake, {**fields, "type": kind, "usual": usual}))
    return ResponseRows(prompts, *pad_right(responses, base.pad_token_id)), types, pairs


def _encode_response(language_model: LanguageModel, text: str, ends: bool) -> list[int]:
    """The response's own tokens, cut apart from the prompt as in sampling, and the EOS where one `ends` it."""
    tokenizer = language_model.tokenizer
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=False)
    if not ends:
        return tokens
    own, known = getattr(tokenizer, "eos_token_id", None), language_model.eos_token_ids
    return [*tokens, own if own in known else known[0]]


def _changes(
    loaders: Sequence[Callable[[], LanguageModel]], rows: ResponseRows, base_logprobs: Array, scoring: _Scoring
) -> Array:
    """log π − log π_base, (S, B); one policy in memory at a time."""
    return np.stack([scoring.logprobs(loader(), rows) - base_logprobs for loader in loaders])


def _cosines(
    base: LanguageModel,
    rows: ResponseRows,
    families: Mapping[str, _Pairs],
    gradients: Mapping[str, Tensor],
    seed: int,
    scoring: _Scoring,
) -> dict[str, dict[str, Any]]:
    """oracle_cosine and margin_cosine, {objective: {"all": …, "families": {family: …}}} each, from blocks of problems."""
    scorer = ResponseScorer(base, scoring.temperature, scoring.fixed_length)
    sums: dict[str, Tensor] = {}
    products: dict[str, dict[str, _Products]] = {"oracle_cosine": {}, "margin_cosine": {}}
    for family, pairs in families.items():
        rng = generator(seed, "mistakes/blocks", family)
        right, mistake = _block_gradients(scorer, rows, pairs, rng, scoring.microbatch_rows)
        for key, blocks in (("oracle_cosine", right), ("margin_cosine", right - mistake)):
            products[key][family] = _products(blocks, gradients)
            sums[key] = sums[key].add_(blocks) if key in sums else blocks.clone()
    problems = {family: len(pairs.right) for family, pairs in families.items()}

    def cosine(found: _Products, name: str, count: int) -> dict[str, Any]:
        gram, along = found
        return replace(cosine_over_blocks(gram, along[name]), n=count).as_json()

    table: dict[str, dict[str, Any]] = {}
    for key, by_family in products.items():
        overall = _products(sums[key], gradients)
        table[key] = {
            name: {
                "all": cosine(overall, name, sum(problems.values())),
                "families": {family: cosine(found, name, problems[family]) for family, found in by_family.items()},
            }
            for name in gradients
        }
    return table


def _block_gradients(
    scorer: ResponseScorer, rows: ResponseRows, pairs: _Pairs, rng: np.random.Generator, microbatch_rows: int
) -> tuple[Float[Tensor, "K N"], Float[Tensor, "K N"]]:
    """∇ of the mean log π of right and of mistaken solutions of each of K blocks, to which problems are dealt at random."""
    order = rng.permutation(len(pairs.right)).tolist()
    blocks = [order[start::BLOCKS] for start in range(min(BLOCKS, len(order)))]
    right, mistake = (
        torch.stack([scorer.gradient(rows, [side[i] for i in block], microbatch_rows) / len(block) for block in blocks])
        for side in (pairs.right, pairs.mistake)
    )
    return right, mistake


def _products(blocks: Float[Tensor, "K N"], gradients: Mapping[str, Tensor]) -> _Products:
    """⟨G_a, G_b⟩ of the blocks, (K, K), and ⟨G_b, g⟩ / ‖g‖ for every objective, (K,); NaN where g has no direction."""
    doubled = blocks.double()
    along = {}
    for name, gradient in gradients.items():
        vector = gradient.to(doubled)
        length = float(torch.linalg.vector_norm(vector))
        usable = length > 0 and math.isfinite(length)
        along[name] = (doubled @ vector / length).cpu().numpy() if usable else np.full(len(blocks), np.nan)
    return (doubled @ doubled.T).cpu().numpy(), along


def _summary(types: Sequence[Mapping[str, Any]], table: Mapping[str, Any]) -> dict[str, dict[str, dict[str, int]]]:
    names = {"first_step": table["objectives"], "trained": table["regimes"]}
    return {
        section: {name: _count([kind[section][name]["margin"] for kind in types]) for name in keys}
        for section, keys in names.items()
    }


def _count(margins: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    corrected = sum(margin["low"] is not None and margin["low"] > 0 for margin in margins)
    amplified = sum(margin["high"] is not None and margin["high"] < 0 for margin in margins)
    types = len(margins)
    return {
        "corrected": corrected,
        "amplified": amplified,
        "undecided": types - corrected - amplified,
        "types": types,
    }
