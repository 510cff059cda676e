"""Linear function approximation: features, batches, exact expectations, and learning online.

The chapter's parts are modules of their own, whose names can all be imported from here:
``rl.features``, ``rl.linear_batch``, ``rl.linear_exact``, ``rl.linear_expected``,
``rl.state_distribution``, ``rl.linear_online`` and ``rl.linear_control``. All numbers are float64.
"""

from __future__ import annotations

from rl.features import (
    Aggregation,
    BinaryFeatures,
    Features,
    FeatureTable,
    Fourier,
    OneHot,
    Polynomial,
    RadialBasis,
    TileCoding,
)
from rl.linear_batch import BatchControl, fitted_q, lspi, lstd, pair_features
from rl.linear_control import LinearControl, semi_gradient_sarsa
from rl.linear_exact import (
    bellman_error,
    lstd_fixed_point,
    projected_bellman_error,
    projection,
    value_error,
)
from rl.linear_expected import GTD2, TD, TDC, EmphaticTD, ExpectedMethod, expected_updates
from rl.linear_online import emphatic_td, gtd2, semi_gradient_td, tdc
from rl.state_distribution import on_policy_distribution
from rl.stochastic import DivergenceError

__all__ = [
    "GTD2",
    "TD",
    "TDC",
    "Aggregation",
    "BatchControl",
    "BinaryFeatures",
    "DivergenceError",
    "EmphaticTD",
    "ExpectedMethod",
    "FeatureTable",
    "Features",
    "Fourier",
    "LinearControl",
    "OneHot",
    "Polynomial",
    "RadialBasis",
    "TileCoding",
    "bellman_error",
    "emphatic_td",
    "expected_updates",
    "fitted_q",
    "gtd2",
    "lspi",
    "lstd",
    "lstd_fixed_point",
    "on_policy_distribution",
    "pair_features",
    "projected_bellman_error",
    "projection",
    "semi_gradient_sarsa",
    "semi_gradient_td",
    "tdc",
    "value_error",
]
