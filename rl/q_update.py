"""DQN's update of a small network, written out: loss, gradient, clipping and AdamW.

On some sixty rows, autograd and the layers around an optimizer cost as much as the arithmetic. The
readable twin is the update in ``rl.dqn``, which takes it wherever ``can_write_out`` is False; tests
hold both equal over many updates. Weights and the optimizer's state are changed where they are, so
checkpoints are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rl.encoders import Vector
from rl.networks import Network

__all__ = ["QUpdate", "can_write_out"]


def can_write_out(network: Network, optimizer: torch.optim.Optimizer) -> bool:
    """Return whether ``QUpdate`` holds.

    Linear and rectified layers on vectors, one Q value an action, float32 on the CPU; AdamW with
    the same settings for all parameters.
    """
    head = list(network.head) if isinstance(network.head, nn.Sequential) else []
    layers = [*network.body, *head]
    kinds = {(p.dtype, p.device.type, p.requires_grad) for p in network.parameters()}
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    return (
        type(network.encoder) is Vector
        and len(layers) % 2 == 1
        and all(type(layer) is nn.Linear and layer.bias is not None for layer in layers[::2])
        and all(type(layer) is nn.ReLU for layer in layers[1::2])
        and kinds == {(torch.float32, "cpu", True)}
        and type(optimizer) is torch.optim.AdamW
        and all(group == groups[0] for group in groups)
        and not any(groups[0][x] for x in ("amsgrad", "maximize", "capturable", "differentiable"))
    )


class QUpdate:
    """Makes updates of a network for which ``can_write_out`` holds.

    Args:
        network: Its weights are changed where they are.
        optimizer: Of its parameters, all of equal settings; its state is, too.
        max_norm: Limit of the gradient's norm.
    """

    def __init__(
        self, network: Network, optimizer: torch.optim.Optimizer, max_norm: float | None
    ) -> None:
        from rl.huber_kernel import huber_slopes  # loads numba

        self._huber_slopes = huber_slopes
        self.optimizer = optimizer
        self.max_norm = math.inf if max_norm is None else max_norm
        self._parameters: list[Tensor] = list(network.parameters())
        # One stretch of memory holds all gradients, so that one call takes or scales their norm.
        self._gradient = torch.empty(sum(p.numel() for p in self._parameters))
        parts = self._gradient.split([p.numel() for p in self._parameters])
        self.gradients = [x.view(p.shape) for x, p in zip(parts, self._parameters, strict=True)]
        """By each parameter, of the last update."""

    @property
    def ready(self) -> bool:
        """Whether there is a state to go on from: the first update is the optimizer's own."""
        return len(self.optimizer.state) > 0

    @torch.no_grad()
    def __call__(
        self, observations: Tensor, actions: Tensor, targets: Tensor, weights: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        """Make one update after the other, until a loss or gradient is not finite.

        Args:
            observations: ``(B, ...)``.
            actions: ``(B,)``, counted from 0.
            targets: ``(B,)``.
            weights: ``(B,)``, of the rows' losses in the sum that an update is on.
            size: Rows of an update, a divisor of B.

        Returns:
            Loss, norm of the gradient and mean Q of each update that was made, ``(updates, 3)``,
            and Q of the actions in all of their rows.
        """
        inputs = observations.flatten(1).float()
        a, y, w = actions.numpy(), targets.numpy(), weights.numpy()
        chosen = np.empty(len(actions), np.float32)
        steps = [self.optimizer.state[parameter]["step"] for parameter in self._parameters]
        count = steps[0].clone()  # of updates; one number for all, because it is quicker to raise
        step, gradient, figures = self._adamw(count), self._gradient.numpy(), []
        for start in range(0, len(actions), size):
            rows = slice(start, start + size)
            loss = self.differentiate(inputs[rows], a[rows], y[rows], w[rows], chosen[rows])
            norm = math.sqrt(np.dot(gradient, gradient))
            if not math.isfinite(norm) or not math.isfinite(loss):
                break
            if norm > self.max_norm:
                self._gradient.mul_(self.max_norm / (norm + 1e-6))
            count += 1
            step()
            figures.append((loss, norm))
        torch._foreach_add_(steps, len(figures))
        chosen = chosen[: len(figures) * size]
        means = chosen.reshape(-1, size).mean(1, keepdims=True)
        made = np.hstack([np.array(figures, np.float32).reshape(-1, 2), means])
        return torch.from_numpy(made), torch.from_numpy(chosen)

    def differentiate(
        self,
        x: Tensor,
        actions: NDArray[np.int64],
        targets: NDArray[np.float32],
        weights: NDArray[np.float32],
        chosen: NDArray[np.float32],
    ) -> float:
        r"""Return \sum_i weights_i Huber(Q(x_i, actions_i) - targets_i); fill ``gradients``.

        With x_0 the observations, x_{l+1} = max(W_l x_l + b_l, 0) but for the last layer, and
        d_last the slopes of the loss by the Q values:

            dW_l = d_l^T x_l,   db_l = \sum_i d_l,   d_{l-1} = d_l W_l where x_l > 0, else 0

        Args:
            x: ``(B, features)`` float32.
            actions: ``(B,)``.
            targets: ``(B,)``.
            weights: ``(B,)``.
            chosen: ``(B,)``, filled with Q of the actions.
        """
        parameters, inputs = self._parameters, []
        for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
            inputs.append(x)
            x = torch.addmm(bias, x, weight.t()).relu_()
        inputs.append(x)
        q_values = torch.addmm(parameters[-1], x, parameters[-2].t())
        slopes = torch.empty_like(q_values)
        loss = self._huber_slopes(
            q_values.numpy(), actions, targets, weights, slopes.numpy(), chosen
        )
        for layer in range(len(inputs) - 1, -1, -1):
            x, (matrix, vector) = inputs[layer], self.gradients[2 * layer : 2 * layer + 2]
            if slopes.shape[1] > 8 * x.shape[1]:  # a narrow matrix is faster from the left
                matrix.copy_((x.t() @ slopes).t())
            else:
                torch.mm(slopes.t(), x, out=matrix)
            torch.sum(slopes, 0, out=vector)
            if layer:
                slopes = slopes @ parameters[2 * layer]
                slopes = torch.ops.aten.threshold_backward(slopes, x, 0)
        return loss

    def _adamw(self, count: Tensor) -> Callable[[], None]:
        """Return the optimizer's step from ``gradients``, on its state, as its ``count``-th."""
        group, states = self.optimizer.param_groups[0], self.optimizer.state
        own = [states[parameter] for parameter in self._parameters]
        means, squares = [s["exp_avg"] for s in own], [s["exp_avg_sq"] for s in own]
        counts, (beta1, beta2) = [count] * len(own), group["betas"]
        rate, decay, eps = group["lr"], group["weight_decay"], group["eps"]

        def step() -> None:
            torch._fused_adamw_(  # what the optimizer calls for each group of parameters
                self._parameters,
                self.gradients,
                means,
                squares,
                [],
                counts,
                amsgrad=False,
                maximize=False,
                beta1=beta1,
                beta2=beta2,
                lr=rate,
                weight_decay=decay,
                eps=eps,
            )

        return step
