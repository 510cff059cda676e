"""Recipes of attention models: functions without arguments that return a complete config."""

from __future__ import annotations

from dataclasses import replace

from generative.character_jobs import CharacterJob
from generative.sequence_jobs import SequenceJob
from generative.sequence_tasks import copied, in_reverse, sorted_up
from launch.optimizers import AdamW
from launch.runtime import RuntimeConfig
from launch.schedule import Linear

__all__ = ["char_lm", "transformer_copy", "transformer_reverse", "transformer_sort"]


def transformer_sort() -> SequenceJob:
    """The Transformer of 2017 learns to sort: every held-out sequence right, in minutes."""
    return SequenceJob(
        answer=sorted_up,
        steps=1_800,
        sequences_per_step=64,
        optimizer=AdamW(learning_rate=2e-3, beta2=0.98, eps=1e-9),
        schedule=Linear(warmup=100),  # it falls to 0, where InverseRoot leaves the last errors
        runtime=RuntimeConfig(threads=1),
    )


def transformer_copy() -> SequenceJob:
    """The Transformer of 2017 learns to copy: every held-out sequence right, in minutes."""
    return replace(transformer_sort(), answer=copied)


def transformer_reverse() -> SequenceJob:
    """The Transformer of 2017 learns to reverse: every held-out sequence right, in minutes."""
    return replace(transformer_sort(), answer=in_reverse)


def char_lm() -> CharacterJob:
    """A byte model of Python's standard library; --mixer NAME chooses how its tokens mix."""
    return CharacterJob(runtime=RuntimeConfig(threads=1))
