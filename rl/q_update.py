"""DQN's update of a small network, written out: loss, gradient, clipping and AdamW.

On some sixty rows, autograd and the layers around an optimizer cost as much as the arithmetic. The
readable twin is the update in ``rl.dqn``, which takes it wherever ``can_write_out`` is False; tests
hold both equal over many updates. Weights and the optimizer's state are changed where they are, so
checkpoints are the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from rl.encoders import Vector
from rl.networks import Network

__all__ = ["QUpdate", "can_write_out", "q_gradients"]


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
        self.optimizer = optimizer
        self.max_norm = math.inf if max_norm is None else max_norm
        self._parameters: list[Tensor] = list(network.parameters())
        # One stretch of memory holds all gradients, so that one call takes or scales their norm.
        self._gradient = torch.empty(sum(p.numel() for p in self._parameters))
        parts = self._gradient.split([p.numel() for p in self._parameters])
        self._gradients = [x.view(p.shape) for x, p in zip(parts, self._parameters, strict=True)]

    @property
    def ready(self) -> bool:
        """Whether there is a state to go on from: the first update is the optimizer's own."""
        return len(self.optimizer.state) > 0

    @torch.no_grad()
    def __call__(
        self, observations: Tensor, actions: Tensor, targets: Tensor, weights: Tensor
    ) -> tuple[float, float, Tensor]:
        """Make an update, unless loss or gradient are not finite.

        Args:
            observations: ``(B, ...)``.
            actions: ``(B,)``, counted from 0.
            targets: ``(B,)``.
            weights: ``(B,)``, of the rows' losses in their sum.

        Returns:
            The loss; the norm of the gradient, NaN where nothing was changed; and Q of the actions
            ``(B,)``.
        """
        loss, chosen = q_gradients(
            self._parameters, self._gradients, observations, actions, targets, weights
        )
        gradient = self._gradient.numpy()
        norm = math.sqrt(np.dot(gradient, gradient))
        if not math.isfinite(norm) or not math.isfinite(loss):
            return loss, math.nan, chosen
        if norm > self.max_norm:
            self._gradient.mul_(self.max_norm / (norm + 1e-6))
        group, states = self.optimizer.param_groups[0], self.optimizer.state
        own = [states[parameter] for parameter in self._parameters]
        steps = [state["step"] for state in own]
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(  # what the optimizer calls for each group of parameters
            self._parameters,
            self._gradients,
            [state["exp_avg"] for state in own],
            [state["exp_avg_sq"] for state in own],
            [],
            steps,
            amsgrad=False,
            maximize=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
        )
        return loss, norm, chosen


def q_gradients(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    observations: Tensor,
    actions: Tensor,
    targets: Tensor,
    weights: Tensor,
) -> tuple[float, Tensor]:
    r"""Return \sum_i weights_i Huber(Q(s_i, a_i) - targets_i) and Q of the actions, ``(B,)``.

    With x_0 the observations, x_{l+1} = max(W_l x_l + b_l, 0) but for the last layer:

        d_last = weights clip(Q - targets, -1, 1) at the action, 0 elsewhere
        dW_l = d_l^T x_l,   db_l = \sum_i d_l,   d_{l-1} = (d_l W_l) where x_l > 0, else 0

    Args:
        parameters: W and b of each layer in turn.
        gradients: Filled with the gradient of the sum by each.
        observations: ``(B, ...)``.
        actions: ``(B,)``.
        targets: ``(B,)``.
        weights: ``(B,)``.
    """
    x = observations.flatten(1).float()
    inputs = []
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        inputs.append(x)
        x = torch.addmm(bias, x, weight.t()).relu_()
    inputs.append(x)
    q_values = torch.addmm(parameters[-1], x, parameters[-2].t())
    chosen = q_values.gather(1, actions[:, None]).squeeze(1)
    errors = chosen - targets
    limited = errors.clamp(-1, 1)
    pulls = weights * limited
    loss = torch.dot(pulls, errors - limited / 2)
    slopes = torch.zeros_like(q_values).scatter_(1, actions[:, None], pulls[:, None])
    for layer in range(len(inputs) - 1, -1, -1):
        x, (matrix, vector) = inputs[layer], gradients[2 * layer : 2 * layer + 2]
        if slopes.shape[1] > 8 * x.shape[1]:  # a narrow matrix is faster from the left
            matrix.copy_((x.t() @ slopes).t())
        else:
            torch.mm(slopes.t(), x, out=matrix)
        torch.sum(slopes, 0, out=vector)
        if layer:
            slopes = slopes @ parameters[2 * layer]
            slopes = torch.ops.aten.threshold_backward(slopes, x, 0)
    return loss.item(), chosen
