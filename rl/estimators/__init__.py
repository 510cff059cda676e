"""Estimators: the mathematics of reinforcement learning as pure functions of tensors.

The only part of ``rl`` that post-training imports; it needs torch alone.
"""

from rl.estimators.advantages import (
    generalized_advantages,
    group_relative_advantages,
    leave_one_out_advantages,
    maxrl_advantages,
    process_supervised_advantages,
    reinforce_plus_plus_advantages,
)
from rl.estimators.kl import k1, k2, k3
from rl.estimators.masking import masked_mean, masked_standardize, masked_sum
from rl.estimators.off_policy import (
    VTrace,
    emphasis,
    q_sigma_returns,
    retrace,
    tree_backup,
    vtrace,
)
from rl.estimators.policy import clipped_surrogate, entropy, squashed_gaussian_log_prob
from rl.estimators.returns import discounted_returns, lambda_returns, n_step_returns
from rl.estimators.td import (
    categorical_projection,
    double_q_targets,
    expected_sarsa_targets,
    q_learning_targets,
    quantile_huber_loss,
)
from rl.estimators.variance import explained_variance, variance_sums

__all__ = [
    "VTrace",
    "categorical_projection",
    "clipped_surrogate",
    "discounted_returns",
    "double_q_targets",
    "emphasis",
    "entropy",
    "expected_sarsa_targets",
    "explained_variance",
    "generalized_advantages",
    "group_relative_advantages",
    "k1",
    "k2",
    "k3",
    "lambda_returns",
    "leave_one_out_advantages",
    "masked_mean",
    "masked_standardize",
    "masked_sum",
    "maxrl_advantages",
    "n_step_returns",
    "process_supervised_advantages",
    "q_learning_targets",
    "q_sigma_returns",
    "quantile_huber_loss",
    "reinforce_plus_plus_advantages",
    "retrace",
    "squashed_gaussian_log_prob",
    "tree_backup",
    "variance_sums",
    "vtrace",
]
