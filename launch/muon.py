"""Muon: momentum whose update is the nearest semi-orthogonal matrix."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import overload

import torch
from torch import Tensor, nn

from launch.placement import whole_of

__all__ = ["Muon", "orthogonalized"]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5


def orthogonalized(x: Tensor) -> Tensor:
    r"""Return matrices with their singular values pushed towards 1, by Newton-Schulz steps.

        X <- a X + b (X X^T) X + c (X X^T)^2 X,   (a, b, c) = (3.4445, -4.7750, 2.0315)

    Five steps (Jordan et al. 2024, "Muon"); the singular values end between about 0.7 and 1.2. It
    runs in the matrices' own precision: in bfloat16, as torch's Muon has it, the order of a sum
    moves the update by percents, and then the number of processes changes the training.

    Args:
        x: ``(..., A, B)``.
    """
    a, b, c = _COEFFICIENTS
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    r"""Muon with Nesterov momentum, on matrices; matrices of one shape are updated together.

        M <- momentum M + (1 - momentum) G
        W <- W - lr sqrt(max(1, rows / columns)) orthogonalized((1 - momentum) G + momentum M)

    Args:
        params: Matrices.
        lr: Step size; an update has singular values near it.
        momentum: Of the gradient's average.

    Where a process holds pieces of the matrices, it averages its pieces, gathers the average whole,
    one shape at a time, and takes its pieces of the update.
    """

    elementwise = True  # as far as a strategy is concerned that cuts matrices into pieces

    def __init__(
        self, params: Iterable[nn.Parameter], *, lr: float = 0.02, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2:  # so it is before it may be cut into pieces
                    raise ValueError(f"Muon takes matrices, got a parameter of {tuple(p.shape)}")

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    whole = whole_of(p)
                    alike[p.shape if whole is None else whole.shape].append(p)
            for parameters in alike.values():
                self._update(parameters, group["lr"], group["momentum"])
        return loss

    def _update(self, parameters: list[nn.Parameter], lr: float, momentum: float) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        averages = []
        for p in parameters:
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p)
            averages.append(state["momentum_buffer"])
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, averages, momentum)
        wholes = [whole_of(p) for p in parameters]
        matrices = [
            x if whole is None else whole.gather(x) for x, whole in zip(ahead, wholes, strict=True)
        ]
        updates = list(orthogonalized(torch.stack(matrices)).unbind())
        rows, columns = matrices[0].shape
        scale = lr * max(1.0, rows / columns) ** 0.5
        mine = [
            update if whole is None else whole.cut(update, p)
            for update, whole, p in zip(updates, wholes, parameters, strict=True)
        ]
        torch._foreach_add_([p.data for p in parameters], mine, alpha=-scale)
