"""From a forecast to one recommendation: rules with declared thresholds, each with its source and the figures it rests on.

The rules are asked in this order; the first that decides gives the word.

| case | word |
|---|---|
| no sample of any problem is right, or too many problems have no right sample | better base or easier curriculum first |
| too few problems with enough samples to say anything | task reward, as a default: its ideal never lowers accuracy |
| hardly anything to gain by any weighting of the samples | task reward where the base is right already, else better base or … |
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

    least_problems: int = 30  # problems with enough graded samples
    least_samples: int = 8  # graded samples of each of them
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

_LIMITED = "arXiv 2604.16259: sharpening a base brings limited gains and runs of it are unstable"
_ROBUST = "arXiv 2604.16259: gains from a task reward are robust where those from likelihood alone are limited"
_COVARIANCE = (
    "d/dα E_{p_α}[r] = Cov_{p_α}(r, ℓ_ref) for p_α ∝ π_ref^α; likelihood against correctness: arXiv 2606.27359; "
    "by the sum, likely means short, too: arXiv 2604.16259"
)
_VARIANCE = "d/dλ E_{p_λ}[r] = Var_{p_λ}(r) ≥ 0 for p_λ ∝ π_ref exp(λ r)"
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
    """A sharpened target."""

    name: str
    normalisation: str  # sum or mean
    delta: Mapping[str, Any]
    why_not: str  # why it is not counted; empty where it is

    @property
    def change(self) -> float:
        """Predicted change of accuracy, a share."""
        return _value(self.delta)


@dataclass(frozen=True)
class _Labels:
    """What labels could gain: the change under the strongest tilt, about pass@n minus accuracy."""

    delta: Mapping[str, Any]
    lower_bound: bool

    @property
    def change(self) -> float:
        """Predicted change of accuracy, a share."""
        return _value(self.delta)

    @property
    def points(self) -> str:
        """The change with its interval, and whether it is only a lower bound."""
        return _points(self.delta) + (" (a lower bound)" if self.lower_bound else "")


def recommend(content: Mapping[str, Any], thresholds: Thresholds | None = None) -> dict[str, Any]:
    """{"word", "sentence", "rules", "cannot_know"} from the other parts of a forecast (`forecast`).

    `word` is one of WORDS. Every rule is listed with `rule` in plain words, `source`, `figures` and whether it `holds`, also
    those that did not decide. Figures without a value make a rule that needs them fail.
    """
    limits = thresholds or Thresholds()
    base = content["base"]
    sharpened, uncounted = _sharpened(content)
    labels = _labels(content)
    rules = {
        "enough": _enough(content["per_problem"], limits),
        "support": _support(base, limits),
        "headroom": _room(labels, base, limits),
        "likelihood": _likelihood(content, "sum" if sharpened is None else sharpened.normalisation),
        "sharpening": _gain(sharpened, limits),
        "without labels": _without_labels(sharpened, labels, limits),
        "silent": _silent(content["per_problem"], limits),
    }
    holds = {name: rule.holds for name, rule in rules.items()}
    word, sentence = _before_training(holds, content, labels, limits) or _regime(holds, sharpened, uncounted, labels)
    return {
        "word": word,
        "sentence": sentence,
        "rules": [rule.as_json() for rule in rules.values()],
        "cannot_know": list(CANNOT_KNOW),
    }


def _before_training(
    holds: Mapping[str, bool], content: Mapping[str, Any], labels: _Labels, limits: Thresholds
) -> tuple[str, str] | None:
    """Word and sentence where training on these problems has little to gain, or nothing can be said; else None."""
    accuracy, without = (_value(content["base"][key]) for key in ("accuracy", "no_correct_share"))
    if accuracy == 0 or (holds["enough"] and not holds["support"]):
        return BETTER_BASE, _cut(content, accuracy) + (
            f"{_percent(without)} of the problems have no right answer among their samples ({_sizes(content['source'])}): "
            "a reward finds little to reinforce there, and likelihood nothing. Take a better base, show it how, or begin "
            "with easier problems."
        )
    if not holds["enough"]:
        enough = _with_enough(content["per_problem"], limits)
        return TASK_REWARD, (
            f"Cannot say: {_count(enough, 'problem')} with at least {limits.least_samples} graded samples, and it takes "
            f"{limits.least_problems}. Until there are more, the task reward is the default, whose ideal never lowers accuracy; "
            "sharpening may."
        )
    if holds["headroom"]:
        return None
    if accuracy >= limits.right_already:
        return TASK_REWARD, (
            f"The base is right in {_percent(accuracy)} of its samples: less than {100 * limits.least_gain:g} points are left to "
            "gain on these problems. Choose harder ones; until then the task reward does no harm, its gradient is near 0."
        )
    return BETTER_BASE, (
        f"Weighting these samples gains less than {100 * limits.least_gain:g} points ({labels.points}): nearly every problem is "
        f"solved in all of its samples or in none, {_percent(without)} of them in none. Draw more samples to see whether right "
        "answers there are rare or absent; if absent, take a better base or problems between the two."
    )


def _cut(content: Mapping[str, Any], accuracy: float) -> str:
    """What comes before everything else where no sample is right and all have one length: they were cut at a limit."""
    length = content["base"].get("one_length")
    if accuracy or length is None or content["source"]["fixed_length"]:
        return ""
    return f"Every sample has {length} tokens, as if cut at a limit: raise max_new_tokens and sample again. Else: "


def _regime(
    holds: Mapping[str, bool], sharpened: _Sharpened | None, uncounted: _Sharpened | None, labels: _Labels
) -> tuple[str, str]:
    """Word and sentence where labels have something to gain."""
    gain = f"the task reward could gain {labels.points} if training found and kept every right answer sampled"
    if sharpened is None:
        aside = "" if uncounted is None else f" ({uncounted.name} shows {_points(uncounted.delta)}, not counted)"
        return TASK_REWARD, (
            f"These samples are too few for any sharpened target{aside}, while {gain}: use the reward. More samples per problem "
            "would say what sharpening does."
        )
    shown = f"{sharpened.name}: {_points(sharpened.delta)}"
    if holds["sharpening"] and holds["without labels"]:
        return SHARPEN, (
            f"Likely answers are right here: {sharpened.name} changes accuracy by {_points(sharpened.delta)}, where {gain} on "
            "the same problems. Sharpening needs no labels; watch its stability and stop early."
        )
    if holds["sharpening"] and holds["silent"] and holds["likelihood"]:
        return HYBRID, (
            f"Likelihood points the right way ({shown}) and most groups of rewards are all equal; where they differ, {gain}. A "
            "small likelihood bonus beside the reward uses both."
        )
    aside = ""
    if uncounted is not None and uncounted.change > sharpened.change:
        aside = f" ({uncounted.name} shows {_points(uncounted.delta)}, not counted: {uncounted.why_not})"
    return TASK_REWARD, (
        f"The best reliable sharpened target, {sharpened.name}, is predicted to change accuracy by {_points(sharpened.delta)}"
        f"{aside}, while {gain}: labels are worth more than likelihood here."
    )


# -------------------------------------------------------------------------------------------------- the rules


def _with_enough(problems: Sequence[Mapping[str, Any]], limits: Thresholds) -> int:
    return sum(problem["samples"] >= limits.least_samples for problem in problems)


def _enough(problems: Sequence[Mapping[str, Any]], limits: Thresholds) -> _Rule:
    enough = _with_enough(problems, limits)
    return _Rule(
        f"At least {limits.least_problems} problems have at least {limits.least_samples} graded samples each.",
        "importance weighting needs several effective samples, an interval over problems needs problems",
        f"{enough} of {_count(len(problems), 'problem')}",
        enough >= limits.least_problems,
    )


def _support(base: Mapping[str, Any], limits: Thresholds) -> _Rule:
    without, bound = base["no_correct_share"], base["no_correct_upper_bound"]
    rarity = f"; the success rate of such a problem is below {_percent(bound)} (95 %)" if _value(without) > 0 else ""
    return _Rule(
        f"At most {_percent(limits.most_without_right)} of the problems have no right sample.",
        _SUPPORT,
        f"{_percent(_value(without))} have none{rarity}",
        _value(without) <= limits.most_without_right,
    )


def _room(labels: _Labels, base: Mapping[str, Any], limits: Thresholds) -> _Rule:
    return _Rule(
        f"Labels could gain at least {100 * limits.least_gain:g} points on these problems.",
        f"{_VARIANCE}; {_ROBUST}",
        f"base {_percent(_value(base['accuracy']))}, strongest tilt {labels.points}",
        labels.change >= limits.least_gain,
    )


def _likelihood(content: Mapping[str, Any], normalisation: str) -> _Rule:
    correlation = content["likelihood"][normalisation]["within"]["correlation"]
    return _Rule(
        "Within a problem, likely answers are right more often than unlikely ones.",
        _COVARIANCE,
        f"correlation within problems, {_BY[normalisation]}: {_figure(correlation)}",
        _value(correlation, "low") > 0,
    )


def _gain(sharpened: _Sharpened | None, limits: Thresholds) -> _Rule:
    rule = f"A sharpened base gains at least {100 * limits.least_gain:g} points, and the interval lies above 0."
    if sharpened is None:
        return _Rule(rule, _LIMITED, "no sharpened target that these samples carry", False)
    holds = sharpened.change >= limits.least_gain and _value(sharpened.delta, "low") > 0
    return _Rule(rule, _LIMITED, f"{sharpened.name}: {_points(sharpened.delta)}", holds)


def _without_labels(sharpened: _Sharpened | None, labels: _Labels, limits: Thresholds) -> _Rule:
    rule = f"Sharpening reaches at least {_percent(limits.nearly_all)} of what labels could gain."
    source = f"{_LIMITED}; {_VARIANCE}"
    if sharpened is None or not labels.change > 0:
        return _Rule(rule, source, "nothing to compare", False)
    reached = sharpened.change / labels.change
    return _Rule(
        rule, source, f"{_percent(reached)} of it" if reached > 0 else "none of it", reached >= limits.nearly_all
    )


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


_BY = {"sum": "by the log-probability", "mean": "by the mean log-probability"}


def _sharpened(content: Mapping[str, Any]) -> tuple[_Sharpened | None, _Sharpened | None]:
    """Of the furthest reliable points of each sharpening path the one whose interval begins highest, and the largest other one.

    The other one is not reliable: the largest change among the ends of the curves and the limits that are flagged.
    """
    counted: list[_Sharpened] = []
    uncounted: list[_Sharpened] = []
    for name, curve in content["tempered"].items():
        places = [place for place, alpha in enumerate(curve["alpha"]) if alpha > 1]
        reliable = [place for place in places if curve["reliable"][place]]
        for place in {*reliable[-1:], *places[-1:]}:
            good = curve["reliable"][place]
            target = _Sharpened(
                f"tempering at α = {curve['alpha'][place]:g} {_BY[name]}",
                name,
                curve["delta"][place],
                "" if good else curve["note"],
            )
            (counted if good else uncounted).append(target)
        limit = content["limit"][name]
        target = _Sharpened(f"the limit of sharpening {_BY[name]}", name, limit["delta"], limit["note"])
        (counted if limit["reliable"] else uncounted).append(target)
    counted, uncounted = ([t for t in targets if math.isfinite(t.change)] for targets in (counted, uncounted))
    best = max(counted, key=lambda target: (_value(target.delta, "low"), target.change), default=None)
    other = max(uncounted, key=lambda target: target.change, default=None)
    return best, other


def _labels(content: Mapping[str, Any]) -> _Labels:
    tilt = content["tilt"]
    place = max(range(len(tilt["delta"])), key=lambda place: _value(tilt["delta"][place]))
    return _Labels(tilt["delta"][place], tilt["lower_bound"][place])


def _sizes(source: Mapping[str, Any]) -> str:
    """`32 each`, or `5 to 32 each`."""
    least, most = source["samples"], source["samples_max"]
    return f"{least} each" if least == most else f"{least} to {most} each"


def _count(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _value(estimate: Mapping[str, Any], key: str = "estimate") -> float:
    value = estimate[key]
    return math.nan if value is None else float(value)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if math.isfinite(share) else "an unknown share"


def _signed(value: float, digits: int) -> str:
    """With its sign; without one where it rounds to 0, which has no direction."""
    text = f"{value:+.{digits}f}"
    return text if float(text) != 0 else text[1:]


def _points(estimate: Mapping[str, Any]) -> str:
    """`+3.1 [+1.0, +5.2] points`."""
    value, low, high = (100 * _value(estimate, key) for key in ("estimate", "low", "high"))
    if not math.isfinite(value):
        return "an unknown number of points"
    bounds = f" [{_signed(low, 1)}, {_signed(high, 1)}]" if math.isfinite(low) and math.isfinite(high) else ""
    return f"{_signed(value, 1)}{bounds} points"


def _figure(estimate: Mapping[str, Any]) -> str:
    value, low, high = (_value(estimate, key) for key in ("estimate", "low", "high"))
    if not math.isfinite(value):
        return "undefined"
    bounds = f" [{_signed(low, 2)}, {_signed(high, 2)}]" if math.isfinite(low) and math.isfinite(high) else ""
    return f"{_signed(value, 2)}{bounds}"
