"""One-step targets of temporal-difference learning, of values and of their distributions.

A terminal state is ``discount = 0``; a truncated episode keeps its discount and bootstraps from the
state that it was cut off in. The targets take any leading axes, one transition each, and carry no
gradient. A value behind a discount of 0 counts for nothing, not even NaN.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rl.estimators.segments import check_equal_shapes, constants, weighted

__all__ = [
    "categorical_projection",
    "double_q_targets",
    "expected_sarsa_targets",
    "q_learning_targets",
    "quantile_huber_loss",
]


def q_learning_targets(rewards: Tensor, discounts: Tensor, next_q_values: Tensor) -> Tensor:
    r"""Targets of Q-learning (Watkins 1989; Sutton & Barto 2018, eq. 6.8).

        y = r + discount * max_a Q(s', a)

    Args:
        rewards: ``(...,)``.
        discounts: ``(...,)``, gamma or 0; gamma^n after n steps.
        next_q_values: ``(..., A)``, Q(s', a); -inf rules an action out.

    Returns:
        ``(...,)`` targets in units of reward.

    >>> next_q_values = torch.tensor([[1.0, 3.0], [1.0, 3.0]])
    >>> q_learning_targets(torch.ones(2), torch.tensor([0.5, 0.0]), next_q_values)
    tensor([2.5000, 1.0000])
    """
    _check_tables(rewards, discounts, next_q_values=next_q_values)
    return _bootstrapped(rewards, discounts, next_q_values.amax(-1))


def double_q_targets(
    rewards: Tensor, discounts: Tensor, next_q_values: Tensor, next_target_q_values: Tensor
) -> Tensor:
    r"""Targets of double Q-learning (van Hasselt et al. 2016, arXiv:1509.06461, eq. 4).

        y = r + discount * Q_target(s', argmax_a Q(s', a))

    One network selects the action, the other values it, so that the maximum over errors does not
    enter the target. Of equal values the first is selected.

    Args:
        rewards: ``(...,)``.
        discounts: ``(...,)``, gamma or 0; gamma^n after n steps.
        next_q_values: ``(..., A)``, of the network that selects; -inf rules an action out.
        next_target_q_values: ``(..., A)``, of the network that values.

    Returns:
        ``(...,)`` targets in units of reward.

    >>> selects, values = torch.tensor([1.0, 3.0]), torch.tensor([8.0, 4.0])
    >>> double_q_targets(torch.tensor(1.0), torch.tensor(0.5), selects, values)
    tensor(3.)
    """
    _check_tables(
        rewards, discounts, next_q_values=next_q_values, next_target_q_values=next_target_q_values
    )
    selected = next_q_values.argmax(-1, keepdim=True)
    return _bootstrapped(rewards, discounts, next_target_q_values.gather(-1, selected).squeeze(-1))


def expected_sarsa_targets(
    rewards: Tensor, discounts: Tensor, next_q_values: Tensor, next_probabilities: Tensor
) -> Tensor:
    r"""Targets of expected Sarsa (van Seijen et al. 2009; Sutton & Barto 2018, eq. 6.9).

        y = r + discount * \sum_a pi(a | s') Q(s', a)

    Args:
        rewards: ``(...,)``.
        discounts: ``(...,)``, gamma or 0; gamma^n after n steps.
        next_q_values: ``(..., A)``, Q(s', a); what has probability 0 may be -inf.
        next_probabilities: ``(..., A)``, of the policy that is evaluated, in s'.

    Returns:
        ``(...,)`` targets in units of reward.

    >>> next_q_values, policy = torch.tensor([4.0, 8.0]), torch.tensor([0.75, 0.25])
    >>> expected_sarsa_targets(torch.tensor(1.0), torch.tensor(0.5), next_q_values, policy)
    tensor(3.5000)
    """
    _check_tables(
        rewards, discounts, next_q_values=next_q_values, next_probabilities=next_probabilities
    )
    return _bootstrapped(rewards, discounts, weighted(next_probabilities, next_q_values).sum(-1))


def categorical_projection(
    probabilities: Tensor, atoms: Tensor, rewards: Tensor, discounts: Tensor
) -> Tensor:
    r"""Distribution of r + discount * Z, brought back onto the atoms of Z (C51).

        x_j = clip(r + discount * z_j, z_1, z_N)
        m_i = \sum_j max(0, 1 - |x_j - z_i| / (z_2 - z_1)) p_j

    Bellemare et al. 2017, arXiv:1707.06887, eq. 7. Each probability is divided between the two
    atoms around the point that it moved to, so none is lost. (Algorithm 1, as printed, loses what
    lands on an atom: there its floor and its ceiling coincide, and both shares are 0.)

    Args:
        probabilities: ``(..., N)``, p_j of the return from s' being z_j, under the next action.
        atoms: ``(N,)``, z, at least 2, ascending and equally spaced, in units of reward.
        rewards: ``(...,)``.
        discounts: ``(...,)``, gamma or 0; gamma^n after n steps.

    Returns:
        ``(..., N)`` probabilities m_i, no gradient.

    >>> atoms, p = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.5, 0.0, 0.5])
    >>> categorical_projection(p, atoms, torch.tensor(0.5), torch.tensor(1.0))
    tensor([0.2500, 0.2500, 0.5000])
    """
    _check_atoms(atoms)
    _check_tables(rewards, discounts, probabilities=probabilities)
    if probabilities.shape[-1] != len(atoms):
        raise ValueError(
            f"got probabilities of shape {tuple(probabilities.shape)} for atoms of shape "
            f"{tuple(atoms.shape)}: give one probability for each atom along the last axis"
        )
    p, z, rewards, discounts = constants(probabilities, atoms, rewards, discounts)
    z = z.contiguous()
    x = (rewards.unsqueeze(-1) + discounts.unsqueeze(-1) * z).clamp(z[0], z[-1]).contiguous()
    # Found and measured between the atoms themselves, a point on an atom is exactly there, which
    # a division by the spacing would miss by a rounding.
    lower = (torch.searchsorted(z, x, right=True) - 1).clamp(max=len(z) - 2)
    upper_share = p * ((x - z[lower]) / (z[lower + 1] - z[lower]))
    projected = torch.zeros_like(p).scatter_add(-1, lower, p - upper_share)
    return projected.scatter_add(-1, lower + 1, upper_share)


def quantile_huber_loss(quantiles: Tensor, targets: Tensor, kappa: float = 1.0) -> Tensor:
    r"""Loss of quantiles against samples (QR-DQN: Dabney et al. 2018, arXiv:1710.10044, eq. 10).

        u_ij = y_j - q_i,  tau_i = (i + 1/2) / N
        L(u) = u^2 / 2 where |u| <= kappa, else kappa (|u| - kappa / 2)
        loss = \sum_i mean_j |tau_i - 1{u_ij < 0}| L(u_ij) / kappa

    Divided by kappa, which that equation leaves out (IQN: Dabney et al. 2018, arXiv:1806.06923,
    eq. 3, does not), it tends to quantile regression as kappa goes to 0; ``kappa=0`` is that limit,
    with |u| for L(u) / kappa. The gradient goes through ``quantiles`` alone.

    Args:
        quantiles: ``(B, N)``, or any leading axes; q_i estimates the quantile tau_i of the return.
        targets: ``(B, M)``, samples y_j, or quantiles, of the return.
        kappa: Where squares turn into absolute values, in units of reward.

    Returns:
        ``(B,)`` losses in units of reward: summed over quantiles, averaged over targets.

    >>> quantile_huber_loss(torch.tensor([[0.0, 1.0]]), torch.tensor([[3.0]]))
    tensor([1.7500])
    """
    if not 0 <= kappa < math.inf:
        raise ValueError(
            f"kappa={kappa}: it is the error where squares turn into absolute values, so use a "
            "finite number, 0 or more; 0 takes absolute values alone"
        )
    for name, x in (("quantiles", quantiles), ("targets", targets)):
        if x.ndim == 0 or x.shape[-1] == 0:
            raise ValueError(f"got {name} of shape {tuple(x.shape)}: give at least one a row")
    if quantiles.shape[:-1] != targets.shape[:-1]:
        raise ValueError(
            f"got targets of shape {tuple(targets.shape)} for quantiles of shape "
            f"{tuple(quantiles.shape)}: they may differ in the last axis alone"
        )
    count = quantiles.shape[-1]
    tau = (torch.arange(count, dtype=quantiles.dtype, device=quantiles.device) + 0.5) / count
    u = targets.detach().unsqueeze(-2) - quantiles.unsqueeze(-1)  # (..., N, M)
    size = u.abs()
    if kappa > 0:
        # One expression for both branches: inside, the limited size is the size itself.
        limited = size.clamp(max=kappa)
        size = limited * (size - limited / 2) / kappa
    asymmetry = (tau.unsqueeze(-1) - (u < 0).to(tau.dtype)).abs()
    return (asymmetry * size).mean(-1).sum(-1)


def _bootstrapped(rewards: Tensor, discounts: Tensor, next_values: Tensor) -> Tensor:
    rewards, discounts, next_values = constants(rewards, discounts, next_values)
    return rewards + weighted(discounts, next_values)


def _check_tables(rewards: Tensor, discounts: Tensor, **tables: Tensor) -> None:
    check_equal_shapes(rewards=rewards, discounts=discounts)
    check_equal_shapes(**tables)
    name, table = next(iter(tables.items()))
    if table.ndim == 0 or table.shape[:-1] != rewards.shape or table.shape[-1] == 0:
        raise ValueError(
            f"got {name} of shape {tuple(table.shape)} for rewards of shape "
            f"{tuple(rewards.shape)}: a table has the axes of the rewards and one more, last, "
            "which is not empty"
        )


def _check_atoms(atoms: Tensor) -> None:
    if atoms.ndim != 1 or len(atoms) < 2:
        raise ValueError(f"got atoms of shape {tuple(atoms.shape)}: give (N,), at least 2 of them")
    z = atoms.detach().double()
    spacing = (z[-1] - z[0]) / (len(z) - 1)
    # Atoms are rounded where they were made, which need not be in the type that they came in.
    made_in = atoms.dtype if atoms.dtype in (torch.float16, torch.bfloat16) else torch.float32
    rounding = 4 * torch.finfo(made_in).eps * z.abs().max()
    if not (spacing > 0 and ((z.diff() - spacing).abs() <= rounding).all() and z.diff().min() > 0):
        raise ValueError(
            f"got atoms from {z[0].item():g} to {z[-1].item():g} with gaps between "
            f"{z.diff().min().item():g} and {z.diff().max().item():g}: they must ascend and be "
            "equally spaced, as torch.linspace makes them"
        )
