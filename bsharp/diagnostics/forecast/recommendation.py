"""From a forecast to one recommendation: rules with declared thresholds, each with its source and the figures it rests on.

The rules are asked in this order; the first that decides gives the word.

| case | word |
|---|---|
| no sample of any problem is right, or too many problems have no right sample | better base or easier curriculum first |
| too few problems or samples to say anything | task reward: its ideal never lowers accuracy |
| nothing to gain by any weighting of the samples | task reward where the base is right already, else better base or … |
| sharpening gains, and nearly as much as labels would | sharpen |
| sharpening gains, likely answers are right, and most groups of rewards are equal | hybrid |
| anything else | task reward |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bsharp.statistics import pass_at_k

__all__ = ["CANNOT_KNOW", "WORDS", "Thresholds", "recommend"]

SHARPEN = "sharpen"
TASK_REWARD = "task reward"
HYBRID = "hybrid"
BETTER_BASE = "better base or easier curriculum first"
WORDS = (SHARPEN, TASK_REWARD, HYBRID, BETTER_BASE)


@dataclass(frozen=True)
class Thresholds:
    """Where the rules part. Shares of 1."""

    least_problems: int = 30  # problems with graded samples
    least_samples: int = 8  # graded samples of the problem that has the fewest
    most_without_right: float = 0.75  # share of problems without a right sample beyond which no label can say much
    right_already: float = 0.95  # accuracy from which the base counts as right where nothing is left to gain
    least_gain: float = 0.02  # smallest change of accuracy worth training for
    nearly_all: float = 0.8  # share of the labels' gain from which sharpening does without them
    group_size: int = 8  # completions of one problem that training compares with each other
    mostly_silent: float = 0.5  # share of such groups whose rewards are all equal


CANNOT_KNOW = (
    "Generalisation: every figure is of the ideal optimum problem by problem; a network carries what it learns on one prompt to "
    "others, for better or worse.",
    "Unsampled responses: what the base says less often than about once in n samples is invisible here, right or wrong; "
    "so is a response likelier per token than all sampled ones, a loop for example.",
    "Finite training: step size, optimizer, number of steps and clipping decide how far towards the optimum a run comes.",
    "Stability: the sharpened optimum is discontinuous where two responses are nearly as likely, and a run may collapse on "
    "its way; arXiv 2604.16259 reports sharpening runs that do.",
    "The reward: a policy trained on it may find what the grader accepts and nobody wants.",
    "Other problems: intervals cover problems drawn like these, from the same families.",
)

_PAPER = "arXiv 2604.16259: sharpening gives limited gains and is unstable, task reward gives robust gains"
_COVARIANCE = (
    "d/dα E_{p_α}[r] = Cov_{p_α}(r, ℓ_ref) for p_α ∝ π_ref^α; likelihood against correctness: arXiv 2606.27359"
)
_VARIANCE = "d/dλ E_{p_λ}[r] = Var_{p_λ}(r) >= 0 for p_λ ∝ π_ref exp(λ r)"
_SUPPORT = (
    "π* ∝ π_ref exp(λ r) is 0 where π_ref is: support never grows; pass@k of the base as the bound: arXiv 2504.13837"
)


@dataclass(frozen=True)
class _Rule:
    """One question about the forecast and its answer."""

    rule: str
    source: str
    figures: str
    holds: bool

    def as_json(self) -> dict[str, Any]:
        return {"rule": self.rule, "source": self.source, "figures": self.figures, "holds": self.holds}


@dataclass(frozen=True)
class _Sharpened:
    """The sharpened target that gains most surely among those the samples carry."""

    name: str
    delta: Mapping[str, Any]


def recommend(content: Mapping[str, Any], thresholds: Thresholds | None = None) -> dict[str, Any]:
    """{"word", "sentence", "rules", "cannot_know"} from the other parts of a forecast (`forecast`).

    `word` is one of WORDS. Every rule is listed with `rule` in plain words, `source`, `figures` and whether it `holds`, also
    those that did not decide. Figures without a value make a rule that needs them fail.
    """
    limits = thresholds or Thresholds()
    base, source = content["base"], content["source"]
    sharpened = _sharpened(content)
    headroom = _headroom(content)
    rules = {
        "enough": _enough(source, limits),
        "support": _support(base, limits),
        "headroom": _room(headroom, base, limits),
        "likelihood": _likelihood(content),
        "sharpening": _gain(sharpened, limits),
        "without labels": _without_labels(sharpened, headroom, limits),
        "silent": _silent(content["per_problem"], limits),
    }
    word, sentence = _decide({name: rule.holds for name, rule in rules.items()}, content, sharpened, headroom, limits)
    return {
        "word": word,
        "sentence": sentence,
        "rules": [rule.as_json() for rule in rules.values()],
        "cannot_know": list(CANNOT_KNOW),
    }


def _decide(
    holds: Mapping[str, bool],
    content: Mapping[str, Any],
    sharpened: _Sharpened | None,
    headroom: float,
    limits: Thresholds,
) -> tuple[str, str]:
    base, samples = content["base"], content["source"]["samples"]
    accuracy, without = _value(base["accuracy"]), _value(base["no_correct_share"])
    if accuracy == 0 or (holds["enough"] and not holds["support"]):
        return BETTER_BASE, (
            f"{_percent(without)} of the problems have no right answer among {samples} samples: neither reward nor likelihood "
            "can raise what the base hardly ever says. Take a better base, show it how, or begin with easier problems."
        )
    if not holds["enough"]:
        problems = content["source"]["problems"]
        return TASK_REWARD, (
            f"Cannot say: {problems} problems with {samples} samples are too few. Until there are more, the task reward is the "
            "careful choice, whose ideal never lowers accuracy; sharpening may."
        )
    if not holds["headroom"]:
        if accuracy >= limits.right_already:
            return TASK_REWARD, (
                f"The base is right in {_percent(accuracy)} of its samples: nothing is left to gain on these problems. Choose "
                "harder ones; until then the task reward does no harm, its gradient is near 0."
            )
        return BETTER_BASE, (
            f"Each problem is either solved in every sample or in none ({_percent(without)} of them in none): no weighting of "
            "these samples gains anything. Take a better base or problems between the two."
        )
    gain = "an unknown amount" if sharpened is None else _points(sharpened.delta)
    labels = f"the task reward could gain {100 * headroom:+.1f} points"
    if holds["sharpening"] and sharpened is not None:
        if holds["without labels"]:
            return SHARPEN, (
                f"Likely answers are right here: {sharpened.name} changes accuracy by {gain}, where {labels} on the same "
                "problems. Sharpening needs no labels; watch its stability and stop early."
            )
        if holds["silent"] and holds["likelihood"]:
            return HYBRID, (
                f"Likelihood points the right way ({sharpened.name}: {gain}) and most groups of rewards are all equal; {labels} "
                "where it speaks. A small likelihood bonus beside the reward uses both."
            )
    if sharpened is None:
        return TASK_REWARD, (
            f"These samples are too few for any sharpened target, while {labels}: use the reward. More samples per problem would "
            "say what sharpening does."
        )
    return TASK_REWARD, (
        f"The sharpened target that looks best ({sharpened.name}) is predicted to change accuracy by {gain}, while {labels}: "
        "labels are worth more than likelihood here."
    )


# -------------------------------------------------------------------------------------------------- the rules


def _enough(source: Mapping[str, Any], limits: Thresholds) -> _Rule:
    problems, samples = source["problems"], source["samples"]
    return _Rule(
        f"There are at least {limits.least_problems} problems with at least {limits.least_samples} graded samples each.",
        "importance weighting needs several effective samples, an interval over problems needs problems",
        f"{problems} problems, {samples} samples",
        problems >= limits.least_problems and samples >= limits.least_samples,
    )


def _support(base: Mapping[str, Any], limits: Thresholds) -> _Rule:
    without, bound = base["no_correct_share"], base["no_correct_upper_bound"]
    return _Rule(
        f"At most {_percent(limits.most_without_right)} of the problems have no right sample.",
        _SUPPORT,
        f"{_percent(_value(without))} have none; the success rate of such a problem is below {_percent(bound)} (95 %)",
        _value(without) <= limits.most_without_right,
    )


def _room(headroom: float, base: Mapping[str, Any], limits: Thresholds) -> _Rule:
    return _Rule(
        f"Labels could gain at least {100 * limits.least_gain:g} points on these problems.",
        _VARIANCE,
        f"base {_percent(_value(base['accuracy']))}, strongest tilt {100 * headroom:+.1f} points",
        headroom >= limits.least_gain,
    )


def _likelihood(content: Mapping[str, Any]) -> _Rule:
    correlation = content["likelihood"]["sum"]["within"]["correlation"]
    return _Rule(
        "Within a problem, likely answers are right more often than unlikely ones.",
        _COVARIANCE,
        f"correlation within problems {_figure(correlation)}",
        _value(correlation, "low") > 0,
    )


def _gain(sharpened: _Sharpened | None, limits: Thresholds) -> _Rule:
    rule = f"A sharpened base gains at least {100 * limits.least_gain:g} points, and the interval lies above 0."
    if sharpened is None:
        return _Rule(rule, _PAPER, "no sharpened target that these samples carry", False)
    holds = _value(sharpened.delta) >= limits.least_gain and _value(sharpened.delta, "low") > 0
    return _Rule(rule, _PAPER, f"{sharpened.name}: {_points(sharpened.delta)}", holds)


def _without_labels(sharpened: _Sharpened | None, headroom: float, limits: Thresholds) -> _Rule:
    rule = f"Sharpening reaches at least {_percent(limits.nearly_all)} of what labels could gain."
    if sharpened is None or not headroom > 0:
        return _Rule(rule, f"{_PAPER}; {_VARIANCE}", "nothing to compare", False)
    reached = _value(sharpened.delta) / headroom
    return _Rule(rule, f"{_PAPER}; {_VARIANCE}", f"{_percent(reached)}", reached >= limits.nearly_all)


def _silent(problems: Sequence[Mapping[str, Any]], limits: Thresholds) -> _Rule:
    found = [(problem["samples"], problem["correct"]) for problem in problems]
    # A group of unequal rewards has a right one and a wrong one: P(no right) + P(no wrong) is the rest.
    shares = []
    for samples, correct in found:
        size = min(limits.group_size, samples)
        right, wrong = pass_at_k([samples, samples], [correct, samples - correct], size)
        shares.append(2.0 - right - wrong)
    silent = math.fsum(shares) / len(shares)
    return _Rule(
        f"At least {_percent(limits.mostly_silent)} of groups of {limits.group_size} samples are all right or all wrong.",
        "a group of equal rewards has leave-one-out advantages of 0: A_i = r_i − mean_{j≠i} r_j",
        f"{_percent(silent)} of groups",
        silent >= limits.mostly_silent,
    )


# ------------------------------------------------------------------------------------------------ the figures


def _sharpened(content: Mapping[str, Any]) -> _Sharpened | None:
    """Of the furthest reliable points of each sharpening path, the one whose interval begins highest."""
    found = []
    for name, curve in content["tempered"].items():
        reliable = [place for place, good in enumerate(curve["reliable"]) if good and curve["alpha"][place] > 1]
        if reliable:
            alpha = curve["alpha"][reliable[-1]]
            found.append(_Sharpened(f"tempered, alpha = {alpha:g}, {name}", curve["delta"][reliable[-1]]))
        limit = content["limit"][name]
        if limit["reliable"]:
            found.append(_Sharpened(f"the limit of sharpening, {name}", limit["delta"]))
    found = [target for target in found if math.isfinite(_value(target.delta))]
    return max(found, key=lambda target: (_value(target.delta, "low"), _value(target.delta)), default=None)


def _headroom(content: Mapping[str, Any]) -> float:
    """What the strongest tilt gains: about pass@n minus accuracy."""
    return max(_value(delta) for delta in content["tilt"]["delta"])


def _value(estimate: Mapping[str, Any], key: str = "estimate") -> float:
    value = estimate[key]
    return math.nan if value is None else float(value)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if math.isfinite(share) else "an unknown share"


def _points(estimate: Mapping[str, Any]) -> str:
    """`+3.1 [+1.0, +5.2] points`."""
    value, low, high = (_value(estimate, key) for key in ("estimate", "low", "high"))
    bounds = f" [{100 * low:+.1f}, {100 * high:+.1f}]" if math.isfinite(low) and math.isfinite(high) else ""
    return f"{100 * value:+.1f}{bounds} points"


def _figure(estimate: Mapping[str, Any]) -> str:
    value, low, high = (_value(estimate, key) for key in ("estimate", "low", "high"))
    if not math.isfinite(value):
        return "undefined"
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]" if math.isfinite(low) and math.isfinite(high) else f"{value:+.2f}"
