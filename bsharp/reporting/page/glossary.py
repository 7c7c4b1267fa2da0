"""What every metric of the page means, how it is estimated, its unit and the range that is healthy.

Axis titles and table headers are built from here (`axis_title`), so that a metric cannot be shown without an entry.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GLOSSARY", "Metric", "axis_title", "definitions"]


@dataclass(frozen=True)
class Metric:
    """One entry: the term as it is printed, its unit as printed (empty for words), meaning, estimator, healthy range."""

    term: str
    unit: str
    meaning: str
    estimator: str
    healthy: str


GLOSSARY: dict[str, Metric] = {
    "accuracy": Metric(
        "accuracy", "%",
        "share of samples whose final answer is equivalent to the right one",
        "mean over problems and seeds; 95 % interval by bootstrap over problems and a t interval over seeds",
        "above the base's; a regime that falls below its own best by more than its interval is declining",
    ),
    "delta": Metric(
        "Δ to base", "points",
        "accuracy minus the base's on the same problems and random streams",
        "paired by problem; interval as for accuracy",
        "an interval wholly above 0 is a gain; wholly below 0 a loss; anything else is undecided",
    ),
    "difference": Metric(
        "difference", "points",
        "accuracy of one regime minus another's",
        "paired by problem and seed",
        "an interval that excludes 0 tells the two apart",
    ),
    "gain": Metric(
        "gain beyond the best label-free regime", "points",
        "accuracy of task_reward minus that of the label-free regime with the highest validation accuracy",
        "paired bootstrap in which the rival is chosen again in every replicate",
        "none; its sign is the answer that the run gives",
    ),
    "greedy": Metric(
        "greedy", "%",
        "share of problems whose most likely token by token completion is right",
        "one completion per problem at temperature 0",
        "near maj@k; far below accuracy means that the preferred path is wrong",
    ),
    "pass_at_k": Metric(
        "pass@k", "%",
        "probability that at least one of k samples is right: what the model can reach",
        "unbiased, 1 − C(n−c, k)/C(n, k) with c right of n samples, mean over problems",
        "not below the base's at large k; a crossover means that diversity was lost",
    ),
    "maj_at_k": Metric(
        "maj@k", "%",
        "credit of the plurality vote among k samples, ties shared",
        "exact over draws without replacement from the n samples",
        "rises with k; flat from k = 1 means that all samples agree",
    ),
    "exact_match": Metric(
        "exact match", "%",
        "share of samples whose extracted answer is the right one letter by letter",
        "mean over problems; no mathematical equivalence is looked for",
        "near accuracy; far below it answers are right in another form",
    ),
    "reward_weighted_score": Metric(
        "reward-weighted score", "reward, 0 to 1",
        "the reward that the policy believes in: rewards of its distinct samples weighted by their probability",
        "Σ π(y) r(y) / Σ π(y) over the distinct graded samples of a problem, mean over problems",
        "above accuracy; below it likelier samples are worse",
    ),
    "unparseable": Metric(
        "unparseable", "%",
        "share of samples in which no answer could be read",
        "mean over samples",
        "below 1 %",
    ),
    "ungraded": Metric(
        "ungraded", "%",
        "share of samples whose grader timed out or failed; they count in no accuracy",
        "mean over samples",
        "0",
    ),
    "correlation": Metric(
        "correlation of reward and base log-probability", "−1 to 1",
        "whether completions that the base finds likely are right more often",
        "Σ_x Cov_x / √(Σ_x Var_x r · Σ_x Var_x ℓ_ref) within problems, pooled before the division",
        "above 0: sharpening has something to follow; below 0 it leads away from right answers",
    ),
    "stability": Metric(
        "stability", "",
        "a word for how training went: stable, noisy, declining or collapsed; no signal where nothing was ever right",
        "fixed rule on drops, dips, seed spread, entropy, length and truncation, set before any run was looked at",
        "stable",
    ),
    "validation_accuracy": Metric(
        "validation accuracy", "%",
        "accuracy on the validation problems, step 0 before training",
        "mean over the validation samples of a check, one figure per seed; no interval of its own",
        "rises, then stays; a fall from its best beyond noise is a decline",
    ),
    "reward": Metric(
        "expected reward", "reward, 0 to 1",
        "mean task reward of the training rollouts of a step, also where the regime does not use it",
        "mean over the graded rollouts of the step",
        "rises under task_reward; under sharpening it may fall while the score rises",
    ),
    "score": Metric(
        "objective score", "own units",
        "mean of what the regime maximises: the task reward, log-probabilities in nats, or both",
        "mean over the rollouts of the step; scales of different regimes cannot be compared",
        "rises; a flat curve means no learning signal",
    ),
    "base_logprob": Metric(
        "base log-probability", "nats/sequence",
        "log-probability under the base of a whole sampled completion, EOS included; ℓ_ref",
        "mean over samples from the policy",
        "rises under sharpening by construction; towards 0 together with falling length is degenerate",
    ),
    "kl": Metric(
        "KL(policy‖base)", "nats/sequence",
        "how far the policy has moved from the base",
        "k1: mean of log π − log π_ref of whole sampled completions",
        "grows slowly; a jump by a factor within a few steps precedes most collapses",
    ),
    "entropy": Metric(
        "entropy", "nats/token",
        "how undecided the policy is at a token, on average",
        "training: exact over the vocabulary at every sampled token; evaluation: −Σ log π over Σ tokens",
        "above 0.05; below it about one token in a hundred is still a choice",
    ),
    "length": Metric(
        "length", "tokens",
        "tokens of a completion, EOS included",
        "mean over samples",
        "above a quarter of its start and away from the token limit",
    ),
    "truncated": Metric(
        "truncated", "%",
        "share of completions that reached the token limit without EOS",
        "mean over samples",
        "below 1 %; a rise by 50 points means loops instead of answers",
    ),
    "grad_norm": Metric(
        "gradient norm", "Euclidean norm, before clipping",
        "length of the gradient of a step",
        "norm of the batch gradient",
        "no spikes above 10 × its median",
    ),
    "variance_trace": Metric(
        "gradient variance", "squared norm",
        "trace of the covariance of the gradient that one step estimates",
        "from the contributions of disjoint groups of problems within the step, not from the norm of one batch",
        "no range of its own: it scales with the squared score; read it with the signal-to-noise ratio",
    ),
    "signal_squared": Metric(
        "gradient signal", "squared norm",
        "squared length of the expected gradient",
        "squared norm of the batch gradient minus its variance: unbiased, so it can be negative",
        "above 0",
    ),
    "snr": Metric(
        "signal-to-noise", "ratio",
        "gradient signal over gradient variance of a step's batch",
        "ratio of two unbiased estimates, itself not unbiased",
        "above 1 one batch points the right way; far below 0.1 steps are mostly noise",
    ),
    "zero_variance": Metric(
        "zero-variance groups", "%",
        "share of problems whose rollouts all have the same score, so that they teach nothing",
        "share of the groups of the step",
        "below 80 %",
    ),
    "distinct_answers": Metric(
        "distinct answers", "answers per problem",
        "different extracted answers among the samples of a problem",
        "mean over problems",
        "falls as accuracy rises; 1 on problems that are answered wrongly means that exploration is over",
    ),
    "repetition": Metric(
        "repetition", "%",
        "share of the runs of four tokens in a completion that occurred earlier in it (seq-rep-4, arXiv 1908.04319)",
        "mean over samples",
        "near the base's",
    ),
    "cosine": Metric(
        "cosine", "−1 to 1",
        "how the directions agree in which two objectives would move all weights (Euclidean metric)",
        "cosine of the two gradients of one batch as they are; both come from the same samples and share their noise, which "
        "may raise or lower it",
        "none; read it with the noise floor of both, near 0 the batch says nothing about that objective's direction",
    ),
    "debiased_cosine": Metric(
        "debiased cosine", "−1 to 1",
        "cosine of the expected gradients of two objectives: the noise that they share is taken out",
        "inner products between different problems only, cut to [−1, 1]",
        "none; undefined where a gradient cannot be told from noise",
    ),
    "fisher_cosine": Metric(
        "Fisher cosine", "−1 to 1",
        "cosine of the natural gradients of two objectives for a tabular policy: the correlation of their scores",
        "E_x[Cov_x] / √(E_x[Var_x] · E_x[Var_x]) over the samples, pooled before the division",
        "none; above 0 likelihood predicts correctness",
    ),
    "noise_floor": Metric(
        "noise floor", "−1 to 1",
        "cosine of an objective's gradient with itself between two half batches: 1 is no noise",
        "mean over the ways to deal the batch's blocks of problems to two halves",
        "above 0.1; near 0 the batch says nothing about that objective's direction. It bounds no cosine of two objectives, "
        "which share noise and may exceed it",
    ),
    "share_of_norm": Metric(
        "share of norm", "%",
        "share of the squared gradient norm that lies in a group of modules",
        "from the batch gradient",
        "none",
    ),
    "oracle_cosine": Metric(
        "oracle cosine", "−1 to 1",
        "cosine of an objective's gradient with that of raising the log-probability of the right solutions",
        "gradient of the oracle solutions of the same problems",
        "above 0: the first step moves towards right solutions",
    ),
    "margin_cosine": Metric(
        "margin cosine", "−1 to 1",
        "cosine of an objective's gradient with that of raising the margin of right over mistaken solutions",
        "gradient of log π(right) − log π(mistake) over the same problems",
        "above 0: the first step corrects mistakes; below 0 it amplifies them",
    ),
    "right": Metric(
        "change of log π(right)", "nats",
        "change of the log-probability of the right solution",
        "trained: against the base, over problems and seeds; first step: derivative along the unit gradient, per unit "
        "of weight distance",
        "above 0",
    ),
    "mistake": Metric(
        "change of log π(mistake)", "nats",
        "change of the log-probability of the solution with the mistake",
        "as for the right solution",
        "below the change of the right solution",
    ),
    "margin": Metric(
        "margin", "nats",
        "log-probability of the right solution minus that of the mistaken one; a change of it corrects (+) or amplifies (−)",
        "as for the right solution, paired by problem",
        "a change above 0: the mistake is being corrected",
    ),
    "answer_changed": Metric(
        "answer changed", "%",
        "share of problems whose answer differs after a harmless change of the prompt",
        "greedy completions of the original and the changed prompt, so that no sampling noise enters",
        "not above the base's",
    ),
    "correctness_changed": Metric(
        "correctness changed", "%",
        "share of problems whose answer turns from right to wrong or back after a harmless change of the prompt",
        "as for the answer",
        "not above the base's",
    ),
    "right_kept": Metric(
        "right answers kept", "%",
        "share of the problems that a model solves with the original prompt which it still solves with the changed one",
        "mean over those problems and the changes that keep the answer",
        "near 100 %; a regime below the base is more fragile where it is right",
    ),
    "explained": Metric(
        "share explained", "%",
        "share of a training path's squared distance from the base that lies in the plane",
        "projection of the weights on the plane, 1 − residual² / distance²",
        "above 50 %; below it the drawn path is mostly a shadow",
    ),
    "confidence": Metric(
        "confidence", "vote share, %",
        "share of a problem's samples that give its modal answer",
        "from the samples of the problem",
        "equal to the accuracy of the modal answer",
    ),
    "modal_accuracy": Metric(
        "modal accuracy", "%",
        "share of problems of a bin whose modal answer is right",
        "mean over the problems of the bin, 95 % interval",
        "on the diagonal; below it the model is over-confident",
    ),
    "ece": Metric(
        "ECE", "points",
        "expected calibration error: distance of confidence from accuracy",
        "mean over bins, weighted by problems, of |confidence − accuracy|",
        "below 10 points, and not above the base's",
    ),
    "modal_share": Metric(
        "change of the modal share", "points",
        "how the probability of the regime's modal answer moved against the base",
        "vote share of that answer minus its share under the base, mean over problems",
        "above 0 where right, not above 0 where wrong",
    ),
    "wrong_and_more_certain": Metric(
        "wrong and more certain", "%",
        "share of problems whose modal answer is wrong and became more certain",
        "share of all problems",
        "near 0; sharpening a wrong preference raises it",
    ),
    "same_wrong_answer_more_certain": Metric(
        "same wrong answer, more certain", "%",
        "share of problems on which base and regime agree on a wrong answer and the regime is more certain of it",
        "share of all problems",
        "near 0; it is the systematic error that sharpening cannot see",
    ),
    "wrong_and_less_certain": Metric(
        "wrong and less certain", "%",
        "share of problems whose modal answer is wrong and became less certain",
        "share of all problems",
        "no range; doubt about wrong answers is better than certainty",
    ),
    "right_and_more_certain": Metric(
        "right and more certain", "%",
        "share of problems whose modal answer is right and became more certain",
        "share of all problems",
        "the larger the better",
    ),
    "right_and_less_certain": Metric(
        "right and less certain", "%",
        "share of problems whose modal answer is right and became less certain",
        "share of all problems",
        "near 0",
    ),
    "gained": Metric(
        "gained and lost", "problems",
        "problems right under the regime and not under the base, and the reverse",
        "a problem is right where its share of right samples reaches the threshold stated in the section",
        "losses far below gains",
    ),
    "p_value": Metric(
        "McNemar p", "",
        "probability of a split of gained and lost at least as uneven if gains and losses were equally likely",
        "exact binomial test on gained against lost",
        "below 0.05 the change is more than chance; not corrected for several comparisons",
    ),
    "logprob": Metric(
        "log π", "nats/sequence",
        "log-probability of the completion under the model that wrote it",
        "sum over its tokens at the sampling temperature",
        "none",
    ),
    "grade": Metric(
        "grade", "",
        "correct, wrong, unparseable (no answer could be read), timeout or error (could not be graded)",
        "extracted answer against the right one, up to mathematical equivalence",
        "timeout and error absent",
    ),
    "seconds": Metric(
        "time", "s",
        "wall-clock time of a job: training, validation and evaluation",
        "measured in the process that did it",
        "none",
    ),
    "cost": Metric(
        "cost", "CPU core-hours",
        "seconds of all jobs × threads / 3600",
        "from the times of the jobs",
        "none",
    ),
}  # fmt: skip
"""Every metric of the page by key."""


def axis_title(key: str, what: str = "", unit: str | None = None) -> str:
    """`term what (unit)`: the title of an axis or the header of a column that shows the metric `key`."""
    metric = GLOSSARY[key]
    shown = metric.unit if unit is None else unit
    text = f"{metric.term} {what}".strip()
    return f"{text} ({shown})" if shown else text


def definitions() -> list[tuple[str, str, str]]:
    """The glossary as (key, term, text), in the order in which the page uses the metrics."""
    found = []
    for key, metric in GLOSSARY.items():
        unit = f" Unit: {metric.unit}." if metric.unit else ""
        text = f"{metric.meaning}. Estimated: {metric.estimator}.{unit} Healthy: {metric.healthy}."
        found.append((key, metric.term, text[0].upper() + text[1:]))
    return found
