"""Clip-Cov and KL-Cov: hold back the few tokens that cost the policy its entropy.

Both single tokens out by their covariance over the whole batch, so they have a method ``choose``
that the trainer calls on all counted tokens of all processes, before the batch is split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from posttrain.objectives.base import check_clip, counted
from posttrain.objectives.surrogate import TokenDivergence, token_gains
from rl.estimators.kl import k3

if TYPE_CHECKING:
    from posttrain.rollout.batch import RolloutBatch

__all__ = ["ClipCov", "KLCov", "covariances"]


def covariances(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """Return each token's part of Cov(log_prob, A) (Cui et al. 2025, arXiv:2505.22617).

        cov_i = (log_prob_i - mean(log_prob)) (A_i - mean(A))

    Where it is large and positive, a likely token is made likelier, which lowers the entropy.

    Args:
        log_probs: ``(N,)`` nats, all counted tokens of a batch.
        advantages: ``(N,)``.

    Returns:
        ``(N,)`` in nats times units of the advantages.

    >>> covariances(torch.tensor([-1.0, -3.0]), torch.tensor([1.0, -1.0]))
    tensor([1., 1.])
    """
    return (log_probs - log_probs.mean()) * (advantages - advantages.mean())


@dataclass(frozen=True, slots=True)
class ClipCov:
    r"""Surrogate without some tokens of high covariance (Cui et al. 2025, arXiv:2505.22617, 4.2).

        chosen = at random, a ``share`` of all N tokens, of those with cov_low < cov_i < cov_high
        loss   = -1/N \sum over tokens that are not chosen, gain_{i,t}

    The gain is clipped as in PPO. The paper takes r = 2e-4 and limits of 1 and 5. We choose by the
    policy that sampled, once for all updates of a rollout; the authors' code chooses anew in each
    minibatch.
    """

    clip_low: float = 0.2
    """How far the ratio may fall below 1 before a loss is cut off."""
    clip_high: float = 0.2
    """How far the ratio may rise above 1 before a gain is cut off."""
    share: float = 2e-4
    """Of all counted tokens, at most how many lose their gradient; at least one may."""
    cov_low: float = 1.0
    """The covariance above which a token may be chosen."""
    cov_high: float = 5.0
    """The covariance below which a token may be chosen."""

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)
        _check_share(self.share)
        if not self.cov_low < self.cov_high:
            raise ValueError(
                f"cov_low={self.cov_low}, cov_high={self.cov_high}: no covariance lies between "
                "them; the paper takes 1 and 5"
            )

    def choose(self, log_probs: Tensor, advantages: Tensor, generator: torch.Generator) -> Tensor:
        """Return ``(N,)`` bool, the tokens of the whole batch that lose their gradient."""
        cov = covariances(log_probs, advantages)
        candidates = ((cov > self.cov_low) & (cov < self.cov_high)).nonzero()[:, 0]
        order = torch.randperm(len(candidates), generator=generator).to(cov.device)
        chosen = torch.zeros_like(cov, dtype=torch.bool)
        chosen[candidates[order[: _count(self.share, len(cov))]]] = True
        return chosen

    def denominator(self, batch: RolloutBatch) -> Tensor:
        """Return the number of counted tokens, chosen ones included, a scalar."""
        return batch.mask.sum()

    def __call__(self, log_probs: Tensor, batch: RolloutBatch) -> Tensor:
        """Return the sum of token losses, a scalar; ``log_probs`` is ``(B, T)``."""
        gains = token_gains(log_probs, batch, self.clip_low, self.clip_high)
        return -torch.where(_chosen(batch), 0.0, gains).sum()


@dataclass(frozen=True, slots=True)
class KLCov:
    r"""Surrogate with a KL on tokens of the highest covariance (arXiv:2505.22617, section 4.2).

        chosen = the ``share`` of all N tokens with the highest cov_i
        loss   = -1/N \sum_{i,t} (w A - penalty [chosen] KL(old policy || policy)_{i,t})

    There is no clip, as in the authors' code. The paper takes k = 2e-3 for 7B and 2e-4 for 32B
    parameters, and a penalty of 1. The KL is estimated from the sampled token by ``kl``, by
    default k3; the authors' code takes ``|log w|``. We choose by the policy that sampled, once for
    all updates of a rollout.
    """

    share: float = 2e-3
    """Of all counted tokens, how many get the penalty; at least one does."""
    penalty: float = 1.0
    """Weight of the KL where it stands."""
    kl: TokenDivergence = k3
    """Estimates KL(old policy || policy) per token."""

    def __post_init__(self) -> None:
        _check_share(self.share)
        if not 0 <= self.penalty < float("inf"):
            raise ValueError(f"penalty={self.penalty}: use a finite number of 0 or more")

    def choose(self, log_probs: Tensor, advantages: Tensor, generator: torch.Generator) -> Tensor:
        """Return ``(N,)`` bool, the tokens of the whole batch that get the penalty."""
        cov = covariances(log_probs, advantages)
        chosen = torch.zeros_like(cov, dtype=torch.bool)
        order = cov.argsort(descending=True, stable=True)
        chosen[order[: _count(self.share, len(cov))]] = True
        return chosen

    def denominator(self, batch: RolloutBatch) -> Tensor:
        """Return the number of counted tokens, a scalar."""
        return batch.mask.sum()

    def __call__(self, log_probs: Tensor, batch: RolloutBatch) -> Tensor:
        """Return the sum of token losses, a scalar; ``log_probs`` is ``(B, T)``."""
        current = counted(log_probs, batch.mask)
        old = counted(batch.old_log_probs, batch.mask).detach()
        # Nothing cuts a ratio off here, and a sum of the largest numbers would overflow.
        near = torch.minimum(current, old + _MOST)
        advantages = counted(batch.advantages, batch.mask).detach()
        divergences = counted(self.kl(old, near), batch.mask)
        penalties = torch.where(_chosen(batch), self.penalty * divergences, 0.0)
        return -((near - old).exp() * advantages - penalties).sum()


_MOST = 20.0
"""Nats; a log-ratio beyond it stays there, without gradient."""


def _count(share: float, tokens: int) -> int:
    return min(tokens, max(1, int(share * tokens)))


def _chosen(batch: RolloutBatch) -> Tensor:
    if batch.chosen is None:
        raise ValueError(
            "this objective needs the tokens that it chose from the whole batch, but the batch "
            "has chosen=None: call posttrain.objectives.with_chosen(objective, batch) before the "
            "batch is split"
        )
    return batch.chosen & batch.mask


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: it is a part of all tokens, so use a number in (0, 1]")
