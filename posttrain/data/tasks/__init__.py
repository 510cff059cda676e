"""Tasks: where problems come from, and the reward that scores them."""

from posttrain.data.tasks.arithmetic import Arithmetic
from posttrain.data.tasks.base import Prompt, Task
from posttrain.data.tasks.hub import HubDataset
from posttrain.data.tasks.jsonl import JsonLines
from posttrain.data.tasks.mixture import MixtureReward, TaskMixture, curriculum_weights
from posttrain.data.tasks.named import parse_task
from posttrain.data.tasks.reasoning_gym import ReasoningGym, ReasoningGymReward

__all__ = [
    "Arithmetic",
    "HubDataset",
    "JsonLines",
    "MixtureReward",
    "Prompt",
    "ReasoningGym",
    "ReasoningGymReward",
    "Task",
    "TaskMixture",
    "curriculum_weights",
    "parse_task",
]
