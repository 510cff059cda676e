"""A rollout that serves several steps: shuffled, served in parts, and kept by a checkpoint."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from launch.runtime import Runtime
from posttrain.rollout import RolloutBatch

if TYPE_CHECKING:
    from posttrain.trainers.policy import GRPOConfig

__all__ = ["Minibatches"]


class Minibatches:
    """The completions that have been sampled and not yet all trained on.

    A rollout of ``prompts_per_step * minibatches`` prompts is drawn at steps 1, 1 + minibatches,
    ... Its rows are shuffled over all processes, keyed by the run's seed and the step, so which
    rows a step takes does not depend on the number of processes. A process keeps the rows that it
    sampled; its part of a step may be smaller or larger than another's.
    """

    def __init__(self, cfg: GRPOConfig, run: Runtime) -> None:
        self.cfg, self.run = cfg, run
        self.batch: RolloutBatch | None = None
        """This process's rows, if a step is still to take some."""

    def are_due(self, step: int) -> bool:
        """Return whether ``step`` needs a new rollout."""
        return (step - 1) % self.cfg.minibatches == 0

    def fill(self, batch: RolloutBatch, step: int) -> None:
        """Take this process's rows of the rollout that is drawn at ``step``."""
        assert self.are_due(step), "the rollout before has not been used up"
        self.batch = batch

    def take(self, step: int) -> RolloutBatch:
        """Return this process's rows of ``step``."""
        batch, count = self.batch, self.cfg.minibatches
        assert batch is not None, "no rollout was drawn for this step"
        if count == 1:
            return batch
        size = self.cfg.prompts_per_step * self.cfg.group_size
        drawn = step - (step - 1) % count
        order = torch.randperm(size * count, generator=self.run.stream("minibatches", drawn))
        mine = order[(step - drawn) * size : (step - drawn + 1) * size].sort().values
        first = self._first_row()
        mine = mine[(mine >= first) & (mine < first + len(batch))] - first
        return batch.take(mine.to(batch.tokens.device))

    def _first_row(self) -> int:
        prompts = self.run.share(self.cfg.prompts_per_step * self.cfg.minibatches)
        return prompts.start * self.cfg.group_size

    def state_dict(self) -> dict[str, Any]:
        """Return the rows of all processes; to be called on each."""
        batch, run = self.batch, self.run
        if batch is None:
            return {}
        columns = int(run.gather(torch.tensor([batch.tokens.shape[1]])).max())
        return {
            name: None if x is None else run.gather(_wide(x, columns)).cpu()
            for name, x in _values(batch).items()
        }

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Take this process's part of what ``state_dict`` returned."""
        if not state_dict:
            self.batch = None
            return
        first, cfg = self._first_row(), self.cfg
        count = len(self.run.share(cfg.prompts_per_step * cfg.minibatches)) * cfg.group_size
        whole = RolloutBatch(**state_dict)
        self.batch = whole.rows(first, first + count).to(self.run.device)


def _values(batch: RolloutBatch) -> dict[str, Tensor | None]:
    return {f.name: getattr(batch, f.name) for f in fields(batch)}


def _wide(x: Tensor, columns: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, columns - x.shape[1]))
