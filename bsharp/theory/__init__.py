"""Exact small worlds: every response listed, in float64, with the training mathematics used unchanged.

What is estimated anywhere else is computed here: optima of every objective (`targets`, `paths`, `at_k`), gradients and flows
(`policy_gradient`, `natural`, `dynamics`), sampled training beside them (`sampled`), what a perturbed base does (`stability`,
`basins`, `score_noise`), and every statement of docs/theory.md with both sides (`statements`, `check`).
"""

from __future__ import annotations

from bsharp.theory.at_k import exact_maj_at_k, exact_pass_at_k
from bsharp.theory.counterexamples import search, search_all
from bsharp.theory.dynamics import (
    Trajectory,
    flow_limit,
    gradient_flow,
    natural_gradient_flow,
    parametric_natural_gradient_flow,
)
from bsharp.theory.natural import Alignment, alignment, cosine, fisher_matrix, natural_gradient
from bsharp.theory.paths import Path, alpha_path, beta_inv_path, kl_path
from bsharp.theory.policy_gradient import (
    autoregressive_log_policy,
    exact_gradient,
    exact_objective,
    leave_one_out_noise,
    tabular_log_policy,
)
from bsharp.theory.sampled import SampledRun, SampledSettings, autoregressive, tabular, train_sampled
from bsharp.theory.stability import (
    amplification_curve,
    flip_distance,
    flip_probability,
    optimum_change,
    table_perturbation,
)
from bsharp.theory.targets import (
    Moments,
    Target,
    correlation,
    covariance,
    expectation,
    moments,
    optimum,
    power,
    tilt,
    variance,
)
from bsharp.theory.world import FiniteWorld, from_arrays, random_world, tabular_token_logprobs, uniform_world
from bsharp.theory.worlds import CONSTRUCTORS, loop, near_tie, right_mode, short_mode, wrong_mode

__all__ = [
    "CONSTRUCTORS",
    "Alignment",
    "FiniteWorld",
    "Moments",
    "Path",
    "SampledRun",
    "SampledSettings",
    "Target",
    "Trajectory",
    "alignment",
    "alpha_path",
    "amplification_curve",
    "autoregressive",
    "autoregressive_log_policy",
    "beta_inv_path",
    "correlation",
    "cosine",
    "covariance",
    "exact_gradient",
    "exact_maj_at_k",
    "exact_objective",
    "exact_pass_at_k",
    "expectation",
    "fisher_matrix",
    "flip_distance",
    "flip_probability",
    "flow_limit",
    "from_arrays",
    "gradient_flow",
    "kl_path",
    "leave_one_out_noise",
    "loop",
    "moments",
    "natural_gradient",
    "natural_gradient_flow",
    "near_tie",
    "optimum",
    "optimum_change",
    "parametric_natural_gradient_flow",
    "power",
    "random_world",
    "right_mode",
    "search",
    "search_all",
    "short_mode",
    "table_perturbation",
    "tabular",
    "tabular_log_policy",
    "tabular_token_logprobs",
    "tilt",
    "train_sampled",
    "uniform_world",
    "variance",
    "wrong_mode",
]
