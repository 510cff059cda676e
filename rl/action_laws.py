"""From a network's outputs to actions: pure functions of outputs and of the draws they are given.

Whoever calls draws the uniforms or normals, one row for each environment, so that what a row does
depends on nothing but its own draw.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from rl.spaces import Space

__all__ = [
    "ActionBounds",
    "action_count",
    "action_size",
    "categorical_log_probs",
    "categorical_sample",
    "check_action_masks",
    "gaussian_log_probs",
    "gaussian_sample",
    "is_box",
    "mask_logits",
    "split_mean_log_std",
]

A = TypeVar("A", Tensor, np.ndarray)

LOG_STD_LOW, LOG_STD_HIGH = -20.0, 2.0


def is_box(space: Space) -> bool:
    """Return whether actions are vectors of numbers."""
    from gymnasium import spaces

    return isinstance(space, spaces.Box)


def action_count(space: Space) -> int:
    """Return A, the number of actions of a Discrete space.

    Raises:
        ValueError: Another space.
    """
    from gymnasium import spaces

    if not isinstance(space, spaces.Discrete):
        raise ValueError(f"got the action space {space}, expected Discrete: one of A actions")
    return int(space.n)


def action_size(space: Space) -> int:
    """Return D, the numbers in one action of a Box.

    Raises:
        ValueError: Another space.
    """
    if not is_box(space):
        raise ValueError(f"got the action space {space}, expected a Box: a vector of numbers")
    return math.prod(space.shape)


def mask_logits(logits: A, action_masks: A) -> A:
    """Return logits ``(B, A)`` with -inf where ``action_masks`` ``(B, A)`` is False."""
    if isinstance(logits, Tensor):
        return logits.masked_fill(~action_masks, -torch.inf)
    return np.where(action_masks, logits, np.float32(-np.inf))


def check_action_masks(action_masks: np.ndarray, rows: int, actions: int) -> np.ndarray:
    """Return the masks as bool.

    Raises:
        ValueError: Another shape than ``(rows, actions)``; names both. A row allows nothing.
    """
    masks = np.asarray(action_masks)
    if masks.shape != (rows, actions):
        raise ValueError(
            f"got action_masks of shape {masks.shape}, expected ({rows}, {actions}): one row for "
            "each observation, True where the action may be taken"
        )
    masks = masks.astype(bool, copy=False)
    allowed = masks.any(axis=1)
    if not allowed.all():
        raise ValueError(
            f"action_masks allow nothing in row {int(allowed.argmin())}: at least one action has "
            "to be possible"
        )
    return masks


def categorical_sample(logits: A, uniforms: A) -> A:
    r"""Draw from ``softmax(logits)`` by inverting its distribution function.

        a = min {a: \sum_{b <= a} p_b > u}

    A logit of -inf is never drawn. Sums are taken in float64.

    Args:
        logits: ``(B, A)``, in every row at least one finite.
        uniforms: ``(B,)`` in [0, 1).

    Returns:
        ``(B,)`` int64, from 0.

    >>> logits = np.log(np.array([[0.5, 0.25, 0.25]] * 4))
    >>> categorical_sample(logits, np.array([0.0, 0.4999, 0.5, 0.9999]))
    array([0, 0, 1, 2])
    """
    if isinstance(logits, Tensor):
        x = logits.detach().double()
        sums = (x - x.amax(-1, keepdim=True)).exp().cumsum(-1)
        total = sums[:, -1]
        below = torch.nextafter(total, torch.zeros_like(total))
        threshold = torch.minimum(uniforms.double() * total, below)
        return (sums <= threshold[:, None]).sum(-1)
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    sums = np.exp(wide, out=wide).cumsum(-1)
    total = sums[:, -1]
    # u times the total may round up to the total; nothing would be above it.
    threshold = np.minimum(uniforms * total, np.nextafter(total, 0.0))
    return (sums <= threshold[:, None]).sum(-1)


def categorical_log_probs(logits: A, actions: A) -> A:
    """Return the log-probs of ``actions`` ``(B,)`` under ``softmax(logits)``, ``(B,)`` nats."""
    if isinstance(logits, Tensor):
        return logits.log_softmax(-1).gather(-1, actions[:, None]).squeeze(-1)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted[np.arange(len(actions)), actions] - np.log(np.exp(shifted).sum(-1))


def gaussian_sample(mean: A, log_std: A, normals: A) -> A:
    """Return ``mean + exp(log_std) * normals``; mean and normals are ``(B, D)``."""
    if isinstance(mean, Tensor):
        return mean + log_std.exp() * normals
    return mean + np.exp(log_std) * normals


def gaussian_log_probs(actions: A, mean: A, log_std: A) -> A:
    r"""Log-density of independent normals, summed over components.

        \sum_d -z_d^2 / 2 - log_std_d - log(2 pi) / 2,   z = (action - mean) / std

    Args:
        actions: ``(B, D)``, before they were clipped to any bounds.
        mean: ``(B, D)``.
        log_std: ``(D,)`` or ``(B, D)``.

    Returns:
        ``(B,)`` nats.
    """
    half = 0.5 * math.log(2 * math.pi)
    if isinstance(mean, Tensor):
        return (-((actions - mean) / log_std.exp()).square() / 2 - log_std - half).sum(-1)
    return (-np.square((actions - mean) / np.exp(log_std)) / 2 - log_std - half).sum(-1)


def split_mean_log_std(outputs: A) -> tuple[A, A]:
    """Split ``(B, 2 D)`` into means and log deviations, these held within [-20, 2].

    The limits are those of the authors' code for Haarnoja et al. 2018, arXiv:1801.01290.
    """
    size = outputs.shape[-1] // 2
    log_std = outputs[..., size:]
    if isinstance(log_std, Tensor):
        return outputs[..., :size], log_std.clamp(LOG_STD_LOW, LOG_STD_HIGH)
    return outputs[..., :size], np.clip(log_std, LOG_STD_LOW, LOG_STD_HIGH)


class ActionBounds:
    """The bounds of a Box, for actions as flat float32 rows ``(B, D)``.

    Bounds that float32 cannot hold are rounded inwards, so that a clipped action is in the Box.
    """

    def __init__(self, space: Space) -> None:
        action_size(space)
        self.space = space
        self.shape: tuple[int, ...] = space.shape
        self.low, self.high = _inwards(space.low.ravel(), 1), _inwards(space.high.ravel(), -1)

    def require_finite(self) -> None:
        """Raise where a component is unbounded, and so cannot be scaled."""
        if not (np.isfinite(self.low).all() and np.isfinite(self.high).all()):
            raise ValueError(
                f"got the unbounded action space {self.space}: actions between -1 and 1 are scaled "
                "to the bounds, so give each finite ones (gymnasium.wrappers.RescaleAction, or "
                "another Box)"
            )

    def clip(self, actions: np.ndarray) -> np.ndarray:
        """Return actions ``(B, D)`` within the bounds, as float32 ``(B, *shape)``."""
        clipped = np.minimum(np.maximum(actions, self.low), self.high).astype(np.float32)
        return clipped.reshape(len(actions), *self.shape)

    def from_unit(self, actions: np.ndarray) -> np.ndarray:
        """Map ``(B, D)`` from [-1, 1] to the bounds, as float32 ``(B, *shape)``."""
        share = (actions.astype(np.float64) + 1) / 2
        return self.clip(self.low + share * (self.high.astype(np.float64) - self.low))

    def to_unit(self, actions: np.ndarray) -> np.ndarray:
        """Map actions ``(B, *shape)`` within the bounds to [-1, 1], float32 ``(B, D)``."""
        flat = actions.reshape(len(actions), -1).astype(np.float64)
        width = self.high.astype(np.float64) - self.low
        return ((flat - self.low) / width * 2 - 1).astype(np.float32)


def _inwards(bounds: np.ndarray, direction: int) -> np.ndarray:
    """Return bounds as float32, none beyond what it was."""
    rounded = bounds.astype(np.float32)
    beyond = rounded < bounds if direction > 0 else rounded > bounds
    return np.where(beyond, np.nextafter(rounded, np.float32(direction * np.inf)), rounded)
