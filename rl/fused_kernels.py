"""The slopes of PPO's loss in a network's outputs: the compiled loops of ``rl.fused_loss``."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from rl.classic_kernels import compiled

__all__ = ["policy_slopes", "value_slopes"]

Floats = NDArray[np.float32]


@compiled
def policy_slopes(
    logits: Floats,
    allowed: NDArray[np.bool_],
    actions: NDArray[np.int64],
    old_log_probs: Floats,
    advantages: Floats,
    clip: float,
    entropy_weight: float,
    slopes: Floats,
    log_ratios: Floats,
) -> tuple[float, float]:
    r"""Fill ``slopes`` and ``log_ratios``; return the sums of policy loss and entropy.

    With w = pi(a) / old pi(a), H the entropy and p the probabilities,

        L = -min(w A, clip(w) A) - entropy_weight H
        dL/dlogit_j = -w A 1[not clipped] (1[j = a] - p_j) + entropy_weight p_j (log p_j + H)

    Args:
        logits: ``(B, A)``.
        allowed: ``(B, A)``, or ``(0, A)`` where every action is.
        actions: ``(B,)``, counted from 0.
        old_log_probs: ``(B,)`` nats.
        advantages: ``(B,)``.
        clip: How far w may move from 1.
        entropy_weight: Of H.
        slopes: ``(B, A)``, written.
        log_ratios: ``(B,)``, written.
    """
    count = logits.shape[1]
    masked = len(allowed) > 0
    log_probs = np.empty(count)
    loss, entropies = 0.0, 0.0
    for i in range(len(logits)):
        largest, total, entropy = -math.inf, 0.0, 0.0
        for j in range(count):
            if not masked or allowed[i, j]:
                largest = max(largest, logits[i, j])
        for j in range(count):
            if not masked or allowed[i, j]:
                total += math.exp(logits[i, j] - largest)
        shift = largest + math.log(total)
        for j in range(count):
            if not masked or allowed[i, j]:
                log_probs[j] = logits[i, j] - shift
                entropy -= math.exp(log_probs[j]) * log_probs[j]
        log_ratio = log_probs[actions[i]] - old_log_probs[i]
        ratio = math.exp(min(log_ratio, 80.0))
        gain = ratio * advantages[i]
        clipped = min(max(ratio, 1 - clip), 1 + clip) * advantages[i]
        weight = gain if gain <= clipped else 0.0
        for j in range(count):
            if not masked or allowed[i, j]:
                prob = math.exp(log_probs[j])
                slope = weight * prob + entropy_weight * prob * (log_probs[j] + entropy)
                slopes[i, j] = slope - weight if j == actions[i] else slope
            else:
                slopes[i, j] = 0.0
        log_ratios[i] = log_ratio
        loss -= min(gain, clipped)
        entropies += entropy
    return loss, entropies


@compiled
def value_slopes(
    values: Floats,
    old_values: Floats,
    targets: Floats,
    limit: float,
    weight: float,
    slopes: Floats,
) -> float:
    r"""Fill ``slopes``, ``(B,)``, with ``weight`` dL/dV; return the sum of L.

        L = max((V - target)^2, (old + clip(V - old) - target)^2) / 2

    The clip is at ``limit`` to both sides; beyond it, the second no longer depends on V.
    """
    loss = 0.0
    for i in range(len(values)):
        error, moved = values[i] - targets[i], values[i] - old_values[i]
        slope = error
        if abs(moved) > limit:
            held = old_values[i] + math.copysign(limit, moved) - targets[i]
            if abs(held) > abs(error):
                error, slope = held, 0.0
        slopes[i] = weight * slope
        loss += error * error / 2
    return loss
