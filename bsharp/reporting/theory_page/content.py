"""What the page says: its sections, the settings worth trying, and the derivation beside each picture (in LaTeX)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["FIRST_LINES", "FORMULAS", "INTRODUCTION", "LEASHED", "SECTIONS", "Section", "Step", "Try"]

Setting = str | float


@dataclass(frozen=True)
class Step:
    """One step of a derivation: a sentence, in which `$...$` is a formula, and a displayed formula below it."""

    text: str
    latex: str = ""


@dataclass(frozen=True)
class Try:
    """A button that puts the sliders where something is to be seen."""

    label: str
    settings: Mapping[str, Setting]


@dataclass(frozen=True)
class Section:
    """A picture with its story and its derivation; `picture` names what the renderer puts there."""

    section_id: str
    title: str
    story: str
    tries: tuple[Try, ...]
    steps: tuple[Step, ...]
    picture: str = field(default="plot")


INTRODUCTION = (
    "A base model, one prompt, and a list so short that nothing has to be estimated: every response $y$, the "
    r"probability $\pi_{\mathrm{ref}}(y)$ that the base gives it, and its reward $r(y)$, 1 for a right answer, 0 "
    "for a wrong one. Training with any of the objectives below has an exact best policy. This page computes it "
    "while you move the sliders."
)

FIRST_LINES = (
    Step(
        r"The likelihood that sharpening feeds on is $\ell(y) = \log\, \pi_{\mathrm{ref}}(y)$, whole or divided "
        r"by a power of the number of tokens, $N(\ell) = \ell / T^{\rho}$. All objectives are one:",
        r"J(\pi) = \mathbb{E}_{\pi}\left[ w\,r + s\,N(\ell) \right] - c\,\mathrm{KL}(\pi \,\|\, "
        r"\pi_{\mathrm{ref}})",
    ),
)

FORMULAS = {
    "base": r"\pi_{\mathrm{ref}}",
    "sharpened": r"\mathrm{arg\,max}\, N(\ell)",
    "tempered": r"\propto \pi_{\mathrm{ref}}\, e^{(\alpha - 1) N(\ell)}",
    "tilted": r"\propto \pi_{\mathrm{ref}}\, e^{(\alpha - 1) N(\ell) + \beta^{-1} r}",
    "task": r"\mathrm{arg\,max}\, r",
}

LEASHED = {
    "sharpened": r"\propto \pi_{\mathrm{ref}}\, e^{N(\ell)/c}",
    "task": r"\propto \pi_{\mathrm{ref}}\, e^{r/c}",
}
"""The two optima that the slider c changes, as they are for c > 0."""

_BARS = Section(
    "bars",
    "One base, four best policies",
    "Each row spreads probability 1 over the same responses, the base’s likeliest at the left. Solid blue with ✓ "
    "is right, hatched amber with ✗ is wrong, the thin line repeats the base. Ask of every row: whose bars grew, "
    "and did anybody look at the answers?",
    (
        Try("Wrong mode, α up: accuracy falls", {"world": "wrong_mode", "alpha": 5, "beta_inv": 0}),
        Try("Same base, β⁻¹ up: accuracy rises", {"world": "wrong_mode", "alpha": 1, "beta_inv": 6}),
        Try("Right mode: sharpening works", {"world": "right_mode", "alpha": 4, "beta_inv": 0}),
        Try("A leash: c = 0.5", {"world": "wrong_mode", "alpha": 2, "c": 0.5}),
        Try("Loop, mean likelihood", {"world": "loop", "alpha": 8, "beta_inv": 0, "normalisation": "mean"}),
    ),
    (
        Step(
            "For $c > 0$ put everything under one logarithm:",
            r"J(\pi) = c\, \mathbb{E}_{\pi}\, \log\, \frac{\pi_{\mathrm{ref}}\, e^{(w r + s N(\ell))/c}}{\pi}",
        ),
        Step(
            r"Divide inside by its sum $Z$, so that it is a distribution $\pi^{*}$:",
            r"J(\pi) = c \log\, Z - c\,\mathrm{KL}(\pi \,\|\, \pi^{*})",
        ),
        Step(
            "A KL is never negative and 0 only at equality. The best policy is",
            r"\pi^{*}(y) = \frac{1}{Z}\, \pi_{\mathrm{ref}}(y)\, e^{(w\,r(y) + s\,N(\ell(y)))/c}",
        ),
        Step(
            r"Tempering is $s/c = \alpha - 1$, so $\pi_{\mathrm{ref}}^{\alpha}$ where $N(\ell) = \ell$; tilting "
            r"adds $w/c = \beta^{-1}$. As $c \to 0$ all mass goes to the largest $w\,r + s\,N(\ell)$: for "
            "sharpening by the sum the base’s mode, for the task reward any mixture of right answers (an even one is drawn). The "
            "slider $c$ gives both a leash."
        ),
    ),
    "bars",
)
_ALPHA = Section(
    "power",
    "Sharpening follows a covariance",
    "The upper curve is the accuracy of the tempered policy as α grows; the straight piece is its tangent. The "
    "lower curve is that slope: the covariance of reward and likelihood. Nothing forces it to be positive.",
    (
        Try("Likely answers are right", {"world": "right_mode", "alpha": 3}),
        Try("Likely answers are wrong", {"world": "wrong_mode", "alpha": 3}),
        Try("First down, then up", {"world": "turning", "alpha": 2}),
        Try("…and much later", {"world": "turning", "alpha": 10}),
        Try("Flatter than the base: α = 0.3", {"world": "wrong_mode", "alpha": 0.3}),
    ),
    (
        Step(
            r"With $p_\alpha \propto \pi_{\mathrm{ref}}\, e^{(\alpha - 1) N(\ell)}$,",
            r"\frac{d}{d\alpha} \log\, p_\alpha(y) = N(\ell(y)) - \mathbb{E}_{p_\alpha}[N(\ell)]",
        ),
        Step(
            r"Multiply by $r\, p_\alpha$ and sum over responses:",
            r"\frac{d}{d\alpha} \mathbb{E}_{p_\alpha}[r] = \mathrm{Cov}_{p_\alpha}(r, N(\ell))",
        ),
        Step(
            "It has any sign, and the whole change from the base to α is an area:",
            r"\int_1^{\alpha} \mathrm{Cov}_{p_a}(r, N(\ell))\, da",
        ),
        Step(
            r"At the base, the correlation $\mathrm{Corr}(r, \ell)$ is the cosine between the natural gradients "
            "of the two objectives: what sharpening and the reward share is how well likelihood predicts "
            "correctness, and nothing else."
        ),
    ),
)
_LAMBDA = Section(
    "tilt",
    "The reward follows a variance",
    "The same two panels for the tilt by the reward. The slope is a variance: it cannot be negative, and it is 0 "
    "only where everything, or nothing, is right. Any base with a right answer somewhere climbs to 1.",
    (
        Try("Wrong mode: it climbs all the same", {"world": "wrong_mode", "alpha": 1, "beta_inv": 4}),
        Try("From a base sharpened the wrong way", {"world": "wrong_mode", "alpha": 3, "beta_inv": 8}),
        Try("Right mode", {"world": "right_mode", "alpha": 1, "beta_inv": 2}),
        Try("The paper’s β⁻¹ = 100", {"world": "wrong_mode", "alpha": 1, "beta_inv": 100}),
    ),
    (
        Step(
            r"With $p_\lambda \propto \pi_{\mathrm{ref}}\, e^{\lambda r}$ and $\lambda = \beta^{-1}$, the same "
            "step gives",
            r"\frac{d}{d\lambda} \mathbb{E}_{p_\lambda}[r] = \mathrm{Cov}_{p_\lambda}(r, r) = "
            r"\mathrm{Var}_{p_\lambda}(r) \ge 0",
        ),
        Step(
            "For a reward of 0 or 1 and a base that is right with probability $p_0$:",
            r"\mathbb{E}_{p_\lambda}[r] = \frac{p_0\, e^{\lambda}}{p_0\, e^{\lambda} + 1 - p_0} "
            r"\;\longrightarrow\; 1",
        ),
        Step(
            "Among right answers, and among wrong ones, ratios stay as they were: the tilt multiplies all right "
            "answers by the same number. Diversity of right answers survives; under a power it does not."
        ),
    ),
)
_LENGTH = Section(
    "length",
    "What sharpening does to length",
    "A log-likelihood is a sum of negative terms, one a token, so long responses look unlikely. Divide by the "
    "length and the opposite door opens: a repetition that grows ever more certain. The three curves are three "
    "ways to divide.",
    (
        Try("Short mode: the sum stops early", {"world": "short_mode", "alpha": 4}),
        Try("Loop: the mean runs on", {"world": "loop", "alpha": 8, "normalisation": "mean"}),
        Try("Halfway: ρ = 0.5", {"world": "loop", "alpha": 6, "normalisation": "weighted_mean", "rho": 0.5}),
        Try("Fixed length: no such bias", {"world": "fixed_length", "alpha": 5}),
    ),
    (
        Step(
            "The derivative along α again, now of the length $T$:",
            r"\frac{d}{d\alpha} \mathbb{E}_{p_\alpha}[T] = \mathrm{Cov}_{p_\alpha}(T, N(\ell))",
        ),
        Step(
            r"With about $h$ nats of entropy a token, $\ell \approx -h\,T$, so typically, for the sum,",
            r"\mathrm{Cov}(T, \ell) \approx -h\,\mathrm{Var}(T) < 0",
        ),
        Step(
            r"For the mean, a loop whose tokens become certain has $\ell / T \to 0$, the largest value there is. "
            r"At one fixed length $\ell$ and $\ell / T$ order responses alike."
        ),
    ),
)
_NUDGE = Section(
    "nudge",
    "A nudge to the base",
    "Another training run, another seed: the base could have been a little different. Take ε/2 nats from the "
    "base’s best response, give them to the next, and see whose optimum notices. The world of the near tie has a "
    "gap of 0.01 nats.",
    (
        Try("Near tie: half the gap", {"world": "near_tie", "epsilon": 0.005, "alpha": 4}),
        Try("Past the gap: all mass moves", {"world": "near_tie", "epsilon": 0.02, "alpha": 4}),
        Try("α = 10: ten times the nudge", {"world": "near_tie", "epsilon": 0.2, "alpha": 10, "beta_inv": 3}),
        Try("Tilt alone: once the nudge", {"world": "near_tie", "epsilon": 0.2, "alpha": 1, "beta_inv": 6}),
        Try("A leash smooths the jump: c = 0.05", {"world": "near_tie", "epsilon": 0.05, "alpha": 4, "c": 0.05}),
    ),
    (
        Step(
            r"Let $\ell \to \ell + \delta$. For $p_\alpha \propto \pi_{\mathrm{ref}}^{\alpha}$ the log-ratio of "
            "two responses moves by exactly",
            r"\Delta \log\, \frac{p_\alpha(y)}{p_\alpha(y')} = \alpha\,(\delta(y) - \delta(y'))",
        ),
        Step(
            "and to first order each response by",
            r"\Delta \log\, p_\alpha(y) = \alpha\,(\delta(y) - \mathbb{E}_{p_\alpha}[\delta])",
        ),
        Step(
            "So the base’s accidents come back α times as large. The tilt with α = 1 returns them once. An "
            r"argmax ignores how large a difference is: where two values tie it jumps. $\mathrm{arg\,max}\, r$ does "
            r"not contain $\pi_{\mathrm{ref}}$."
        ),
    ),
    "nudge",
)
_FLOWS = Section(
    "flows",
    "How learning moves",
    "Three responses make a triangle: each corner is a policy that always says the same. Thin arrows are the "
    "natural flow from everywhere. Drag the white circle: the solid path is its natural flow, the dashed one the "
    "ordinary gradient’s. Shading says whether the corner or side they end at is right.",
    (
        Try("Sharpening: to the mode, though wrong", {"simplex": "wrong_first", "flow": "sharpened"}),
        Try("Task reward: to the right corner", {"simplex": "wrong_first", "flow": "task"}),
        Try("Two right: both survive", {"simplex": "two_right", "flow": "task"}),
        Try(
            "Entropy minimisation: three basins",
            {"simplex": "wrong_first", "flow": "entropy", "start": "0.3,0.38,0.32"},
        ),
        Try("Tilted: stops inside", {"simplex": "two_right", "flow": "tilted", "alpha": 1, "beta_inv": 2}),
        Try(
            "A slow start: the right answer is rare",
            {"simplex": "wrong_first", "flow": "task", "start": "0.04,0.03,0.93"},
        ),
    ),
    (
        Step(
            r"With the return $R = w\,r + s\,N(\ell) + c\,(\ell - \log\, \pi)$ the natural gradient moves a "
            "policy by the replicator equation:",
            r"\dot{\pi}(y) = \pi(y)\,(R(y) - \mathbb{E}_{\pi}[R])",
        ),
        Step(
            r"It is linear in $\log\, \pi$. With $v = w\,r + s\,N(\ell) + c\,\ell$,",
            r"\log\, \pi_t = e^{-ct}\, \log\, \pi_0 + \frac{1 - e^{-ct}}{c}\, v + \mathrm{const}",
        ),
        Step(
            r"and for $c = 0$ simply $\log\, \pi_0 + t\,v$: every gap grows, exponentially in the ratio. The "
            "ordinary gradient moves the logits by the same product,",
            r"\dot{\theta}(y) = \pi(y)\,(R(y) - \mathbb{E}_{\pi}[R])",
        ),
        Step(
            "so rare responses learn slowly, and two right answers do not keep their ratio as they do under the "
            r"natural flow. Entropy minimisation scores a policy by its own $\log\, \pi$: whoever leads at the "
            "start wins."
        ),
    ),
    "flows",
)
SECTIONS = (_BARS, _ALPHA, _LAMBDA, _LENGTH, _NUDGE, _FLOWS)
