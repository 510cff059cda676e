"""Rewards: functions of samples that return one number for each."""

from posttrain.rewards.answer import AnswerReward
from posttrain.rewards.base import Reward, Sample
from posttrain.rewards.checking import RewardError, check_rewards, checked
from posttrain.rewards.code import CodeReward, CodeTests
from posttrain.rewards.combine import WeightedSum, check_reward, score
from posttrain.rewards.format import FormatReward
from posttrain.rewards.language import LanguageConsistency
from posttrain.rewards.late import Late
from posttrain.rewards.length import CosineLength, OverlongPenalty
from posttrain.rewards.model import ModelReward, reward_of
from posttrain.rewards.named import parse_reward
from posttrain.rewards.repetition import RepetitionPenalty
from posttrain.rewards.step_model import ModelSteps, steps_of

__all__ = [
    "AnswerReward",
    "CodeReward",
    "CodeTests",
    "CosineLength",
    "FormatReward",
    "LanguageConsistency",
    "Late",
    "ModelReward",
    "ModelSteps",
    "OverlongPenalty",
    "RepetitionPenalty",
    "Reward",
    "RewardError",
    "Sample",
    "WeightedSum",
    "check_reward",
    "check_rewards",
    "checked",
    "parse_reward",
    "reward_of",
    "score",
    "steps_of",
]
