"""What reinforcement learning did, in words and exact parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from posttrain.eval import Evaluation, mean_with_interval

__all__ = ["Gain", "account", "split_gain"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """A gain in accuracy, split so that the parts add up to it exactly."""

    choosing: float
    """From reasoning more often, at the accuracies that both ways had before."""
    reasoning: float
    """From getting more right while reasoning."""
    answering: float
    """From getting more right when answering at once."""

    @property
    def total(self) -> float:
        """The whole gain."""
        return self.choosing + self.reasoning + self.answering


def split_gain(before: tuple[float, float, float], after: tuple[float, float, float]) -> Gain:
    r"""Split the gain of an accuracy ``s r + (1 - s) d``.

        choosing  = (s' - s) (r - d)
        reasoning = s' (r' - r)
        answering = (1 - s') (d' - d)

    Args:
        before: ``(s, r, d)``: share that reasons, accuracy of those that do and of those that
            do not.
        after: The same, primed.

    >>> gain = split_gain((0.5, 0.5, 0.0), (1.0, 0.75, 0.0))
    >>> gain.choosing, gain.reasoning, gain.answering, gain.total
    (0.25, 0.25, 0.0, 0.5)
    """
    (s, r, d), (s_after, r_after, d_after) = before, after
    return Gain(
        choosing=(s_after - s) * (r - d),
        reasoning=s_after * (r_after - r),
        answering=(1 - s_after) * (d_after - d),
    )


def account(
    before: Evaluation, after: Evaluation, longer: Evaluation, *, paid: Sequence[str] = ()
) -> str:
    """Return the report's note: how much of a gain is choosing to reason, and what stays hard.

    Args:
        before: Of the model that reinforcement learning started from.
        after: Of the model that it left, on the same problems.
        longer: Of that model on problems longer than any it was trained on.
        paid: Names of the rewards that it was paid.
    """
    parts_before, parts_after = _parts(before), _parts(after)
    gain = split_gain(parts_before, parts_after)
    far = longer.correct.double().mean().item()
    if far < 0.5:
        beyond = (
            f"Problems longer than any it was trained on stay mostly unsolved: {far:.0%} right."
        )
    else:
        beyond = f"Of problems longer than any it was trained on, it now solves {far:.0%}."
    rewards = f"Reinforcement learning paid for {', '.join(paid)}. " if paid else ""
    return (
        f"{rewards}Accuracy at temperature 1 went from {_share(before.correct)} to "
        f"{_share(after.correct)} of all responses. The share that reasons went from "
        f"{parts_before[0]:.0%} to {parts_after[0]:.0%}; accuracy among responses that reason "
        f"from {_among(before, True)} to {_among(after, True)}, among those that answer at once "
        f"from {_among(before, False)} to {_among(after, False)}.\n\n"
        f"{_change(before, after)} **{gain.choosing:z.3f} is choosing to reason**, "
        f"**{gain.reasoning:z.3f} is better arithmetic while reasoning**, and "
        f"{gain.answering:z.3f} is answering better at once (below zero: the contrary). The three "
        f"add up exactly.\n\n{beyond}"
    )


def _change(before: Evaluation, after: Evaluation) -> str:
    """Say whether the change of accuracy is a gain, a loss, or nothing that can be told."""
    change = after.correct.double().mean(1) - before.correct.double().mean(1)  # (N,)
    found = mean_with_interval(change)
    interval = f"(95% interval {found.low:z.3f} to {found.high:z.3f}, over problems)"
    if found.low > 0:
        return f"So of the gain of {found.mean:z.3f} {interval},"
    if found.high < 0:
        return f"So accuracy fell: of the change of {found.mean:z.3f} {interval},"
    return f"No gain can be told from chance: of the change of {found.mean:z.3f} {interval},"


def _parts(found: Evaluation) -> tuple[float, float, float]:
    reasons = found.reasoning
    return (
        reasons.double().mean().item(),
        _mean(found.correct[reasons]),
        _mean(found.correct[~reasons]),
    )


def _among(found: Evaluation, reasoning: bool) -> str:
    """Return the accuracy of the responses that reason, or that do not, in percent."""
    correct = found.correct[found.reasoning == reasoning]
    return f"{_mean(correct):.0%}" if correct.numel() else "(none)"


def _mean(x: Tensor) -> float:
    return x.double().mean().item() if x.numel() else 0.0


def _share(x: Tensor) -> str:
    return f"{_mean(x):.3f}"
