"""Evaluation: accuracy over several samples a question, with intervals."""

from posttrain.eval.intervals import Interval, mean_with_interval
from posttrain.eval.pass_at_k import maj_at_k, pass_at_k
from posttrain.eval.run import Evaluation, evaluate

__all__ = [
    "Evaluation",
    "Interval",
    "evaluate",
    "maj_at_k",
    "mean_with_interval",
    "pass_at_k",
]
