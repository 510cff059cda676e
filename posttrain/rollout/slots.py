"""Which slots stay when completions have finished."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["arranged"]

_WORTH = 0.75
"""A new arrangement is worth its copies if it costs at most this share of the old one."""
_ROUND = 16
"""Lines come in multiples of this, where finished ones are there to fill up, so that matrix
kernels, which are built once per size, meet few sizes."""


def arranged(alive: Tensor, prompt_cost: float) -> Tensor | None:
    """Return a new grid of slots that holds every alive one, or None if the old one may stay.

    A line of the grid shares the cache of one prompt. A prompt whose completions are mostly
    finished can do with a narrower grid, or be split over several lines.

    Args:
        alive: ``(P, G)`` bool, at least one True.
        prompt_cost: What reading a line's prompt costs in a step, where running a slot costs 1.

    Returns:
        ``(P', G')`` int64: the flat old slot of each new one, all of a line from the same line.
        Every alive slot is there once; a finished one may stand wherever there is room.

    >>> alive = torch.tensor([[True, False], [False, False], [True, False], [False, False]])
    >>> arranged(alive, 0.0).tolist()
    [[0], [4]]
    """
    lines, group = alive.shape
    counts = alive.sum(1)
    best, best_cost = 0, _WORTH * lines * (group + prompt_cost)
    for size in (size for size in range(1, group + 1) if group % size == 0):
        needed = int((-(-counts // size)).sum())
        cost = _filled(needed, lines) * (size + prompt_cost)
        if cost <= best_cost:
            best, best_cost = size, cost
    if not best:
        return None
    order = torch.argsort(alive.int(), dim=1, descending=True, stable=True)  # alive ones first
    slots = order + torch.arange(lines, device=alive.device)[:, None] * group
    parts = slots.view(-1, best)
    used = (torch.arange(0, group, best, device=alive.device) < counts[:, None]).view(-1)
    chosen = used.nonzero().view(-1)
    fill = _filled(len(chosen), lines) - len(chosen)
    idle = (~used).nonzero().view(-1)[:fill]
    return parts[torch.cat((chosen, idle)).sort().values]


def _filled(needed: int, lines: int) -> int:
    """Return ``needed`` rounded up, but not beyond the lines that there are."""
    return min(-(-needed // _ROUND) * _ROUND if needed > _ROUND else needed, max(lines, needed))
