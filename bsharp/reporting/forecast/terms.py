"""What the terms of a forecast's page mean: (key, term, text). Titles and headers that start with a term link to it."""

from __future__ import annotations

__all__ = ["TERMS"]

TERMS: tuple[tuple[str, str, str], ...] = (
    (
        "accuracy",
        "accuracy",
        "Share of right responses. Of the base and of every forecast policy π it is an average over the different responses that "
        "were sampled, each with its weight under π, normalised in each problem; then the mean over problems. 95 % intervals by "
        "bootstrap over problems.",
    ),
    (
        "delta",
        "Δ to base",
        "The forecast accuracy minus the base's own, estimated from the same samples and paired by problem, in points.",
    ),
    (
        "alpha",
        "α",
        "How much likelihood is raised: π ∝ π_ref^α by the sum of log-probabilities, π ∝ π_ref · exp((α − 1) ℓ_ref/T) by the "
        "mean "
        "per token. α = 1 is the base.",
    ),
    (
        "beta_inv",
        "β⁻¹",
        "How much the reward counts: π ∝ π_ref · exp(β⁻¹ r). Of a binary reward with base success p, success rises to "
        "p e^(β⁻¹) / (p e^(β⁻¹) + 1 − p): to 1 wherever p > 0, never where p = 0.",
    ),
    ("kl", "KL", "KL(π‖π_ref) of a response, in nats: how far the forecast policy is from the base."),
    ("length", "length", "Tokens of a response, EOS included."),
    (
        "ess",
        "ESS",
        "Effective samples, (Σw)²/Σw², of the median problem: how many samples share the weight. Of a limit: how "
        "often the best response was drawn. Too few and the figure is not reliable.",
    ),
    ("effective", "effective samples", "See ESS."),
    (
        "flag",
        "flag",
        "Not reliable: too few effective samples, or it still moves with their number; the reason stands below the table. "
        "≥, lower bound: right responses too rare to be sampled can only raise the figure.",
    ),
    (
        "correlation",
        "correlation",
        "Of correctness with log-likelihood. Within: between the samples of a problem, pooled over problems before dividing; "
        "it is "
        "the cosine of the natural gradients of reward and likelihood at the base. Between: of the problems' means.",
    ),
    (
        "covariance",
        "covariance",
        "Mean over problems of the covariance of correctness with log-likelihood: the slope of accuracy along α at α = 1.",
    ),
    ("positive", "positive", "Among problems with right and wrong samples, the share whose covariance is above 0."),
    (
        "limit",
        "limit",
        "Where sharpening ends: all mass on the likeliest response. Estimated by the likeliest of the samples; the most "
        "frequent answer is the limit for answers.",
    ),
    (
        "no_right",
        "no sample right",
        "Share of problems without a right sample. The bound is the largest success rate at which n samples without success are "
        "still seen in 5 % of cases, 1 − 0.05^(1/n).",
    ),
)
