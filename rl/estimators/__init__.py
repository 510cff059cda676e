"""Estimators: the mathematics of reinforcement learning as pure functions of tensors.

The only part of ``rl`` that post-training imports; it needs torch alone.
"""

from rl.estimators.advantages import (
    generalized_advantages,
    group_relative_advantages,
    leave_one_out_advantages,
)
from rl.estimators.kl import k1, k2, k3
from rl.estimators.masking import masked_mean, masked_standardize, masked_sum
from rl.estimators.policy import clipped_surrogate, entropy

__all__ = [
    "clipped_surrogate",
    "entropy",
    "generalized_advantages",
    "group_relative_advantages",
    "k1",
    "k2",
    "k3",
    "leave_one_out_advantages",
    "masked_mean",
    "masked_standardize",
    "masked_sum",
]
