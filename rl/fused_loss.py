"""PPO's loss of a batch of Discrete actions with its gradient in one step, written by hand.

On some hundred rows of a small network, what autograd keeps of every operation costs more than the
operations. ``rl.ppo`` has the readable twin, and takes it wherever ``can_fuse`` is False; tests
hold loss, figures and gradients of both equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rl.actor_critic import ActorCritic
from rl.encoders import Vector
from rl.fused_kernels import policy_slopes, value_slopes
from rl.networks import Network
from rl.rollouts import Rollout, Steps

__all__ = ["Weights", "can_fuse", "fused_loss"]


class Weights(Protocol):
    """What PPO's loss is made with: a ``PPOConfig``."""

    @property
    def clip(self) -> float: ...  # noqa: D102
    @property
    def value_clip(self) -> float | None: ...  # noqa: D102
    @property
    def value_weight(self) -> float: ...  # noqa: D102
    @property
    def entropy_weight(self) -> float: ...  # noqa: D102


def can_fuse(network: ActorCritic) -> bool:
    """Return whether ``fused_loss`` holds for this network.

    Separate trunks of linear and tanh layers on vectors, Discrete actions, float32 on the CPU.
    """
    if network.actor.body is network.critic.body or network.log_std is not None:
        return False
    plain = all(_is_plain(trunk) for trunk in (network.actor, network.critic))
    kinds = {(p.dtype, p.device.type, p.requires_grad) for p in network.parameters()}
    return plain and kinds == {(torch.float32, "cpu", True)}


def fused_loss(
    network: ActorCritic, weights: Weights, rollout: Rollout, rows: Steps
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what ``rl.ppo`` makes of rows: the summed loss, its three parts, log-ratios."""
    actors, critics = _parameters(network.actor), _parameters(network.critic)
    return _FusedLoss.apply(  # type: ignore[no-untyped-call]  # torch's
        weights, rollout, rows, len(actors) // 2, *actors, *critics
    )


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 torch's context
        weights: Weights,
        rollout: Rollout,
        rows: Steps,
        actors: int,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        observations: Any = rollout.observations
        x = observations[rows.index].flatten(1).float()
        logits, first = _forward(x, parameters[: 2 * actors])
        values, second = _forward(x, parameters[2 * actors :])
        slopes, of_values = torch.empty_like(logits), torch.empty_like(values)
        log_ratios = torch.empty(len(x))
        allowed = torch.empty(0, logits.shape[1], dtype=torch.bool)
        if rollout.action_masks is not None:
            allowed = rollout.action_masks[rows.index]
        policy_loss, entropy = policy_slopes(
            logits.numpy(),
            allowed.numpy(),
            rollout.actions[rows.index].numpy(),
            rows.log_probs.numpy(),
            rows.advantages.numpy(),
            weights.clip,
            weights.entropy_weight,
            slopes.numpy(),
            log_ratios.numpy(),
        )
        value_loss = value_slopes(
            values.numpy()[:, 0],
            rows.values.numpy(),
            rows.targets.numpy(),
            math.inf if weights.value_clip is None else weights.value_clip,
            weights.value_weight,
            of_values.numpy()[:, 0],
        )
        ctx.gradients = [
            *_backward(slopes, first, parameters[: 2 * actors : 2]),
            *_backward(of_values, second, parameters[2 * actors :: 2]),
        ]
        loss = policy_loss + weights.value_weight * value_loss - weights.entropy_weight * entropy
        parts = torch.tensor([policy_loss, value_loss, entropy])
        ctx.mark_non_differentiable(parts, log_ratios)
        return torch.tensor(loss), parts, log_ratios

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        return None, None, None, None, *torch._foreach_mul(ctx.gradients, gradient)


def _forward(x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return the outputs, and the input of each layer; weight and bias come in turn."""
    inputs = [x]
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        x = torch.addmm(bias, x, weight.t())
        array = x.numpy()
        np.tanh(array, out=array)  # in a sixth of the time that torch's takes
        inputs.append(x)
    return torch.addmm(parameters[-1], x, parameters[-2].t()), inputs


def _backward(slopes: Tensor, inputs: list[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of weight and bias of each layer, in turn."""
    found: list[Tensor] = []
    for number in range(len(weights) - 1, -1, -1):
        x = inputs[number]
        found += [slopes.sum(0), slopes.t() @ x]
        if number:
            slopes = torch.ops.aten.tanh_backward(slopes @ weights[number], x)
    return found[::-1]


def _parameters(trunk: Network) -> list[Tensor]:
    """Return weight and bias of each layer; ``trunk.parameters()`` takes 60 us to find them."""
    return [p for layer in [*trunk.body, trunk.head][::2] for p in (layer.weight, layer.bias)]


def _is_plain(trunk: Network) -> bool:
    layers = [*trunk.body, trunk.head]
    return (
        type(trunk.encoder) is Vector
        and all(type(layer) is nn.Linear and layer.bias is not None for layer in layers[::2])
        and all(type(layer) is nn.Tanh for layer in layers[1::2])
    )
