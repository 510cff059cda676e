"""Distillation: how far a student's next-token distributions are from a teacher's.

Two ways to learn from a teacher on the student's own completions. ``ReverseKL``, ``ForwardKL`` and
``JensenShannon`` compare whole distributions, so they need the logits of both models.
``SampledReverseKL`` needs the teacher's log-probability of the sampled token alone: it is a policy
gradient whose advantage is the difference of log-probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from posttrain.objectives.base import Chooser, Masked, Objective, counted, needs_reference
from posttrain.objectives.dapo import DAPO

if TYPE_CHECKING:
    from posttrain.rollout.batch import RolloutBatch

__all__ = [
    "DistillObjective",
    "ForwardKL",
    "JensenShannon",
    "ReverseKL",
    "SampledReverseKL",
    "distillation_advantages",
]


@runtime_checkable
class DistillObjective(Protocol):
    """A divergence of two models, as a sum over tokens and the number that it is divided by.

    The contract is that of ``posttrain.objectives.base.Objective``, on divergences in place of
    log-probabilities; ``between`` says what a divergence is.
    """

    def between(self, log_p: Tensor, log_q: Tensor, /) -> Tensor:
        """Return ``(N,)`` nats of ``(N, V)`` log-probs of student and teacher, all finite."""
        ...

    def denominator(self, batch: Masked, /) -> Tensor:
        """Return what the sum is divided by, a scalar that follows from the mask alone."""
        ...

    def __call__(self, divergences: Tensor, batch: Masked, /) -> Tensor:
        """Return the sum to be minimised, a scalar; ``divergences`` is ``(B, T)`` nats."""
        ...


@dataclass(frozen=True, slots=True)
class _TokenMean:
    """The mean of a divergence over the counted tokens of all rows."""

    def denominator(self, batch: Masked) -> Tensor:
        """Return the number of counted tokens, a scalar."""
        return batch.mask.sum()

    def __call__(self, divergences: Tensor, batch: Masked) -> Tensor:
        """Return the sum of divergences, a scalar; ``divergences`` is ``(B, T)`` nats."""
        return counted(divergences, batch.mask).sum()


@dataclass(frozen=True, slots=True)
class ReverseKL(_TokenMean):
    r"""Reverse KL over the vocabulary (MiniLLM, Gu et al. 2024, arXiv:2306.08543), per token.

        KL(p || q) = \sum_v p_v (log p_v - log q_v)

    p is the student, q the teacher. It seeks modes: the student gives up what it cannot model.
    Mean over tokens.
    """

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        r"""Return ``(N,)`` nats of ``(N, V)`` log-probs.

        The log-ratio is held constant: its own gradient, \sum_v p_v d log p_v = d 1, is zero, and
        so equal models have gradient exactly 0 rather than a rounding error.
        """
        return (log_p.exp() * (log_p - log_q).detach()).sum(-1)


@dataclass(frozen=True, slots=True)
class ForwardKL(_TokenMean):
    r"""Forward KL over the vocabulary: classical distillation (Hinton et al. 2015).

        KL(q || p) = \sum_v q_v (log q_v - log p_v)

    p is the student, q the teacher (arXiv:1503.02531, but for the teacher's entropy, which is
    constant). It covers modes: the student gives weight to all that the teacher might say. Mean
    over tokens.
    """

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return ``(N,)`` nats of ``(N, V)`` log-probs."""
        return (log_q.exp() * (log_q - log_p)).sum(-1)


@dataclass(frozen=True, slots=True)
class JensenShannon(_TokenMean):
    r"""Generalised Jensen-Shannon divergence (GKD, Agarwal et al. 2024, arXiv:2306.13649).

        m      = beta q + (1 - beta) p
        JSD    = beta KL(q || m) + (1 - beta) KL(p || m)

    p is the student, q the teacher. Bounded by log 2 nats, also where the supports differ. Divided
    by beta it tends to the forward KL as beta goes to 0, divided by 1 - beta to the reverse KL as
    beta goes to 1. Mean over tokens.
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.beta < 1:
            raise ValueError(
                f"beta={self.beta}: give a weight between 0 and 1; at 0 and 1 the divergence is 0 "
                "itself, and its limits are ForwardKL and ReverseKL"
            )

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return ``(N,)`` nats of ``(N, V)`` log-probs."""
        beta = torch.tensor(self.beta, dtype=log_p.dtype, device=log_p.device)
        log_m = torch.logaddexp(log_q + beta.log(), log_p + (1 - beta).log())
        from_teacher = (log_q.exp() * (log_q - log_m)).sum(-1)
        from_student = (log_p.exp() * (log_p - log_m)).sum(-1)
        return beta * from_teacher + (1 - beta) * from_student


@dataclass(frozen=True, slots=True)
class SampledReverseKL:
    r"""Reverse KL as a policy gradient: the teacher grades each sampled token.

        A_t  = log q(y_t | y_<t) - log p(y_t | y_<t)
        loss = the policy objective on (B, T) advantages A

    On-policy distillation as Thinking Machines (2025, "On-policy distillation") do it; of MiniLLM's
    gradient (arXiv:2306.08543, eq. 2) it keeps each token's own reward and leaves out those that
    follow. In expectation over y_t its gradient is ``ReverseKL``'s. It costs no vocabulary-sized
    comparison, and takes teachers whose logits have other padding.
    """

    policy: Objective = field(default_factory=DAPO)
    """Any objective of a policy; the default is the mean over tokens."""

    def __post_init__(self) -> None:
        if needs_reference(self.policy) or isinstance(self.policy, Chooser):
            raise ValueError(
                f"policy is {type(self.policy).__name__} with a reference or statistics of the "
                "batch: the teacher takes the reference's place, so use one without, such as DAPO()"
            )

    def denominator(self, batch: RolloutBatch) -> Tensor:
        """Return the policy objective's denominator, a scalar."""
        return self.policy.denominator(batch)

    def __call__(self, log_probs: Tensor, batch: RolloutBatch) -> Tensor:
        """Return the policy objective's sum, a scalar; the advantages are in the batch."""
        return self.policy(log_probs, batch)


def distillation_advantages(log_probs: Tensor, teacher_log_probs: Tensor, mask: Tensor) -> Tensor:
    r"""Return ``(B, T)`` advantages of the sampled tokens, without gradient; 0 where not counted.

        A_t = log q(y_t | y_<t) - log p(y_t | y_<t)

    Their mean over samples is minus the reverse KL, KL(p || q).

    Args:
        log_probs: ``(B, T)`` nats, under the student that sampled.
        teacher_log_probs: ``(B, T)`` nats, under the teacher.
        mask: ``(B, T)`` bool, True = counts.

    >>> student, teacher = torch.tensor([[0.0, -1.0, -2.0]]), torch.tensor([[9.0, -0.5, -4.0]])
    >>> distillation_advantages(student, teacher, torch.tensor([[False, True, True]]))
    tensor([[ 0.0000,  0.5000, -2.0000]])
    """
    return (counted(teacher_log_probs, mask) - counted(log_probs, mask)).detach()
