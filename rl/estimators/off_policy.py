"""Returns of one policy, the target, from steps that another, the behaviour policy, took.

``ratios`` are pi(a_t | s_t) / mu(a_t | s_t), target over behaviour; like ``q_values`` and
``probabilities``, pi(a_t | s_t), they are those of the action taken, ``(..., T)``. A terminal state
is ``discount = 0``; the last step of a segment, terminal or merely truncated, is ``trace = 0``, and
there the return ends with the value of the state reached. The tensor ends a segment as a trace of 0
does. Nothing here carries a gradient, and what a weight of 0 cuts off counts for nothing, not even
an infinite ratio.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rl.estimators.segments import accumulate, check_equal_shapes, ended, following, steps, weighted

__all__ = ["VTrace", "emphasis", "q_sigma_returns", "retrace", "tree_backup", "vtrace"]


class VTrace(NamedTuple):
    """What V-trace says of each step, in units of reward."""

    targets: Tensor
    """``(..., T)``, v_t: what the value of s_t is to become."""
    advantages: Tensor
    """``(..., T)``: what the policy gradient multiplies grad log pi(a_t | s_t) by."""


def vtrace(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    discounts: Tensor,
    traces: Tensor,
    ratios: Tensor,
    *,
    clip_rho: float = 1.0,
    clip_c: float = 1.0,
) -> VTrace:
    r"""V-trace (IMPALA: Espeholt et al. 2018, arXiv:1802.01561, eq. 1 and section 4.2).

        rho_t   = min(clip_rho, ratio_t),  c_t = trace_t * min(clip_c, ratio_t)
        delta_t = rho_t * (r_t + discount_t * V(s_{t+1}) - V(s_t))
        v_t     = V(s_t) + delta_t + discount_t * c_t * (v_{t+1} - V(s_{t+1}))
        A_t     = rho_t * (r_t + discount_t * v'_t - V(s_t)),
                  v'_t = trace_t * v_{t+1} + (1 - trace_t) * V(s_{t+1})

    The last step counts as one with a trace of 0, so that v'_t = V(s_{t+1}). ``clip_rho`` decides
    whose values are learned (infinity: the target policy's), ``clip_c`` only how fast. The paper
    has traces of 1; lambda is its remark 2.

    Args:
        rewards: ``(..., T)``.
        values: ``(..., T)``, V(s_t).
        next_values: ``(..., T)``, V(s_{t+1}), of the state that the action led to; within a
            segment it is ``values`` of the next step.
        discounts: ``(..., T)``, gamma or 0.
        traces: ``(..., T)``, lambda or 0.
        ratios: ``(..., T)``.
        clip_rho: Largest weight of a temporal-difference error, in the advantages as well.
        clip_c: Largest weight with which a later error is passed on.

    Returns:
        Targets and advantages.

    >>> one, half = torch.ones(2), torch.full((2,), 0.5)
    >>> targets, advantages = vtrace(one, 0 * one, 0 * one, half, one, torch.tensor([0.5, 2.0]))
    >>> targets, advantages
    (tensor([0.7500, 1.0000]), tensor([0.7500, 1.0000]))
    """
    for name, limit in (("clip_rho", clip_rho), ("clip_c", clip_c)):
        if not limit >= 0:
            raise ValueError(
                f"{name}={limit}: ratios are cut off above it, so use 0 or more; infinity never "
                "cuts"
            )
    rewards, values, next_values, discounts, traces, ratios = steps(
        rewards=rewards,
        values=values,
        next_values=next_values,
        discounts=discounts,
        traces=traces,
        ratios=ratios,
    )
    traces = ended(traces)
    rho, c = ratios.clamp(max=clip_rho), ratios.clamp(max=clip_c)
    deltas = weighted(rho, rewards + weighted(discounts, next_values) - values)
    targets = values + accumulate(deltas, weighted(discounts * traces, c))
    ahead = weighted(traces, following(targets)) + weighted(1 - traces, next_values)
    advantages = weighted(rho, rewards + weighted(discounts, ahead) - values)
    return VTrace(targets, advantages)


def retrace(
    rewards: Tensor,
    q_values: Tensor,
    next_expected_values: Tensor,
    discounts: Tensor,
    traces: Tensor,
    ratios: Tensor,
) -> Tensor:
    r"""Retrace(lambda) (Munos et al. 2016, arXiv:1606.02647, eq. 3 with c of section 3).

        delta_t = r_t + discount_t * E_pi Q(s_{t+1}, .) - Q_t,  c_t = min(1, ratio_t)
        G_t     = Q_t + delta_t + discount_t * trace_t * c_{t+1} * (G_{t+1} - Q_{t+1})

    and Q_t + delta_t at the last step. Lambda is in the traces.

    Args:
        rewards: ``(..., T)``.
        q_values: ``(..., T)``, Q(s_t, a_t).
        next_expected_values: ``(..., T)``, E_pi Q(s_{t+1}, .), of the state reached.
        discounts: ``(..., T)``, gamma or 0.
        traces: ``(..., T)``, lambda or 0; trace t cuts between steps t and t + 1.
        ratios: ``(..., T)``; that of step t + 1 enters at t, that of the first step nowhere.

    Returns:
        ``(..., T)`` returns in units of reward.

    >>> one, half = torch.ones(2), torch.full((2,), 0.5)
    >>> retrace(one, 0 * one, one, half, one, half)
    tensor([1.8750, 1.5000])
    """
    check_equal_shapes(rewards=rewards, ratios=ratios)
    c = ratios.clamp(max=1)
    return _corrected_returns(rewards, q_values, next_expected_values, discounts, traces, c)


def tree_backup(
    rewards: Tensor,
    q_values: Tensor,
    next_expected_values: Tensor,
    discounts: Tensor,
    traces: Tensor,
    probabilities: Tensor,
) -> Tensor:
    r"""Tree backup (Precup et al. 2000; Sutton & Barto 2018, eq. 7.16).

        delta_t = r_t + discount_t * E_pi Q(s_{t+1}, .) - Q_t,  c_t = pi(a_t | s_t)
        G_t     = Q_t + delta_t + discount_t * trace_t * c_{t+1} * (G_{t+1} - Q_{t+1})

    and Q_t + delta_t at the last step. It needs no ratio: the behaviour policy may be unknown. The
    book has traces of 1; others make it TB(lambda) (arXiv:1606.02647, section 3).

    Args:
        rewards: ``(..., T)``.
        q_values: ``(..., T)``, Q(s_t, a_t).
        next_expected_values: ``(..., T)``, E_pi Q(s_{t+1}, .), of the state reached.
        discounts: ``(..., T)``, gamma or 0.
        traces: ``(..., T)``, lambda or 0; trace t cuts between steps t and t + 1.
        probabilities: ``(..., T)``; that of step t + 1 enters at t.

    Returns:
        ``(..., T)`` returns in units of reward.

    >>> one, half = torch.ones(2), torch.full((2,), 0.5)
    >>> tree_backup(one, 0 * one, one, half, one, half)
    tensor([1.8750, 1.5000])
    """
    check_equal_shapes(rewards=rewards, probabilities=probabilities)
    c = probabilities
    return _corrected_returns(rewards, q_values, next_expected_values, discounts, traces, c)


def q_sigma_returns(
    rewards: Tensor,
    q_values: Tensor,
    next_expected_values: Tensor,
    discounts: Tensor,
    traces: Tensor,
    ratios: Tensor,
    probabilities: Tensor,
    sigma: float | Tensor,
) -> Tensor:
    r"""Q(sigma) (De Asis et al. 2018, arXiv:1703.01327; Sutton & Barto 2018, eq. 7.17).

        delta_t = r_t + discount_t * E_pi Q(s_{t+1}, .) - Q_t
        c_t     = sigma_t * ratio_t + (1 - sigma_t) * pi(a_t | s_t)
        G_t     = Q_t + delta_t + discount_t * trace_t * c_{t+1} * (G_{t+1} - Q_{t+1})

    and Q_t + delta_t at the last step. ``sigma=0`` is tree backup, ``sigma=1`` Sarsa with
    importance sampling, its sample corrected by the expectation as in the book.

    Args:
        rewards: ``(..., T)``.
        q_values: ``(..., T)``, Q(s_t, a_t).
        next_expected_values: ``(..., T)``, E_pi Q(s_{t+1}, .), of the state reached.
        discounts: ``(..., T)``, gamma or 0.
        traces: ``(..., T)``, lambda or 0; trace t cuts between steps t and t + 1.
        ratios: ``(..., T)``; that of step t + 1 enters at t.
        probabilities: ``(..., T)``; that of step t + 1 enters at t.
        sigma: How much of a step is sampled, between 0 and 1: a number, or ``(..., T)``, of which
            that of step t + 1 enters at t.

    Returns:
        ``(..., T)`` returns in units of reward.

    >>> one, half = torch.ones(2), torch.full((2,), 0.5)
    >>> q_sigma_returns(one, 0 * one, one, half, one, 2 * one, half, sigma=1.0)
    tensor([3.0000, 1.5000])
    """
    _, ratios, probabilities = steps(rewards=rewards, ratios=ratios, probabilities=probabilities)
    sigma = _each_step("sigma", sigma, ratios, most=1)
    c = weighted(sigma, ratios) + weighted(1 - sigma, probabilities)
    return _corrected_returns(rewards, q_values, next_expected_values, discounts, traces, c)


def emphasis(
    discounts: Tensor,
    ratios: Tensor,
    *,
    trace: float | Tensor,
    interest: float | Tensor = 1.0,
    ends: Tensor | None = None,
) -> Tensor:
    r"""Emphasis of emphatic TD(lambda) (Sutton, Mahmood & White 2016, arXiv:1503.04671).

        F_t = interest_t + discount_{t-1} * ratio_{t-1} * F_{t-1},  F_0 = interest_0
        M_t = trace * interest_t + (1 - trace) * F_t

    M_t weighs the update at step t, so that semi-gradient TD stays stable off-policy (Sutton &
    Barto 2018, section 11.8). The follow-on trace F begins again after a terminal step, whose
    discount is 0, and after one where ``ends`` is True: a truncated episode passes nothing on to
    the next.

    Args:
        discounts: ``(..., T)``, gamma or 0.
        ratios: ``(..., T)``.
        trace: Lambda, between 0 and 1: a number, or ``(..., T)``. Here no 0 marks an end.
        interest: How much the value of each state matters, 0 or more: a number, or ``(..., T)``.
        ends: ``(..., T)`` bool, True at the last step of an episode, terminal or truncated; None
            where no episode is truncated inside.

    Returns:
        ``(..., T)`` weights M_t.

    >>> one, half = torch.ones(3), torch.full((3,), 0.5)
    >>> emphasis(half, one, trace=0.0, ends=torch.tensor([False, True, False]))
    tensor([1.0000, 1.5000, 1.0000])
    """
    discounts, ratios = steps(discounts=discounts, ratios=ratios)
    trace = _each_step("trace", trace, ratios, most=1)
    interest = _each_step("interest", interest, ratios, most=math.inf)
    if ends is not None:
        check_equal_shapes(discounts=discounts, ends=ends)
        if ends.dtype != torch.bool:
            raise ValueError(f"got ends of {ends.dtype}: give bool, True at the end of an episode")
        discounts = discounts.masked_fill(ends, 0)
    # F runs forwards in time, so what is accumulated backwards is flipped.
    decays = following(weighted(discounts, ratios).flip(-1))
    follow_on = accumulate(interest.flip(-1), decays).flip(-1)
    return weighted(trace, interest) + weighted(1 - trace, follow_on)


def _corrected_returns(
    rewards: Tensor,
    q_values: Tensor,
    next_expected_values: Tensor,
    discounts: Tensor,
    traces: Tensor,
    c: Tensor,
) -> Tensor:
    """Return G of the module's action-value methods, which differ in ``c`` alone."""
    rewards, q_values, next_expected_values, discounts, traces, c = steps(
        rewards=rewards,
        q_values=q_values,
        next_expected_values=next_expected_values,
        discounts=discounts,
        traces=traces,
        c=c,
    )
    one_step = rewards + weighted(discounts, next_expected_values)  # Q_t + delta_t
    decays = weighted(discounts * traces, following(c))
    corrections = accumulate(one_step - q_values, decays)  # G_t - Q_t
    return one_step + weighted(decays, following(corrections))


def _each_step(name: str, x: float | Tensor, like: Tensor, *, most: float) -> Tensor:
    """Return one number of [0, most] for each step; a single one stands for all steps."""
    if isinstance(x, Tensor) and x.ndim > 0:
        check_equal_shapes(**{"ratios": like, name: x})
        x = x.detach().to(like.dtype)
    else:
        x = torch.full_like(like, float(x))
    if not ((x >= 0) & (x <= most)).all():
        raise ValueError(
            f"got {name} between {x.min().item():g} and {x.max().item():g}: use numbers between 0 "
            f"and {most:g}"
        )
    return x
