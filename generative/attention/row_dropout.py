"""Dropout that no split of a batch changes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["RowDropout", "number_places"]

_STRIDE = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio: keeps the keys of neighbouring places apart."""


class RowDropout(nn.Module):
    """Dropout (Srivastava et al. 2014) whose draws follow from a seed of each row.

    A row drops the same numbers whichever rows are computed with it, on whichever process, and
    when its activations are computed again. Without seeds it draws from torch's global state.

    Args:
        share: What is dropped, from 0 to below 1; the rest is divided by ``1 - share``.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.place = 0
        """Tells apart the uses within a model."""

    def forward(self, x: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Return ``(B, T, D)``, given ``(B,)`` int64 seeds of its rows."""
        if not self.training or self.share == 0.0 or len(x) == 0:
            return x
        if seeds is None:
            return F.dropout(x, self.share)
        keys = [(seed + self.place * _STRIDE) % 2**63 for seed in seeds.tolist()]
        draws = [torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(k)) for k in keys]
        kept = torch.stack(draws).to(x.device) >= self.share
        return x * kept / (1 - self.share)


def number_places(model: nn.Module) -> None:
    """Give each ``RowDropout`` of a model a place of its own."""
    found = [module for module in model.modules() if isinstance(module, RowDropout)]
    for place, module in enumerate(found):
        module.place = place
