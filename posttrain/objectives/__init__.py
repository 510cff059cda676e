"""Objectives: one frozen dataclass a file, each a ratio of two sums."""

from posttrain.objectives.base import Masked, Objective, clip_limits, needs_reference
from posttrain.objectives.dapo import DAPO
from posttrain.objectives.dr_grpo import DrGRPO
from posttrain.objectives.grpo import GRPO
from posttrain.objectives.sft import SFT
from posttrain.objectives.statistics import policy_metrics, policy_statistics

__all__ = [
    "DAPO",
    "GRPO",
    "SFT",
    "DrGRPO",
    "Masked",
    "Objective",
    "clip_limits",
    "needs_reference",
    "policy_metrics",
    "policy_statistics",
]
