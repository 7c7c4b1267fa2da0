"""The collapse alarm: says in one sentence when a policy's output degenerates, from the figures that every step logs.

It is a rule on series, not a model: the mean of the last steps against that of the first ones, when the policy still was
(nearly) the base. How often it is wrong is measured in docs/collapse_alarm.md.

A *sharp* policy (low entropy, all completions of a problem alike) is what sharpening aims at and brings a notice at most.
*Degenerate* output, which `stops` marks, is text that the base would hardly write, that has lost its length or its answer,
that runs on in loops, or that scores far worse than the base under the very objective it is trained on. No label is looked at
unless the objective itself contains the task's reward; an alarm then does not stop a run whose reward holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bsharp.algorithm import Objective

__all__ = ["Alarm", "AlarmKind", "AlarmThresholds", "CollapseAlarm"]

ENTROPY = "entropy/exact_nats_per_token"
LENGTH = "completions/mean_length"
TRUNCATED = "completions/clipped_ratio"
REPETITION = "completions/repetition_rate"
ANSWERS = "completions/distinct_answers_per_problem"
KL = "kl(policy||base)/k1_nats_per_sequence"
BASE_LOGPROB = "base_logprob/mean_nats_per_sequence"
ZERO_VARIANCE = "frac_score_zero_std"
SCORE, SCORE_SD = "score/mean", "score/std"
REWARD = "reward"
MUST_BE_FINITE = ("grad_norm", "loss/policy")
"""The others may be undefined for a good reason: no completion of the step could be graded."""


class AlarmKind(StrEnum):
    """Which of the watched figures left its range."""

    ENTROPY = "entropy"
    LENGTH = "length"
    TRUNCATION = "truncation"
    REPETITION = "repetition"
    KL = "kl"
    SCORE = "score"
    ZERO_VARIANCE = "zero_variance"
    NOT_FINITE = "not_finite"


@dataclass(frozen=True, slots=True)
class AlarmThresholds:
    """The numbers of the rule; those marked (d) were chosen on the development runs of docs/collapse_alarm.md."""

    reference_steps: int = 3
    """Steps averaged as the start: the policy is still close to the base, even at a high rate after a warm-up."""
    window: int = 3
    """Steps averaged as the present, so that one batch decides nothing. The first judgement needs both."""
    kl_over_base_surprise: float = 1.0
    """KL(policy‖base) over H₀, the mean −log π_ref of the base's own completions. A policy that only prefers what the
    base finds at least averagely likely has KL = E[ℓ − ℓ_ref] ≤ −E[ℓ_ref] ≤ H₀: beyond 1 it must have left that set."""
    min_kl: float = 1.0
    """Nats per completion. A base that is all but deterministic has H₀ near 0, where no ratio means anything."""
    surprise_ratio: float = 1.5
    """(d) −E[ℓ_ref] per token over its start. Longer completions have a larger KL without being stranger; these are."""
    score_drop: float = 0.75
    """(d) Standard deviations of one completion's score at the start by which the mean score has fallen: whatever the
    objective is, the run has undone what it maximises."""
    short_length_ratio: float = 1 / 3
    """Mean length below a third of the start: an answer without the work, or an immediate end."""
    long_length_ratio: float = 2.0
    """Twice the length of the start brings a notice: more work or more words, the length alone does not tell."""
    truncation_rise: float = 0.5
    """Share. Half of all completions newly run into the token limit."""
    repetition_rise: float = 0.25
    """Share. A quarter of the 4-grams newly occurred before in the same completion: loops."""
    entropy_rise_ratio: float = 3.0
    """Entropy per token over its start, on the way to uniform noise."""
    min_risen_entropy: float = 0.5
    """Nats per token. A rise from next to nothing to less than this is no noise."""
    sharp_entropy_ratio: float = 0.1
    """A tenth of the start's entropy brings a notice: sharp, hardly anything is left to explore."""
    zero_variance_share: float = 0.9
    """Share of groups whose scores are all equal, so that they teach nothing."""
    min_answers: float = 0.5
    """Distinct answers per problem. Below it more than half of the problems get no readable answer at all."""
    reward_holds: float = 0.75
    """Share of the best reward (mean of a window) at which the reward still counts as held."""
    reward_lost: float = 0.5
    """Share of the start's reward below which groups without variance count as failed, not as solved."""
    recovery_steps: int = 5
    """Steps in range after which a kind counts as recovered: a figure at the brink must not alarm again and again."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """One event: a row of alarms.jsonl.

    `since` is the first step of the unbroken stretch beyond the limit. `figures` are the numbers in the sentence. `stops` is
    True where the output has degenerated, False for a notice.
    """

    step: int
    since: int
    kind: AlarmKind
    sentence: str
    figures: Mapping[str, float]
    advice: str
    stops: bool

    def as_json(self) -> dict[str, Any]:
        """The row of alarms.jsonl: the fields under their own names, all values JSON."""
        return asdict(self) | {"kind": str(self.kind), "figures": dict(self.figures), "schema": 1}


@dataclass(frozen=True, slots=True)
class _Finding:
    """A figure out of range: what to say, and whether it means degenerate output."""

    kind: AlarmKind
    what: str
    figures: dict[str, float]
    degenerate: bool
    beyond: Callable[[Mapping[str, float]], bool]  # the same limit on a single step


class CollapseAlarm:
    """Watches one training run; call `observe` after every step.

    The state is a function of the rows seen so far: after a resume, feed the rows of metrics.jsonl again. `objective` (whether
    the reward is part of it, how it treats length), `learning_rate` and `warmup_steps` only make the advice fit, except that
    with a reward in the objective an alarm does not stop a run whose reward holds.
    """

    def __init__(
        self,
        thresholds: AlarmThresholds | None = None,
        *,
        objective: Objective | None = None,
        learning_rate: float | None = None,
        warmup_steps: int | None = None,
    ) -> None:
        self.thresholds = thresholds or AlarmThresholds()
        self._objective = objective
        self._learning_rate = learning_rate
        self._warmup_steps = warmup_steps
        self._steps: list[int] = []
        self._rows: list[dict[str, float]] = []
        self._best_reward = -math.inf
        self._raised: dict[AlarmKind, bool] = {}  # kinds that have not recovered → whether output was called degenerate
        self._in_range: dict[AlarmKind, int] = {}  # steps in range since

    def observe(self, step: int, metrics: Mapping[str, float | None]) -> list[Alarm]:
        """Alarms that this step raises, mostly none. None and NaN are undefined values; missing keys are not watched.

        A kind is raised once, once more where a notice turns into degenerate output, and again only after its figure had
        come back into range. Rows without a step > 0 (the check before training) are passed over. Raises ValueError where
        steps do not rise.
        """
        if step <= 0:
            return []
        if self._steps and step <= self._steps[-1]:
            raise ValueError(
                f"the collapse alarm needs rising steps, got step {step} after {self._steps[-1]}; start a new one on resume"
            )
        self._steps.append(step)
        self._rows.append({key: math.nan if value is None else float(value) for key, value in metrics.items()})
        if len(self._rows) > self.thresholds.reference_steps:
            self._best_reward = max(self._best_reward, self._now(REWARD))  # an undefined one changes nothing
        findings = {finding.kind: finding for finding in self._findings()}
        self._forget_recovered(findings)
        alarms = []
        for kind, finding in findings.items():
            stops = finding.degenerate and (kind == AlarmKind.NOT_FINITE or not self._reward_holds())
            if kind not in self._raised or (stops and not self._raised[kind]):
                self._raised[kind], self._in_range[kind] = stops, 0
                alarms.append(self._alarm(step, finding, stops))
        return alarms

    def _forget_recovered(self, findings: Collection[AlarmKind]) -> None:
        for kind in list(self._raised):
            self._in_range[kind] = 0 if kind in findings else self._in_range.get(kind, 0) + 1
            if self._in_range[kind] >= self.thresholds.recovery_steps:
                del self._raised[kind]

    def _since(self, beyond: Callable[[Mapping[str, float]], bool]) -> int:
        """First step of the last unbroken stretch of steps beyond the limit."""
        out = [beyond(row) for row in self._rows]
        # The mean of a window can be beyond while its last step is not.
        last = max((place for place, is_out in enumerate(out) if is_out), default=len(out) - 1)
        first = last
        while first > 0 and out[first - 1]:
            first -= 1
        return self._steps[first]

    def _alarm(self, step: int, finding: _Finding, stops: bool) -> Alarm:
        since = self._since(finding.beyond)
        advice = self._advice(finding.kind, stops, finding.figures)
        held = " while the reward holds" if finding.degenerate and not stops else ""
        figures = {name: value for name, value in finding.figures.items() if math.isfinite(value)}
        return Alarm(
            step, since, finding.kind, f"Since step {since} {finding.what}{held}; {advice}.", figures, advice, stops
        )

    # ------------------------------------------------------------------------------------------------- the series

    def _start(self, key: str) -> float:
        return _mean([row.get(key, math.nan) for row in self._rows[: self.thresholds.reference_steps]])

    def _now(self, key: str) -> float:
        return _mean([row.get(key, math.nan) for row in self._rows[-self.thresholds.window :]])

    @property
    def _with_reward(self) -> bool:
        """Whether the reward may be looked at: a label-free run is judged without labels."""
        return self._objective is not None and self._objective.task != 0

    def _reward_holds(self) -> bool:
        return self._with_reward and self._now(REWARD) >= max(
            self.thresholds.reward_holds * self._best_reward, self._start(REWARD)
        )

    # --------------------------------------------------------------------------------------------------- the rule

    def _findings(self) -> Iterator[_Finding]:
        last = self._rows[-1]
        broken = [key for key in MUST_BE_FINITE if key in last and not math.isfinite(last[key])]
        if broken:
            what = f"{' and '.join(broken)} {'is' if len(broken) == 1 else 'are'} not finite: the update is broken"
            yield _Finding(
                AlarmKind.NOT_FINITE,
                what,
                {},
                True,
                lambda row: not all(math.isfinite(row.get(k, 0.0)) for k in broken),
            )
        if len(self._rows) < self.thresholds.reference_steps + self.thresholds.window:
            return
        yield from filter(None, (self._kl(), self._score(), self._length(), self._truncation(), self._repetition()))
        yield from filter(None, (self._entropy(), self._zero_variance()))

    def _kl(self) -> _Finding | None:
        limits, kl = self.thresholds, self._now(KL)
        base_surprise, now_surprise = -self._start(BASE_LOGPROB), -self._now(BASE_LOGPROB)
        limit = max(limits.kl_over_base_surprise * base_surprise, limits.min_kl)
        if not kl > limit:
            return None
        # An undefined length stays undefined: max returns its first argument where nothing compares.
        per_token = now_surprise / max(self._now(LENGTH), 1.0)
        per_token_start = base_surprise / max(self._start(LENGTH), 1.0)
        start, strange = self._start(KL), per_token > limits.surprise_ratio * per_token_start
        what = (
            f"KL to the base has grown to {kl:.1f} nats per completion ({start:.1f} at the start), beyond the {limit:.1f} that "
            "completions as likely as the base's own can reach"
        )
        if math.isfinite(per_token):
            what += f", and each token surprises the base by {per_token:.2f} nats ({per_token_start:.2f} at the start)"
        figures = {
            "now": kl,
            "start": start,
            "limit": limit,
            "surprise_now": per_token,
            "surprise_start": per_token_start,
        }
        return _Finding(AlarmKind.KL, what, figures, strange, lambda row: row.get(KL, math.nan) > limit)

    def _length(self) -> _Finding | None:
        limits, start, now = self.thresholds, self._start(LENGTH), self._now(LENGTH)
        figures = {"now": now, "start": start}
        short, long = limits.short_length_ratio * start, limits.long_length_ratio * start
        if now < short:
            # A base that ran into the token limit learns to stop: shorter is no damage then.
            cured = self._start(TRUNCATED) >= limits.truncation_rise
            what = f"completions have shrunk to {now:.1f} tokens ({start:.1f} at the start): hardly any work is written out"
            return _Finding(AlarmKind.LENGTH, what, figures, not cured, lambda row: row.get(LENGTH, math.nan) < short)
        if now > long:
            what = f"completions have grown to {now:.1f} tokens ({start:.1f} at the start)"
            return _Finding(AlarmKind.LENGTH, what, figures, False, lambda row: row.get(LENGTH, math.nan) > long)
        return None

    def _score(self) -> _Finding | None:
        start, now, sd = self._start(SCORE), self._now(SCORE), self._start(SCORE_SD)
        limit = start - self.thresholds.score_drop * sd
        if not (now < limit and sd > 0):
            return None
        what = (
            f"the mean score, which the run maximises, has fallen to {now:.3g} ({start:.3g} at the start), by "
            f"{(start - now) / sd:.1f} standard deviations of a completion: training undoes its own aim"
        )
        figures = {"now": now, "start": start, "sd": sd}
        return _Finding(AlarmKind.SCORE, what, figures, True, lambda row: row.get(SCORE, math.nan) < limit)

    def _truncation(self) -> _Finding | None:
        said = "{now:.0f} % of the completions run into the token limit ({start:.0f} % at the start)"
        return self._risen(AlarmKind.TRUNCATION, TRUNCATED, self.thresholds.truncation_rise, said)

    def _repetition(self) -> _Finding | None:
        said = "completions repeat themselves: {now:.0f} % of 4-grams occurred before ({start:.0f} % at the start)"
        return self._risen(AlarmKind.REPETITION, REPETITION, self.thresholds.repetition_rise, said)

    def _risen(self, kind: AlarmKind, key: str, rise: float, said: str) -> _Finding | None:
        """A share that has risen by `rise`."""
        start, now = self._start(key), self._now(key)
        if not now >= start + rise:
            return None
        what, figures = said.format(now=100 * now, start=100 * start), {"now": now, "start": start}
        return _Finding(kind, what, figures, True, lambda row: row.get(key, math.nan) >= start + rise)

    def _entropy(self) -> _Finding | None:
        limits, start, now = self.thresholds, self._start(ENTROPY), self._now(ENTROPY)
        figures = {"now": now, "start": start}
        high, low = max(limits.entropy_rise_ratio * start, limits.min_risen_entropy), limits.sharp_entropy_ratio * start
        change = f"({start:.3f} at the start)"
        if now > high:
            what = f"entropy has risen to {now:.2f} nats per token {change}: the output dissolves into noise"
            return _Finding(AlarmKind.ENTROPY, what, figures, True, lambda row: row.get(ENTROPY, math.nan) > high)
        if now < low:
            what = f"entropy has fallen to {now:.3f} nats per token {change}: the policy is sharp and hardly explores"
            return _Finding(AlarmKind.ENTROPY, what, figures, False, lambda row: row.get(ENTROPY, math.nan) < low)
        return None

    def _zero_variance(self) -> _Finding | None:
        limits, share, answers = self.thresholds, self._now(ZERO_VARIANCE), self._now(ANSWERS)
        if not share >= limits.zero_variance_share:
            return None
        start, answers_start = self._start(ZERO_VARIANCE), self._start(ANSWERS)
        lost = answers < limits.min_answers <= answers_start
        what = (
            f"{100 * share:.0f} % of the groups ({100 * start:.0f} % at the start) have equal scores and teach nothing"
        )
        figures = {"now": share, "start": start, "answers_now": answers, "answers_start": answers_start}
        if math.isfinite(answers):
            what += f", with {answers:.1f} distinct answers per problem ({answers_start:.1f} at the start)"
        if self._with_reward:
            reward, reward_start = self._now(REWARD), self._start(REWARD)
            lost |= reward < limits.reward_lost * reward_start
            what += f" and a mean reward of {reward:.2f} ({reward_start:.2f} at the start)"
            figures |= {"reward_now": reward, "reward_start": reward_start}
        beyond = limits.zero_variance_share
        return _Finding(
            AlarmKind.ZERO_VARIANCE, what, figures, lost, lambda row: row.get(ZERO_VARIANCE, math.nan) >= beyond
        )

    # ------------------------------------------------------------------------------------------------- the advice

    def _advice(self, kind: AlarmKind, stops: bool, figures: Mapping[str, float]) -> str:
        rate = "" if self._learning_rate is None else f" (now {self._learning_rate:g})"
        warmup = "" if self._warmup_steps is None else f" (now {self._warmup_steps})"
        lower = f"lower optimizer.learning_rate{rate} or raise optimizer.warmup_steps{warmup}"
        if kind == AlarmKind.NOT_FINITE:
            return lower
        if not stops:
            return self._advice_to_notice(kind, figures)
        remedy = self._remedy(kind)
        return f"{lower}, or {remedy}" if remedy else lower

    def _remedy(self, kind: AlarmKind) -> str:
        """What the objective itself could change about degenerate output."""
        objective = self._objective
        if objective is None:
            return ""
        by_mean = objective.length_exponent > 0
        if kind == AlarmKind.LENGTH and objective.base_loglikelihood > 0 and not by_mean:
            return "normalise the likelihood by length (normalisation=mean)"
        if kind in (AlarmKind.TRUNCATION, AlarmKind.REPETITION) and objective.base_loglikelihood > 0 and by_mean:
            return "use the sum of the likelihood (normalisation=sum), which does not reward length"
        if objective.base_loglikelihood < 0 and kind in (AlarmKind.ENTROPY, AlarmKind.KL):
            return "weaken the likelihood penalty (alpha nearer to 0)"
        if objective.kl_to_base > 0:
            return f"weigh the KL to the base more ({'a smaller beta_inv' if objective.task else 'alpha nearer to 1'})"
        return "hold the policy near the base by a KL, " + ("as tilted does" if objective.task else "as tempered does")

    def _advice_to_notice(self, kind: AlarmKind, figures: Mapping[str, float]) -> str:
        label_free = self._objective is not None and self._objective.task == 0
        if kind == AlarmKind.ENTROPY:
            aim = "this is what sharpening aims at; " if label_free else ""
            return f"{aim}if accuracy or pass@k falls, stop here or lower optimizer.learning_rate"
        if kind == AlarmKind.ZERO_VARIANCE:
            if figures.get("reward_now", 1.0) < 0.5:
                return "give easier problems or raise sampling.group_size, so that some completions earn a reward"
            easy = "" if label_free else ", or give harder problems if these are solved"
            return f"more steps will change little: stop here{easy}"
        if kind == AlarmKind.LENGTH and figures["now"] > figures["start"]:
            return "read a few completions, and raise sampling.max_new_tokens if they are cut off"
        return "read a few completions, and lower optimizer.learning_rate if they have become worse"


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan
