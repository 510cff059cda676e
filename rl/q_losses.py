"""Q values of chosen actions, or their distributions, against what a step was worth."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rl.estimators import categorical_projection, double_q_targets, quantile_huber_loss
from rl.value_laws import CategoricalValues, QuantileValues, ValueLaw

__all__ = ["of_actions", "q_errors", "q_losses", "q_targets"]


def of_actions(outputs: Tensor, actions: Tensor) -> Tensor:
    """Return what a network says of one action each, ``(B,)`` or ``(B, atoms)``.

    Args:
        outputs: ``(B, A)`` or ``(B, A, atoms)``.
        actions: ``(B,)``, counted from 0.

    >>> of_actions(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 0]))
    tensor([2., 3.])
    """
    if outputs.ndim == 2:
        return outputs.gather(1, actions[:, None]).squeeze(1)
    return outputs[torch.arange(len(actions), device=actions.device), actions]


def q_targets(
    law: ValueLaw,
    rewards: Tensor,
    discounts: Tensor,
    next_q_values: Tensor,
    next_outputs: Tensor,
) -> Tensor:
    r"""What the outputs of a step are trained towards, with a' = argmax_a next_q_values_a.

        expected:     r + discount Q(s', a')
        categorical:  the distribution r + discount Z(s', a'), projected on the atoms
        quantile:     r + discount theta(s', a')

    Mnih et al. 2015 (doi:10.1038/nature14236), Bellemare et al. 2017 (arXiv:1707.06887, algorithm
    1), Dabney et al. 2018 (arXiv:1710.10044, algorithm 1).

    Args:
        law: What the outputs mean.
        rewards: ``(B,)``.
        discounts: ``(B,)``, gamma to the number of steps, or 0.
        next_q_values: ``(B, A)`` in s', of the network that selects; -inf rules an action out.
        next_outputs: ``(B, A)`` or ``(B, A, atoms)`` in s', of the network that values.

    Returns:
        ``(B,)`` or ``(B, atoms)``, no gradient.
    """
    if isinstance(law, CategoricalValues):
        following = of_actions(next_outputs, next_q_values.argmax(1)).softmax(-1)
        support = law.support().to(next_outputs)
        return categorical_projection(following, support, rewards, discounts)
    if isinstance(law, QuantileValues):
        following = of_actions(next_outputs, next_q_values.argmax(1)).detach()
        return rewards[:, None] + discounts[:, None] * following
    return double_q_targets(rewards, discounts, next_q_values, next_outputs)


def q_losses(law: ValueLaw, chosen: Tensor, targets: Tensor) -> Tensor:
    r"""Loss of each row.

        expected:     Huber(target - Q), squares up to 1, then lines (Mnih et al. 2015)
        categorical: -\sum_i m_i log p_i (Bellemare et al. 2017)
        quantile:     quantile Huber loss (Dabney et al. 2018)

    Args:
        law: What the outputs mean.
        chosen: ``(B,)`` or ``(B, atoms)``, outputs of the actions that were taken.
        targets: Likewise, from ``q_targets``.

    Returns:
        ``(B,)``.
    """
    if isinstance(law, CategoricalValues):
        return -(targets * chosen.log_softmax(-1)).sum(-1)
    if isinstance(law, QuantileValues):
        return quantile_huber_loss(chosen, targets)
    return functional.smooth_l1_loss(chosen, targets, reduction="none")


def q_errors(law: ValueLaw, chosen: Tensor, targets: Tensor) -> Tensor:
    """Return how far off each row is, ``(B,)``, for priorities; no gradient.

    The difference of the means; for atoms the cross-entropy (Hessel et al. 2018,
    arXiv:1710.02298, section 4, take it less the entropy of the target).
    """
    chosen = chosen.detach()
    if isinstance(law, CategoricalValues):
        return q_losses(law, chosen, targets)
    return (law.mean(targets) - law.mean(chosen)).abs()
