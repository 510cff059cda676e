"""The recipe of minutes that compares searches, on the sums and models of the other small ones."""

from __future__ import annotations

from dataclasses import replace

from launch.runtime import RuntimeConfig
from posttrain.recipes.search_mini import SearchJob
from posttrain.recipes.step_sources import RolledOutSums
from posttrain.recipes.tiny import prm_mini, sums

__all__ = ["search_mini"]


def search_mini() -> SearchJob:
    """Minutes of searches: votes, best of n, beams and trees, accuracy against tokens spent."""
    prm = prm_mini()
    task = sums((3, 4), heldout=256)
    return SearchJob(
        prm=replace(prm, data=RolledOutSums(task=task, problems=600, rollouts=8)),
        task=task,
        runtime=RuntimeConfig(threads=1),
    )
