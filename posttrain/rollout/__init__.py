"""Sampling completions: the engine, how it draws, and what it returns."""

from posttrain.rollout.batch import Rollout, RolloutBatch, Sampling
from posttrain.rollout.engine import Engine

__all__ = ["Engine", "Rollout", "RolloutBatch", "Sampling"]
