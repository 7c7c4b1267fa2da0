"""What a policy is trained for: one objective, a weighted sum of named terms, and one named constructor per regime.

For each prompt, with r the task reward of a response y, T its number of tokens, l_ref(y) = sum_t log pi_ref(y_t | y_<t)
its log-probability under the frozen base and l(y) the same under the policy pi, all in nats:

    J(pi) = E_pi[ w r + s N(l_ref) + o l ] - c KL(pi || pi_ref),    KL(pi || pi_ref) = E_pi[ l - l_ref ]

    w  task                 weight of the task reward
    s  base_loglikelihood   weight of the base log-likelihood
    N  normalisation        l_ref / T^rho: rho = 0 is `sum`, rho = 1 is `mean`, any other rho is `weighted_mean`
    c  kl_to_base           weight of the penalty KL(pi || pi_ref)
    o  own_loglikelihood    weight of the policy's own log-likelihood; E_pi[l] is minus its entropy

The gradient is E_pi[R grad l] with the score R = w r + s N(l_ref) + c (l_ref - l) + o l in which l is a constant: the
derivative of l itself has mean zero under pi. Only the score differs between regimes; one engine serves them all.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bsharp.masking import masked_sum

__all__ = [
    "Normalisation",
    "Objective",
    "ScoreInputs",
    "entropy_minimisation",
    "from_paper",
    "hybrid",
    "optimum_log_weights",
    "sharpening",
    "suggest",
    "task_reward",
    "tempered",
    "tilted",
    "weighted",
]

Number = float | int

TIE_TOLERANCE = 1e-9  # relative; two responses this close in value share the optimum of a linear objective


class Normalisation(StrEnum):
    """How the base log-likelihood of a response is scaled by its length."""

    SUM = "sum"
    MEAN = "mean"
    WEIGHTED_MEAN = "weighted_mean"


@dataclass(frozen=True)
class ScoreInputs:
    """What a score is made of: B rows of at most T response tokens. What is masked out may hold anything, also NaN."""

    rewards: Float[Tensor, " B"]  # task reward, NaN where there is none
    base_token_logprobs: Float[Tensor, "B T"]  # nats, frozen base
    behaviour_token_logprobs: Float[Tensor, "B T"]  # nats, the policy that sampled the row
    completion_mask: Bool[Tensor, "B T"]  # True at response tokens, the EOS included


@dataclass(frozen=True)
class Objective:
    """Weights of J (see the module) and, from them, the score of sampled rows.

    Raises ValueError for a weight that is not finite, for a negative `kl_to_base`, where all weights are 0, and for a
    `rho` that does not fit the normalisation.
    """

    task: float = 0.0
    base_loglikelihood: float = 0.0
    kl_to_base: float = 0.0
    own_loglikelihood: float = 0.0
    normalisation: Normalisation = Normalisation.SUM
    rho: float | None = None

    def __post_init__(self) -> None:
        weights = self._weights()
        for name, weight in weights.items():
            if not math.isfinite(weight):
                raise ValueError(f"objective weight {name} = {weight} is not finite; give a finite number")
        if self.kl_to_base < 0:
            raise ValueError(f"kl_to_base = {self.kl_to_base} would reward distance from the base; give a value >= 0")
        if not any(weights.values()):
            raise ValueError("an objective whose weights are all 0 scores every response 0; give one term a weight")
        if self.normalisation is Normalisation.WEIGHTED_MEAN:
            if self.rho is None or not 0 <= self.rho <= 1:
                raise ValueError(
                    f"normalisation weighted_mean needs rho in [0, 1], got rho = {self.rho}; give rho=0.5, say"
                )
        elif self.rho is not None:
            raise ValueError(
                f"rho = {self.rho} has no meaning with normalisation {self.normalisation.value}; "
                "drop rho or choose normalisation=weighted_mean"
            )

    def _weights(self) -> dict[str, float]:
        return {
            "task": self.task,
            "base_loglikelihood": self.base_loglikelihood,
            "kl_to_base": self.kl_to_base,
            "own_loglikelihood": self.own_loglikelihood,
        }

    @property
    def length_exponent(self) -> float:
        """The rho of N(l_ref) = l_ref / T^rho."""
        fixed = {Normalisation.SUM: 0.0, Normalisation.MEAN: 1.0}
        return fixed[self.normalisation] if self.rho is None else self.rho

    @property
    def entropy_weight(self) -> float:
        """c - o, the weight of the policy's entropy in J: positive gives a smooth optimum, else it is a point mass."""
        return self.kl_to_base - self.own_loglikelihood

    @property
    def label_free(self) -> bool:
        """Whether the score never looks at the task reward."""
        return self.task == 0

    @property
    def reads_base(self) -> bool:
        """Whether the score depends on the base's log-probabilities; where it does not they may be NaN."""
        return self.base_loglikelihood != 0 or self.kl_to_base != 0

    def score(self, inputs: ScoreInputs) -> Float[Tensor, " B"]:
        """Score of each response, R = w r + s l_ref / T^rho + c (l_ref - l) + o l, without gradient.

        A row whose reward is NaN scores NaN where w != 0 and a finite value elsewhere; that such rows are left out of
        training in every regime is the business of the `valid` mask, so that all regimes train on the same rows.
        """
        base = masked_sum(inputs.base_token_logprobs.detach(), inputs.completion_mask)
        scores = torch.zeros_like(base)
        # A term of weight 0 is skipped, not multiplied: 0 * NaN is NaN.
        if self.task:
            scores = scores + self.task * inputs.rewards
        if self.base_loglikelihood:
            scores = scores + self.base_loglikelihood * base / self._length_scale(inputs)
        if self.kl_to_base or self.own_loglikelihood:
            own = masked_sum(inputs.behaviour_token_logprobs.detach(), inputs.completion_mask)
            if self.kl_to_base:
                scores = scores + self.kl_to_base * (base - own)
            scores = scores + self.own_loglikelihood * own
        return scores

    def token_scores(self, inputs: ScoreInputs) -> Float[Tensor, "B T"]:
        """The score split over tokens; each row sums to `score`, masked-out positions are 0.

        Likelihood and KL terms sit on their own token, the task reward on the last response token. With a length
        normalisation, token t gets what it adds to the normalised log-likelihood of the prefix it ends,

            L_t / t^rho - L_{t-1} / (t-1)^rho,    L_t = sum_{k <= t} log pi_ref(y_k | y_<k)

        which depends on nothing that is drawn later, so that the score still to come is unbiased at every token; equal
        shares of L_T / T^rho, which know the final length from the first token on, would bias it. Raises ValueError for
        a row without a response token.
        """
        mask = inputs.completion_mask
        if not bool(mask.any(-1).all()):
            row = int((~mask.any(-1)).nonzero()[0, 0])
            raise ValueError(f"row {row} has no response token to carry its reward; drop empty responses first")
        base = torch.where(mask, inputs.base_token_logprobs.detach(), 0.0)
        scores = torch.zeros_like(base)
        if self.base_loglikelihood:
            scores = scores + self.base_loglikelihood * self._normalised_increments(base, mask)
        if self.kl_to_base or self.own_loglikelihood:
            own = torch.where(mask, inputs.behaviour_token_logprobs.detach(), 0.0)
            if self.kl_to_base:
                scores = scores + self.kl_to_base * (base - own)
            scores = scores + self.own_loglikelihood * own
        if self.task:
            positions = torch.arange(mask.shape[1], device=mask.device)
            last = torch.where(mask, positions, -1).amax(-1)
            task = (self.task * inputs.rewards)[:, None]
            scores = torch.where(positions == last[:, None], scores + task, scores)
        return scores

    def _normalised_increments(self, base: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        if self.length_exponent == 0:
            return base
        prefix = base.cumsum(-1) / mask.cumsum(-1).clamp(min=1).to(base.dtype) ** self.length_exponent
        return prefix.diff(dim=-1, prepend=torch.zeros_like(prefix[:, :1]))

    def _length_scale(self, inputs: ScoreInputs) -> Float[Tensor, " B"]:
        lengths = inputs.completion_mask.sum(-1).clamp(min=1).to(inputs.base_token_logprobs.dtype)
        return lengths**self.length_exponent

    def describe(self) -> str:
        """The objective on one line, e.g. `J = E[r + 0.01 l_ref] - 0.01 KL(policy||base)`."""
        exponent = self.length_exponent
        likelihood = "l_ref" if exponent == 0 else "l_ref/T" if exponent == 1 else f"l_ref/T^{exponent:g}"
        inside = _signed_sum([(self.task, "r"), (self.base_loglikelihood, likelihood), (self.own_loglikelihood, "l")])
        kl = _signed_sum([(-self.kl_to_base, "KL(policy||base)")])
        if not inside:
            return f"J = {kl}"
        return f"J = E[{inside}]" + (f" - {kl[1:]}" if kl else "")

    def as_dict(self) -> dict[str, float | str | None]:
        """The weights as plain JSON values."""
        return {**asdict(self), "normalisation": self.normalisation.value}


def _signed_sum(terms: list[tuple[float, str]]) -> str:
    text = ""
    for weight, symbol in terms:
        if weight:
            size = "" if abs(weight) == 1 else f"{abs(weight):g} "
            sign = (" - " if weight < 0 else " + ") if text else ("-" if weight < 0 else "")
            text += f"{sign}{size}{symbol}"
    return text


def optimum_log_weights(
    objective: Objective,
    base_logprob: Float[Tensor, " N"],
    length: Int[Tensor, " N"],
    reward: Float[Tensor, " N"],
) -> Float[Tensor, " N"]:
    """Unnormalised log pi* over N enumerated responses, the maximiser of J over all distributions on them.

    With v(y) = w r + s l_ref / T^rho + c l_ref and h = c - o the weight of the entropy, J = E_pi[v] + h H(pi), so

        h > 0:  log pi*(y) = v(y) / h + const;  J(pi*) = h logsumexp(v / h)
        h = 0:  J is linear: 0 on every argmax of v, -inf elsewhere (normalised: uniform over ties)
        h < 0:  J is convex: one argmax of v; ties go to the likeliest under the base, then to the first

    For h < 0 every argmax is an optimum; training from the base keeps the order of tied responses, so it ends in the
    likeliest. Responses of base probability 0 are never sampled and get -inf in every regime. Raises ValueError where
    no response has positive base probability.
    """
    supported = base_logprob > -math.inf
    if not bool(supported.any()):
        raise ValueError("no response has positive probability under the base; check base_logprob")
    logprob = torch.where(supported, base_logprob, 0.0)
    value = (objective.base_loglikelihood / length.to(logprob.dtype) ** objective.length_exponent) * logprob
    value = value + objective.kl_to_base * logprob
    if objective.task:
        value = value + objective.task * reward
    nowhere = torch.full_like(value, -math.inf)
    value = torch.where(supported, value, nowhere)
    if objective.entropy_weight > 0:
        return value / objective.entropy_weight
    best = value.max()
    ties = value >= best - TIE_TOLERANCE * best.abs().clamp(min=1.0)
    if objective.entropy_weight < 0:
        likeliest = torch.where(ties, base_logprob, nowhere).argmax()
        ties = torch.zeros_like(ties).index_fill(0, likeliest, True)
    return torch.where(ties, torch.zeros_like(value), nowhere)


# ---------------------------------------------------------------------------------------------------- the regimes


def task_reward() -> Objective:
    """J = E[r]. Optimum: any policy on argmax r, whatever the base prefers. Degenerate: constant r teaches nothing."""
    return Objective(task=1.0)


def tilted(
    alpha: Number = 1.0, beta_inv: Number = 100.0, normalisation: Normalisation | str = "sum", rho: Number | None = None
) -> Objective:
    """J = E[r + ((alpha - 1) / beta_inv) N(l_ref)] - (1 / beta_inv) KL(pi || pi_ref): tilted sampling (arXiv 2604.16259).

    Optimum: pi* ~ pi_ref^alpha exp(beta_inv r) for N = sum, else pi_ref exp((alpha - 1) N(l_ref) + beta_inv r).
    alpha = 1 is the task reward with a KL penalty. Degenerate: beta_inv -> 0 is tempered sampling, beta_inv -> inf the
    task reward. Both must be > 0.
    """
    _require_positive("tilted", alpha=alpha, beta_inv=beta_inv)
    return weighted(
        task=1.0,
        base_loglikelihood=(alpha - 1.0) / beta_inv,
        kl_to_base=1.0 / beta_inv,
        normalisation=normalisation,
        rho=rho,
    )


def sharpening(normalisation: Normalisation | str = "sum", rho: Number | None = None, alpha: Number = 1.0) -> Objective:
    """J = alpha E[N(l_ref)]: distribution sharpening (arXiv 2604.16259), no label anywhere.

    Optimum: a point mass on argmax N(l_ref), the base's mode for N = sum. alpha > 0 is a scale: it moves no optimum and
    an optimizer that normalises its step hardly feels it. Degenerate: `sum` favours the shortest responses, `mean`
    long repetition whose per-token probability nears 1; at a fixed length the two agree.
    """
    _require_positive("sharpening", alpha=alpha)
    return weighted(base_loglikelihood=alpha, normalisation=normalisation, rho=rho)


def tempered(alpha: Number = 2.0, normalisation: Normalisation | str = "sum", rho: Number | None = None) -> Objective:
    """J = (alpha - 1) E[N(l_ref)] - KL(pi || pi_ref): tempered sampling (arXiv 2604.16259), no label anywhere.

    Optimum: pi* ~ pi_ref^alpha for N = sum, else pi_ref exp((alpha - 1) N(l_ref)). alpha > 0; below 1 it flattens.
    Degenerate: alpha = 1 asks for the base itself.
    """
    _require_positive("tempered", alpha=alpha)
    return weighted(base_loglikelihood=alpha - 1.0, kl_to_base=1.0, normalisation=normalisation, rho=rho)


def hybrid(
    alpha: Number, beta_inv: Number, normalisation: Normalisation | str = "sum", rho: Number | None = None
) -> Objective:
    """J = E[r + (alpha / beta_inv) N(l_ref)]: the task reward with a likelihood bonus and no KL (arXiv 2604.16259).

    Optimum: a point mass on argmax beta_inv r + alpha N(l_ref). alpha < 0 is a likelihood penalty; alpha = 0 is the
    task reward and is refused here. Degenerate: a bonus whose range exceeds 1 outvotes a binary reward.
    """
    _require_positive("hybrid", beta_inv=beta_inv)
    if alpha == 0:
        raise ValueError("hybrid with alpha = 0 has no likelihood term; write task_reward instead")
    return weighted(task=1.0, base_loglikelihood=alpha / beta_inv, normalisation=normalisation, rho=rho)


def entropy_minimisation() -> Objective:
    """J = E_pi[l] = -H(pi): every response is scored by the policy's own log-likelihood, no label and no base.

    Optimum: any point mass; from the base, exact natural-gradient flow ends in the base's mode, and so does gradient flow on
    one logit per response; on logits per prefix it may end elsewhere. It is the KL towards a point mass on the policy's own
    preference. Degenerate: a uniform policy has gradient 0 and stays.
    """
    return Objective(own_loglikelihood=1.0)


def weighted(
    task: Number = 0.0,
    base_loglikelihood: Number = 0.0,
    kl_to_base: Number = 0.0,
    own_loglikelihood: Number = 0.0,
    normalisation: Normalisation | str = "sum",
    rho: Number | None = None,
) -> Objective:
    """Any Objective by its weights; `optimum_log_weights` has the optimum. Raises ValueError as Objective does."""
    try:
        kind = Normalisation(normalisation)
    except ValueError:
        remedy = suggest(str(normalisation), [item.value for item in Normalisation])
        raise ValueError(f"unknown normalisation {str(normalisation)!r}; {remedy}") from None
    return Objective(
        task=float(task),
        base_loglikelihood=float(base_loglikelihood),
        kl_to_base=float(kl_to_base),
        own_loglikelihood=float(own_loglikelihood),
        normalisation=kind,
        rho=None if rho is None else float(rho),
    )


def from_paper(alpha: Number, beta_inv: Number, mode: str) -> Objective:
    """The objective that arXiv 2604.16259 writes with the knobs alpha and beta_inv.

        mode          alpha   beta_inv   task   base_loglikelihood       kl_to_base
        task_reward   0       > 0        1      0                        0
        tilted        > 0     > 0        1      (alpha - 1) / beta_inv   1 / beta_inv
        sharpening    > 0     0          0      alpha                    0
        tempered      > 0     0          0      alpha - 1                1
        hybrid        > 0     > 0        1      alpha / beta_inv         0

    Where the reward counts, J is divided by beta_inv, so that beta_inv moves no learning rate. Raises ValueError for an
    unknown mode and for knobs outside the mode's row.
    """
    rows: dict[str, tuple[bool, bool, Callable[[], Objective]]] = {
        "task_reward": (False, True, task_reward),
        "tilted": (True, True, lambda: tilted(alpha, beta_inv)),
        "sharpening": (True, False, lambda: sharpening(alpha=alpha)),
        "tempered": (True, False, lambda: tempered(alpha)),
        "hybrid": (True, True, lambda: hybrid(alpha, beta_inv)),
    }
    if mode not in rows:
        raise ValueError(f"unknown mode {mode!r}; {suggest(mode, list(rows))}")
    alpha_positive, beta_inv_positive, build = rows[mode]
    for knob, value, positive in (("alpha", alpha, alpha_positive), ("beta_inv", beta_inv, beta_inv_positive)):
        if not math.isfinite(value) or (value <= 0 if positive else value != 0):
            needed = "> 0" if positive else "= 0"
            raise ValueError(f"mode {mode} needs {knob} {needed}, got {knob} = {value:g}; change {knob} or the mode")
    return build()


def _require_positive(constructor: str, **values: Number) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{constructor} needs {name} > 0, got {name} = {value:g}; give a positive finite number")


def suggest(word: str, known: list[str]) -> str:
    """What to write instead of an unknown `word`: the closest of the known words, and all of them."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}known: {', '.join(known)}"
