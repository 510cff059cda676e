"""Objectives: one frozen dataclass a file, each a ratio of two sums."""

from posttrain.objectives.base import (
    Chooser,
    Masked,
    Objective,
    clip_limits,
    clips_sequences,
    needs_reference,
    with_chosen,
)
from posttrain.objectives.cispo import CISPO
from posttrain.objectives.covariance import ClipCov, KLCov
from posttrain.objectives.dapo import DAPO
from posttrain.objectives.distill import (
    DistillObjective,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    SampledReverseKL,
    distillation_advantages,
)
from posttrain.objectives.dr_grpo import DrGRPO
from posttrain.objectives.gmpo import GMPO
from posttrain.objectives.grpo import GRPO
from posttrain.objectives.gspo import GSPO
from posttrain.objectives.luspo import LUSPO
from posttrain.objectives.mismatch import (
    IcePop,
    MaskedImportance,
    Mismatch,
    TruncatedImportance,
)
from posttrain.objectives.policy_gradient import PolicyGradient
from posttrain.objectives.preference import (
    DPO,
    IPO,
    KTO,
    ORPO,
    PreferenceObjective,
    SimPO,
    needs_reference_point,
)
from posttrain.objectives.process_reward import StepObjective, StepReward
from posttrain.objectives.reward_model import BradleyTerry, ComparisonObjective
from posttrain.objectives.sapo import SAPO
from posttrain.objectives.sft import SFT
from posttrain.objectives.statistics import policy_metrics, policy_statistics
from posttrain.objectives.value import ValueLoss

__all__ = [
    "CISPO",
    "DAPO",
    "DPO",
    "GMPO",
    "GRPO",
    "GSPO",
    "IPO",
    "KTO",
    "LUSPO",
    "ORPO",
    "SAPO",
    "SFT",
    "BradleyTerry",
    "Chooser",
    "ClipCov",
    "ComparisonObjective",
    "DistillObjective",
    "DrGRPO",
    "ForwardKL",
    "IcePop",
    "JensenShannon",
    "KLCov",
    "Masked",
    "MaskedImportance",
    "Mismatch",
    "Objective",
    "PolicyGradient",
    "PreferenceObjective",
    "ReverseKL",
    "SampledReverseKL",
    "SimPO",
    "StepObjective",
    "StepReward",
    "TruncatedImportance",
    "ValueLoss",
    "clip_limits",
    "clips_sequences",
    "distillation_advantages",
    "needs_reference",
    "needs_reference_point",
    "policy_metrics",
    "policy_statistics",
    "with_chosen",
]
