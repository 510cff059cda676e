"""Evaluation: accuracy over several samples a question, with intervals."""

from posttrain.eval.contamination import Overlap, contaminated
from posttrain.eval.intervals import Interval, gain_with_interval, mean_with_interval
from posttrain.eval.pass_at_k import avg_at_k, maj_at_k, pass_at_k
from posttrain.eval.ranking import auc, auc_with_interval
from posttrain.eval.run import Evaluation, evaluate
from posttrain.eval.table import Comparison, figures

__all__ = [
    "Comparison",
    "Evaluation",
    "Interval",
    "Overlap",
    "auc",
    "auc_with_interval",
    "avg_at_k",
    "contaminated",
    "evaluate",
    "figures",
    "gain_with_interval",
    "maj_at_k",
    "mean_with_interval",
    "pass_at_k",
]
