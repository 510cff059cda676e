r"""Preference optimisation: DPO and its family, on pairs of completions.

Each objective keeps the contract of ``posttrain.objectives.base``: a sum, and the number of pairs
that it is divided by. Let log p(y) be the sum of a completion's token log-probabilities, r(y) =
log p(y) - log p_ref(y), and |y| its number of counted tokens. y_w is the chosen completion, y_l
the rejected one; h = r(y_w) - r(y_l).

A pair of which either row has no counted token counts nowhere, so padding changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from posttrain.objectives.base import counted
from posttrain.objectives.sequence import row_means

__all__ = [
    "DPO",
    "IPO",
    "KTO",
    "ORPO",
    "PreferenceObjective",
    "Preferences",
    "SimPO",
    "kto_reference_point",
    "needs_reference_point",
]


class Preferences(Protocol):
    """A batch of pairs: rows 2i are chosen, rows 2i + 1 rejected."""

    @property
    def mask(self) -> Tensor:
        """``(B, T)`` bool, True at the completion's tokens."""
        ...

    @property
    def ref_log_probs(self) -> Tensor | None:
        """``(B, T)`` nats under the frozen reference."""
        ...

    @property
    def reference_point(self) -> Tensor | None:
        """``(B,)`` nats, KTO's z_0; None is 0."""
        ...


@runtime_checkable
class PreferenceObjective(Protocol):
    """The loss of a policy on pairs, as a sum and the number of pairs that it is divided by.

    The contract is that of ``posttrain.objectives.base.Objective``; ``rewards`` comes on top, for
    what is logged. Those that compare with a reference say so with ``needs_reference``, those that
    read ``reference_point`` with ``needs_reference_point``. A new one adds its line in
    ``tests/laws/test_preference.py``.
    """

    def denominator(self, batch: Preferences, /) -> Tensor:
        """Return the number of pairs, a scalar that follows from the mask alone."""
        ...

    def __call__(self, log_probs: Tensor, batch: Preferences, /) -> Tensor:
        """Return the sum to be minimised, a scalar; ``log_probs`` is ``(B, T)`` in nats."""
        ...

    def rewards(self, log_probs: Tensor, batch: Preferences, /) -> Tensor:
        """Return what the loss compares, ``(B,)``: a completion's implicit reward."""
        ...


def needs_reference_point(objective: object) -> bool:
    """Return whether the objective reads ``reference_point``, as KTO does."""
    return bool(getattr(objective, "needs_reference_point", False))


@dataclass(frozen=True, slots=True)
class DPO:
    r"""Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

        loss = -(1 - label_smoothing) log sigmoid(beta h) - label_smoothing log sigmoid(-beta h)

    ``label_smoothing`` is the probability that a label is wrong: conservative DPO, cDPO (Mitchell
    2023, https://ericmitchell.ai/cdpo.pdf). Mean over pairs; log-probabilities are summed.
    """

    beta: float = 0.1
    """How strongly the policy is held to the reference."""
    label_smoothing: float = 0.0
    """Probability of a wrong label, below a half."""

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"label_smoothing={self.label_smoothing}: it is the probability of a wrong label, "
                "so use 0 or more and less than 0.5, where labels say nothing"
            )

    @property
    def needs_reference(self) -> bool:
        """True: the batch has to have ``ref_log_probs``."""
        return True

    def denominator(self, batch: Preferences) -> Tensor:
        """Return the number of pairs, a scalar."""
        return _pairs(batch).sum()

    def __call__(self, log_probs: Tensor, batch: Preferences) -> Tensor:
        """Return the sum of pair losses, a scalar; ``log_probs`` is ``(B, T)``."""
        margins = _margins(self.rewards(log_probs, batch))
        losses = -F.logsigmoid(margins)
        if self.label_smoothing:
            wrong = -F.logsigmoid(-margins)
            losses = (1 - self.label_smoothing) * losses + self.label_smoothing * wrong
        return torch.where(_pairs(batch), losses, 0.0).sum()

    def rewards(self, log_probs: Tensor, batch: Preferences) -> Tensor:
        """Return ``beta r(y)``, ``(B,)``."""
        return self.beta * _log_ratios(log_probs, batch)


@dataclass(frozen=True, slots=True)
class IPO:
    r"""Identity preference optimisation (Azar et al. 2024, arXiv:2310.12036, eq. 17).

        loss = (h - 1 / (2 beta))^2

    ``beta`` is the paper's tau. DPO drives h to infinity where all labels agree; IPO to
    1 / (2 beta). As in the paper the log-probabilities are summed; TRL takes their means.
    """

    beta: float = 0.1
    """The margin h is drawn to one over twice this."""

    def __post_init__(self) -> None:
        _check_beta(self.beta)

    @property
    def needs_reference(self) -> bool:
        """True: the batch has to have ``ref_log_probs``."""
        return True

    def denominator(self, batch: Preferences) -> Tensor:
        """Return the number of pairs, a scalar."""
        return _pairs(batch).sum()

    def __call__(self, log_probs: Tensor, batch: Preferences) -> Tensor:
        """Return the sum of pair losses, a scalar; ``log_probs`` is ``(B, T)``."""
        losses = (_margins(_log_ratios(log_probs, batch)) - 1 / (2 * self.beta)).square()
        return torch.where(_pairs(batch), losses, 0.0).sum()

    def rewards(self, log_probs: Tensor, batch: Preferences) -> Tensor:
        """Return ``beta r(y)``, ``(B,)``: the loss is 0 where they are a half apart."""
        return self.beta * _log_ratios(log_probs, batch)


@dataclass(frozen=True, slots=True)
class SimPO:
    r"""Simple preference optimisation (Meng et al. 2024, arXiv:2405.14734, eq. 6).

        loss = -log sigmoid(beta (log p(y_w) / |y_w| - log p(y_l) / |y_l|) - gamma)

    The mean log-probability is the reward, so there is no reference and no pay for length. The
    defaults are the paper's for an instruction-tuned Llama 3 (appendix B: gamma / beta = 0.55).
    """

    beta: float = 2.5
    """Scales the difference of mean log-probabilities."""
    gamma: float = 1.375
    """Margin by which the chosen completion has to win, after scaling."""

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"gamma={self.gamma}: the margin is a finite number of 0 or more")

    def denominator(self, batch: Preferences) -> Tensor:
        """Return the number of pairs, a scalar."""
        return _pairs(batch).sum()

    def __call__(self, log_probs: Tensor, batch: Preferences) -> Tensor:
        """Return the sum of pair losses, a scalar; ``log_probs`` is ``(B, T)``."""
        margins = self.beta * _margins(row_means(log_probs, batch.mask)) - self.gamma
        return torch.where(_pairs(batch), -F.logsigmoid(margins), 0.0).sum()

    def rewards(self, log_probs: Tensor, batch: Preferences) -> Tensor:
        """Return ``beta log p(y) / |y|``, ``(B,)``."""
        return self.beta * row_means(log_probs, batch.mask)


@dataclass(frozen=True, slots=True)
class ORPO:
    r"""Odds-ratio preference optimisation (Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7).

        P(y) = exp(log p(y) / |y|),  odds(y) = P(y) / (1 - P(y))
        loss = -log P(y_w) - beta log sigmoid(log odds(y_w) - log odds(y_l))

    The first term is fine-tuning on the chosen completion, so there is no reference and no stage
    before. ``beta`` is the paper's lambda.
    """

    beta: float = 0.1
    """Weight of the odds ratio beside the likelihood."""

    def __post_init__(self) -> None:
        _check_beta(self.beta)

    def denominator(self, batch: Preferences) -> Tensor:
        """Return the number of pairs, a scalar."""
        return _pairs(batch).sum()

    def __call__(self, log_probs: Tensor, batch: Preferences) -> Tensor:
        """Return the sum of pair losses, a scalar; ``log_probs`` is ``(B, T)``."""
        likelihoods = row_means(log_probs, batch.mask)[::2]
        margins = _margins(self.rewards(log_probs, batch))
        losses = -likelihoods - self.beta * F.logsigmoid(margins)
        return torch.where(_pairs(batch), losses, 0.0).sum()

    def rewards(self, log_probs: Tensor, batch: Preferences) -> Tensor:
        """Return ``log odds(y)``, ``(B,)``."""
        means = row_means(log_probs, batch.mask)
        certain = -torch.finfo(means.dtype).eps  # beyond it the odds are infinite
        return means - _log1mexp(means.clamp(max=certain))


@dataclass(frozen=True, slots=True)
class KTO:
    r"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306, section 4).

        loss = 1/2 (chosen (1 - sigmoid(beta (r(y_w) - z_0)))
                    + rejected (1 - sigmoid(beta (z_0 - r(y_l)))))

    It judges each completion alone, against z_0, an estimate of KL(policy || reference) in nats
    that holds for the whole batch and has no gradient: ``kto_reference_point``, in the batch's
    field ``reference_point``. Without it z_0 is 0. The mean over pairs of half a sum is the
    paper's mean over completions.
    """

    beta: float = 0.1
    """How fast a gain or a loss saturates."""
    chosen: float = 1.0
    """Weight of chosen completions, the paper's lambda_D."""
    rejected: float = 1.0
    """Weight of rejected ones, the paper's lambda_U."""

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        for name in ("chosen", "rejected"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: a weight is finite and 0 or more")

    @property
    def needs_reference(self) -> bool:
        """True: the batch has to have ``ref_log_probs``."""
        return True

    @property
    def needs_reference_point(self) -> bool:
        """True: without the field ``reference_point``, z_0 is taken for 0."""
        return True

    def denominator(self, batch: Preferences) -> Tensor:
        """Return the number of pairs, a scalar."""
        return _pairs(batch).sum()

    def __call__(self, log_probs: Tensor, batch: Preferences) -> Tensor:
        """Return the sum of pair losses, a scalar; ``log_probs`` is ``(B, T)``."""
        rewards = _log_ratios(log_probs, batch)
        if batch.reference_point is not None:
            rewards = rewards - batch.reference_point.detach()
        # 1 - sigmoid(x) = sigmoid(-x), which has digits left where the sigmoid is near 1.
        gains = self.chosen * torch.sigmoid(-self.beta * rewards[::2])
        losses = self.rejected * torch.sigmoid(self.beta * rewards[1::2])
        return torch.where(_pairs(batch), (gains + losses) / 2, 0.0).sum()

    def rewards(self, log_probs: Tensor, batch: Preferences) -> Tensor:
        """Return ``beta r(y)``, ``(B,)``, not less ``z_0``, which both of a pair have alike."""
        return self.beta * _log_ratios(log_probs, batch)


def kto_reference_point(log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor) -> Tensor:
    r"""Return KTO's z_0 in nats, a scalar without gradient (arXiv:2402.01306, section 4).

        z_0 = max(0, 1/B \sum_i r(y_i))

    Args:
        log_probs: ``(B, T)`` nats, of completions under prompts that are not theirs, as the paper
            estimates it: each prompt with another's completion, of the whole batch.
        ref_log_probs: ``(B, T)`` nats, the same under the reference.
        mask: ``(B, T)`` bool, True at the completions' tokens. Rows without any do not count.

    >>> one = torch.ones(2, 2)
    >>> kto_reference_point(-one, torch.tensor([[-2.0, -2.0], [-2.0, -1.0]]), one.bool())
    tensor(1.5000)
    """
    rewards = (counted(log_probs, mask) - counted(ref_log_probs, mask)).sum(-1).detach()
    return (rewards.sum() / mask.any(-1).sum().clamp(min=1)).clamp(min=0)


def _pairs(batch: Preferences) -> Tensor:
    """Return ``(B / 2,)`` bool: pairs of which both rows have a counted token."""
    rows = batch.mask.any(-1)
    return rows[::2] & rows[1::2]


def _margins(values: Tensor) -> Tensor:
    """Return what the chosen row has more than the rejected one, ``(B / 2,)`` of ``(B,)``."""
    return values[::2] - values[1::2]


def _log_ratios(log_probs: Tensor, batch: Preferences) -> Tensor:
    """Return ``r(y)`` of each row, ``(B,)`` nats; the gradient is the policy's."""
    if batch.ref_log_probs is None:
        raise ValueError(
            "this objective compares with a reference, but the batch has ref_log_probs=None: "
            "compute them with the frozen reference, or take SimPO or ORPO, which have none"
        )
    ref_log_probs = counted(batch.ref_log_probs, batch.mask).detach()
    return (counted(log_probs, batch.mask) - ref_log_probs).sum(-1)


def _log1mexp(x: Tensor) -> Tensor:
    """Return ``log(1 - exp(x))`` for x < 0, whichever way keeps its digits."""
    near, far = torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x))
    return torch.where(x > -math.log(2), near, far)


def _check_beta(beta: float) -> None:
    if not 0 < beta < math.inf:
        raise ValueError(
            f"beta={beta}: use a positive finite number; the docstring has its default"
        )
