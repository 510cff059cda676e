"""The training step: gradients of sums over micro-batches and processes, clipped once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from launch.backends import Backend
from launch.batch import Splittable
from launch.errors import UsageError
from launch.placement import whole_of

__all__ = ["TrainingStep"]

B = TypeVar("B", bound=Splittable)


class TrainingStep:
    """What ``Runtime.micro_batches``, ``backward`` and ``step`` do, and what they remember."""

    def __init__(self, backend: Backend, output: Path | None) -> None:
        self.backend, self.output = backend, output
        self.number = 0
        """Of the loop's step, for messages."""
        self.loss = torch.zeros(())
        self.skipped_steps = 0
        self._part: tuple[int, object] = (0, None)
        """First row, and the rows."""
        self._losses: list[tuple[Tensor, int, object]] = []

    def micro_batches(self, batch: B, rows: int) -> Iterator[B]:
        """Yield parts of at most ``rows`` rows, equally many on every process."""
        if rows < 1:
            raise ValueError(f"got micro-batches of {rows} rows: a part needs at least one")
        parts: list[B] = list(batch.split(rows))
        count = max(1, len(parts))
        if self.backend.world_size > 1:
            count = int(self.backend.all_reduce(torch.tensor(count), largest=True))
        if len(parts) < count:
            parts += [batch.empty()] * (count - len(parts))
        for index, part in enumerate(parts):
            self._part = (index * rows, part)
            with self.backend.accumulating(last=index == count - 1):
                yield part
        self._part = (0, None)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss``, this process's share of a sum over all processes."""
        self._losses.append((loss.detach(), *self._part))
        self.backend.backward(loss)

    def step(self, optimizer: torch.optim.Optimizer, max_norm: float | None) -> Tensor:
        """Clip, update, clear; return the norm before clipping. An infinite loss is an error."""
        placements = self.backend.placements(optimizer)
        for placement in placements:
            placement.collect(optimizer)
        self.backend.unscale(optimizer)
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        norm = self._norm(trained, sharded=any(x.sharded for x in placements))
        _clip([p.grad for p in trained if p.grad is not None], norm, max_norm)
        losses = [loss.float() for loss, *_ in self._losses]
        self.loss = self.backend.all_reduce(
            sum(losses[1:], start=losses[0]) if losses else norm.new_zeros(())
        )
        finite = math.isfinite(self.loss.item())
        if not finite or (self.backend.scaler is None and not math.isfinite(norm.item())):
            raise UsageError(self._not_finite(norm))
        self._losses = []
        if not self.backend.step(optimizer):
            self.skipped_steps += 1
        for p in trained:
            p.grad = None
        for placement in placements:
            placement.publish()
            placement.clear(optimizer)
        return norm

    def _norm(self, trained: list[nn.Parameter], *, sharded: bool) -> Tensor:
        """Return the norm of the whole gradient, of which this process may hold pieces."""
        whole = [p.grad for p in trained if p.grad is not None and whole_of(p) is None]
        norm = _norm(whole)
        if not sharded:
            return norm
        pieces = [p.grad for p in trained if p.grad is not None and whole_of(p) is not None]
        squares = self.backend.all_reduce(_norm(pieces).double().square())
        return (norm.to(squares).square() + squares).sqrt().float()

    def _not_finite(self, norm: Tensor) -> str:
        """Save the rows whose loss is not finite; return what there is to say."""
        bad = [(i, part) for loss, i, part in self._losses if not torch.isfinite(loss).all()]
        if math.isfinite(self.loss.item()):  # the backward pass broke, on any of them
            bad = [(i, part) for _, i, part in self._losses]
        parts = [
            f"rows {i} to {i + len(part) - 1}" for i, part in bad if isinstance(part, Splittable)
        ]
        saved = ""
        if self.output is not None and bad:
            path = self.output / f"not-finite-step-{self.number}-process-{self.backend.rank}.pt"
            torch.save([_plain(part) for _, part in bad], path)
            saved = f"; its rows are in {path}"
        mine = f"process {self.backend.rank}: {', '.join(parts)}{saved}" if parts else ""
        where = "; ".join(filter(None, self.backend.gather_objects(mine)))
        value = "the loss" if not math.isfinite(self.loss.item()) else "the gradient"
        return (
            f"step {self.number}: {value} is not finite (loss {self.loss.item():g}, gradient norm "
            f"{norm.item():g}){': ' + where if where else ''}. Look at these rows, lower the "
            "learning rate, or go back with --resume"
        )


def _clip(gradients: list[Tensor], norm: Tensor, max_norm: float | None) -> None:
    """Scale gradients of norm ``norm`` down to a norm of ``max_norm`` over all of them."""
    if gradients and max_norm is not None:
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))


def _norm(gradients: list[Tensor]) -> Tensor:
    """Return the norm of all elements together.

    ``nn.utils.clip_grad_norm_`` does the same in twice the time: it asks for every tensor's device.
    """
    if not gradients:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def _plain(part: object) -> object:
    """Return a batch as a dict of its tensors, readable without its class."""
    if not is_dataclass(part):
        return None
    return {f.name: getattr(part, f.name) for f in fields(part)}
