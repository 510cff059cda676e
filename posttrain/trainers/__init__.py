"""Training loops, one page each."""

from posttrain.trainers.actor_critic import ActorCriticConfig, train_actor_critic
from posttrain.trainers.advantages import (
    BatchRelative,
    GroupRelative,
    LeaveOneOut,
    MaxRL,
    ProcessSupervised,
    ReinforcePlusPlus,
)
from posttrain.trainers.collection import DynamicSampling
from posttrain.trainers.contrasts import ContrastsConfig, sample_contrasts
from posttrain.trainers.distill import DistillConfig, train_on_policy_distillation
from posttrain.trainers.outputs import OutputsConfig, teacher_outputs
from posttrain.trainers.policy import GRPOConfig, train_grpo
from posttrain.trainers.preference import PreferenceConfig, train_preferences
from posttrain.trainers.process_reward import ProcessRewardConfig, train_process_reward_model
from posttrain.trainers.reward_model import RewardModelConfig, train_reward_model
from posttrain.trainers.supervised import SFTConfig, train_sft

__all__ = [
    "ActorCriticConfig",
    "BatchRelative",
    "ContrastsConfig",
    "DistillConfig",
    "DynamicSampling",
    "GRPOConfig",
    "GroupRelative",
    "LeaveOneOut",
    "MaxRL",
    "OutputsConfig",
    "PreferenceConfig",
    "ProcessRewardConfig",
    "ProcessSupervised",
    "ReinforcePlusPlus",
    "RewardModelConfig",
    "SFTConfig",
    "sample_contrasts",
    "teacher_outputs",
    "train_actor_critic",
    "train_grpo",
    "train_on_policy_distillation",
    "train_preferences",
    "train_process_reward_model",
    "train_reward_model",
    "train_sft",
]
