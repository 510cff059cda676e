"""Exponential moving average of a model's weights, with its half-life in samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from launch.placement import Piece, placement_of

__all__ = ["EMA"]


class EMA:
    r"""Average of a model's floating-point parameters and buffers (Polyak and Juditsky 1992).

        average <- decay * average + (1 - decay) * weights,   decay = 2 ** (-samples / half_life)

    The decay follows the samples seen, so batch size and process count do not change the average
    (Karras et al. 2024, arXiv:2312.02696, state it so). It is kept in float32, and where a strategy
    has cut the model, each process averages its pieces.

    Args:
        model: As ``run.prepare`` returned it; its present weights start the average.
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
        self._averages = {
            name: Piece(x.data.float().clone(), x.begin, x.shape, x.alone)
            for name, x in _floating(model).items()
        }

    @property
    def averages(self) -> dict[str, Tensor]:
        """The averages by name: of what this process holds of each."""
        return {name: piece.data for name, piece in self._averages.items()}

    @torch.no_grad()
    def update(self, model: nn.Module, samples: int) -> None:
        """Move the average towards ``model`` after a step on ``samples`` samples (all processes).

        Raises:
            ValueError: ``samples`` is negative, or the model is not that of the average, or lies
                otherwise over the processes.
        """
        if samples < 0:
            raise ValueError(f"samples={samples}: a step sees 0 or more samples")
        weight = 1 - 2 ** (-samples / self.half_life)
        for name, x in self._matching(model).items():
            self._averages[name].data.lerp_(x.data.float(), weight)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Give ``model`` the averaged weights inside the block, and its own back after it."""
        found = self._matching(model)
        own = {name: x.data.clone() for name, x in found.items()}

        def give(weights: Mapping[str, Tensor]) -> None:
            with torch.no_grad():
                for name, x in found.items():
                    x.data.copy_(weights[name])
            placement_of(model).publish()

        give(self.averages)
        try:
            yield
        finally:
            give(own)

    def pieces(self) -> dict[str, Piece]:
        """Return what this process holds of the averages, as checkpoints have it."""
        return dict(self._averages)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages by parameter name: of what this process holds of each."""
        return self.averages

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the averages of ``state_dict``.

        Raises:
            ValueError: The names differ from this model's.
        """
        if state.keys() != self._averages.keys():
            wrong = sorted(state.keys() ^ self._averages.keys())
            raise ValueError(f"EMA of another model: {', '.join(wrong[:5])} in only one of them")
        for name, x in state.items():
            self._averages[name].data.copy_(x)

    def _matching(self, model: nn.Module) -> dict[str, Piece]:
        found = _floating(model)
        for name, piece in self._averages.items():
            if name not in found or found[name].data.shape != piece.data.shape:
                raise ValueError(
                    f"EMA: the model has {name} otherwise than when the average was begun; begin "
                    "it with the model that run.prepare returned"
                )
        return found


def _floating(model: nn.Module) -> dict[str, Piece]:
    """Return what this process holds of the floating-point parameters and buffers."""
    placement = placement_of(model)
    found = placement.pieces()
    for name, x in placement.module.named_buffers():
        found[name] = Piece(x, 0, tuple(x.shape))
    return {name: piece for name, piece in found.items() if piece.data.is_floating_point()}
