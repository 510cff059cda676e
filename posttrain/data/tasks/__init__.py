"""Tasks: where problems come from, and the reward that scores them."""

from posttrain.data.tasks.arithmetic import Arithmetic
from posttrain.data.tasks.base import Prompt, Task
from posttrain.data.tasks.code_problems import CodeProblems
from posttrain.data.tasks.hub import HubDataset
from posttrain.data.tasks.instructions import InstructionReward, Instructions
from posttrain.data.tasks.jsonl import JsonLines
from posttrain.data.tasks.letters import BackwardLetters, ExactReward
from posttrain.data.tasks.mixture import MixtureReward, TaskMixture, curriculum_weights
from posttrain.data.tasks.named import parse_task
from posttrain.data.tasks.reasoning_gym import ReasoningGym, ReasoningGymReward
from posttrain.data.tasks.refusals import RefusalReward, Refusals
from posttrain.data.tasks.requests import HelpfulReward, Requests
from posttrain.data.tasks.told_sums import ToldSums
from posttrain.data.tasks.word_lists import WordLists
from posttrain.data.tasks.word_problems import WordProblems

__all__ = [
    "Arithmetic",
    "BackwardLetters",
    "CodeProblems",
    "ExactReward",
    "HelpfulReward",
    "HubDataset",
    "InstructionReward",
    "Instructions",
    "JsonLines",
    "MixtureReward",
    "Prompt",
    "ReasoningGym",
    "ReasoningGymReward",
    "RefusalReward",
    "Refusals",
    "Requests",
    "Task",
    "TaskMixture",
    "ToldSums",
    "WordLists",
    "WordProblems",
    "curriculum_weights",
    "parse_task",
]
