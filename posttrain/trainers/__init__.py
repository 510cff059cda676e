"""Training loops, one page each."""

from posttrain.trainers.advantages import GroupRelative, LeaveOneOut
from posttrain.trainers.policy import GRPOConfig, train_grpo
from posttrain.trainers.supervised import SFTConfig, train_sft

__all__ = ["GRPOConfig", "GroupRelative", "LeaveOneOut", "SFTConfig", "train_grpo", "train_sft"]
