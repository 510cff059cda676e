"""Exponential moving average of a model's weights, with its half-life in samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["EMA"]


class EMA:
    r"""Average of a model's floating-point parameters and buffers (Polyak and Juditsky 1992).

        average <- decay * average + (1 - decay) * weights,   decay = 2 ** (-samples / half_life)

    The decay follows the samples seen, so batch size and process count do not change the average
    (Karras et al. 2024, arXiv:2312.02696, state it so). It is kept in float32.

    Args:
        model: Its present weights start the average.
        half_life: Samples after which a weight's influence has halved; positive.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.zeros_(model.weight)
    >>> ema = EMA(model, half_life=100)
    >>> _ = nn.init.ones_(model.weight)
    >>> ema.update(model, samples=100)
    >>> ema.state_dict()["weight"].item()
    0.5
    """

    def __init__(self, model: nn.Module, half_life: float) -> None:
        if not half_life > 0:
            raise ValueError(f"half_life={half_life}: give a positive number of samples")
        self.half_life = half_life
        self.averages = {name: x.detach().float().clone() for name, x in _floating(model)}

    @torch.no_grad()
    def update(self, model: nn.Module, samples: int) -> None:
        """Move the average towards ``model`` after a step on ``samples`` samples (all processes).

        Raises:
            ValueError: ``samples`` is negative.
        """
        if samples < 0:
            raise ValueError(f"samples={samples}: a step sees 0 or more samples")
        weight = 1 - 2 ** (-samples / self.half_life)
        for name, x in _floating(model):
            self.averages[name].lerp_(x.detach().float(), weight)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Give ``model`` the averaged weights inside the block, and its own back after it."""
        own = {name: x.detach().clone() for name, x in _floating(model)}
        with torch.no_grad():
            for name, x in _floating(model):
                x.copy_(self.averages[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, x in _floating(model):
                    x.copy_(own[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages by parameter name."""
        return dict(self.averages)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the averages of ``state_dict``.

        Raises:
            ValueError: The names differ from this model's.
        """
        if state.keys() != self.averages.keys():
            wrong = sorted(state.keys() ^ self.averages.keys())
            raise ValueError(f"EMA of another model: {', '.join(wrong[:5])} in only one of them")
        for name, x in state.items():
            self.averages[name].copy_(x)


def _floating(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, x in [*model.named_parameters(), *model.named_buffers()]:
        if x.is_floating_point():
            yield name, x
